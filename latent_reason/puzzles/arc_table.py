"""`tasks.json` in the folder of an ARC model: what the rows of its puzzle table stand for.

An imported model has `identifiers.json` instead, see `published_identifiers.py`.
"""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from latent_reason.config import PuzzleModelConfig
from latent_reason.data.arc import ArcDataset
from latent_reason.data.arc_files import ArcTask
from latent_reason.errors import ConfigError
from latent_reason.files import read_bounded
from latent_reason.model_folder import IDENTIFIERS, TASKS, reading
from latent_reason.puzzles.published_identifiers import PublishedArc, read_identifiers

MAX_BYTES = 4 * 1024**2
MAX_VOTES = 10_000
"""Without a puzzle table; with one, as many as the augmentations that it was trained with."""


class ArcTable(NamedTuple):
    """Names of the tasks, in order; the rest is as in `ArcDataset`."""

    tasks: list[str]
    num_augmentations: int
    seed: int


def table_of(dataset: ArcDataset) -> dict[str, Any]:
    """Return what tasks.json says of a model trained on a dataset."""
    names = [task.name for task in dataset.tasks]
    return ArcTable(names, dataset.num_augmentations, dataset.seed)._asdict()


def read_table(folder: Path, num_puzzles: int) -> ArcTable:
    """Read tasks.json from the folder of a model.

    Raises:
        CheckpointError: it is missing, corrupt, or not of a puzzle table of `num_puzzles` rows.
    """
    with reading(folder, "model", "recipes/train_puzzle.py for ARC or by import --identifiers"):
        saved = json.loads(read_bounded(folder / TASKS, MAX_BYTES))
        if not isinstance(saved, dict) or saved.keys() != {*ArcTable._fields}:
            raise ValueError(f"{TASKS}: must be an object of {', '.join(ArcTable._fields)}")
        table = ArcTable(**saved)
        names, num, seed = table
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{TASKS}: tasks must be a list of names")
        if type(num) is not int or num < 0 or type(seed) is not int or not 0 <= seed < 2**32:
            raise ValueError(f"{TASKS}: num_augmentations and seed must be whole numbers from 0")
        if len(set(names)) < len(names) or 1 + len(names) * (1 + num) != num_puzzles:
            raise ValueError(f"{TASKS}: not of a puzzle table of {num_puzzles} rows")
    return table


def known_tasks(
    folder: str | Path, config: PuzzleModelConfig, tasks: Sequence[ArcTask]
) -> ArcDataset:
    """Return tasks to evaluate, with the identifiers by which a model knows them.

    A model with a puzzle table has learned an embedding for each task and augmentation; it takes
    no other tasks, and knows them by name.

    Args:
        folder: of the model.
        config: of the model.
        tasks: all of their test pairs are to be predicted.

    Raises:
        CheckpointError: the model has a puzzle table, and nothing usable says what is in it.
        ConfigError: naming the first task that the table does not hold.
    """
    if not config.puzzle_emb_size:
        return ArcDataset([], tasks, MAX_VOTES, seed=0)
    folder = Path(folder)
    if (folder / IDENTIFIERS).exists():
        identifiers = read_identifiers(folder / IDENTIFIERS, config.num_puzzles)
        check_known(tasks, identifiers.rows)
        return PublishedArc(tasks, identifiers)
    table = read_table(folder, config.num_puzzles)
    check_known(tasks, table.tasks)
    # The same tasks in the same order have the same identifiers.
    given = {task.name: task for task in tasks}
    places = [given.get(name, ArcTask(name, (), ())) for name in table.tasks]
    return ArcDataset([], places, table.num_augmentations, table.seed)


def check_known(tasks: Sequence[ArcTask], known: Container[str]) -> None:
    """Raise ConfigError for the first task whose name is not known to a model."""
    for task in tasks:
        if task.name not in known:
            raise ConfigError(
                f"task {task.name!r}: the model was not trained with it and has no embedding of "
                "it; train with its demonstrations: test_data of recipes/train_puzzle.py"
            )
