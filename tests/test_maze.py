"""Mazes against a plain search of one maze at a time."""

from __future__ import annotations

from collections import deque
from functools import cache

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from latent_reason.data.maze import Maze
from latent_reason.data.maze_making import carve, longest_length
from latent_reason.data.order import Draws
from latent_reason.data.puzzle_splits import SPLITS
from latent_reason.data.puzzles import PuzzleDataset
from latent_reason.errors import ConfigError, DataError

SIZES = [(9, 9), (11, 11), (12, 12), (8, 13), (15, 15)]


def near(cell: int, height: int, width: int) -> list[int]:
    row, column = divmod(cell, width)
    sides = [(row - 1, column), (row, column - 1), (row, column + 1), (row + 1, column)]
    return [r * width + c for r, c in sides if 0 <= r < height and 0 <= c < width]


def shortest_paths(text: str, height: int, width: int) -> list[frozenset[int]]:
    """All shortest paths from S to G as sets of cells between them; none if there is no path."""
    start, goal = text.index("S"), text.index("G")
    moves, queue = {start: 0}, deque([start])
    while queue:
        here = queue.popleft()
        for there in near(here, height, width):
            if text[there] != "#" and there not in moves:
                moves[there] = moves[here] + 1
                queue.append(there)
    if goal not in moves:
        return []
    paths = [[goal]]
    for left in range(moves[goal] - 1, -1, -1):
        paths = [
            [*path, cell]
            for path in paths
            for cell in near(path[-1], height, width)
            if moves.get(cell) == left
        ]
    return [frozenset(path) - {start, goal} for path in paths]


def drawn(text: str, path: frozenset[int]) -> str:
    return "".join("o" if cell in path else c for cell, c in enumerate(text))


def text_of(maze: Maze, tokens: torch.Tensor) -> str:
    return maze.format(tokens.tolist()).replace("\n", "")


@st.composite
def mazes(draw: st.DrawFn, sides: tuple[int, int] = (3, 6)) -> tuple[Maze, str]:
    """Cells with walls anywhere, S and G at two places."""
    height, width = draw(st.integers(*sides)), draw(st.integers(*sides))
    cells = draw(st.lists(st.sampled_from("#  "), min_size=height * width, max_size=height * width))
    start, goal = draw(st.permutations(range(height * width)))[:2]
    cells[start], cells[goal] = "S", "G"
    return Maze(height, width), "".join(cells)


@given(mazes())
def test_shortest_length_is_that_of_a_plain_search(drawing: tuple[Maze, str]) -> None:
    maze, text = drawing
    paths = shortest_paths(text, maze.height, maze.width)
    want = len(paths[0]) + 1 if paths else -1
    assert maze.shortest_lengths(torch.tensor([maze.parse(text)])).tolist() == [want]


@given(mazes())
def test_every_shortest_path_is_valid(drawing: tuple[Maze, str]) -> None:
    maze, text = drawing
    question = maze.parse(text)
    for path in shortest_paths(text, maze.height, maze.width)[:20]:
        answer = maze.parse(drawn(text, path))
        assert maze.conflicts(question, answer) == []
        assert maze.valid(torch.tensor([question]), torch.tensor([answer])).tolist() == [True]


def test_no_path_goes_through_missing_cells() -> None:
    """As a `.npy` file has them around a maze that is smaller than the grid, or in it."""
    maze = Maze(3, 5)
    asked, given = maze.parse("S   G   #       "[:15]), maze.parse("SoooG   #       "[:15])
    for cell in (10, 11, 12, 13, 14):
        asked[cell] = given[cell] = 0
    assert maze.conflicts(asked, given) == []
    asked[1:4] = given[1:4] = [0, 0, 0]
    assert int(maze.shortest_lengths(torch.tensor([asked]))) == -1
    assert maze.valid(torch.tensor([asked]), torch.tensor([given])).tolist() == [False]


@settings(max_examples=50)
@given(mazes((3, 4)), st.data())
def test_an_answer_is_valid_only_with_a_shortest_path(
    drawing: tuple[Maze, str], data: st.DataObject
) -> None:
    maze, text = drawing
    spaces = [cell for cell, c in enumerate(text) if c == " "]
    paths = shortest_paths(text, maze.height, maze.width)
    near_misses = [path ^ {cell} for path in paths[:1] for cell in spaces]
    near_misses += [path - {min(path)} | {cell} for path in paths[:1] if path for cell in spaces]
    anything = data.draw(st.frozensets(st.sampled_from(spaces))) if spaces else frozenset()
    question = maze.parse(text)
    for path in [*near_misses, anything]:
        answer = maze.parse(drawn(text, path))
        valid = maze.valid(torch.tensor([question]), torch.tensor([answer]))
        assert valid.tolist() == [path in paths]
        assert (maze.conflicts(question, answer) == []) == (path in paths)


@cache
def one_maze() -> tuple[Maze, torch.Tensor, torch.Tensor]:
    maze = Maze(9, 9)
    return maze, *maze.generate(1, seed=4)


@given(st.integers(0, 80), st.integers(0, 5))
def test_only_the_path_may_differ_from_the_question(cell: int, token: int) -> None:
    maze, questions, answers = one_maze()
    changed = answers.clone()
    changed[0, cell] = token
    same = bool(changed[0, cell] == answers[0, cell])
    assert maze.valid(questions, changed).tolist() == [same]
    assert (maze.conflicts(questions[0].tolist(), changed[0].tolist()) == []) == same


@pytest.mark.parametrize(
    ("answer", "conflicts"),
    [
        ("Soo  #oG    ", []),
        ("Sooo #oG    ", ["path cells off the way from S to G: 1"]),
        ("So   #oG  o ", ["the path does not join S and G"]),
        ("S   o#oGooo ", ["the path takes 6 moves, 2 more than needed"]),
        (
            "Soo# ooG    ",
            ["cell r1c4 changes from open to a wall", "cell r2c2 changes from a wall to path"],
        ),
    ],
)
def test_conflicts_name_what_is_wrong(answer: str, conflicts: list[str]) -> None:
    maze = Maze(3, 4)
    question = maze.parse("S    # G    ")
    assert maze.conflicts(question, maze.parse(answer)) == conflicts


@given(mazes((3, 5)), st.integers(0, 2**32))
@example((Maze(3, 3), "S    G   "), 0)
def test_symmetry_turns_answers_into_answers(drawing: tuple[Maze, str], seed: int) -> None:
    maze, text = drawing
    symmetry = maze.symmetry(Draws(torch.arange(16), seed))
    question = torch.tensor([maze.parse(text)])
    turned = symmetry.apply(question.expand(16, -1))
    assert torch.equal(symmetry.inverse().apply(turned), question.expand(16, -1))
    paths = shortest_paths(text, maze.height, maze.width)[:3]
    images = [torch.tensor([maze.parse(drawn(text, path))]).expand(16, -1) for path in paths]
    for image in images:
        answers = symmetry.apply(image)
        for row in range(16):
            there = shortest_paths(text_of(maze, turned[row]), maze.height, maze.width)
            cells = frozenset((answers[row] == 5).nonzero()[:, 0].tolist())
            assert cells in there
            assert text_of(maze, answers[row]) == drawn(text_of(maze, turned[row]), cells)


@pytest.mark.parametrize(("size", "num"), [((5, 5), 8), ((4, 5), 4), ((4, 4), 8)])
def test_symmetries_are_all_ways_to_turn_and_mirror(size: tuple[int, int], num: int) -> None:
    maze = Maze(*size)
    symmetry = maze.symmetry(Draws(torch.arange(400), 0))
    ways, counts = symmetry.cells.unique(dim=0, return_counts=True)
    assert len(ways) == num
    assert counts.min() > 400 / num / 2
    grids = torch.arange(maze.num_cells).view(size)
    turns = [0, 1, 2, 3] if size[0] == size[1] else [0, 2]
    want = {tuple(g.rot90(k).flatten().tolist()) for g in (grids, grids.flip(0)) for k in turns}
    assert {tuple(way) for way in ways.tolist()} == want


@given(mazes(), st.integers(0, 2**32))
def test_fingerprint_sees_through_turns_and_exchanged_ends(
    drawing: tuple[Maze, str], seed: int
) -> None:
    maze, text = drawing
    exchanged = text.translate(str.maketrans("SG", "GS"))
    grids = torch.tensor([maze.parse(text), maze.parse(exchanged)]).repeat(4, 1)
    turned = maze.symmetry(Draws(torch.arange(8), seed)).apply(grids)
    assert len(maze.fingerprints(turned).unique()) == 1
    wall = text.find("#")
    if wall >= 0:
        other = torch.tensor([maze.parse(text[:wall] + " " + text[wall + 1 :])])
        assert maze.fingerprints(other) != maze.fingerprints(grids[:1])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("loops", [0.0, 0.2])
def test_generated_mazes_hold_their_one_shortest_path(size: tuple[int, int], loops: float) -> None:
    maze = Maze(*size, loops=loops)
    least = sum(size) + 2
    questions, answers = maze.generate(30, seed=1, min_length=least)
    assert questions.shape == answers.shape == (30, maze.num_cells)
    assert maze.valid(questions, answers).all()
    for question, answer in zip(questions, answers, strict=True):
        text = text_of(maze, question)
        paths = shortest_paths(text, *size)
        assert len(paths) == 1 and len(paths[0]) + 1 >= least
        assert text_of(maze, answer) == drawn(text, paths[0])
        assert maze.parse(maze.format(question.tolist())) == question.tolist()


def test_loops_are_further_routes_through_a_perfect_maze() -> None:
    inner = {}
    for loops in (0.0, 0.3):
        questions, _ = Maze(12, 11, loops).generate(20, seed=2)
        is_open = (questions != 1).view(-1, 12, 11)
        joined = (is_open[:, 1:] & is_open[:, :-1]).sum((1, 2))
        joined += (is_open[:, :, 1:] & is_open[:, :, :-1]).sum((1, 2))
        inner[loops] = joined - is_open.sum((1, 2)) + 1
    assert (inner[0.0] == 0).all()
    assert (inner[0.3] > 0).all()


def test_a_loop_is_seen_wherever_it_is() -> None:
    for loops in (0.0, 0.3):
        maze = Maze(7, 9, loops)
        for question in maze.generate(20, seed=0)[0].tolist():
            text = maze.format(question).splitlines()
            cells = [(r, c) for r in range(7) for c in range(9) if text[r][c] != "#"]
            pairs = [(r, c) for r, c in cells if (r, c + 1) in cells]
            pairs += [(r, c) for r, c in cells if (r + 1, c) in cells]
            assert maze.has_loop(question) == (len(pairs) >= len(cells))
            assert loops or not maze.has_loop(question)
    ring = "S  #  # #  G # "  # a cell apart does not hide it
    assert Maze(3, 5).has_loop(Maze(3, 5).parse(ring))


def test_all_walls_between_rooms_may_be_opened() -> None:
    is_open = carve(Draws(torch.arange(2), seed=0), 5, 5, loops=1.0).view(2, 5, 5)
    assert is_open.sum(dim=(1, 2)).tolist() == [21, 21]  # all but the corners between four rooms
    assert not is_open[:, 1::2, 1::2].any()


def test_thirty_by_thirty_with_paths_as_in_maze_hard() -> None:
    maze = Maze(30, 30)
    questions, answers = maze.generate(12, seed=0, min_length=110)
    assert maze.shortest_lengths(questions).min() >= 110
    assert maze.valid(questions, answers).all()


def test_same_arguments_same_mazes() -> None:
    maze = Maze(9, 9)
    questions, answers = maze.generate(150, seed=5)
    again, fewer, others = (
        maze.generate(150, seed=5),
        maze.generate(40, seed=5),
        maze.generate(150, seed=6),
    )
    assert torch.equal(questions, again[0]) and torch.equal(answers, again[1])
    assert torch.equal(questions[:40], fewer[0]) and torch.equal(answers[:40], fewer[1])
    assert not torch.equal(questions, others[0])


def canonical(maze: Maze, question: torch.Tensor) -> str:
    grid = question.view(maze.height, maze.width)
    images = [g.rot90(k).flatten() for g in (grid, grid.flip(0)) for k in range(4)]
    return min(text_of(maze, image) for image in images)


def test_splits_share_no_maze_whatever_the_seed_and_hold_none_twice() -> None:
    maze = Maze(5, 5)
    kinds = {}
    for split in SPLITS:
        found = [
            canonical(maze, question)
            for seed in (0, 1)
            for question in maze.generate(25, seed=seed, split=split, min_length=6)[0]
        ]
        assert len(set(found[:25])) == 25
        kinds[split] = set(found)
    assert not kinds["train"] & kinds["val"]
    assert not kinds["train"] & kinds["test"]
    assert not kinds["val"] & kinds["test"]


def test_a_split_that_is_used_up_says_so() -> None:
    wish = r"found only \d+ different puzzles of min_length 4 for split 'train', not 5000; ask"
    with pytest.raises(DataError, match=wish):
        Maze(3, 3).generate(5000, seed=0, min_length=4)


def test_large_mazes_are_tried_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    maze, num = Maze(3, 3), []
    monkeypatch.setattr(maze, "_draw", lambda draws, _: num.append(1) or none)
    monkeypatch.setattr("latent_reason.data.maze.MAX_CELLS_MISSED", 9 * 100)
    none = torch.empty(2, 0, 9, dtype=torch.long)
    with pytest.raises(DataError, match="found only 0 different puzzles of min_length 6"):
        maze.generate(1, seed=0)
    assert len(num) == 2  # of 64 and of 128 mazes


@pytest.mark.parametrize("size", [(3, 3), (5, 5), (3, 7), (3, 4), (4, 6), (3, 8), (4, 4)])
@pytest.mark.parametrize("loops", [0.0, 0.3])
def test_no_path_is_longer_than_the_bound(size: tuple[int, int], loops: float) -> None:
    maze, most = Maze(*size, loops), longest_length(*size)
    is_open = carve(Draws(torch.arange(500), 0), *size, loops)
    cells = torch.arange(maze.num_cells)[:, None] == torch.arange(maze.num_cells)
    longest = max(int(maze._distances(is_open, is_open & cell)[0].max()) for cell in cells)
    assert longest <= most and (loops or longest >= most - 2)


def test_a_length_beyond_the_bound_is_refused_at_once() -> None:
    for size, most in (((99, 99), 4998), ((98, 99), 4948), ((5, 5), 16)):
        expected = f"min_length: got {most + 1}, expected 1 to {most}, no {size[0]}x{size[1]} maze"
        with pytest.raises(ConfigError, match=expected):
            Maze(*size).generate(1, seed=0, min_length=most + 1)
    questions, _ = Maze(5, 5).generate(1, seed=0, min_length=16)
    assert Maze(5, 5).shortest_lengths(questions).tolist() == [16]


def test_dataset_draws_turned_mazes_that_stay_right() -> None:
    maze = Maze(9, 9)
    data = PuzzleDataset(maze, *maze.generate(20, seed=0))
    batch = data.at(torch.arange(64), seed=3)
    assert maze.valid(batch["inputs"], batch["labels"]).all()
    assert len(batch["inputs"].unique(dim=0)) > 40


def test_groups_are_the_pairs_of_neighbours() -> None:
    groups = Maze(4, 6).groups()
    pairs = [tuple(group.nonzero()[:, 0].tolist()) for group in groups]
    expected = {(cell, other) for cell in range(24) for other in near(cell, 4, 6) if cell < other}
    assert len(pairs) == len(expected)
    assert set(pairs) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S G  ", "5 cells, expected 9"),
        ("S G   x  ", "'x'"),
        ("S        ", "0 cells are G"),
        ("SS G     ", "2 cells are S"),
    ],
)
def test_drawings_that_are_no_maze_are_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Maze(3, 3).parse(text)


def test_questions_without_a_way_are_never_answered() -> None:
    maze = Maze(3, 3)
    shut, two = maze.parse("S# ## #G "), [3, 3, 2, 2, 2, 2, 2, 2, 4]
    assert maze.shortest_lengths(torch.tensor([shut, two])).tolist() == [-1, -1]
    assert maze.valid(torch.tensor([shut, two]), torch.tensor([shut, two])).tolist() == [False] * 2
    assert len(maze.conflicts(shut, shut)) == len(maze.conflicts(two, two)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "split"),
        ({"num": 0}, "num"),
        ({"min_length": 0}, "min_length"),
        ({"min_length": 81}, "min_length"),
    ],
)
def test_impossible_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Maze(9, 9).generate(**({"num": 1, "seed": 0} | options))
    with pytest.raises(ConfigError, match="width"):
        Maze(9, 2)
    with pytest.raises(ConfigError, match="loops"):
        Maze(9, 9, loops=1.5)
