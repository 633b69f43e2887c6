"""Reading ARC tasks: both official forms, and one clear line for whatever is wrong."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from arc_tasks import PAIR, TASKS, as_json, as_kaggle, one_task, same

from latent_reason.data import arc_folder
from latent_reason.data.arc_files import read_arc
from latent_reason.errors import DataError


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_challenges_with_solutions(tmp_path, suffix):
    challenges, solutions = as_kaggle(TASKS)
    opener = gzip.open if suffix else open
    with opener(tmp_path / f"my_challenges.json{suffix}", "wt") as file:
        json.dump(challenges, file)
    without = read_arc(tmp_path / f"my_challenges.json{suffix}")
    assert [pair.output for task in without for pair in task.test] == [None] * 3
    with opener(tmp_path / f"my_solutions.json{suffix}", "wt") as file:
        json.dump(solutions, file)
    tasks = read_arc(tmp_path / f"my_challenges.json{suffix}")
    assert all(map(same, tasks, TASKS)) and tasks[0].train[0].input.dtype == np.uint8


def test_single_files_and_a_folder_of_them(tmp_path):
    for task in TASKS:
        (tmp_path / f"{task.name}.json").write_text(json.dumps(as_json(task)), encoding="utf-8-sig")
    assert all(map(same, read_arc(tmp_path), TASKS))
    assert same(read_arc(tmp_path / "second.json")[0], TASKS[1])
    together = {task.name: as_json(task) for task in TASKS}
    (tmp_path / "all.json").write_text(json.dumps(together))
    assert all(map(same, read_arc(tmp_path / "all.json"), TASKS))
    with pytest.raises(DataError, match="all.json: not a single task"):
        read_arc(tmp_path)


WIDE, TALL = str([[1] * 31]), str([[1]] * 31)
BAD_FILES = {
    "wide": (one_task(WIDE), "train pair 2, input: row 1: 31 cells"),
    "tall": (one_task(TALL), "train pair 2, input: 31 rows"),
    "no_rows": (one_task("[]"), "input: 0 rows"),
    "no_cells": (one_task("[[]]"), "input: row 1: 0 cells"),
    "ragged": (one_task("[[1, 2], [3]]"), "row 2 has 1 cells, row 1 has 2"),
    "boolean": (one_task("[[1, true]]"), "row 1, cell 2 is True"),
    "float": (one_task("[[1.0]]"), "cell 1 is 1.0"),
    "nan": (one_task("[[NaN]]"), "not valid JSON .NaN is no JSON value"),
    "infinity": (f'{{"made": -Infinity, {one_task("[[3]]")[1:]}', "-Infinity is no JSON value"),
    "colour": (one_task("[[10]]"), "cell 1 is 10"),
    "negative": (one_task("[[-1]]"), "cell 1 is -1"),
    "text": (one_task('[["1"]]'), "cell 1 is '1'"),
    "flat": (one_task("[1, 2]"), "row 1: 1, expected a list"),
    "three_axes": (one_task("[[[1]]]"), r"cell 1 is \[1\]"),
    "null": (one_task("null"), "input: None"),
    "huge_number": (one_task(f"[[{'9' * 10_000}]]"), "not valid JSON"),
    "repeated": (
        one_task("[[1]]"),
        "train pair 1 and train pair 2 have the same input; remove one",
    ),
    "tested": (
        one_task("[[4]]"),
        "1 has the input of train pair 2, which gives its answer away; remove test pair 1",
    ),
    "contradiction": (
        f'{{"train": [{PAIR}], "test": [{PAIR.replace("[[2]]", "[[3]]")}]}}',
        "train pair 1 and test pair 1 have the same input but different outputs; correct one",
    ),
    "no_test": (f'{{"train": [{PAIR}]}}', "'test' is None"),
    "empty_train": (f'{{"train": [], "test": [{PAIR}]}}', r"'train' is \[\]"),
    "no_output": (f'{{"train": [{{"input": [[1]]}}], "test": [{PAIR}]}}', "1: no 'output'"),
    "pair": (f'{{"train": [3], "test": [{PAIR}]}}', "train pair 1: 3, expected an object"),
    "key_twice": (f'{{"train": [{PAIR}], "train": [], "test": []}}', "key 'train' twice"),
    "task_twice": (f'{{"a": {PAIR}, "a": {PAIR}}}', "key 'a' twice"),
    "name": (f'{{"\\ud800": {one_task("[[3]]")}}}', "printable"),
    "no_task": ("{}", "holds no task"),
    "no_object": ("[1]", "not an object"),
    "number": ('{"a": 7}', "task 'a': 7, expected an object"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "deep_task": ('{"train": ' + '{"a":' * 100_000, "nested too deeply"),
    "cut": (one_task("[[3]]")[:-5], "not valid JSON"),
    "nothing": ("", "not valid JSON"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_give_one_clear_line(tmp_path, name):
    text, reason = BAD_FILES[name]
    path = tmp_path / f"{name}.json"
    path.write_text(text)
    with pytest.raises(DataError, match=reason) as caught:
        read_arc(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 400


BAD_SOLUTIONS = {
    "missing": ("{}", "None, expected a list of 1"),
    "too_many": ('{"a": [[[1]], [[2]]]}', "2 outputs, expected a list of 1"),
    "other": ('{"a": [[[1]]], "b": [[[1]]]}', "task 'b' is not in"),
    "grid": ('{"a": [[[11]]]}', "test pair 1, output: row 1, cell 1 is 11"),
}


@pytest.mark.parametrize("name", BAD_SOLUTIONS)
def test_solutions_that_do_not_match(tmp_path, name):
    (tmp_path / "x_challenges.json").write_text(f'{{"a": {one_task("[[3]]")}}}')
    text, reason = BAD_SOLUTIONS[name]
    (tmp_path / "x_solutions.json").write_text(text)
    with pytest.raises(DataError, match=reason):
        read_arc(tmp_path / "x_challenges.json")


def test_other_unusable_paths(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_arc(tmp_path / "missing.json")
    with pytest.raises(DataError, match="no .json file"):
        read_arc(tmp_path)
    (tmp_path / "x_solutions.json").write_text("{}")
    with pytest.raises(DataError, match="holds solutions only"):
        read_arc(tmp_path / "x_solutions.json")
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b"{}" * 1000)[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        read_arc(tmp_path / "cut.json.gz")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not valid JSON"):
        read_arc(tmp_path / "bytes.json")


def test_a_small_file_that_unpacks_to_a_giant_one(tmp_path, monkeypatch):
    path = tmp_path / "bomb.json.gz"
    path.write_bytes(gzip.compress(b"[" + b" " * 40 * 1024**2))
    with pytest.raises(DataError, match="more than 33,554,432 bytes"):
        read_arc(path)
    (tmp_path / "a.json").write_text(one_task("[[3]]"))
    monkeypatch.setattr(arc_folder, "MAX_FOLDER_BYTES", 50)
    with pytest.raises(DataError, match="more than 50 bytes"):
        read_arc(tmp_path)
