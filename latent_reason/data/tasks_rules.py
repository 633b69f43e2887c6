"""How the instances of the text tasks are drawn and how answers are checked.

Every task is a pair of functions. `sample_*(rng, longer)` draws the data part of a prompt and its
answer, or returns None where the draw is not usable; with `longer` it draws a longer or harder
instance than training has. `verify_*(data, answer)` takes the data part and the answer's symbols
and tells whether the answer is right, by another method than the one that made it; it returns
False or raises ValueError for data that is not of the task. `tasks.py` joins them with wordings.
"""

from __future__ import annotations

from collections import Counter, deque
from functools import cache
from itertools import accumulate, pairwise
from random import Random
from string import ascii_lowercase

Sample = tuple[str, str]

ROLLING_SUMS_LENGTH, ROLLING_SUMS_LONGER = 24, (32, 40)
SORTING_LENGTH, SORTING_LONGER = 16, (24,)
PERMUTATIONS_LENGTH, PERMUTATIONS_LONGER = 24, (32, 40)
REACHABILITY_SIDE, REACHABILITY_LONGER = 6, 8
REACHABILITY_WALL_PROB = 0.4
KHOP_LETTERS, KHOP_LONGER = 14, 20
KHOP_CHAINS = (2, 3, 4)
SUDOKU4_EMPTY, SUDOKU4_LONGER = (6, 7, 8, 9, 10), (11, 12)

PERMUTATION_MOVES = {
    "1": "23451",
    "2": "21534",
    "3": "45213",
    "4": "34512",
    "5": "53124",
    "6": "25431",
}
"""For every move of `permutations`: where it takes a marker from places 1 to 5."""


def _digits(text: str) -> list[int]:
    """Read single digits separated by spaces; raise ValueError for anything else."""
    symbols = text.split(" ")
    if any(symbol not in "0123456789" or len(symbol) != 1 for symbol in symbols):
        raise ValueError("expected single digits separated by single spaces")
    return [int(symbol) for symbol in symbols]


def _draw_digits(rng: Random, num: int) -> list[int]:
    return [rng.randrange(10) for _ in range(num)]


def _join(symbols: list[int] | list[str]) -> str:
    return " ".join(map(str, symbols))


def sample_rolling_sums(rng: Random, longer: bool) -> Sample:
    """Draw digits; the answer holds the running totals modulo 10, added up from the right end.

    Written left to right, so that the first symbol of the answer needs the whole list.
    """
    digits = _draw_digits(rng, rng.choice(ROLLING_SUMS_LONGER) if longer else ROLLING_SUMS_LENGTH)
    totals = list(accumulate(reversed(digits), lambda total, digit: (total + digit) % 10))
    return _join(digits), _join(totals[::-1])


def verify_rolling_sums(data: str, answer: list[str]) -> bool:
    """Compare each symbol with the sum of the digits from its place to the end, modulo 10."""
    digits = _digits(data)
    return answer == [str(sum(digits[place:]) % 10) for place in range(len(digits))]


def sample_sorting(rng: Random, longer: bool) -> Sample:
    """Draw digits; the answer holds them in ascending order."""
    digits = _draw_digits(rng, rng.choice(SORTING_LONGER) if longer else SORTING_LENGTH)
    return _join(digits), _join(sorted(digits))


def verify_sorting(data: str, answer: list[str]) -> bool:
    """Compare the counts of the symbols and look for a descent."""
    digits, values = _digits(data), _digits(" ".join(answer))
    return Counter(digits) == Counter(values) and all(a <= b for a, b in pairwise(values))


def sample_permutations(rng: Random, longer: bool) -> Sample:
    """Draw moves; the answer is where a marker stands after each of them.

    The marker starts at place 1 of five and the moves are done from the last to the first, so
    that the first answer digit needs the whole list. Every move permutes the places and leaves
    none where it was; together they generate all 120 orders. Following them is the word problem
    of the group S5, which no circuit of fixed depth is believed to solve for all lengths.
    """
    num_moves = rng.choice(PERMUTATIONS_LONGER) if longer else PERMUTATIONS_LENGTH
    moves: list[str] = [rng.choice("123456") for _ in range(num_moves)]
    places: list[int] = []
    place = 1
    for move in reversed(moves):
        place = int(PERMUTATION_MOVES[move][place - 1])
        places.append(place)
    return _join(moves), _join(places[::-1])


def verify_permutations(data: str, answer: list[str]) -> bool:
    """Undo the moves from the first to the last: every place must come from the next one."""
    moves = data.split(" ")
    if not set(moves) <= PERMUTATION_MOVES.keys() or len(answer) != len(moves):
        return False
    came_from = [*answer[1:], "1"]
    return all(
        place in PERMUTATION_MOVES[move] and str(PERMUTATION_MOVES[move].index(place) + 1) == source
        for move, place, source in zip(moves, answer, came_from, strict=True)
    )


def sample_reachability(rng: Random, longer: bool) -> Sample | None:
    """Draw a square of 0 (open) and 1 (wall); the answer marks the cells reachable with a 1.

    Walks start at the top left cell, which is open, and go up, down, left and right. The data has
    one row a line, the answer has the cells of all rows in one line. None for an easy grid: all
    open cells reachable, or none as far away as the opposite corner of an empty grid.
    """
    side = REACHABILITY_LONGER if longer else REACHABILITY_SIDE
    walls = [int(rng.random() < REACHABILITY_WALL_PROB) for _ in range(side * side)]
    walls[0] = 0
    rows = [walls[start : start + side] for start in range(0, side * side, side)]
    width = side + 2  # a border of walls, so that no walk leaves the grid
    bordered = [1] * width + [cell for row in rows for cell in (1, *row, 1)] + [1] * width
    distances = {width + 1: 0}
    queue = deque(distances)
    while queue:
        here = queue.popleft()
        for there in (here - width, here - 1, here + 1, here + width):
            if not bordered[there] and there not in distances:
                distances[there] = distances[here] + 1
                queue.append(there)
    if len(distances) == walls.count(0) or max(distances.values()) < 2 * (side - 1):
        return None
    inside = [row * width + column for row in range(1, side + 1) for column in range(1, side + 1)]
    answer = [int(place in distances) for place in inside]
    return "\n".join(_join(row) for row in rows), _join(answer)


def verify_reachability(data: str, answer: list[str]) -> bool:
    """Grow the set of reached cells by all open neighbours until it stays the same."""
    rows = [_digits(line) for line in data.split("\n")]
    side = len(rows)
    if any(len(row) != side or max(row) > 1 for row in rows) or rows[0][0] == 1:
        return False
    is_open = {(r, c) for r, row in enumerate(rows) for c, cell in enumerate(row) if cell == 0}
    reached: set[tuple[int, int]] = set()
    grown = {(0, 0)}
    while grown != reached:
        reached = grown
        moved = {
            (r + dr, c + dc) for r, c in reached for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0))
        }
        grown = reached | (moved & is_open)
    return answer == [str(int((r, c) in reached)) for r in range(side) for c in range(side)]


def sample_khop(rng: Random, longer: bool) -> Sample:
    """Draw chains of letters, shown as shuffled pairs "x y" (x points to y) joined by ", ".

    The answer gives for each pair, in the order shown, the last letter of the pair's chain. Two to
    four chains, each of two letters or more, share all the letters.
    """
    num_letters = KHOP_LONGER if longer else KHOP_LETTERS
    letters = rng.sample(ascii_lowercase, num_letters)
    num_chains = rng.choice(KHOP_CHAINS)
    # Cuts at least 2 apart: draw them from a range shortened by one place a chain, spread by one.
    cuts = sorted(rng.sample(range(1, num_letters - num_chains), num_chains - 1))
    bounds = [0, *(cut + spread for spread, cut in enumerate(cuts, start=1)), num_letters]
    chains = [letters[start:stop] for start, stop in pairwise(bounds)]
    links = [(x, y, chain[-1]) for chain in chains for x, y in pairwise(chain)]
    rng.shuffle(links)
    return ", ".join(f"{x} {y}" for x, y, _ in links), _join([last for _, _, last in links])


def verify_khop(data: str, answer: list[str]) -> bool:
    """Follow the pointers from each pair, at most as many as there are pairs."""
    pairs = [pair.split(" ") for pair in data.split(", ")]
    if any(
        len(pair) != 2 or not all(s in ascii_lowercase and len(s) == 1 for s in pair)
        for pair in pairs
    ):
        return False
    pointers = {x: y for x, y in pairs}
    if len(pointers) != len(pairs) or len(set(pointers.values())) != len(pairs):
        return False
    ends = []
    for x, _ in pairs:
        for _ in pairs:
            x = pointers.get(x, x)
        ends.append(x)
    return answer == ends and not set(ends) & pointers.keys()


def canonical_khop(data: str) -> str:
    """Sort the pairs: the same chains listed in another order are the same instance."""
    return ", ".join(sorted(data.split(", ")))


def _sudoku4_peers(cell: int) -> list[int]:
    row, column = divmod(cell, 4)
    return [
        other
        for other in range(cell)
        if other // 4 == row
        or other % 4 == column
        or (other // 8, other % 4 // 2) == (row // 2, column // 2)
    ]


@cache
def _sudoku4_solutions() -> tuple[list[list[int]], dict[tuple[int, int], int]]:
    """List the 288 solved grids, and for each (cell, digit) a bit mask of those that have it."""
    grids: list[list[int]] = [[]]
    for cell in range(16):
        peers = _sudoku4_peers(cell)
        grids = [
            [*grid, digit]
            for grid in grids
            for digit in (1, 2, 3, 4)
            if all(grid[peer] != digit for peer in peers)
        ]
    masks = {
        (cell, digit): sum(1 << index for index, grid in enumerate(grids) if grid[cell] == digit)
        for cell in range(16)
        for digit in (1, 2, 3, 4)
    }
    return grids, masks


def sample_sudoku4(rng: Random, longer: bool) -> Sample | None:
    """Draw a 4 x 4 Sudoku, row by row with 0 for an empty cell; the answer is the solved grid.

    None where the solution is not unique. Only 288 solved grids exist, so that the solutions of
    one split occur in every other one too: the splits are disjoint by puzzle, not by solution.
    """
    grids, masks = _sudoku4_solutions()
    solution = rng.choice(grids)
    empty = rng.sample(range(16), rng.choice(SUDOKU4_LONGER if longer else SUDOKU4_EMPTY))
    clues = [0 if cell in empty else digit for cell, digit in enumerate(solution)]
    fitting = (1 << len(grids)) - 1
    for cell, digit in enumerate(clues):
        if digit:
            fitting &= masks[cell, digit]
    return (_join(clues), _join(solution)) if fitting.bit_count() == 1 else None


def verify_sudoku4(data: str, answer: list[str]) -> bool:
    """Look for 1 2 3 4 in each row, column and 2 x 2 box, and for every clue in its place."""
    clues, grid = _digits(data), _digits(" ".join(answer))
    if len(clues) != 16 or len(grid) != 16:
        return False
    rows = [grid[start : start + 4] for start in range(0, 16, 4)]
    columns = [grid[start::4] for start in range(4)]
    boxes = [grid[top : top + 2] + grid[top + 4 : top + 6] for top in (0, 2, 8, 10)]
    kept = all(clue in (0, digit) for clue, digit in zip(clues, grid, strict=True))
    return kept and all(sorted(unit) == [1, 2, 3, 4] for unit in rows + columns + boxes)
