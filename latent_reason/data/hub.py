"""Data sets of the Hugging Face Hub, and examples from one of them or from a JSONL file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latent_reason.data.jsonl import read_jsonl, to_example
from latent_reason.data.tasks import Example
from latent_reason.errors import DataError, first_line
from latent_reason.files import exists


def refuse_no_name(name: str, hint: str) -> None:
    """Raise DataError for what is neither a folder nor written as a name on the Hub.

    So a mistyped path ends at once, and not after many requests. `hint` says what to give.
    """
    if not name.strip():
        raise DataError(f"the name of a source is empty; {hint}")
    if (name.count("/") != 1 or name[0] in "/.~") and not exists(name, Path.is_dir):
        what = f"{name[:200]}: no such file or folder, and no Hub name such as owner/name"
        raise DataError(f"{what}; {hint}")


def load_split(name: str, split: str, hint: str, text: Sequence[str] = ()) -> Any:
    """Return one split of a Hub data set, or of a folder of data files, as a `datasets.Dataset`.

    Args:
        name: of the data set or folder.
        split: which.
        hint: what to give instead, the end of an error.
        text: columns of CSV files to keep as they are written, where `datasets` would make numbers
            of digits.

    Raises:
        DataError: there is none, or `name` is no name.
    """
    refuse_no_name(name, hint)
    from datasets import load_dataset, load_dataset_builder  # slow to import, only needed here
    from datasets.exceptions import DatasetsError
    from datasets.packaged_modules.csv.csv import CsvConfig

    options: dict[str, Any] = {}
    try:
        if text and isinstance(load_dataset_builder(name).config, CsvConfig):
            options["converters"] = dict.fromkeys(text, str)
        return load_dataset(name, split=split, **options)
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
    rows = load_split(str(source), split, hint, text=("prompt", "answer"))
    examples = []
    for number, row in enumerate(rows, start=1):
        try:
            examples.append(to_example(dict(row)))
        except ValueError as error:
            raise DataError(f"{source}:{number}: {error}") from None
    if not examples:
        raise DataError(f"{source}: split {split!r} is empty; give one with rows")
    return examples
