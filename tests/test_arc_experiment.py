"""ARC end to end on tiny tasks: the whole chain, what predictors score, kill and resume."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from arc_tasks import (
    CONFIG,
    EVALUATION,
    TRAINING,
    Oracle,
    assert_valid,
    broken,
    make_run,
    perfect,
    write_tasks,
)
from tiny_recipes import assert_refused, at_step, run_recipe, run_well
from tiny_runs import assert_same_run, last_checkpoint, on_two_processes
from torch import Tensor

from latent_reason.errors import ConfigError, DataError
from latent_reason.puzzles.arc_experiment import ArcRun, ArcRunConfig, hold_out
from latent_reason.puzzles.experiment import PuzzleRunConfig, load_splits
from latent_reason.puzzles.folder import save_puzzle_model
from latent_reason.results import load_results
from recipes import train_puzzle as recipe

pytestmark = pytest.mark.usefixtures("one_process")

TESTS = ["e", "e", "f", "g"]
SHRUNK = (
    "--model.reasoner.hidden-size 4 --model.reasoner.width-multiple 4 "
    "--model.reasoner.L-cycles 1 --model.reasoner.H-cycles 1 --model.puzzle-emb-size 6 "
    "--model.puzzle-emb-len 2 --train.max-steps 6 --train.batch-size 2 --train.warmup-steps 2 "
    "--train.log-every 2 --train.eval-every 3 --train.save-every 3 --train.halt.halt-max-steps 2 "
    "--num-val 2 --num-augmentations 4 --num-votes 2 --refinement-steps 1 2 --output-dir run"
).split()


def shifted(labels: Tensor) -> Tensor:
    """Another colour everywhere: grids of the right size and all wrong."""
    return torch.where(labels > 1, 2 + (labels - 1) % 10, labels.clamp(min=0))


# What predictors score


def evaluated(run: ArcRun, answer: Callable[[Tensor], Tensor]) -> list[dict[str, Any]]:
    """The rows of the table about the test pairs; the validation pairs are not the oracle's."""
    run.data["val"] = run.data["test"]
    parameters: list[Tensor] = []
    trainer = SimpleNamespace(trainable=parameters, tables=parameters, seconds=0.0, step=0)
    run.evaluate(Oracle(run, answer), trainer)  # type: ignore[arg-type]
    return [row for row in run.rows if row["split"] == "test"]


def test_a_perfect_predictor_scores_100_percent(tmp_path):
    run = make_run(tmp_path)
    rows = evaluated(run, perfect)
    scores = {row["system"]: row["exact_accuracy"] for row in rows}
    assert scores == dict.fromkeys(
        [
            "reasoner",
            "reasoner, halts itself",
            "reasoner, pass@1 of 3 votes",
            "reasoner, pass@2 of 3 votes",
        ],
        1.0,
    )
    assert [row["n"] for row in rows] == [4, 4, 4, 3, 3]
    assert rows[-1]["num_test_pairs"] == 4 and rows[-1]["num_leaks"] == 0
    submission = json.loads((tmp_path / "run" / "submission.json").read_text())
    assert_valid(submission)
    answers = [pair.output.tolist() for task in EVALUATION for pair in task.test]
    attempts = [tests["attempt_1"] for name in submission for tests in submission[name]]
    assert attempts == answers


@pytest.mark.parametrize("answer", [broken, shifted])
def test_a_broken_predictor_scores_nothing(tmp_path, answer):
    run = make_run(tmp_path)
    assert {row["exact_accuracy"] for row in evaluated(run, answer)} == {0.0}
    submission = json.loads((tmp_path / "run" / "submission.json").read_text())
    assert_valid(submission)
    if answer is broken:
        assert submission["f"] == [{"attempt_1": [[0]], "attempt_2": [[0]]}]


def test_tests_without_answers_are_submitted_and_not_scored(tmp_path, capsys):
    run = make_run(tmp_path, answers=False)
    assert not run.scored and run.sample_split == "val"
    model = run.make_model(run.config.model)
    run.evaluate(model, SimpleNamespace())  # type: ignore[arg-type]
    assert [row["split"] for row in run.rows] == ["val"]
    assert "not scored" in capsys.readouterr().out
    assert_valid(json.loads((tmp_path / "run" / "submission.json").read_text()))
    run.write(model)
    assert len(json.loads((tmp_path / "run" / "samples.json").read_text())) == 2


def vote_in_two(folder: Path) -> None:
    torch.set_num_threads(1)
    run = ArcRun("arc-smoke", replace(CONFIG, **json.loads((folder / "x").read_text())), False)
    votes = run.vote(Oracle(run, shifted))  # type: ignore[arg-type]
    rank = run.accelerator.process_index
    counts = [[c.num_votes for c in votes.ranked(test)] for test in range(3)]
    (folder / f"votes-{rank}").write_text(json.dumps([counts, votes.submission()]))


def test_two_processes_share_the_votes(tmp_path):
    run = make_run(tmp_path, num_test=2)  # 9 votes: the last batch is smaller
    votes = run.vote(Oracle(run, shifted))  # type: ignore[arg-type]
    files = {"train_data": run.config.train_data, "test_data": run.config.test_data}
    (tmp_path / "x").write_text(json.dumps(files | {"num_test": 2}))
    on_two_processes(vote_in_two, tmp_path)
    for rank in (0, 1):
        counts, submission = json.loads((tmp_path / f"votes-{rank}").read_text())
        assert counts == [[c.num_votes for c in votes.ranked(test)] for test in range(3)]
        assert [sum(numbers) for numbers in counts] == [3, 3, 3]
        assert submission == votes.submission()


# What is trained on


def keys(batch: dict[str, Tensor]) -> list[bytes]:
    return [
        torch.cat(pair).numpy().tobytes()
        for pair in zip(batch["inputs"], batch["labels"], strict=True)
    ]


def test_validation_and_test_pairs_are_not_trained_on(tmp_path):
    run = make_run(tmp_path)
    num_pairs = sum(len(t.train) + len(t.test) for t in TRAINING) + 2 + 3 + 3
    assert len(run.data["train"]) == num_pairs - 2
    trained = keys(run.tasks.batch(torch.arange(num_pairs - 2)))
    val = run.data["val"].batch(torch.arange(2))
    test = run.data["test"].batch(torch.arange(4))
    assert len({*trained, *keys(val), *keys(test)}) == num_pairs + 4
    # Their identifiers are those of their tasks as they are.
    names = [run.tasks.tasks[(i - 1) // 5].name for i in val["puzzle_identifiers"].tolist()]
    assert len({*names}) == 2 and {*names} <= {"a", "b", "d"}  # c has too few demonstrations
    tests = [run.tasks.tasks[(i - 1) // 5].name for i in test["puzzle_identifiers"].tolist()]
    assert tests == TESTS
    identifiers = torch.cat((val["puzzle_identifiers"], test["puzzle_identifiers"]))
    assert ((identifiers - 1) % 5 == 0).all()


def test_the_same_demonstrations_are_held_out_whatever_the_seed(tmp_path):
    kept, held = hold_out(TRAINING, 2)
    assert hold_out(TRAINING, 2)[1].keys() == held.keys() and len(held) == 2
    for before, after in zip(TRAINING, kept, strict=True):
        pairs = (*after.train, *held.get(before.name, ()))
        assert [id(pair) for pair in pairs] == [id(pair) for pair in before.train]
    with pytest.raises(DataError, match="3 tasks with more than 2 demonstrations, of which 4"):
        hold_out(TRAINING, 4)


def test_a_part_of_the_tasks(tmp_path):
    run = make_run(tmp_path, num_train=3, num_test=2, num_val=1)
    names = [task.name for task in run.tasks.tasks]
    assert len(names) == 5 and {*names[:3]} < {*"abcd"} and names[3:] == ["e", "f"]
    assert run.make_model(run.config.model).puzzle_emb.num_embeddings == 1 + 5 * 5  # type: ignore
    with pytest.raises(DataError, match="num_train: 5 tasks of 4"):
        make_run(tmp_path, num_train=5)


def test_tasks_that_leak_are_named(tmp_path, capsys):
    copy = replace(TRAINING[1], name="copy")
    run = make_run(tmp_path, [EVALUATION[1], copy])
    assert run.num_leaks == 1
    out = capsys.readouterr().out
    assert "warning: 1 of 2 tasks to evaluate are in train_data" in out and "copy as b" in out
    with pytest.raises(DataError, match="task 'b' is there twice"):
        make_run(tmp_path, [TRAINING[1]])


def test_tasks_that_leak_are_left_out(tmp_path, capsys):
    copy = replace(TRAINING[1], name="copy")
    run = make_run(tmp_path, [copy, EVALUATION[0]], skip_leaks=True)
    assert run.num_leaks == 0
    assert [task.name for task in run.tasks.tasks] == ["a", "c", "d", "copy", "e"]
    assert "left out: 1 tasks of train_data that are to be evaluated" in capsys.readouterr().out


def test_embeddings_of_other_tasks_are_no_start(tmp_path):
    run, start = make_run(tmp_path), tmp_path / "start"
    model = run.make_model(run.config.model)
    save_puzzle_model(start, model, "arc", more=run.model_files())
    make_run(tmp_path / "same", start_from=start)
    renamed = [replace(task, name=f"{task.name}2") for task in EVALUATION]
    for name, tasks, seed in (("tasks", renamed, CONFIG.train.seed), ("seed", EVALUATION, 7)):
        train = replace(CONFIG.train, seed=seed)
        with pytest.raises(ConfigError, match="start_from: .* expected a model of the same tasks"):
            make_run(tmp_path / name, tasks, start_from=start, train=train)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_votes": 5}, "num_votes: got 5, expected 0 to num_augmentations = 4"),
        ({"num_augmentations": -1, "num_votes": -1}, "num_augmentations: got -1"),
        ({"puzzle": "sudoku-4x4"}, "puzzle: got 'sudoku-4x4', expected 'arc'"),
        ({"augment": False}, "augment: got False"),
        ({"hints": 0.5}, "hints: got 0.5, expected 0 for ARC"),
    ],
)
def test_options_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, num_train=0, **changes)


def test_other_presets_do_not_take_arc():
    with pytest.raises(
        ConfigError, match="puzzle: got 'arc', expected another puzzle, or a preset"
    ):
        load_splits(PuzzleRunConfig(puzzle="arc"))


def test_files_must_be_given(tmp_path):
    with pytest.raises(ConfigError, match="train_data and test_data: got none"):
        ArcRun("arc-smoke", replace(CONFIG, output_dir=tmp_path), resume=False)


# The chain, from the command line


def words(folder: Path) -> list[str]:
    train = write_tasks(folder / "training", TRAINING)
    test = write_tasks(folder / "evaluation", EVALUATION)
    return ["arc-smoke", "--train-data", train, "--test-data", test, *SHRUNK]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    run_well(recipe, folder, words(folder), lambda: None)
    return folder / "run"


def test_a_run_from_files_to_a_submission(whole):
    rows = load_results(whole / "results.json")["rows"]
    found = [(row["system"], row["split"], row["n"]) for row in rows]
    assert found == [
        ("reasoner", "test", 4),
        ("reasoner", "test", 4),
        ("reasoner, halts itself", "test", 4),
        ("reasoner", "val", 2),
        ("reasoner, pass@1 of 3 votes", "test", 3),
        ("reasoner, pass@2 of 3 votes", "test", 3),
    ]
    assert_valid(json.loads((whole / "submission.json").read_text()))
    samples = json.loads((whole / "samples.json").read_text())
    assert len(samples) == 4
    lines = ["".join(map(str, row)) for row in EVALUATION[0].test[0].input.tolist()]
    assert samples[0]["prompt"].splitlines() == lines
    assert "pass@2 of 3 votes" in (whole / "report.html").read_text()
    weights = last_checkpoint(whole).tensors["model"]["puzzle_emb.weight"]
    assert weights.shape == (1 + 7 * 5, 6) and 1 <= (weights != 0).any(dim=1).sum() <= 12


@pytest.mark.parametrize("step", [2, 5])
def test_a_killed_run_resumes_bit_by_bit(whole, tmp_path, step):
    kill = at_step(step, signal.SIGKILL)
    assert run_recipe(recipe, tmp_path, words(tmp_path), kill).code == -signal.SIGKILL
    done = run_well(recipe, tmp_path, ["--resume", "run"])
    assert ("resumed run at step 3" in done.out) == (step == 5)
    assert_same_run(tmp_path / "run", whole)
    for name in ("submission.json", "samples.json"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


def test_bad_files_are_refused_in_one_line(tmp_path):
    files = words(tmp_path)
    Path(files[2]).write_text("[1")
    assert_refused(run_recipe(recipe, tmp_path, files), f"{files[2]}: not valid JSON")
    assert not (tmp_path / "run").exists()


def test_official_presets_are_as_published():
    for name, max_steps in (("arc-agi-1", 519_000), ("arc-agi-2", 726_000)):
        about, config = recipe.PRESETS[name]
        assert "not run yet" in about and isinstance(config, ArcRunConfig)
        reasoner, train = config.model.reasoner, config.train
        assert (reasoner.hidden_size, reasoner.num_heads, reasoner.L_layers) == (512, 8, 2)
        assert (reasoner.H_cycles, reasoner.L_cycles, reasoner.mixer) == (3, 4, "attention")
        assert (config.model.puzzle_emb_size, config.model.puzzle_emb_len) == (512, 16)
        assert config.model.loss == "stablemax" and config.num_augmentations == 1000
        assert (train.batch_size, train.max_steps) == (768, max_steps)
        assert (train.learning_rate, train.weight_decay) == (1e-4, 0.1)
        assert (train.puzzle_learning_rate, train.puzzle_weight_decay) == (1e-2, 0.1)
        assert train.learning_rate_factor(100_000, 0.99) == 1.0
