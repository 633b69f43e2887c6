"""Command lines run in this process, scripts in forked children, for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
from tiny_runs import forked, on_two_processes, read_lines

from latent_reason import run_frame
from latent_reason.command_line import run_script
from latent_reason.results import load_results
from latent_reason.training import Trainer

ROOT = Path(__file__).parents[1]


class Finished(NamedTuple):
    code: int
    out: str
    err: str


def no_report() -> None:
    """Leave the plots out, which take most of the seconds of a tiny run."""
    run_frame.write_report = lambda folder: folder / "report.html"


def path_of(script: ModuleType) -> Path:
    """Return the path of a script in the repository, such as recipes/train_puzzle.py."""
    assert script.__file__ is not None
    return Path(script.__file__).relative_to(ROOT)


def become(script: ModuleType, folder: Path, words: list[str]) -> None:
    """Let this process look as if the script had been started in `folder`."""
    os.chdir(folder)
    sys.argv = [str(path_of(script)), *words]


def run_recipe(
    script: ModuleType, folder: Path, words: list[str], prepare: Callable[[], object] = no_report
) -> Finished:
    """Run a recipe, or another script, in a forked child in `folder`, after `prepare` in it."""

    def action() -> None:
        become(script, folder, words)
        prepare()
        run_script(script.main)

    streams = (folder / ".out", folder / ".err")
    code = forked(action, streams)
    out, err = (stream.read_text() for stream in streams)
    for stream in streams:
        stream.unlink()
    return Finished(code, out, err)


def run_eval(script: ModuleType, folder: Path, *words: str) -> Finished:
    """Run a script of eval/ in a forked child in `folder`."""
    return run_recipe(script, folder, [*words])


def evaluate(script: ModuleType, folder: Path, *words: str) -> tuple[str, dict[str, Any]]:
    """Run a script of eval/ that has to end well; return what it printed and its results."""
    done = run_eval(script, folder, *words, "--output", "rows.json")
    assert (done.code, done.err) == (0, "")
    return done.out, load_results(folder / "rows.json")


def run_well(
    recipe: ModuleType, folder: Path, words: list[str], prepare: Callable[[], object] = no_report
) -> Finished:
    """Run a recipe that has to end without an error."""
    done = run_recipe(recipe, folder, words, prepare)
    assert done.code == 0, done.err
    return done


def run_once(recipe: ModuleType, folder: Path, words: list[str]) -> Path:
    """Return the run folder of a recipe with its report; later calls find it there."""
    if not folder.exists():
        folder.mkdir()
        run_well(recipe, folder, [*words, "--output-dir", "run"], lambda: None)
    return folder / "run"


def run_by_itself(recipe: ModuleType, folder: Path, words: list[str]) -> tuple[Path, list[str]]:
    """Start a recipe as a user does; return its run folder and what it printed."""
    command = [sys.executable, str(ROOT / path_of(recipe)), *words]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (run,) = (folder / "runs").iterdir()
    assert run.name.startswith(f"{words[0]}-20")
    lines = done.stdout.splitlines()
    assert lines[0] == f"preset {words[0]}, run folder runs/{run.name}"
    assert f"report: runs/{run.name}/report.html" in lines
    return run, lines


def _run_as_one_of_two(recipe: ModuleType, folder: Path, words: list[str]) -> None:
    become(recipe, folder, words)
    no_report()
    assert recipe.main() == 0
    (folder / f"ran-{os.getpid()}").write_text(os.environ["WORLD_SIZE"])


def assert_two_processes_do_as_one(
    recipe: ModuleType, folder: Path, words: list[str], expected: Path
) -> None:
    """Compare a run of two processes in one run folder with that of one."""
    on_two_processes(_run_as_one_of_two, recipe, folder, words)
    assert [path.read_text() for path in folder.glob("ran-*")] == ["2", "2"]
    (run,) = (folder / "runs").iterdir()
    ours, theirs = (load_results(path / "results.json") for path in (run, expected))
    assert [row["n"] for row in ours["rows"]] == [row["n"] for row in theirs["rows"]]
    lines, others = (read_lines(path / "metrics.jsonl") for path in (run, expected))
    for line, other in zip(lines, others, strict=True):
        assert line == pytest.approx(other, abs=1e-3)
    assert not (run / "states").exists()


def assert_same_results(folder: Path, expected: Path, *weights: str) -> None:
    """Compare metrics, samples, these weights and the rows but for their times."""
    for name in ("metrics.jsonl", "samples.json", *weights):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    ours, theirs = (rows_without_times(path) for path in (folder, expected))
    assert ours == theirs


def rows_without_times(folder: Path) -> list[dict[str, Any]]:
    rows = load_results(folder / "results.json")["rows"]
    return [{key: row[key] for key in row if key != "train_seconds"} for row in rows]


def assert_not_overwritten(recipe: ModuleType, whole: Path, words: list[str]) -> None:
    """Assert that a run into the folder of another is refused and changes no file of it."""

    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in whole.rglob("*")}

    before = times()
    done = run_recipe(recipe, whole.parent, [*words, "--output-dir", whole.name])
    assert_refused(done, f"{whole.name}: holds a run already", f"--resume {whole.name}")
    assert times() == before


def assert_help_names(recipe: ModuleType, folder: Path, *options: str) -> None:
    out = run_well(recipe, folder, ["--help"]).out
    assert [name for name in (*recipe.PRESETS, *options) if name not in out] == []


def run_main(main: Callable[[], int | None], *words: str) -> int:
    """Run a command line in this process; return its exit code."""
    with patch.object(sys, "argv", ["main", *words]), pytest.raises(SystemExit) as end:
        run_script(main)
    assert isinstance(end.value.code, int)
    return end.value.code


def at_step(step: int, number: int) -> Callable[[], None]:
    """Return what makes a run send itself a signal after a step, before its log and checkpoint."""

    def prepare() -> None:
        train_step = Trainer.train_step

        def stopping(self: Trainer) -> None:
            train_step(self)
            if self.step == step:
                os.kill(os.getpid(), number)

        Trainer.train_step = stopping  # type: ignore[method-assign]

    return prepare


def assert_refused(done: Finished, *words: str) -> None:
    """Assert that a run ended with exit code 2 and one line that holds these words."""
    assert done.code == 2, done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1, done.err
    assert len(done.err) < 600, done.err
    for word in words:
        assert word in done.err, done.err
