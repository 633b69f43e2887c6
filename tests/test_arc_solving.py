"""`solve` for ARC tasks: the right rows of the puzzle table, the votes, what is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from arc_tasks import (
    CONFIG,
    EVALUATION,
    TRAINING,
    broken,
    make_run,
    make_task,
    perfect,
    stand_in,
    write_task,
)
from tiny_recipes import run_main
from torch import Tensor

import latent_reason
from latent_reason import run_frame
from latent_reason.__main__ import main
from latent_reason.data.arc import ArcDataset
from latent_reason.data.arc_files import ArcPair
from latent_reason.errors import CheckpointError, ConfigError, DataError
from latent_reason.files import write_json
from latent_reason.model_folder import TASKS
from latent_reason.puzzles.arc_experiment import ArcRun
from latent_reason.puzzles.arc_solving import ArcSolution, solve_arc
from latent_reason.puzzles.arc_table import ArcTable, known_tasks, read_table, table_of
from latent_reason.puzzles.folder import save_puzzle_model

pytestmark = pytest.mark.usefixtures("one_process")

run = partial(run_main, main)
NUM_ROWS = 1 + 7 * 5


@pytest.fixture
def arc_run(tmp_path: Path) -> ArcRun:
    """A run that has not trained, with its model folder."""
    made = make_run(tmp_path)
    made.sample_split = "val"
    made.add("none", "arc", "val", 1, made.evaluator("val").sweep(model_of(made), [1]).at[1])
    made.write(model_of(made))
    return made


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the plots, which take long."""
    monkeypatch.setattr(run_frame, "write_report", lambda folder: folder / "report.html")


def model_of(arc_run: ArcRun) -> Any:
    return arc_run.make_model(arc_run.config.model)


def lines(pair: ArcPair) -> str:
    assert pair.output is not None
    return "\n".join("".join(map(str, row)) for row in pair.output.tolist())


# Identifiers


def test_a_task_by_itself_has_the_identifiers_that_it_had_among_all(tmp_path):
    whole = ArcDataset(TRAINING, EVALUATION, 4, seed=3)
    write_json(tmp_path / TASKS, table_of(whole))
    for index, task in enumerate(EVALUATION, start=len(TRAINING)):
        alone = known_tasks(tmp_path, replace(CONFIG.model, num_puzzles=NUM_ROWS), [task])
        tests = torch.arange(len(task.test)).repeat_interleave(5)
        k = torch.arange(5).repeat(len(task.test))
        first = whole.tests.index((index, 0))
        ours, theirs = alone.test_batch(tests, k), whole.test_batch(first + tests, k)
        for name, value in theirs.items():
            assert torch.equal(ours[name], value)
        identifiers = theirs["puzzle_identifiers"]
        assert identifiers.tolist() == (1 + 5 * index + k).tolist()
        for one, other in zip(
            alone.symmetries(identifiers), whole.symmetries(identifiers), strict=True
        ):
            assert torch.equal(one, other)
    assert alone.num_puzzle_identifiers == whole.num_puzzle_identifiers == NUM_ROWS
    some = known_tasks(tmp_path, replace(CONFIG.model, num_puzzles=NUM_ROWS), EVALUATION[::-2])
    assert [some.tasks[task].name for task, _ in some.tests] == ["e", "e", "g"]


def test_a_run_writes_what_its_puzzle_table_stands_for(arc_run):
    table = read_table(arc_run.folder / "model", NUM_ROWS)
    assert table == ArcTable([*"abcdefg"], 4, CONFIG.train.seed)


# Answers


@pytest.mark.parametrize("index", range(len(EVALUATION)))
def test_a_perfect_model_gives_the_right_grids(arc_run, tmp_path, monkeypatch, index):
    stand_in(monkeypatch, arc_run, perfect)  # it knows no other identifiers
    task = EVALUATION[index]
    path = write_task(tmp_path / f"{task.name}.json", task)
    confidence = torch.tensor(1.0).sigmoid().item()
    assert solve_arc(path, arc_run.folder / "model", 2, 4) == [
        ArcSolution(lines(pair), 5, 5, pytest.approx(confidence), 2, True) for pair in task.test
    ]


def test_the_most_voted_grid_is_the_answer(arc_run, tmp_path, monkeypatch):
    labels: list[Tensor] = []

    def mostly_right(label: Tensor) -> Tensor:
        labels.append(label)
        return label.clamp(min=0) if len(labels) % 5 in (1, 2, 3) else torch.full_like(label, 9)

    stand_in(monkeypatch, arc_run, mostly_right)
    path = write_task(tmp_path / "f.json", EVALUATION[1], answers=False)
    (solution,) = solve_arc(path, arc_run.folder / "model", 1, 4)
    assert (solution.answer, solution.num_votes) == (lines(EVALUATION[1].test[0]), 3)
    assert solution.right is None
    words = "3 of 5 votes, confidence 73 %, 1 refinement step, no rule to check it by"
    assert solution.verdict == words


@pytest.mark.parametrize("answers", [True, False])
def test_predictions_without_a_grid_are_no_answer(arc_run, tmp_path, monkeypatch, answers):
    stand_in(monkeypatch, arc_run, broken)
    path = write_task(tmp_path / "e.json", EVALUATION[0], answers)
    solutions = solve_arc(path, arc_run.folder / "model", 2, 3)
    nothing = ArcSolution(None, 0, 4, 0.0, 2, False if answers else None)
    assert solutions == [nothing, nothing]
    assert nothing.verdict.startswith("no grid, 0 of 4 votes, confidence 0 %")


def test_the_real_model_sees_its_embeddings(arc_run, tmp_path):
    """Rows of other tasks change nothing; those of the task do."""
    folder, path = arc_run.folder / "model", write_task(tmp_path / "f.json", EVALUATION[1])
    torch.manual_seed(0)
    model = model_of(arc_run)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.lm_head.weight.data[4:6] = torch.tensor([[1.0], [-1.0]])  # one of two colours always
    torch.nn.init.normal_(model.q_head.weight)
    torch.nn.init.zeros_(model.q_head.bias)

    def confidence(rows: slice) -> float:
        torch.nn.init.zeros_(model.puzzle_emb.weight)
        model.puzzle_emb.weight.data[rows] = torch.tensor([3.0, -4.0] * 3)
        save_puzzle_model(folder, model, "arc", more=arc_run.model_files())
        return solve_arc(path, folder, 1, 0)[0].confidence

    own = 1 + 5 * 5  # f is the sixth task
    plain = confidence(slice(0, 0))
    assert 0 < plain < 1
    assert confidence(slice(0, own)) == confidence(slice(own + 1, None)) == plain
    assert confidence(slice(own, own + 1)) != plain


def test_without_a_puzzle_table_any_task_will_do(arc_run, tmp_path):
    config = replace(arc_run.config.model, puzzle_emb_size=0, puzzle_emb_len=0)
    save_puzzle_model(tmp_path / "model", arc_run.make_model(config), "arc")
    stranger = write_task(tmp_path / "stranger.json", make_task("stranger", 2, 2))
    first, second = solve_arc(stranger, tmp_path / "model", 1, 20)
    assert first.num_predictions == second.num_predictions == 21
    with pytest.raises(ConfigError, match="votes: got 10001, expected 0 to the model's 10000"):
        solve_arc(stranger, tmp_path / "model", 1, 10_001)


# What is refused


def test_a_file_of_many_tasks_needs_a_name(arc_run, tmp_path, monkeypatch):
    stand_in(monkeypatch, arc_run, perfect)
    path, folder = tmp_path / "evaluation_challenges.json", arc_run.folder / "model"
    (solution,) = solve_arc(path, folder, 1, 2, task="g")  # with the solutions beside it
    assert (solution.answer, solution.right) == (lines(EVALUATION[2].test[0]), True)
    with pytest.raises(ConfigError, match="holds 3 tasks; name one with --task"):
        solve_arc(path, folder)
    with pytest.raises(ConfigError, match="has no task 'x'; check the name"):
        solve_arc(path, folder, task="x")


@pytest.mark.parametrize(
    ("name", "votes", "steps", "message"),
    [
        ("stranger", 2, 1, "task 'stranger': the model was not trained with it.*test_data of"),
        ("e", 5, 1, "votes: got 5, expected 0 to the model's 4 augmentations"),
        ("e", -1, 1, "votes: got -1"),
        ("e", 2, 0, "refinement_steps: got 0"),
    ],
)
def test_options_that_do_not_fit_the_model(arc_run, tmp_path, name, votes, steps, message):
    path = write_task(tmp_path / f"{name}.json", EVALUATION[0])
    with pytest.raises(ConfigError, match=message):
        solve_arc(path, arc_run.folder / "model", steps, votes)


def test_folders_that_do_not_fit(arc_run, tmp_path):
    path, folder = write_task(tmp_path / "e.json", EVALUATION[0]), arc_run.folder / "model"
    with pytest.raises(CheckpointError, match="model .*nowhere: not a complete model folder"):
        solve_arc(path, tmp_path / "nowhere")
    (folder / "tasks.json").unlink()
    with pytest.raises(CheckpointError, match=r"not a complete model folder .*tasks\.json"):
        solve_arc(path, folder)
    save_puzzle_model(folder, model_of(arc_run), "sudoku-30x30")
    with pytest.raises(ConfigError, match="made for puzzle 'sudoku-30x30', expected one for ARC"):
        solve_arc(path, folder)
    small = type(model_of(arc_run))(replace(arc_run.config.model, num_cells=16, vocab_size=12))
    save_puzzle_model(folder, small, "arc")
    with pytest.raises(CheckpointError, match="made for 16 cells and 12 tokens, arc has 900"):
        solve_arc(path, folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1", "not valid JSON"),
        ('{"train": ' + "[" * 100_000, "nested too deeply"),
        (" " * (32 * 1024**2 + 1), "more than 33,554,432 bytes; split"),
        ("{}", "holds no task"),
        ('{"train": [], "test": []}', "'train' is \\[\\], expected a list of pairs"),
        ('{"e": 1}', "task 'e'"),
    ],
    ids=range(6),
)
def test_a_bad_task_file_is_refused(tmp_path, text, message):
    (tmp_path / "e.json").write_text(text)
    with pytest.raises(DataError, match=message):
        solve_arc(tmp_path / "e.json", tmp_path)


def test_solve_names_the_function_for_arc_which_is_public(arc_run, tmp_path):
    model, path = arc_run.folder / "model", write_task(tmp_path / "e.json", EVALUATION[0])
    with pytest.raises(ConfigError, match="in Python by latent_reason.solve_arc"):
        latent_reason.solve(path.read_text(), model)
    solutions = latent_reason.solve_arc(path, model, 1, 0)
    assert [solution.num_predictions for solution in solutions] == [1] * len(EVALUATION[0].test)


# The command line


def test_a_solved_task(arc_run, tmp_path, monkeypatch, capsys):
    stand_in(monkeypatch, arc_run, perfect)
    path = write_task(tmp_path / "e.json", EVALUATION[0])
    capsys.readouterr()
    words = ["solve", str(path), "--model", str(arc_run.folder / "model"), "--votes", "3"]
    assert run(*words) == 0
    check = "4 of 4 votes, confidence 73 %, 16 refinement steps, no rule to check it by"
    expected = [
        f"{lines(pair)}\ntest {number}: {check}; right by the answer in the file\n"
        for number, pair in enumerate(EVALUATION[0].test, start=1)
    ]
    assert capsys.readouterr() == ("".join(expected), "")
    write_task(path, EVALUATION[0], answers=False)
    assert run(*words, "--refinement-steps", "2") == 0
    out = capsys.readouterr().out
    assert ", 2 refinement steps, no rule to check it by\n" in out and "in the file" not in out


def test_a_task_that_it_cannot_solve(arc_run, tmp_path, monkeypatch, capsys):
    stand_in(monkeypatch, arc_run, broken)
    path = write_task(tmp_path / "f.json", EVALUATION[1])
    capsys.readouterr()
    words = ["solve", str(path), "--model", str(arc_run.folder / "model"), "--votes", "0"]
    assert run(*words) == 1
    out, err = capsys.readouterr()
    assert out.startswith("-\ntest 1: no grid, 0 of 1 votes, ") and err == ""
    assert out.endswith("; wrong by the answer in the file\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["e.json"], "no ARC model comes with this package; name the folder of one with --model"),
        (["e.json", "--model", "nowhere"], "model nowhere: not a complete model folder"),
        (["x.json", "--model", "nowhere"], "x.json: no such file"),
        (
            ["e.json", "--model", "run/model", "--votes", "10"],
            "votes: got 10, expected 0 to the model's 4",
        ),
        (["e.json", "--model", "run/model", "--votes", "x"], "invalid int value: 'x'"),
        (["e.json", "--model", "run/model", "--task", "f"], "e.json: has no task 'f'"),
        (["stranger.json", "--model", "run/model"], "task 'stranger': the model was not trained"),
        (["1" * 81, "--model", "run/model"], "model: made for ARC; give it an ARC task, a .json"),
        (["e.json", "--puzzle", "sudoku-4x4"], "--puzzle: e.json is read as an ARC task"),
        (["1" * 81, "--votes", "3"], "--votes and --task: expected with an ARC task only"),
    ],
)
def test_errors_are_one_line(arc_run, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    for name in ("e", "stranger"):
        write_task(tmp_path / f"{name}.json", EVALUATION[0])
    capsys.readouterr()
    assert run("solve", *words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert message in err


def test_help_tells_of_arc(monkeypatch, capsys):
    assert run("solve", "--help") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "an ARC task (.json)" in out and "--votes N" in out
    assert run("--help") == 0
    assert "solve 007bbfb7.json --model" in capsys.readouterr().out
