"""ARC tasks by the name of a Hugging Face data set, or from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from latent_reason.data.arc_files import ArcTask, read_arc, to_task
from latent_reason.data.arc_folder import SPLITS, SUFFIXES, find_task_files
from latent_reason.data.hub import load_split, refuse_no_name
from latent_reason.errors import DataError
from latent_reason.files import exists

NAMES = ("id", "task_id", "task", "name")
"""Columns that may hold the name of a task; without one it is called after its row."""
_HINT = "give an ARC .json file, a folder of them, or a Hub name"


def find_arc(source: str, split: Literal["train", "test"]) -> list[ArcTask]:
    """Return the tasks of a file or folder (see `read_arc`), else of a Hub data set.

    A row of a data set is a task: columns `train` and `test`, lists of pairs with `input` and
    `output`, grids as lists of rows.

    Args:
        source: path, or Hub name such as "owner/name".
        split: which tasks of a data set; a file or a folder with .json files has only one kind.

    Raises:
        DataError: naming source, row or task, and reason.
    """
    if not source:  # which is the current folder to a Path
        refuse_no_name(source, _HINT)
    path = Path(source)
    named_as_file = exists(path, Path.is_file) or path.name.endswith(SUFFIXES)
    if named_as_file or (exists(path, Path.is_dir) and find_task_files(path)):
        return read_arc(path)
    reasons = []
    for name in SPLITS[split]:
        try:
            rows = load_split(source, name, _HINT)
        except DataError as error:
            reasons.append(error)
            continue
        tasks = [_to_task(path, number, row) for number, row in enumerate(rows, start=1)]
        if len({task.name for task in tasks}) < len(tasks):
            raise DataError(f"{source}: two tasks of split {name!r} have the same name; rename one")
        if not tasks:
            raise DataError(f"{source}: split {name!r} is empty; give one with tasks")
        return tasks
    raise reasons[0]


def _to_task(path: Path, number: int, row: dict[str, Any]) -> ArcTask:
    name = next((row[column] for column in NAMES if isinstance(row.get(column), str)), None)
    pairs = {kind: _known(row.get(kind)) for kind in ("train", "test")}
    return to_task(path, name or f"row {number}", pairs)


def _known(pairs: Any) -> Any:
    """Return a list of pairs without outputs that are not known; a table keeps them as None."""
    if not isinstance(pairs, list) or not all(isinstance(pair, dict) for pair in pairs):
        return pairs
    return [{k: v for k, v in pair.items() if k != "output" or v is not None} for pair in pairs]
