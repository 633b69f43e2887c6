"""ARC checkpoints of the originals: their identifiers.json, and votes with its augmentations."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from arc_tasks import make_task, random_grid, write_task
from tiny_originals import make_weights, write_original
from tiny_recipes import run_eval, run_main
from torch import Tensor

from eval import puzzle as script
from latent_reason.__main__ import main
from latent_reason.config import PuzzleModelConfig
from latent_reason.data.arc_canvas import ArcSymmetry, crop
from latent_reason.errors import CheckpointError, ConfigError
from latent_reason.puzzles.arc_solving import solve_arc
from latent_reason.puzzles.arc_table import known_tasks
from latent_reason.puzzles.arc_voting import ArcVotes, evaluation_batches
from latent_reason.puzzles.folder import load_puzzle_model
from latent_reason.puzzles.published_identifiers import (
    DIHEDRAL,
    Identifiers,
    PublishedArc,
    read_identifiers,
)
from latent_reason.puzzles.published_weights import PREFIX, import_published

pytestmark = pytest.mark.usefixtures("one_process")
run = partial(run_main, main)

TASKS = [make_task("e", 2, 2), make_task("f", 3), make_task("g", 2)]
ENTRIES = [
    "<blank>",
    *("f", "f|||t1|||0213456789", "f|||t7|||0987654321", "f|||t3|||0123456789"),
    *("other", "other|||t2|||0123456789"),
    *("e", "e|||t6|||0123456798", "g", "f|||t4|||0132456789"),
]
COUNTS = {"e": 2, "f": 5, "g": 1}


def their_turn(grid: np.ndarray, number: int) -> np.ndarray:
    """The originals' turns and mirrors, as they name them."""
    mirrored = [np.fliplr(grid), np.flipud(grid), grid.T, np.fliplr(np.rot90(grid))]
    return np.rot90(grid, number) if number < 4 else mirrored[number - 4]


def write(folder: Path, entries: Any = ENTRIES) -> Path:
    (folder / "identifiers.json").write_text(json.dumps(entries))
    return folder / "identifiers.json"


def read(folder: Path) -> Identifiers:
    return read_identifiers(write(folder), len(ENTRIES))


@pytest.mark.parametrize("number", range(8))
def test_turns_and_mirrors_are_theirs(number: int) -> None:
    grid = random_grid(3, 5, number)
    ours = ArcSymmetry(DIHEDRAL[number], tuple(range(10)))
    assert np.array_equal(ours.apply(grid), their_turn(grid, number))


def test_names_of_hrm_say_the_same(tmp_path: Path) -> None:
    """HRM joins task, turn and colours by "_" where TRM has "|||"."""
    theirs = read_identifiers(
        write(tmp_path, [entry.replace("|||", "_") for entry in ENTRIES]), len(ENTRIES)
    )
    ours = read(tmp_path)
    assert theirs.rows == ours.rows
    assert torch.equal(theirs.dihedral, ours.dihedral)
    assert torch.equal(theirs.colours, ours.colours)


def test_a_test_pair_is_shown_as_its_identifier_says(tmp_path: Path) -> None:
    dataset = PublishedArc(TASKS, read(tmp_path))
    seen: dict[str, list[int]] = {name: [] for name in COUNTS}
    for tests, batch in evaluation_batches(dataset, 4, batch_size=3):
        for index, test in enumerate(tests.tolist()):
            task, number = dataset.tests[test]
            identifier = int(batch["puzzle_identifiers"][index])
            name, *how = ENTRIES[identifier].split("|||")
            assert name == TASKS[task].name
            grid = TASKS[task].test[number].input
            if how:
                colours = np.array([int(digit) for digit in how[1]], np.uint8)
                grid = their_turn(colours[grid], int(how[0][1]))
            assert np.array_equal(crop(batch["inputs"][index]), grid)  # type: ignore[arg-type]
            if number == 0:
                seen[name].append(identifier)
    assert seen == {"e": [7, 8], "f": [1, 2, 3, 4, 10], "g": [9]}


def test_votes_are_turned_back(tmp_path: Path) -> None:
    votes = ArcVotes(PublishedArc(TASKS, read(tmp_path)))
    for tests, batch in evaluation_batches(votes.dataset, 3, batch_size=4):
        answers = batch["labels"].clamp(min=0)
        votes.add(tests, batch["puzzle_identifiers"], answers, torch.zeros(len(tests)))
    assert votes.pass_at(1) == 1.0
    assert votes.num_predictions == [2, 2, 4, 1]
    assert [votes.ranked(test)[0].num_votes for test in range(4)] == [2, 2, 4, 1]


def test_tasks_and_votes_that_the_table_does_not_hold(tmp_path: Path) -> None:
    config = replace(
        PuzzleModelConfig(), puzzle_emb_size=8, puzzle_emb_len=2, num_puzzles=len(ENTRIES)
    )
    write(tmp_path)
    with pytest.raises(ConfigError, match="task 'x': the model was not trained with it"):
        known_tasks(tmp_path, config, [TASKS[0], make_task("x"), make_task("y")])
    dataset = known_tasks(tmp_path, config, TASKS)
    with pytest.raises(ConfigError, match="votes: got 5, expected 0 to the model's 4"):
        next(evaluation_batches(dataset, 5, batch_size=1))
    with pytest.raises(CheckpointError, match="11 entries, the puzzle table has 12 rows"):
        known_tasks(tmp_path, replace(config, num_puzzles=12), TASKS)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"<blank>": 0}, "must be a list that starts with '<blank>'"),
        ([], "must be a list that starts with '<blank>'"),
        (["e", "f"], "must be a list that starts with '<blank>'"),
        (["<blank>", 3], "entry 1 is 3"),
        (["<blank>", "e", "e|||t8|||0123456789"], "entry 2 is 'e.*6789'"),
        (["<blank>", "e", "e|||t1|||0123456788"], "entry 2 is 'e.*88'"),
        (["<blank>", "e", "e|||t1"], "entry 2 is 'e"),
        (["<blank>", "e|||t1|||0123456789"], "entry 1: 'e' is to come once as it is"),
        (["<blank>", "e", "e"], "entry 2: 'e' is to come once as it is"),
    ],
)
def test_a_corrupt_file_is_refused(tmp_path: Path, entries: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"identifiers.json: cannot be used .*{message}"):
        read_identifiers(write(tmp_path, entries), len(entries))


# The command line


def original(folder: Path) -> Path:
    """Write a checkpoint for ARC with random weights in the form of the originals."""
    weights: dict[str, Tensor] = make_weights()
    for name in ("embed_tokens.embedding_weight", "lm_head.weight"):
        weights[PREFIX + name] = torch.randn(12, 8)
    weights[f"{PREFIX}puzzle_emb.weights"] = torch.randn(len(ENTRIES), 8)
    return write_original(folder / "original", weights)


def test_an_imported_checkpoint_votes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    original(tmp_path)
    write(tmp_path)
    words = ["import", "original/step_5", "--puzzle", "arc", "--output", "model"]
    assert run(*words, "--identifiers", "identifiers.json") == 0
    saved = load_puzzle_model("model")
    assert saved.puzzle is not None and saved.puzzle.name == "arc"
    path = write_task(tmp_path / "f.json", TASKS[1])
    assert [s.num_predictions for s in solve_arc(path, "model", 1, 4)] == [5]
    path = write_task(tmp_path / "e.json", TASKS[0])
    assert [s.num_predictions for s in solve_arc(path, "model", 1, 1)] == [2, 2]
    words = ["--model", "model", "--data", "f.json", "--refinement-steps", "1", "--votes", "4"]
    code, out, err = run_eval(script, tmp_path, *words)
    assert (code, err) == (0, "") and "pass@5 of 5 votes" in out
    capsys.readouterr()
    (tmp_path / "model" / "identifiers.json").unlink()
    assert run("solve", "e.json", "--model", "model") == 2
    assert "or by import --identifiers" in capsys.readouterr().err


def test_a_file_that_does_not_fit_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = original(tmp_path)
    path = write(tmp_path, ENTRIES[:-1])
    with pytest.raises(CheckpointError, match="10 entries, the puzzle table has 11 rows"):
        import_published(source, tmp_path / "model", puzzle_name="arc", identifiers=path)
    assert not (tmp_path / "model").exists()
    words = ["import", str(source), "--output", str(tmp_path / "model"), "--num-cells", "900"]
    assert run(*words, "--identifiers", str(path)) == 2
    assert "identifiers: expected with --puzzle arc only" in capsys.readouterr().err
