"""The evaluation script on ARC models: the recipe's rows and submission, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from arc_tasks import (
    EVALUATION,
    assert_valid,
    broken,
    make_run,
    make_task,
    perfect,
    stand_in,
    write_tasks,
)
from tiny_recipes import assert_refused, evaluate, run_eval
from tiny_runs import make_puzzle_model
from torch import Tensor

from eval import puzzle as script
from latent_reason.puzzles import arc_voting
from latent_reason.puzzles.arc_experiment import ArcRun
from latent_reason.puzzles.folder import save_puzzle_model
from latent_reason.puzzles.model import PuzzleModel

pytestmark = pytest.mark.usefixtures("one_process")

run = partial(run_eval, script)
DATA = ("--data", "evaluation_challenges.json", "--refinement-steps", "2", "1")
WORDS = ("--model", "model", *DATA)


@pytest.fixture
def arc_run(tmp_path: Path) -> ArcRun:
    """A run on seven tasks, four augmentations each, with the folder `model`."""
    made = make_run(tmp_path)
    save_puzzle_model(tmp_path / "model", model_of(made), "arc", more=made.model_files())
    return made


def model_of(arc_run: ArcRun) -> PuzzleModel:
    """Return a model that has not trained and tells tasks apart."""
    model = arc_run.make_model(arc_run.config.model)
    assert model.puzzle_emb is not None
    torch.nn.init.normal_(model.puzzle_emb.weight)
    torch.nn.init.normal_(model.q_head.weight)
    return model


def test_the_rows_and_the_submission_of_the_recipe(arc_run: ArcRun, tmp_path: Path) -> None:
    words = ("--votes", "2", "--submission", "found.json", "--batch-size", "2")
    out, results = evaluate(script, tmp_path, *WORDS, *words)
    *single, halted, first, second = results["rows"]
    model = model_of(arc_run).eval()
    sweep = arc_run.evaluator("test").sweep(model, [1, 2])
    votes = arc_run.vote(model)
    assert [row["accuracy"] for row in single] == [c.accuracy for c in sweep.at.values()]
    assert [row["system"] for row in single] == ["reasoner", "reasoner"] and sweep.at[2].accuracy
    assert halted["mean_refinement_steps"] == sweep.mean_steps
    facts = {"task": "evaluation_challenges", "split": "file", "refinement_steps": 2}
    facts["trainable_parameters"] = sum(p.numel() for p in model.parameters())
    assert [first, second] == arc_voting.pass_rows(votes, "reasoner", 2, facts)
    votes.write_submission(tmp_path / "expected.json")
    assert (tmp_path / "found.json").read_bytes() == (tmp_path / "expected.json").read_bytes()
    assert "pass@2 of 3 votes" in out and "submission of the averaged weights: found.json" in out


@pytest.mark.parametrize(("answer", "score"), [(perfect, 1.0), (broken, 0.0)])
def test_what_predictors_score(
    arc_run: ArcRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[Tensor], Tensor],
    score: float,
) -> None:
    stand_in(monkeypatch, arc_run, answer)
    words = ("--votes", "4", "--submission", "found.json", "--num", "2")
    rows = evaluate(script, tmp_path, *WORDS, *words)[1]["rows"]
    assert [row["n"] for row in rows] == [3, 3, 3, 2, 2, 2]
    assert {row["exact_accuracy"] for row in rows} == {score}
    assert {row["subset"] for row in rows} == {"first 2"}
    submission = json.loads((tmp_path / "found.json").read_text())
    assert_valid(submission, EVALUATION[:2])
    answers = [pair.output.tolist() for task in EVALUATION[:2] for pair in task.test]  # type: ignore
    attempts = [tests["attempt_1"] for name in submission for tests in submission[name]]
    assert (attempts == answers) == (score == 1.0)


def test_tests_without_answers_are_submitted_and_not_scored(
    arc_run: ArcRun, tmp_path: Path
) -> None:
    (tmp_path / "evaluation_solutions.json").unlink()
    code, out, err = run(tmp_path, *WORDS, "--votes", "1")
    assert (code, out) == (2, "") and "no answers to all of the test pairs; put the" in err
    code, out, err = run(tmp_path, *WORDS, "--votes", "1", "--submission", "found.json")
    assert (code, err) == (0, "") and "not scored" in out
    assert_valid(json.loads((tmp_path / "found.json").read_text()))


def test_without_a_puzzle_table_any_task_will_do(arc_run: ArcRun, tmp_path: Path) -> None:
    config = replace(arc_run.config.model, puzzle_emb_size=0, puzzle_emb_len=0)
    save_puzzle_model(tmp_path / "plain", arc_run.make_model(config), "arc")
    write_tasks(tmp_path / "other", [make_task("stranger", 2, 2)])
    words = ("--model", "plain", "--data", "other_challenges.json", "--refinement-steps", "1")
    rows = evaluate(script, tmp_path, *words)[1]["rows"]
    assert rows[-1]["system"] == "reasoner, pass@10 of 11 votes"


BAD = [
    (["--votes", "9"], "votes: got 9, expected 0 to the model's 4 augmentations"),
    (["--votes", "-1"], "votes: got -1, expected 0 to the model's 4 augmentations"),
    (["--data", "other_challenges.json"], "task 'x': the model was not trained with it"),
    (["--data", "nowhere.json"], "nowhere.json: no such file"),
    (["--num", "4"], "evaluation_challenges.json: 3 tasks, 4 are asked for; lower --num"),
    (["--num", "2", "--seed", "1"], "data: ARC has no generator; give --data, without --seed"),
    (["--submission", "nowhere/found.json"], "submission: there is no folder nowhere"),
    (["--model", "sudoku", "--votes", "3"], "votes: expected with a model for ARC only"),
    (["--model", "bare"], "tasks.json"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=lambda value: " ".join(value)[:30])
def test_bad_input_is_one_line(
    arc_run: ArcRun, tmp_path: Path, words: list[str], message: str
) -> None:
    write_tasks(tmp_path / "other", [EVALUATION[0], *(make_task(name, 2) for name in "xy")])
    save_puzzle_model(tmp_path / "sudoku", make_puzzle_model(), "sudoku-4x4")
    save_puzzle_model(tmp_path / "bare", arc_run.make_model(arc_run.config.model), "arc")
    done = run(tmp_path, *WORDS, *words)
    assert_refused(done, message)
    assert done.out == ""


def test_data_must_be_given(arc_run: ArcRun, tmp_path: Path) -> None:
    assert_refused(run(tmp_path, "--model", "model"), "data: ARC has no generator; give --data")
