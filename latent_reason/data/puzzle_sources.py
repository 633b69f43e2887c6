"""Where grids of puzzles come from: CSV files, `.npy` arrays, Hub data sets; as chunks of tokens.

Bounds on bytes, lines and rows are checked while reading, before memory is taken; nothing is
unpickled. `puzzle_files.py` has the formats and the checks of what is read.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import tokenize
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from latent_reason.data.hub import load_split, refuse_no_name
from latent_reason.data.puzzles import PAD, Puzzle
from latent_reason.errors import ConfigError, DataError, first_line
from latent_reason.files import exists

MAX_ROWS = 10_000_000
MAX_BYTES = 4 * 1024**3
"""Uncompressed; the training file of Sudoku-Extreme has 0.8 GB."""
MAX_LINE_BYTES = 1024**2
FIELDS = ("question", "answer")
UNREADABLE_ARRAY = (ValueError, TypeError, OverflowError, OSError, EOFError)
UNREADABLE_ARRAY += (SyntaxError, tokenize.TokenError, MemoryError, RecursionError)
"""What numpy may raise on the header of a `.npy` file, which it reads as Python does."""
_CHUNK = 8192
HINT = "give a .csv, .csv.gz or .npy file, a folder of them, or a Hub name"

Grids = tuple[np.ndarray, np.ndarray]
"""Questions and answers, (n, S) uint8 tokens each."""


@dataclass
class Rows:
    """What messages say about rows: source, number of its first row, rows read before a chunk."""

    source: str
    first: int
    num: int = 0

    def require(self, good: np.ndarray, reason: Callable[[int], str]) -> None:
        """Raise DataError about the first row of a chunk (n,) bool that is not good."""
        if not good.all():
            at = int(good.argmin())
            raise DataError(f"{self.source}:{self.first + self.num + at}: {reason(at)}")


def open_source(path: Path, puzzle: Puzzle, split: str) -> tuple[Rows, Iterator[Grids]]:
    """Return the rows of a source of any kind, in chunks.

    Raises:
        DataError: if there is no such source; while iterating, if it cannot be read.
    """
    if exists(path, Path.is_dir):
        found = [path / f"{split}.csv", path / f"{split}.csv.gz", path / split, path]
        path = next((p for p in found if p.is_file() or (p / "questions.npy").is_file()), path)
    if exists(path / "questions.npy", Path.is_file):
        rows = Rows(str(path), 1)
        questions, answers = (_load(path / f"{name}.npy") for name in ("questions", "answers"))
        return rows, _array_chunks(rows, questions, answers, puzzle)
    if path.suffix == ".npy":
        rows, pairs = Rows(str(path), 1), _load(path)
        if pairs.ndim < 3 or pairs.shape[1] != 2:
            raise DataError(f"{path}: shape {pairs.shape}, expected (rows, 2, cells)")
        return rows, _array_chunks(rows, pairs[:, 0], pairs[:, 1], puzzle)
    if exists(path, Path.is_file) or path.suffix in (".csv", ".gz"):
        rows = Rows(str(path), 2)
        return rows, _csv_chunks(rows, path, puzzle)
    return _open_hub(path, puzzle, split)


def _open_hub(path: Path, puzzle: Puzzle, split: str) -> tuple[Rows, Iterator[Grids]]:
    """Return the rows of a Hub data set, or of a folder of another kind of data files."""
    name = str(path)
    refuse_no_name(name, HINT)
    from huggingface_hub import hf_hub_download  # slow to import, and only needed here
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    if not path.is_dir():
        try:  # the file itself: `datasets` takes a long row of digits for a number
            file = hf_hub_download(name, f"{split}.csv", repo_type="dataset")
            rows = Rows(f"{name}/{split}.csv", 2)
            return rows, _csv_chunks(rows, Path(file), puzzle)
        except (EntryNotFoundError, HFValidationError, OSError):
            pass
    table = load_split(name, split, HINT, text=FIELDS).with_format("arrow")
    rows = Rows(f"{name} ({split})", 1)
    for field in FIELDS:
        feature = table.features.get(field, "missing")
        kind = getattr(feature, "dtype", feature if feature == "missing" else "nested")
        if kind not in ("string", "large_string"):
            raise DataError(f"{rows.source}: column {field!r} is {kind}, expected text")
    return rows, (_text_grids(rows, chunk, puzzle) for chunk in table.iter(_CHUNK))


class _Bounded(io.RawIOBase):
    """Reads a file up to `MAX_BYTES`, and refuses endless lines before they fill the memory."""

    def __init__(self, file: IO[bytes], source: str) -> None:
        self._file, self._source = file, source
        self._total = self._line = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._total += len(data)
        line_end = data.rfind(b"\n")
        self._line = len(data) - line_end - 1 if line_end >= 0 else self._line + len(data)
        if self._line >= MAX_LINE_BYTES:
            raise DataError(f"{self._source}: a line of {MAX_LINE_BYTES:,} bytes or more; cut it")
        if self._total > MAX_BYTES:
            raise DataError(f"{self._source}: larger than {MAX_BYTES:,} bytes; split the file")
        return data


def _csv_chunks(rows: Rows, path: Path, puzzle: Puzzle) -> Iterator[Grids]:
    """Read the two columns of a CSV file, plain or gzip."""
    from pyarrow import ArrowInvalid

    try:
        with open(path, "rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            file: Any = gzip.GzipFile(fileobj=plain) if packed else plain
            _refuse_repeated_columns(file.readline(MAX_LINE_BYTES), rows.source)
            file.seek(0)
            for batch in _open_csv(_Bounded(file, rows.source), rows.source):
                yield _text_grids(rows, batch, puzzle)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{rows.source}: damaged gzip file ({error}); get it again") from None
    except FileNotFoundError:
        raise DataError(f"{rows.source}: no such file; {HINT}") from None
    except (ArrowInvalid, OSError) as error:
        reason = first_line(error)
        if ragged := re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", reason):
            line, expected, got = ragged.groups()
            raise DataError(f"{rows.source}:{line}: {got} columns, expected {expected}") from None
        raise DataError(f"{rows.source}: not a usable CSV file ({reason}); mend it") from None


def _refuse_repeated_columns(header: bytes, source: str) -> None:
    """Refuse two columns of one name, of which Arrow would read one without a word."""
    lines = [line.decode("utf-8-sig", "replace") for line in header.splitlines()[:1]]
    try:
        names = next(csv.reader(lines), [])
    except csv.Error:  # a name without end; reading says what is wrong
        return
    for field in FIELDS:
        if (num := names.count(field)) > 1:
            raise DataError(f"{source}:1: {num} columns {field!r}; keep one")


def _open_csv(file: _Bounded, source: str) -> Any:
    """Return an iterator over Arrow batches with the two columns as bytes."""
    from pyarrow import csv as arrow_csv
    from pyarrow import large_binary

    try:
        return arrow_csv.open_csv(
            file,
            arrow_csv.ReadOptions(use_threads=False, block_size=MAX_LINE_BYTES),
            arrow_csv.ParseOptions(ignore_empty_lines=False),  # so that lines keep their numbers
            arrow_csv.ConvertOptions(
                include_columns=list(FIELDS), column_types=dict.fromkeys(FIELDS, large_binary())
            ),
        )
    except KeyError:
        raise DataError(
            f"{source}:1: the header lacks 'question' or 'answer'; name the columns so"
        ) from None


def _text_grids(rows: Rows, batch: Any, puzzle: Puzzle) -> Grids:
    """Turn the two text columns of an Arrow batch or table into tokens."""
    from pyarrow import ChunkedArray, array, large_binary

    tokens_of = _tokens_of_bytes(puzzle)
    grids = []
    for field in FIELDS:
        column = batch[field]
        column = column.combine_chunks() if isinstance(column, ChunkedArray) else column
        column = column.fill_null("").cast(large_binary())
        if not puzzle.alphabet.isascii():  # one byte for each cell, where UTF-8 may take two
            texts = (str(text, "utf-8", "replace") for text in column.to_pylist())
            column = array([t.encode("latin-1", "replace") for t in texts], large_binary())
        _, offsets, data = column.buffers()
        ends = np.frombuffer(offsets, np.int64)[column.offset :][: len(column) + 1]
        lengths = np.diff(ends)
        rows.require(
            lengths == puzzle.num_cells,
            lambda at, field=field, lengths=lengths: (
                f"the {field} has {lengths[at]} cells, expected {puzzle.num_cells} "
                f"({puzzle.height} x {puzzle.width})"
            ),
        )
        cells = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]].reshape(-1, puzzle.num_cells)
        tokens = tokens_of[cells]
        rows.require(
            (tokens != PAD).all(axis=1),
            lambda at, field=field, tokens=tokens, cells=cells: _unknown(
                field, int(tokens[at].argmin()), cells[at], puzzle
            ),
        )
        grids.append(tokens)
    return grids[0], grids[1]


def _unknown(field: str, cell: int, cells: np.ndarray, puzzle: Puzzle) -> str:
    symbol = chr(cells[cell])
    return f"cell {cell + 1} of the {field} is {symbol!r}, expected one of {puzzle.alphabet!r}"


def require_text(puzzle: Puzzle) -> None:
    """Raise ConfigError if grids of a puzzle cannot be written as text and read back."""
    if max(puzzle.alphabet) > "\xff":
        raise ConfigError(
            f"puzzle {puzzle.name}: symbol {max(puzzle.alphabet)!r} is not Latin-1, as CSV needs; "
            "choose another or use .npy"
        )


def _tokens_of_bytes(puzzle: Puzzle) -> np.ndarray:
    """Return (256,) uint8: the token of each character of Latin-1, PAD for unknown ones."""
    require_text(puzzle)
    tokens = np.zeros(256, np.uint8)
    for symbol in puzzle.alphabet:
        for alias in (symbol, symbol.lower(), "." if symbol == puzzle.blank else symbol):
            if alias == symbol or alias not in puzzle.alphabet:
                tokens[ord(alias)] = puzzle.alphabet.index(symbol) + 1
    return tokens


def _load(path: Path) -> np.ndarray:
    """Map an array of whole numbers from a `.npy` file."""
    try:
        with np.errstate(over="ignore"):  # of the size that a header claims
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {HINT}") from None
    except UNREADABLE_ARRAY as error:
        reason = first_line(error)
        raise DataError(f"{path}: not a .npy file of numbers ({reason})") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
        kind = array.dtype if isinstance(array, np.ndarray) else "an archive"
        raise DataError(f"{path}: holds {kind}, expected whole numbers of symbols")
    return array


def _array_chunks(
    rows: Rows, questions: np.ndarray, answers: np.ndarray, puzzle: Puzzle
) -> Iterator[Grids]:
    """Turn arrays (N, S) or (N, height, width) of numbers of symbols into tokens."""
    num = len(questions) if questions.ndim else 0
    shapes = [(num, puzzle.num_cells), (num, puzzle.height, puzzle.width)]
    for field, array in zip(FIELDS, (questions, answers), strict=True):
        if array.shape not in shapes:
            raise DataError(
                f"{rows.source}: {field}s of shape {array.shape}, "
                f"expected {shapes[0]} or {shapes[1]}"
            )
    if num * puzzle.num_cells * 2 > MAX_BYTES:
        raise DataError(f"{rows.source}: more than {MAX_BYTES:,} cells; split the arrays")
    for start in range(0, num, _CHUNK):
        grids = []
        for field, array in zip(FIELDS, (questions, answers), strict=True):
            numbers = array[start : start + _CHUNK].reshape(-1, puzzle.num_cells)
            known = (numbers >= -1) & (numbers < len(puzzle.alphabet))
            rows.require(
                np.asarray(known.all(axis=1)),
                lambda at, field=field, numbers=numbers: (
                    f"the {field} holds {numbers[at].min()} to {numbers[at].max()}, expected "
                    f"0 to {len(puzzle.alphabet) - 1}, or -1 for no cell"
                ),
            )
            grids.append((numbers.astype(np.int64) + PAD + 1).astype(np.uint8))
        yield grids[0], grids[1]
