"""ARC tasks of data sets by name are read like the official files; here from folders, offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_reason.data import arc_hub
from latent_reason.data.arc_files import ArcTask, read_arc
from latent_reason.data.arc_hub import find_arc
from latent_reason.errors import DataError

pytestmark = pytest.mark.usefixtures("dataset_cache")
PAIRS = [
    {"input": [[0, 1], [2, 3]], "output": [[3]]},
    {"input": [[4]], "output": [[5, 6, 7]]},
    {"input": [[8, 9]], "output": [[1], [1]]},
]


def write(folder: Path, split: str, rows: list[dict[str, Any]]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


def row(name: str, first: int = 0) -> dict[str, Any]:
    return {"id": name, "train": PAIRS[first:2], "test": PAIRS[2:]}


def grids(tasks: list[ArcTask]) -> list[Any]:
    return [
        (
            task.name,
            [[None if g is None else g.tolist() for g in p] for p in task.train + task.test],
        )
        for task in tasks
    ]


def test_a_data_set_gives_the_same_tasks_as_a_file(tmp_path: Path) -> None:
    source = write(tmp_path / "set", "train", [row("a"), row("b", 1)])
    write(tmp_path / "set", "test", [row("c")])
    file = tmp_path / "tasks.json"
    tasks = {
        name: {k: v for k, v in row(name, at).items() if k != "id"}
        for name, at in (("a", 0), ("b", 1))
    }
    file.write_text(json.dumps(tasks))
    assert grids(find_arc(source, "train")) == grids(read_arc(file))
    assert grids(find_arc(str(file), "train")) == grids(read_arc(file))
    assert [task.name for task in find_arc(source, "test")] == ["c"]


def test_an_unknown_output_stays_unknown_and_names_come_from_rows(tmp_path: Path) -> None:
    tests = [{"input": [[1]], "output": None}, PAIRS[2]]
    source = write(tmp_path / "set", "train", [{"train": PAIRS[:2], "test": tests}])
    (task,) = find_arc(source, "train")
    assert task.name == "row 1"
    assert task.test[0].output is None
    assert np.array_equal(task.test[1].input, [[8, 9]])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("a"), row("a")], "the same name"),
        ([{"id": "a", "train": PAIRS[:2]}], "task 'a'"),
        ([{"id": "a", "train": PAIRS[:2], "test": [{"input": [[10]]}]}], "cell 1 is 10"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    source = write(tmp_path / "set", "train", rows)
    with pytest.raises(DataError, match=message):
        find_arc(source, "train")


def test_a_missing_source_or_split_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no/such-set: no data set with split 'train'"):
        find_arc("no/such-set", "train")
    with pytest.raises(DataError, match="split 'test'"):
        find_arc(write(tmp_path / "set", "train", [row("a")]), "test")
    with pytest.raises(DataError, match="no such file"):
        find_arc("nowhere.json", "train")
    with pytest.raises(DataError, match="^the name of a source is empty; give an ARC .json file"):
        find_arc("", "train")


def test_a_mistyped_name_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("it was asked"))
    with pytest.raises(DataError, match="^nothing: no such file or folder, and no Hub name"):
        find_arc("nothing", "train")


def test_a_folder_of_folders_of_json_files_is_no_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a folder of .json files was given to `datasets`")

    monkeypatch.setattr(arc_hub, "load_split", refuse)
    folder = tmp_path / "corpus" / "AboveBelow"
    folder.mkdir(parents=True)
    for name in ("AboveBelow1", "AboveBelow2"):
        content = {kind: pairs for kind, pairs in row(name).items() if kind != "id"}
        (folder / f"{name}.json").write_text(json.dumps(content))
    source = str(tmp_path / "corpus")
    for split in ("train", "test"):
        assert [task.name for task in find_arc(source, split)] == ["AboveBelow1", "AboveBelow2"]
    (folder / "AboveBelow2.json").write_text('{"train": [], "test": []}')
    with pytest.raises(DataError, match="AboveBelow2.json: task 'AboveBelow2': 'train' is"):
        find_arc(source, "train")
