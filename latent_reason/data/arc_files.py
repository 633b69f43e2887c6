"""ARC tasks from the official JSON files, checked cell by cell.

Two forms are read: one file per task, `{"train": [pair, ...], "test": [pair, ...]}` with pairs
`{"input": grid, "output": grid}`, alone or many in a folder and the folders inside it; and many
tasks in one file, `{"name": task, ...}`, as `*_challenges.json` of Kaggle, whose test outputs are
in `*_solutions.json` beside it. Either may be compressed (`.json.gz`).
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from latent_reason.data.arc_folder import find_task_files
from latent_reason.errors import DataError
from latent_reason.files import refuse_constant

MAX_SIDE = 30
NUM_COLOURS = 10
MAX_FILE_BYTES = 32 * 1024**2
MAX_NAME_LENGTH = 100
_CHALLENGES, _SOLUTIONS = "_challenges.json", "_solutions.json"

Grid = npt.NDArray[np.uint8]


class ArcPair(NamedTuple):
    """Input and output, (height, width) uint8 colours 0..9; no output where it is not known."""

    input: Grid
    output: Grid | None


@dataclass(frozen=True, eq=False)
class ArcTask:
    """A task: pairs that show the rule (all with output), and pairs to solve."""

    name: str
    train: tuple[ArcPair, ...]
    test: tuple[ArcPair, ...]


def read_arc(path: Path) -> list[ArcTask]:
    """Read the tasks of a file or folder in the official forms.

    Args:
        path: a file with one task or many, or a folder (see `find_task_files`) of files with one
            task each, named after them. Solutions are looked for beside a file named
            `*_challenges.json`; without them test pairs have no output.

    Raises:
        DataError: naming file, task, pair and reason.
    """
    if path.is_dir():
        return _read_folder(path)
    if _strip_gz(path.name).endswith(_SOLUTIONS):
        raise DataError(f"{path}: holds solutions only; give the {_CHALLENGES} file beside it")
    content = _load(path)
    if _is_task(content):
        return [to_task(path, _stem(path), content)]
    if not content:
        raise DataError(f"{path}: holds no task; give a file with at least one")
    solutions_path = _find_solutions(path)
    solutions = {} if solutions_path is None else _load(solutions_path)
    tasks = []
    for name, value in content.items():
        task = to_task(path, name, value)
        if solutions_path is not None:
            task = _with_solutions(solutions_path, task, solutions.pop(name, None))
        tasks.append(task)
    for name in solutions:
        raise DataError(f"{solutions_path}: task {shown(name)} is not in {path}; remove it")
    return tasks


def _read_folder(path: Path) -> list[ArcTask]:
    files = find_task_files(path)
    if not files:
        raise DataError(f"{path}: no .json file in this folder; give one with a file per task")
    tasks: dict[str, ArcTask] = {}
    for index, file in enumerate(files):
        content, name = _load(file), _stem(file)
        if not _is_task(content):
            raise DataError(
                f"{file}: not a single task with 'train' and 'test'; give this file by itself, "
                "or a folder with one task per file"
            )
        if name in tasks:
            other = next(f for f in files[:index] if _stem(f) == name)
            raise DataError(f"{file}: task {shown(name)} is also in {other}; remove or rename one")
        tasks[name] = to_task(file, name, content)
    return list(tasks.values())


def _strip_gz(name: str) -> str:
    return name.removesuffix(".gz")


def _stem(path: Path) -> str:
    return _strip_gz(path.name).removesuffix(".json")


def _find_solutions(path: Path) -> Path | None:
    plain = _strip_gz(path.name)
    if not plain.endswith(_CHALLENGES):
        return None
    name = plain.removesuffix(_CHALLENGES) + _SOLUTIONS
    candidates = (path.with_name(name), path.with_name(f"{name}.gz"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON, refusing a key that is there twice."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"key {shown(key)} twice in one object")
        made[key] = value
    return made


def _load(path: Path) -> dict[str, Any]:
    """Read a JSON object; the size is bounded before anything is parsed."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path")
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a whole file") from error
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"{path}: more than {MAX_FILE_BYTES:,} bytes; split the file")
    try:
        text = data.decode("utf-8-sig")
        content = json.loads(text, object_pairs_hook=_unique, parse_constant=refuse_constant)
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); mend the file") from None
    except RecursionError:
        raise DataError(f"{path}: nested too deeply for ARC tasks; mend the file") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: not an object with tasks but {shown(content)}; mend the file")
    return content


def _is_task(content: dict[str, Any]) -> bool:
    """Say whether this is one task, not many by name."""
    return any(isinstance(content.get(key), list) for key in ("train", "test"))


def to_task(path: Path, name: str, value: Any) -> ArcTask:
    """Check {"train": pairs, "test": pairs} and return it as a task.

    Raises:
        DataError: starting with `path`.
    """
    if not name.isprintable() or not 0 < len(name) <= MAX_NAME_LENGTH:
        raise DataError(
            f"{path}: task {shown(name)}: a name has 1 to {MAX_NAME_LENGTH} printable "
            "characters; rename it"
        )
    where = f"{path}: task {name!r}"
    if not isinstance(value, dict) or not _is_task(value):
        raise DataError(f"{where}: {shown(value)}, expected an object with 'train' and 'test'")
    train, test = (tuple(_pairs(where, kind, value.get(kind))) for kind in ("train", "test"))
    _refuse_repeated(where, [*train, *test], len(train))
    return ArcTask(name, train, test)


def _pairs(where: str, kind: str, pairs: Any) -> Iterator[ArcPair]:
    if not isinstance(pairs, list) or not pairs:
        raise DataError(f"{where}: {kind!r} is {shown(pairs)}, expected a list of pairs")
    for number, pair in enumerate(pairs, start=1):
        place = f"{where}, {kind} pair {number}"
        if not isinstance(pair, dict) or "input" not in pair:
            raise DataError(f"{place}: {shown(pair)}, expected an object with 'input' and 'output'")
        if kind == "train" and "output" not in pair:
            raise DataError(f"{place}: no 'output'; a pair that shows the rule needs one")
        output = to_grid(f"{place}, output", pair["output"]) if "output" in pair else None
        yield ArcPair(to_grid(f"{place}, input", pair["input"]), output)


def to_grid(where: str, value: Any) -> Grid:
    """Check a list of rows of colours and return it as an array.

    Raises:
        DataError: starting with `where`.
    """
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_SIDE:
        got = f"{len(value)} rows" if isinstance(value, list) else shown(value)
        raise DataError(f"{where}: {got}, expected a list of 1 to {MAX_SIDE} rows")
    for number, row in enumerate(value, start=1):
        if not isinstance(row, list) or not 1 <= len(row) <= MAX_SIDE:
            got = f"{len(row)} cells" if isinstance(row, list) else shown(row)
            raise DataError(f"{where}: row {number}: {got}, expected a list of 1 to {MAX_SIDE}")
        if len(row) != len(value[0]):
            raise DataError(
                f"{where}: row {number} has {len(row)} cells, row 1 has "
                f"{len(value[0])}; make all rows of one length"
            )
        for column, cell in enumerate(row, start=1):
            if type(cell) is not int or not 0 <= cell < NUM_COLOURS:
                raise DataError(
                    f"{where}: row {number}, cell {column} is {shown(cell)}, expected "
                    f"a whole number 0 to {NUM_COLOURS - 1}"
                )
    return np.array(value, dtype=np.uint8)


def _refuse_repeated(where: str, pairs: list[ArcPair], num_train: int) -> None:
    """Refuse two pairs of a task with the same input.

    They contradict each other, are duplicates, or give away the answer to a test pair, which would
    then count as solved.
    """
    first: dict[tuple[tuple[int, ...], bytes], int] = {}
    for index, pair in enumerate(pairs):
        other = first.setdefault((pair.input.shape, pair.input.tobytes()), index)
        if other == index:
            continue
        a, b = (
            f"train pair {i + 1}" if i < num_train else f"test pair {i - num_train + 1}"
            for i in (other, index)
        )
        output, again = pairs[other].output, pair.output
        if output is not None and again is not None and not np.array_equal(output, again):
            reason = f"{a} and {b} have the same input but different outputs; correct one"
        elif other < num_train <= index:
            reason = f"{b} has the input of {a}, which gives its answer away; remove {b}"
        else:
            reason = f"{a} and {b} have the same input; remove one"
        raise DataError(f"{where}: {reason}")


def _with_solutions(path: Path, task: ArcTask, solutions: Any) -> ArcTask:
    """Give the test pairs their outputs."""
    where = f"{path}: task {task.name!r}"
    if not isinstance(solutions, list) or len(solutions) != len(task.test):
        got = f"{len(solutions)} outputs" if isinstance(solutions, list) else shown(solutions)
        raise DataError(f"{where}: {got}, expected a list of {len(task.test)}, one per test pair")
    test = []
    for number, (pair, solution) in enumerate(zip(task.test, solutions, strict=True), start=1):
        output = to_grid(f"{where}, test pair {number}, output", solution)
        if pair.output is not None and not np.array_equal(pair.output, output):
            raise DataError(
                f"{where}, test pair {number}: another output than in the challenges; remove one"
            )
        test.append(ArcPair(pair.input, output))
    return ArcTask(task.name, task.train, tuple(test))
