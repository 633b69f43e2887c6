"""The walls of random mazes, many at once."""

from __future__ import annotations

import torch
from torch import Tensor

from latent_reason.data.order import LARGEST, Draws


def carve(draws: Draws, height: int, width: int, loops: float) -> Tensor:
    """Carve mazes by randomised depth-first search, then open some of the walls left.

    Rooms lie on every other row and column, beginning at the top left corner; without loops there
    is exactly one route between any two of them. A side of even length gets one more line: a line
    of walls, anywhere, is doubled together with the passages through it.

    Args:
        draws: random numbers for B mazes.
        height: of the grid, 3 or more.
        width: of the grid, 3 or more.
        loops: probability that a wall between two rooms is opened.

    Returns:
        (B, height * width) bool, True for open cells.
    """
    rows, columns = (height + 1) // 2, (width + 1) // 2
    is_open = _search_depth_first(draws, rows, columns)
    walls = torch.zeros(2 * rows - 1, 2 * columns - 1, dtype=torch.bool)
    walls[::2, 1::2] = walls[1::2, ::2] = True
    between = walls.flatten().nonzero()[:, 0]
    chance = draws.numbers(len(between)) < min(LARGEST, int(loops * LARGEST))
    is_open[:, between] |= chance
    lines, across = _stretched(draws, height), _stretched(draws, width)
    cells = lines[:, :, None] * (2 * columns - 1) + across[:, None, :]
    return is_open.gather(1, cells.flatten(1))


def longest_length(height: int, width: int) -> int:
    """Return a number of moves that no shortest path through a maze of `carve` exceeds.

    Rooms and passages take turns on a path, each at most once, so that n rooms give 2 (n - 1)
    moves. A path that ends in a passage gains none: it leaves out the room behind, which would be
    a shorter way. A doubled line adds one move for each passage through it.
    """
    rows, columns = (height + 1) // 2, (width + 1) // 2
    doubled = (0 if height % 2 else columns) + (0 if width % 2 else rows)
    return 2 * (rows * columns - 1) + doubled


def pick(cells: Tensor, draws: Draws) -> Tensor:
    """Choose one of the cells (B, S) bool that are True, at random: (B, S) bool, at most one."""
    counts = cells.cumsum(dim=1)
    chosen = draws.numbers(1) % counts[:, -1:].clamp(min=1) + 1
    return cells & (counts == chosen)


def _search_depth_first(draws: Draws, rows: int, columns: int) -> Tensor:
    """Return (B, (2 * rows - 1) * (2 * columns - 1)) bool: rooms and the passages between them.

    All mazes take their steps together: into a room not yet visited or, where there is none, back.
    """
    num, stride = rows * columns, 2 * columns - 1
    room = torch.arange(num)
    row, column = room // columns, room % columns
    place = 2 * row * stride + 2 * column
    # Rooms left, right, above, below; `num` stands for none and counts as visited.
    near = torch.stack((room - 1, room + 1, room - columns, room + columns), dim=1)
    edge = torch.stack((column == 0, column == columns - 1, row == 0, row == rows - 1), dim=1)
    near = near.masked_fill(edge, num)
    order = draws.numbers(4 * num).view(-1, num, 4)

    batch = torch.arange(len(order))
    here = draws.below(num)
    origin = here[:, None].repeat(1, num)
    visited = torch.zeros(len(order), num + 1, dtype=torch.bool)
    visited[:, num] = True
    visited[batch, here] = True
    is_open = torch.zeros(len(order), (2 * rows - 1) * stride, dtype=torch.bool)
    is_open[:, place] = True
    for _ in range(2 * num - 2):
        around = near[here]
        wish, side = order[batch, here].masked_fill(visited.gather(1, around), -1).max(dim=1)
        onwards = wish >= 0
        there = torch.where(onwards, around[batch, side], origin[batch, here])
        origin[batch, there] = torch.where(onwards, here, origin[batch, there])
        visited[batch, there] = True
        is_open[batch, (place[here] + place[there]) // 2] = True
        here = there
    return is_open


def _stretched(draws: Draws, side: int) -> Tensor:
    """Return (B, side) int64: which line of an odd grid each line of the wanted one repeats."""
    doubled = 2 * draws.below((side - 1) // 2) + 1
    lines = torch.arange(side)
    if side % 2:
        return lines.expand(len(doubled), side)
    return lines - (lines > doubled[:, None]).long()
