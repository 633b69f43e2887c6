"""The files `results.json` and `metrics.jsonl`, and the table of results that recipes print.

Recipes and evaluation scripts write `results.json` into the run folder:

    {"schema_version": 1, "preset": str, "seed": int, "commit": str, "hardware": str,
     "wall_seconds": float, "peak_memory_gib": float, "peak_gpu_memory_gib": null,
     "command": str, "halt_max_steps": int, "resumed_commits": [str, ...],
     "rows": [{"system": "latent reasoner", "task": "rolling_sums", "split": "test",
               "refinement_steps": 8, "n": 1000, "exact_accuracy": 0.97, "ci95": [0.957, 0.979],
               "accuracy": 0.99, "trainable_parameters": 190000, "train_seconds": 240.0}, ...]}

`commit`, `hardware` and `command` are those that the run was started with; `resumed_commits` has
the other commits that it was resumed with, `wall_seconds` the time since it was last resumed,
`peak_memory_gib` the memory of the host.
Shares are fractions between 0 and 1, `n` counts examples, `num_leaks` test puzzles (for ARC: tasks)
that are in the training or validation data up to symmetry. A row needs `system`, `task`, `split`,
`n` and `exact_accuracy`; everything else may be missing or null (a system without a recursion has
no `refinement_steps`), and further keys are allowed. Of puzzles with a rule `valid_accuracy` is the
share of answers that are right by it. The row of a model that halts itself has
`mean_refinement_steps`, which the table shows in place of `refinement_steps`, its limit, and of
puzzles `halted_at`: pairs of a number of refinement steps and of the examples that its halting
head stopped there; those in no pair it never stopped. The first row names the system that the run
is about; the other systems are what it is compared with.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from latent_reason.errors import DataError
from latent_reason.files import UNREADABLE, read_json

Row = Mapping[str, Any]

HEADER = (
    ("", "system"),
    ("", "task/split"),
    ("refinement", "steps"),
    ("", "n"),
    ("exact %", "[95 % interval]"),
    ("", "valid %"),
    ("token", "accuracy %"),
    ("trainable", "parameters"),
    ("train", "seconds"),
)
VALID = HEADER.index(("", "valid %"))
NUM_TEXT_COLUMNS = 2
_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")


def load_results(path: Path) -> dict[str, Any]:
    """Read and check a `results.json`, see the schema above.

    Raises:
        DataError: The file is missing, malformed, or misses or mistypes a field.
    """
    results = read_json(path, dict)
    if results.get("schema_version") != 1:
        raise DataError(f"{path}: schema_version is {results.get('schema_version')!r}, expected 1")
    rows = results.get("rows")
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: rows must be a list with at least one row")
    halt_max_steps = results.get("halt_max_steps")
    if halt_max_steps is not None and not _is_count(halt_max_steps):
        raise DataError(f"{path}: halt_max_steps is {halt_max_steps!r}, expected a count or null")
    for number, row in enumerate(rows, start=1):
        problem = _row_problem(row)
        if problem:
            raise DataError(f"{path}: row {number}: {problem}")
    return results


def read_metrics(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield the lines of a `metrics.jsonl`, each with what it holds; none of a missing file.

    A last line torn by a kill is left out.

    Raises:
        DataError: A line is not a JSON object with a step; the message names file and line.
    """
    if not path.exists():
        return
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        try:
            record = json.loads(line)
            if type(record["step"]) is not int:
                raise ValueError
        except UNREADABLE as error:
            if not line.endswith(b"\n"):
                return
            raise DataError(
                f"{path} line {number}: not a JSON object with a step; mend or delete the line, "
                "or choose another --output-dir"
            ) from error
        yield line.rstrip(b"\n") + b"\n", record


def format_table(rows: Sequence[Row]) -> str:
    """Lay out rows of `results.json` as aligned plain text with a header, without a last newline.

    Shares are in percent with one decimal, the interval in brackets is the 95 % one.
    """
    header, cells = table_of(rows)
    lines = [list(line) for line in zip(*header, strict=True)]
    lines += [[plain_text(cell) for cell in line] for line in cells]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(2, ["-" * width for width in widths])
    return "\n".join(_align(line, widths) for line in lines)


def table_of(rows: Sequence[Row]) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """Return the header, an upper and a lower text by column, and the texts of each row.

    "valid %" is left out where it would only repeat "exact %".
    """
    columns = [*range(len(HEADER))]
    if all(row.get("valid_accuracy") in (None, row["exact_accuracy"]) for row in rows):
        columns.remove(VALID)
    cells = [_cells(row) for row in rows]
    return [HEADER[i] for i in columns], [[line[i] for i in columns] for line in cells]


def _cells(row: Row) -> list[str]:
    """One row as the texts under `HEADER`; "-" where nothing is known."""

    def cell(name: str, pattern: str, scale: int = 1) -> str:
        value = row.get(name)
        return "-" if value is None else format(value * scale, pattern)

    interval = row.get("ci95")
    mean = row.get("mean_refinement_steps")
    bounds = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
    return [
        row["system"],
        f"{row['task']}/{row['split']}",
        cell("refinement_steps", "d") if mean is None else f"mean {mean:.1f}",
        cell("n", ",d"),
        cell("exact_accuracy", ".1f", scale=100) + bounds,
        cell("valid_accuracy", ".1f", scale=100),
        cell("accuracy", ".1f", scale=100),
        cell("trainable_parameters", ",d"),
        cell("train_seconds", ",.0f"),
    ]


def summary_sentence(rows: Sequence[Row], halt_max_steps: int | None) -> str:
    """Say in one sentence what the first row's system reached, and the best other system.

    Args:
        rows: Rows of `results.json`, at least one.
        halt_max_steps: Trained number of refinement steps; the row with that depth is quoted, the
            deepest one if there is none.
    """
    setting = (rows[0]["task"], rows[0]["split"])
    same = [row for row in rows if (row["task"], row["split"]) == setting]
    own = [row for row in same if row["system"] == rows[0]["system"]]
    deepest = max(own, key=lambda row: row.get("refinement_steps") or 0)
    row = next((row for row in own if row.get("refinement_steps") == halt_max_steps), deepest)
    text = (
        f"{row['system']} answers {100 * row['exact_accuracy']:.1f} % of {row['n']:,d} questions "
        f"of {row['task']} ({row['split']}) exactly"
    )
    if row.get("ci95"):
        text += f" (95 % interval {100 * row['ci95'][0]:.1f} to {100 * row['ci95'][1]:.1f} %)"
    if row.get("refinement_steps"):
        plural = "s" if row["refinement_steps"] > 1 else ""
        text += f" with {row['refinement_steps']} refinement step{plural}"
    # "latent reasoner, mean slots" and the like are the same system under another condition.
    others = [other for other in same if not other["system"].startswith(row["system"])]
    if others:
        best = max(others, key=lambda other: other["exact_accuracy"])
        text += f"; the best other system, {best['system']}, {100 * best['exact_accuracy']:.1f} %"
    return text + "."


def clean_text(text: str) -> str:
    """Drop terminal escapes, control, bidirectional and surrogate characters; keep newlines."""
    text = _ANSI.sub("", text)
    return "".join(c for c in text if c in "\n\t" or not unicodedata.category(c).startswith("C"))


def plain_text(text: str) -> str:
    """`clean_text` in one line, for names in a terminal or in a picture."""
    return " ".join(clean_text(text).split())


def _align(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = [
        cell.ljust(width) if column < NUM_TEXT_COLUMNS else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(aligned).rstrip()


def _row_problem(row: object) -> str | None:
    if not isinstance(row, dict):
        return f"got {type(row).__name__}, expected an object"
    for name in ("system", "task", "split"):
        if not isinstance(row.get(name), str):
            return f"{name} is {row.get(name)!r}, expected a string"
    for name in ("n", "refinement_steps", "trainable_parameters", "num_leaks"):
        if (name == "n" or row.get(name) is not None) and not _is_count(row.get(name)):
            return f"{name} is {row.get(name)!r}, expected a whole number that is not negative"
    for name in ("exact_accuracy", "valid_accuracy", "accuracy"):
        if (name == "exact_accuracy" or row.get(name) is not None) and not _is_share(row.get(name)):
            return f"{name} is {row.get(name)!r}, expected a fraction between 0 and 1"
    interval = row.get("ci95")
    if interval is not None and not (
        isinstance(interval, list) and len(interval) == 2 and all(map(_is_share, interval))
    ):
        return f"ci95 is {interval!r}, expected two fractions [low, high]"
    for name in ("train_seconds", "mean_refinement_steps"):
        value = row.get(name)
        if value is not None and not (is_number(value) and value >= 0):
            return f"{name} is {value!r}, expected a number from 0 up or null"
    return None


def is_number(value: object) -> bool:
    """Whether a JSON value is a finite number."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0
