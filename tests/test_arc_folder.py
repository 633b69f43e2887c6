"""Folders of ARC tasks: folders inside them, both splits side by side, and their bounds."""

from __future__ import annotations

import pytest
from arc_tasks import TASKS, one_task, same, write_task

from latent_reason.data import arc_folder
from latent_reason.data.arc_files import read_arc
from latent_reason.errors import DataError


def test_folders_inside_a_folder_are_read_too(tmp_path):
    for task, place in zip(TASKS, ("Below", "Above/more"), strict=True):
        (tmp_path / place).mkdir(parents=True)
        write_task(tmp_path / place / f"{task.name}.json", task)
    (tmp_path / ".hidden").mkdir()
    for hidden in (".hidden/settings.json", "Below/._first.json"):
        (tmp_path / hidden).write_text("no task")
    assert all(map(same, read_arc(tmp_path), reversed(TASKS)))  # in the order of their paths
    write_task(tmp_path / "Above" / "first.json", TASKS[0])
    message = r"Below/first\.json: task 'first' is also in .*Above/first\.json; remove or rename"
    with pytest.raises(DataError, match=message):
        read_arc(tmp_path)


@pytest.mark.parametrize("names", [("training", "evaluation"), ("train", "test")])
def test_training_and_evaluation_tasks_are_not_mixed(tmp_path, names):
    folders = [tmp_path / "data" / name for name in names]
    for folder, task in zip(folders, TASKS, strict=True):
        folder.mkdir(parents=True)
        write_task(folder / f"{task.name}.json", task)
        (read,) = read_arc(folder)
        assert same(read, task)
    for path in (tmp_path, tmp_path / "data"):
        with pytest.raises(DataError, match="both training and evaluation tasks") as caught:
            read_arc(path)
        assert str(caught.value).endswith(f"name {folders[0]} or {folders[1]}")


def test_folders_of_too_much_or_without_end_are_refused(tmp_path, monkeypatch):
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "a.json").write_text(one_task("[[3]]"))
    (tmp_path / "inside" / "notes.txt").write_text("")
    monkeypatch.setattr(arc_folder, "MAX_FOLDER_ENTRIES", 3)
    assert len(read_arc(tmp_path)) == 1
    monkeypatch.setattr(arc_folder, "MAX_FOLDER_ENTRIES", 2)
    with pytest.raises(DataError, match="more than 2 files"):
        read_arc(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(arc_folder, "MAX_FOLDER_BYTES", 50)
    with pytest.raises(DataError, match="more than 50 bytes"):
        read_arc(tmp_path)
    (tmp_path / "inside" / "again").symlink_to(tmp_path)
    with pytest.raises(DataError, match="again: .* levels of symbolic links; give a folder that"):
        read_arc(tmp_path)
