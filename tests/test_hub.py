"""Data sets by name are read like JSONL files; here from local folders, offline."""

import json

import pytest

from latent_reason.data import Example, write_jsonl
from latent_reason.data.hub import read_examples
from latent_reason.errors import DataError

pytestmark = pytest.mark.usefixtures("dataset_cache")
ROWS = [Example("Sort: 2 1", "1 2"), Example("Sort: 3 1", "1 3")]


def fields(examples):
    return [(example.prompt, example.answer) for example in examples]


def test_a_folder_is_read_by_split_and_a_file_as_it_is(tmp_path):
    folder = tmp_path / "data"
    write_jsonl(folder / "train.jsonl", ROWS)
    write_jsonl(folder / "test.jsonl", ROWS[:1])
    assert fields(read_examples(folder, "train")) == fields(ROWS)
    assert fields(read_examples(folder, "test")) == fields(ROWS[:1])
    assert fields(read_examples(folder / "test.jsonl", "train")) == fields(ROWS[:1])


def test_numbers_of_csv_files_are_text(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.csv").write_text('prompt,answer\n12,007\n1e3,"1,0"\n')
    assert fields(read_examples(folder, "train")) == [("12", "007"), ("1e3", "1,0")]


def test_a_bad_row_is_named(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": ""}]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"data:2: 'answer' is empty"):
        read_examples(folder, "train")


@pytest.mark.parametrize("name", ["no/such-data-set", "nowhere.jsonl", "nowhere"])
def test_a_missing_source_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=name):
        read_examples(type(tmp_path)(name), "train")


def test_a_missing_split_is_named(tmp_path):
    folder = tmp_path / "data"
    write_jsonl(folder / "train.jsonl", ROWS)
    with pytest.raises(DataError, match="split 'test'"):
        read_examples(folder, "test")
