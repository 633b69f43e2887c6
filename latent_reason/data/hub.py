"""Data sets of the Hugging Face Hub, and examples from one of them or from a JSONL file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latent_reason.data.jsonl import read_jsonl, to_example
from latent_reason.data.tasks import Example
from latent_reason.errors import DataError, first_line


def load_split(name: str, split: str, hint: str) -> Any:
    """Return one split of a Hub data set, or of a folder of data files, as a `datasets.Dataset`.

    Raises:
        DataError: there is none; it ends with `hint`, what to give instead.
    """
    from datasets import load_dataset  # slow to import, and only needed here
    from datasets.exceptions import DatasetsError

    try:
        return load_dataset(name, split=split)
    except (DatasetsError, OSError, ValueError) as error:
        what = f"{name}: no data set with split {split!r} ({first_line(error)})"
        raise DataError(f"{what}; {hint}") from error


def read_examples(source: Path, split: str) -> list[Example]:
    """Read rows with `prompt` and `answer`.

    Args:
        source: a .jsonl file, a folder of data files, or a Hub name such as "owner/name".
        split: which split of a folder or Hub data set; a file has only one.

    Raises:
        DataError: if there is no such source or split, or a row is not usable; the message names
            source, row (from 1) and reason.
    """
    if source.suffix == ".jsonl" or source.is_file():
        return read_jsonl(source)
    hint = "give a .jsonl file, a folder of data files or a Hub name"
    rows = load_split(str(source), split, hint)
    examples = []
    for number, row in enumerate(rows, start=1):
        try:
            examples.append(to_example(dict(row)))
        except ValueError as error:
            raise DataError(f"{source}:{number}: {error}") from None
    if not examples:
        raise DataError(f"{source}: split {split!r} is empty; give one with rows")
    return examples
