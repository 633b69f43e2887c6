"""What is refused of `tasks.json`; test_arc_solving.py tests the table in use."""

from __future__ import annotations

import json
from typing import Any

import pytest

from latent_reason.errors import CheckpointError
from latent_reason.puzzles.arc_table import read_table

NUM_ROWS = 1 + 7 * 5


def table(**changes: Any) -> str:
    return json.dumps({"tasks": [*"abcdefg"], "num_augmentations": 4, "seed": 0} | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("\x00\xff", "not a complete model folder"),
        ("[" * 100_000, "not a complete model folder"),
        ("{" + " " * 5_000_000 + "}", "more than 4,194,304 bytes"),
        ("[]", "must be an object of tasks, num_augmentations, seed"),
        (table(more=1), "must be an object of tasks, num_augmentations, seed"),
        (table(tasks="abcdefg"), "tasks must be a list of names"),
        (table(tasks=[*"abcdef", 7]), "tasks must be a list of names"),
        (table(tasks=[*"abcdef", ["g"]]), "tasks must be a list of names"),
        (table(tasks=[*"abcdeff"]), "not of a puzzle table of 36 rows"),
        (table(tasks=[*"abcdef"]), "not of a puzzle table of 36 rows"),
        (table(num_augmentations=5), "not of a puzzle table of 36 rows"),
        (table(num_augmentations=True), "must be whole numbers from 0"),
        (table(num_augmentations=-1), "must be whole numbers from 0"),
        (table(seed=2**64), "must be whole numbers from 0"),
        (table(seed="0"), "must be whole numbers from 0"),
    ],
    ids=range(16),
)
def test_a_corrupt_table_is_refused(tmp_path, text, message):
    (tmp_path / "tasks.json").write_text(text)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_table(tmp_path, NUM_ROWS)
    assert len(str(caught.value)) < 400
    (tmp_path / "tasks.json").write_text(table())
    assert read_table(tmp_path, NUM_ROWS).tasks == [*"abcdefg"]
