"""Text data in JSONL files: one object a line, with the strings `prompt` and `answer`.

`task` and `split` are optional strings; all other fields are ignored. Row i of a list read from a
file (from 0) is line i + 1 of the file: empty lines are refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from latent_reason.data.tasks import TASKS, Example
from latent_reason.errors import DataError
from latent_reason.files import refuse_constant, replacing

MAX_LINE_BYTES = 1_000_000
MAX_FILE_BYTES = 2 * 1024**3
_JSON_NAMES = {
    dict: "an object",
    list: "a list",
    int: "a number",
    float: "a number",
    bool: "a truth value",
}


def _kind(value: object) -> str:
    return "null" if value is None else _JSON_NAMES.get(type(value), "a string")  # pyrefly: ignore


def to_example(row: dict[str, Any]) -> Example:
    """Check the fields of a row; raise ValueError with the reason and the remedy."""
    for field in ("prompt", "answer"):
        if field not in row:
            raise ValueError(f"no field {field!r}; each row needs 'prompt' and 'answer'")
    values = {field: row.get(field, "") for field in ("prompt", "answer", "task", "split")}
    for field, value in values.items():
        if not isinstance(value, str):
            raise ValueError(f"{field!r} is {_kind(value)}, not a string; put it in quotes")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{field!r} has a lone surrogate; remove it") from None
    for field in ("prompt", "answer"):
        if not values[field].strip():
            raise ValueError(f"{field!r} is empty; fill it in or remove the row")
    return Example(**values)


def _parse_line(line: bytes, number: int) -> Example:
    """Read one line; raise ValueError with the reason and the remedy."""
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"line longer than {MAX_LINE_BYTES:,} bytes; one row a line, or cut it")
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1}; save the file as UTF-8") from None
    if not text.strip():
        raise ValueError("empty line; remove it")
    try:
        row = json.loads(text, parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not JSON at character {error.pos + 1} ({error.msg}); mend the line"
        ) from None
    except ValueError as error:
        raise ValueError(f"not JSON ({error}); mend the line") from None
    except RecursionError:
        raise ValueError("nested too deeply; keep to flat objects") from None
    if not isinstance(row, dict):
        raise ValueError(f'{_kind(row)}, not an object; write {{"prompt": ..., "answer": ...}}')
    return to_example(row)


def read_jsonl(path: str | os.PathLike[str]) -> list[Example]:
    """Read examples from a JSONL file in UTF-8 (a byte order mark is allowed).

    Raises:
        DataError: if the file cannot be read, is empty, or has a row that is not usable. The
            message is "FILE:LINE: what is wrong; what to do".
    """
    examples: list[Example] = []
    try:
        if Path(path).stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{path}: larger than {MAX_FILE_BYTES:,} bytes; split the file")
        with open(path, "rb") as file:
            # The bound keeps a file without line ends from filling the memory.
            while line := file.readline(MAX_LINE_BYTES + 1):
                number = len(examples) + 1
                try:
                    examples.append(_parse_line(line, number))
                except ValueError as error:
                    raise DataError(f"{path}:{number}: {error}") from None
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a file that can be read") from None
    if not examples:
        raise DataError(f"{path}:1: the file is empty; write one JSON object a line")
    return examples


def _to_line(example: Example) -> bytes:
    row = {"prompt": example.prompt, "answer": example.answer}
    if example.task:
        row["task"] = example.task
    if example.split:
        row["split"] = example.split
    to_example(row)
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"row longer than {MAX_LINE_BYTES:,} bytes; cut it")
    return line


def _write_lines(temporary: Path, path: Path, examples: Iterable[Example]) -> None:
    """Write all examples to the temporary file of `path`, through to the disk."""
    number = 0
    with open(temporary, "wb") as file:
        for number, example in enumerate(examples, start=1):
            try:
                file.write(_to_line(example))
            except ValueError as error:
                raise DataError(f"{path}:{number}: {error}") from None
        if number == 0:
            raise DataError(f"{path}: no examples to write; give at least one")
        file.flush()
        os.fsync(file.fileno())


def write_jsonl(path: str | os.PathLike[str], examples: Iterable[Example]) -> None:
    """Write examples to a JSONL file; `read_jsonl` gives them back.

    Missing folders are made. The file appears complete or not at all: a file of that name stays as
    it was until the new one is written.

    Raises:
        DataError: if there is nothing to write, a row is not usable, or the file cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: not a regular file; give another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            _write_lines(temporary, path, examples)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a path that can be written") from None


def _leak_keys(example: Example) -> list[tuple[str, str]]:
    keys = [("", " ".join(example.prompt.split()).casefold())]
    if example.task in TASKS:
        keys.append((example.task, TASKS[example.task].instance(example.prompt)))
    return keys


def find_leaks(a: list[Example], b: list[Example]) -> list[tuple[int, int]]:
    """Find the rows of `b` that `a` has too.

    Two rows are the same if their prompts are, apart from white space and case, or if both are of
    the same known task and have the same instance, whatever the wording.

    Returns:
        (row of a, row of b) counted from 0, for every row of `b` that occurs in `a`, with the
        first row of `a` that matches it.
    """
    first: dict[tuple[str, str], int] = {}
    for row, example in enumerate(a):
        for key in _leak_keys(example):
            first.setdefault(key, row)
    leaks = []
    for row, example in enumerate(b):
        matches = [first[key] for key in _leak_keys(example) if key in first]
        if matches:
            leaks.append((min(matches), row))
    return leaks
