"""The kinds of puzzles by name: sudoku-9x9, maze-15x15, sorting-16, arc and so on."""

from __future__ import annotations

import re

from latent_reason.data.arc_canvas import ArcCanvas
from latent_reason.data.grid_tasks import Sorting, StateTracking
from latent_reason.data.maze import Maze
from latent_reason.data.puzzles import Puzzle
from latent_reason.data.sudoku import Sudoku
from latent_reason.errors import ConfigError

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3), 16: (4, 4)}
KINDS = (
    "sudoku-NxN (N 4, 6, 9 or 16), maze-HxW, perfect-maze-HxW (one route only), "
    "sorting-N (digits), state-tracking-N (moves), arc"
)


def find_puzzle(name: str) -> Puzzle:
    """Return a puzzle by its name and size, such as "sudoku-9x9", "maze-15x15" or "arc".

    Raises:
        ConfigError: for another name or an impossible size.
    """
    if name == ArcCanvas.name:
        return ArcCanvas()
    if line := re.fullmatch(r"(sorting|state-tracking)-(\d{1,3})", name):
        length = int(line[2])
        return Sorting(length) if line[1] == "sorting" else StateTracking(length)
    match = re.fullmatch(r"(sudoku|maze|perfect-maze)-(\d{1,2})x(\d{1,2})", name)
    if match is None:
        raise ConfigError(f"puzzle: got {name!r}, expected one of {KINDS}, or module:Name")
    height, width = int(match[2]), int(match[3])
    if match[1] == "maze":
        return Maze(height, width)
    if match[1] == "perfect-maze":
        return Maze(height, width, loops=0.0)
    if height != width or height not in BOXES:
        raise ConfigError(f"puzzle: got {name!r}, expected a size N of {sorted(BOXES)}")
    return Sudoku(*BOXES[height])
