"""The .json files of a folder of ARC tasks, bounded before any of them is read."""

from __future__ import annotations

import os
from pathlib import Path

from latent_reason.errors import DataError

MAX_FOLDER_BYTES = 1024**3
MAX_FOLDER_ENTRIES = 100_000
SUFFIXES = (".json", ".json.gz")
SPLITS = {"train": ("train", "training"), "test": ("test", "evaluation", "eval")}
"""Names of the tasks to learn and of those to evaluate in folders and data sets, tried in order."""


def find_task_files(folder: Path) -> list[Path]:
    """Return the .json files of a folder and of the folders inside it, in the order of their paths.

    Hidden files and folders are left out.

    Raises:
        DataError: it cannot be read, holds too much, or both training and evaluation tasks.
    """
    files, folders, num_entries, size = [], [folder], 0, 0
    try:
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    num_entries += 1
                    if num_entries > MAX_FOLDER_ENTRIES:
                        raise DataError(
                            f"{folder}: more than {MAX_FOLDER_ENTRIES:,} files and folders; "
                            "give one of tasks only"
                        )
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        folders.append(Path(entry.path))
                    elif entry.name.endswith(SUFFIXES):
                        files.append(Path(entry.path))
                        size += entry.stat().st_size
    except OSError as error:
        raise DataError(
            f"{error.filename}: {error.strerror}; give a folder that can be read"
        ) from error
    if size > MAX_FOLDER_BYTES:
        raise DataError(
            f"{folder}: files of more than {MAX_FOLDER_BYTES:,} bytes; split the folder"
        )
    _refuse_both_splits(folder, files)
    return sorted(files)


def _refuse_both_splits(folder: Path, files: list[Path]) -> None:
    """Refuse files in folders inside `folder` that are named after both splits."""
    inside = sorted({folder / p for file in files for p in file.relative_to(folder).parents})
    train, test = (
        next((p for p in inside if p != folder and p.name in names), None)
        for names in SPLITS.values()
    )
    if train is not None and test is not None:
        raise DataError(
            f"{folder}: holds both training and evaluation tasks; name {train} or {test}"
        )
