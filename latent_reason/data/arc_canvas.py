"""ARC grids on a canvas of tokens, their symmetries, and the way back from a prediction.

A grid of up to 30 x 30 becomes 900 tokens, row by row, as in HRM and TRM: PAD 0, EOS 1, colour c is
c + 2. The grid lies on a canvas of PAD with EOS in the row below it and the column right of it,
where there is room; so an answer tells its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latent_reason.data.arc_files import MAX_SIDE, NUM_COLOURS, Grid
from latent_reason.data.puzzles import PAD, Puzzle

EOS = 1
FIRST_COLOUR = 2
VOCAB_SIZE = FIRST_COLOUR + NUM_COLOURS
NUM_CELLS = MAX_SIDE * MAX_SIDE
FLIP_ROWS, FLIP_COLUMNS, TRANSPOSE = 1, 2, 4  # bits of a turn or mirror; transposed first


@dataclass(frozen=True)
class ArcSymmetry:
    """A turn or mirror of a grid of any size, and a renaming of its colours.

    Attributes:
        dihedral: 0..7; bit 2 transposes, then bit 0 turns the rows upside down and bit 1 swaps
            left and right.
        colours: colour c becomes `colours[c]`; a permutation of 0..9.
    """

    dihedral: int
    colours: tuple[int, ...]

    def apply(self, grid: Grid | Tensor) -> Grid:
        """Transform a grid (height, width), an array or a CPU tensor; a new array is returned."""
        grid = np.asarray(grid)
        if self.dihedral & TRANSPOSE:
            grid = grid.T
        if self.dihedral & FLIP_ROWS:
            grid = grid[::-1]
        if self.dihedral & FLIP_COLUMNS:
            grid = grid[:, ::-1]
        return np.array(self.colours, dtype=np.uint8)[grid]

    def inverse(self) -> ArcSymmetry:
        """Return the symmetry that undoes this one."""
        dihedral = self.dihedral
        if dihedral in (TRANSPOSE | FLIP_ROWS, TRANSPOSE | FLIP_COLUMNS):
            dihedral ^= FLIP_ROWS | FLIP_COLUMNS  # a quarter turn, undone by the other one
        return ArcSymmetry(dihedral, tuple(np.argsort(self.colours).tolist()))


def crop(tokens: Tensor | np.ndarray) -> Grid | None:
    """Return the grid on a predicted canvas: the largest one at the top left of colours only.

    Args:
        tokens: (900,) any integers, on the CPU. Rectangles from the corner are compared by area;
            of equal ones the lowest counts, as in the originals.

    Returns:
        (height, width) uint8 colours, or None if the corner holds no colour.
    """
    canvas = np.asarray(tokens).reshape(MAX_SIDE, MAX_SIDE)
    coloured = (canvas >= FIRST_COLOUR) & (canvas < VOCAB_SIZE)
    width = np.minimum.accumulate(np.logical_and.accumulate(coloured, axis=1).sum(axis=1))
    area = width * np.arange(1, MAX_SIDE + 1)
    height = int(area.argmax()) + 1
    if area[height - 1] == 0:
        return None
    return (canvas[:height, : width[height - 1]] - FIRST_COLOUR).astype(np.uint8)


def draw(grid: Grid) -> str:
    """Return a grid (height, width) as lines of digits."""
    return "\n".join("".join(map(str, row)) for row in grid.tolist())


def place(
    cells: Tensor, sizes: Tensor, dihedral: Tensor, colours: Tensor, offsets: Tensor
) -> Tensor:
    """Transform B grids of different sizes and lay them on canvases.

    Args:
        cells: (B, 900) uint8 colours, row by row with stride 30; anything outside of the grid.
        sizes: (B, 2) int64 height and width; 0, 0 gives an empty canvas.
        dihedral: (B,) int64, as in `ArcSymmetry`.
        colours: (B, 10) int64, as in `ArcSymmetry`.
        offsets: (B, 2) int64 row and column of the top left cell.

    Returns:
        (B, 900) int64 tokens.
    """
    turned = (dihedral & TRANSPOSE).bool()[:, None]
    sizes = torch.where(turned, sizes.flip(1), sizes)
    height, width = sizes[:, :1], sizes[:, 1:]
    at = torch.arange(NUM_CELLS, device=cells.device)
    row, column = at // MAX_SIDE - offsets[:, :1], at % MAX_SIDE - offsets[:, 1:]
    in_rows, in_columns = (row >= 0) & (row < height), (column >= 0) & (column < width)
    border = (in_rows & (column == width)) | (in_columns & (row == height))
    row = torch.where((dihedral & FLIP_ROWS).bool()[:, None], height - 1 - row, row)
    column = torch.where((dihedral & FLIP_COLUMNS).bool()[:, None], width - 1 - column, column)
    source = torch.where(turned, column * MAX_SIDE + row, row * MAX_SIDE + column)
    old = cells.gather(1, source.clamp(0, NUM_CELLS - 1)).long()
    tokens = colours.gather(1, old) + FIRST_COLOUR
    return torch.where(in_rows & in_columns, tokens, torch.where(border, EOS, PAD))


class ArcCanvas(Puzzle):
    """The canvas as a kind of puzzle: "|" is EOS. Its rule is another one in every task."""

    name = "arc"
    height = width = MAX_SIDE
    alphabet = "|0123456789"

    def format(self, tokens: Sequence[int]) -> str:
        """Return the grid on a canvas (900 tokens) as lines of digits, "-" if there is none."""
        grid = crop(np.array(tokens))
        if grid is None:
            return "-"
        return draw(grid)
