"""Command lines run in this process, recipes in forked children, for tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
from tiny_runs import forked

from latent_reason import run_frame
from latent_reason.command_line import run_script
from latent_reason.training import Trainer


@dataclass
class Finished:
    code: int
    out: str
    err: str


def no_report() -> None:
    """Leave the plots out, which take most of the seconds of a tiny run."""
    run_frame.write_report = lambda folder: folder / "report.html"


def become(recipe: ModuleType, folder: Path, words: list[str]) -> None:
    """Let this process look as if the recipe had been started in `folder`."""
    os.chdir(folder)
    assert recipe.__file__ is not None
    sys.argv = [f"recipes/{Path(recipe.__file__).name}", *words]


def run_recipe(
    recipe: ModuleType, folder: Path, words: list[str], prepare: Callable[[], object] = no_report
) -> Finished:
    """Run a recipe in a forked child in `folder`, after `prepare` in that child."""

    def action() -> None:
        become(recipe, folder, words)
        prepare()
        run_script(recipe.main)

    streams = (folder / ".out", folder / ".err")
    code = forked(action, streams)
    out, err = (stream.read_text() for stream in streams)
    for stream in streams:
        stream.unlink()
    return Finished(code, out, err)


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
