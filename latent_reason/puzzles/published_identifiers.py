"""`identifiers.json` of the original HRM and TRM: what the rows of their ARC puzzle tables mean.

A list with an entry for each row: "<blank>", a task as it is, or TASK|||tD|||PERMUTATION (HRM:
TASK_tD_PERMUTATION), the task turned by D with colour c renamed to digit number c of PERMUTATION.
They write it beside the data that they train on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as shown
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from latent_reason.data.arc import ArcDataset
from latent_reason.data.arc_canvas import FLIP_COLUMNS, FLIP_ROWS, TRANSPOSE
from latent_reason.data.arc_files import NUM_COLOURS, ArcTask
from latent_reason.errors import CheckpointError
from latent_reason.files import read_bounded
from latent_reason.model_folder import IDENTIFIERS

MAX_BYTES = 256 * 1024**2
BLANK, PLAIN = "<blank>", "0123456789"
FORM = re.compile(
    r"(?P<task>[^|]+?)((?P<sep>\|\|\||_)t(?P<turn>[0-7])(?P=sep)(?P<names>[0-9]{10}))?"
)
DIHEDRAL = (
    0,
    TRANSPOSE | FLIP_ROWS,  # a quarter turn to the left, np.rot90
    FLIP_ROWS | FLIP_COLUMNS,
    TRANSPOSE | FLIP_COLUMNS,
    FLIP_COLUMNS,
    FLIP_ROWS,
    TRANSPOSE,
    TRANSPOSE | FLIP_ROWS | FLIP_COLUMNS,
)
"""Their turns and mirrors 0 to 7 as in `ArcSymmetry`."""


class Identifiers(NamedTuple):
    """Rows of the puzzle table: those of each task, as it is first; what all P of them do.

    dihedral (P,) and colours (P, 10) int64 are as in `ArcSymmetry`.
    """

    rows: dict[str, list[int]]
    dihedral: Tensor
    colours: Tensor


def read_identifiers(path: Path, num_puzzles: int) -> Identifiers:
    """Read identifiers.json.

    Raises:
        CheckpointError: it is missing, too large, corrupt, or not of a puzzle table of
            `num_puzzles` rows.
    """
    try:
        entries = json.loads(read_bounded(path, MAX_BYTES))
        if not isinstance(entries, list) or entries[:1] != [BLANK]:
            raise ValueError(f"must be a list that starts with {BLANK!r}")
        if len(entries) != num_puzzles:
            raise ValueError(f"{len(entries)} entries, the puzzle table has {num_puzzles} rows")
        return _parse(entries)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: cannot be used ({error}); give the {IDENTIFIERS} that the originals wrote "
            "beside their data"
        ) from error


def _parse(entries: list[object]) -> Identifiers:
    rows: dict[str, list[int]] = {}
    turns, names = [], []
    for row, entry in enumerate(entries):
        found = FORM.fullmatch(entry) if isinstance(entry, str) else None
        if found is None or len({*(found["names"] or PLAIN)}) < NUM_COLOURS:
            raise ValueError(f"entry {row} is {shown(entry)}")
        task, turn = found["task"], found["turn"]
        if (task in rows) != (turn is not None):
            raise ValueError(f"entry {row}: {shown(task)} is to come once as it is, then augmented")
        if task != BLANK:
            rows.setdefault(task, []).append(row)
        turns.append(DIHEDRAL[int(turn or 0)])
        names.append(found["names"] or PLAIN)
    digits = torch.frombuffer(bytearray("".join(names).encode()), dtype=torch.uint8).long()
    colours = digits.view(-1, NUM_COLOURS) - ord("0")
    return Identifiers(rows, torch.tensor(turns), colours)


class PublishedArc(ArcDataset):
    """Tasks to evaluate, with the augmentations that an original was trained with.

    Tasks have different numbers of them; identifier 0 is that of a missing one.

    Args:
        tasks: all of their test pairs are to be predicted.
        identifiers: that hold the tasks.
    """

    def __init__(self, tasks: Sequence[ArcTask], identifiers: Identifiers) -> None:
        rows = [identifiers.rows[task.name] for task in tasks]
        super().__init__([], tasks, max(map(len, rows), default=1) - 1, seed=0)
        self._rows = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        self._known = identifiers

    def symmetries(self, puzzle_identifiers: Tensor) -> tuple[Tensor, Tensor]:
        """Return dihedral (B,) and colours (B, 10) of identifiers (B,), as in `ArcSymmetry`."""
        rows, device = puzzle_identifiers.cpu(), puzzle_identifiers.device
        return self._known.dihedral[rows].to(device), self._known.colours[rows].to(device)

    def _identifiers(self, tasks: Tensor, k: Tensor) -> Tensor:
        return self._rows.to(tasks.device)[tasks, k]
