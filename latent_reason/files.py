"""Files: written in one rename, read up to a bound; JSON without NaN. No torch here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from latent_reason.errors import DataError

UNREADABLE = (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError)
"""What reading a JSON file of unknown content may raise."""


def exists(path: str | Path, kind: Callable[[Path], bool]) -> bool:
    """Tell whether a text that a user gave names a file, or what else `kind` (`Path.is_file`) asks.

    A text too long for a name, or no name at all, is none; one in a forbidden folder neither.
    """
    try:
        return kind(Path(path))
    except (OSError, ValueError):
        return False


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a hidden path beside `path` to write to; it takes the place of `path` in one rename.

    On an error it is removed and `path` stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_bounded(path: Path, most: int) -> bytes:
    """Return the content of a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it has more than `most` bytes, of which no more are read.
    """
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path.name}: more than {most:,} bytes")
    return data


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one rename, so that no reader meets half a file."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")


def read_json(path: Path, kind: type) -> Any:
    """Read a JSON file whose outermost value is a `kind` (dict or list); NaN is refused.

    Raises:
        DataError: the file is missing, not JSON, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse_constant)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; run a recipe or an evaluation first") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name a run folder") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, kind):
        raise DataError(f"{path}: holds a {type(value).__name__}, expected a {kind.__name__}")
    return value


def refuse_constant(name: str) -> NoReturn:
    """Raise ValueError for NaN and infinities; for `parse_constant` of `json.loads`."""
    raise ValueError(f"{name} is no JSON value")
