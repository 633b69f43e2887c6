"""Writing model folders: what a kill leaves, which files are kept, what cannot be written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from latent_reason.errors import CheckpointError
from latent_reason.model_folder import write_model_folder

NAMES = {"README.md", "config.json", "model.safetensors"}


def write(folder: Path, number: int, *more: str) -> None:
    """Write a model of which every file tells a number."""
    weights = {name: {"w": torch.tensor([number])} for name in ("model.safetensors", *more)}
    config = {"format": "latent_reason test 1", "number": number}
    write_model_folder(folder, weights, config, f"# {number}")


def assert_holds(folder: Path, number: int) -> None:
    """Assert that each file of a model is there and tells this number."""
    assert load_file(folder / "model.safetensors")["w"].tolist() == [number]
    assert json.loads((folder / "config.json").read_text())["number"] == number
    assert (folder / "README.md").read_text() == f"# {number}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "model", 0)
    return tmp_path / "model"


def test_all_files_may_be_read_by_the_same_users(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == NAMES
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_writing_again_keeps_files_of_others(folder: Path) -> None:
    write(folder, 0, "raw.safetensors")
    (folder / "curve.png").write_bytes(b"picture")
    (folder / "more").mkdir()
    (folder / "more" / "notes.txt").write_text("mine")
    write(folder, 1)
    assert_holds(folder, 1)
    assert {path.name for path in folder.iterdir()} == NAMES | {"curve.png", "more"}
    assert (folder / "curve.png").read_bytes() == b"picture"
    assert (folder / "more" / "notes.txt").read_text() == "mine"
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_what_a_save_does_not_write_again_is_gone(folder: Path) -> None:
    config, more = {"format": "latent_reason test 1"}, {"tasks.json": ["a"]}
    write_model_folder(folder, {}, config, "# one", more)
    assert json.loads((folder / "tasks.json").read_text()) == ["a"]
    write_model_folder(folder, {}, config, "# two", {"identifiers.json": ["b"]})
    assert not (folder / "tasks.json").exists()
    assert json.loads((folder / "identifiers.json").read_text()) == ["b"]


def test_weights_of_others_in_a_folder_of_ours_are_kept(folder: Path) -> None:
    (folder / "mine.safetensors").write_bytes(b"weights")
    write(folder, 1)
    assert_holds(folder, 1)
    assert (folder / "mine.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("name", sorted(NAMES | {"raw.safetensors"}))
@pytest.mark.parametrize("config", [None, "{}", "[1]", '{"format": "of others"}', '{"for'])
def test_files_of_others_are_never_replaced(tmp_path: Path, name: str, config: str | None) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / name).write_text("mine")
    if config is not None:
        (folder / "config.json").write_text(config)
    before = {path.name: path.read_text() for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match=rf"holds other files \(.*{name}.*; choose a new"):
        write(folder, 0)
    assert {path.name: path.read_text() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["project"]


def test_a_folder_with_files_of_other_names_takes_a_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    write(tmp_path, 0)
    assert_holds(tmp_path, 0)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_working_directory_stays_what_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "more").mkdir()
    monkeypatch.chdir(folder)
    before = os.stat(".").st_ino
    write(Path("."), 1)
    assert Path.cwd() == folder
    assert folder.stat().st_ino == os.stat(".").st_ino == before
    assert_holds(Path("."), 1)
    monkeypatch.chdir(folder / "more")
    write(Path(".."), 2)
    assert_holds(Path(".."), 2)
    assert {path.name for path in folder.parent.iterdir()} == {"model"}


def test_a_mount_point_takes_a_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*args: Any) -> None:
        raise OSError("Device or resource busy")

    write(folder, 0, "raw.safetensors")
    (folder / "curve.png").write_bytes(b"picture")
    monkeypatch.setattr(os, "rename", busy)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == folder)
    write(folder, 1)
    assert_holds(folder, 1)
    assert {path.name for path in folder.iterdir()} == NAMES | {"curve.png"}


class Killed(BaseException):
    pass


def killed_at(monkeypatch: pytest.MonkeyPatch, number: int) -> Callable[[], None]:
    """Make a rename the last thing that happens; return the undoing."""
    rename, calls = os.rename, []

    def patched(*args: Any) -> None:
        calls.append(args)
        if len(calls) == number:
            raise Killed
        rename(*args)

    monkeypatch.setattr(os, "rename", patched)
    monkeypatch.setattr("shutil.rmtree", lambda *args, **kwargs: None)
    return monkeypatch.undo


def test_a_kill_on_first_writing_leaves_nothing_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undo = killed_at(monkeypatch, 1)
    with pytest.raises(Killed):
        write(tmp_path / "model", 0)
    undo()
    assert not (tmp_path / "model").exists()
    write(tmp_path / "model", 0)
    assert_holds(tmp_path / "model", 0)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_kill_on_writing_again_loses_nothing(
    folder: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "curve.png").write_bytes(b"picture")
    (folder / "more").mkdir()
    undo = killed_at(monkeypatch, number)
    with pytest.raises(Killed):
        write(folder, 1)
    undo()
    kept = folder if folder.exists() else folder.with_name(".old-model")
    assert_holds(kept, 1 if number >= 3 else 0)
    write(folder, 2)
    assert_holds(folder, 2)
    assert (folder / "curve.png").read_bytes() == b"picture"
    assert (folder / "more").is_dir()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CheckpointError, match="^cannot write model folder .*/file"):
            write(folder, 0)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "mine")]
