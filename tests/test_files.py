"""Files that appear whole or not at all, reads with a bound."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latent_reason.files import read_bounded, replacing, write_json


def test_json_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"folder": Path("a/b"), "values": (1, 2)})
    assert json.loads(path.read_text()) == {"folder": "a/b", "values": [1, 2]}
    for bad in ({"x": float("nan")}, {"x": float("inf")}):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(path, bad)
    assert json.loads(path.read_text())["values"] == [1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.txt"]
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_reading_ends_at_the_bound(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(ValueError, match="x.json: more than 4 bytes"):
        read_bounded(path, 4)
