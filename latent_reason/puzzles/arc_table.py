"""`tasks.json` in the folder of an ARC model: what the rows of its puzzle table stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from latent_reason.data.arc import ArcDataset
from latent_reason.model_folder import reading
from latent_reason.runs import write_json

TABLE = "tasks.json"
MAX_BYTES = 4 * 1024**2


class ArcTable(NamedTuple):
    """Names of the tasks, in order; the rest is as in `ArcDataset`."""

    tasks: list[str]
    num_augmentations: int
    seed: int


def write_table(folder: Path, dataset: ArcDataset) -> None:
    """Write tasks.json into the folder of a model trained on a dataset."""
    names = [task.name for task in dataset.tasks]
    write_json(folder / TABLE, ArcTable(names, dataset.num_augmentations, dataset.seed)._asdict())


def read_table(folder: Path, num_puzzles: int) -> ArcTable:
    """Read tasks.json from the folder of a model.

    Raises:
        CheckpointError: it is missing, corrupt, or not of a puzzle table of `num_puzzles` rows.
    """
    with reading(folder, "model", "recipes/train_puzzle.py for ARC"):
        with open(folder / TABLE, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"{TABLE}: more than {MAX_BYTES:,} bytes")
        saved = json.loads(data)
        if not isinstance(saved, dict) or saved.keys() != {*ArcTable._fields}:
            raise ValueError(f"{TABLE}: must be an object of {', '.join(ArcTable._fields)}")
        table = ArcTable(**saved)
        names, num, seed = table
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{TABLE}: tasks must be a list of names")
        if type(num) is not int or num < 0 or type(seed) is not int or not 0 <= seed < 2**32:
            raise ValueError(f"{TABLE}: num_augmentations and seed must be whole numbers from 0")
        if len(set(names)) < len(names) or 1 + len(names) * (1 + num) != num_puzzles:
            raise ValueError(f"{TABLE}: not of a puzzle table of {num_puzzles} rows")
    return table
