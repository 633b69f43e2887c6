"""Examples from a JSONL file or, with the same columns, from a data set of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from latent_reason.data.jsonl import read_jsonl, to_example
from latent_reason.data.tasks import Example
from latent_reason.errors import DataError


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
    from datasets import load_dataset  # slow to import, and only needed here

    try:
        rows = load_dataset(str(source), split=split)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"{source}: no data set with split {split!r} ({reason}); "
            "give a .jsonl file, a folder of data files or a Hub name"
        ) from error
    examples = []
    for number, row in enumerate(rows, start=1):
        try:
            examples.append(to_example(dict(row)))
        except ValueError as error:
            raise DataError(f"{source}:{number}: {error}") from None
    if not examples:
        raise DataError(f"{source}: split {split!r} is empty; give one with rows")
    return examples
