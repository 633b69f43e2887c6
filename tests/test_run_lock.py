"""The lock of a run folder: against a second run, after failures and kills."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny_runs import forked

from latent_reason.errors import ConfigError
from latent_reason.run_lock import run_lock

KILLED = 137


def hold(folder: Path) -> None:
    with run_lock(folder):
        pass


def test_a_second_holder_is_refused_until_the_first_leaves(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with run_lock(folder):
        with pytest.raises(ConfigError) as error:
            hold(folder)
        assert f"{folder} is in use by another run" in str(error.value)
        assert "choose another --output-dir" in str(error.value)
        # Another process is refused as well, and its failure does not free the folder.
        for _ in range(2):
            assert forked(lambda: hold(folder)) == 1
    hold(folder)
    assert forked(lambda: hold(folder)) == 0


def test_the_lock_is_released_when_the_run_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), run_lock(tmp_path):
        raise KeyError("x")
    hold(tmp_path)


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    def die_holding() -> None:
        with run_lock(tmp_path):
            os._exit(KILLED)

    assert forked(die_holding) == KILLED
    hold(tmp_path)


def test_a_forked_child_does_not_release_the_lock(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        assert forked(lambda: None) == 0
        assert forked(lambda: hold(tmp_path)) == 1


def test_a_folder_that_cannot_be_locked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot lock output folder"):
        hold(tmp_path / "file")
