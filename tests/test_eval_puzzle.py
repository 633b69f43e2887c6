"""The evaluation script for puzzles: its rows, named subsets, bad input in one line."""

from __future__ import annotations

import csv
import gzip
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_recipes import assert_refused, evaluate, run_eval
from tiny_runs import make_puzzle_model
from torch import Tensor
from torch.fx import GraphModule

from eval import puzzle as script
from latent_reason.data.kinds import find_puzzle
from latent_reason.data.puzzle_files import read_puzzles, subsample
from latent_reason.metrics import wilson_interval
from latent_reason.puzzles.folder import save_puzzle_model
from latent_reason.puzzles.model import PuzzleModel

pytestmark = pytest.mark.usefixtures("one_process")
NAME = "sudoku-4x4"
PUZZLE = find_puzzle(NAME)
NUM = 12
run = partial(run_eval, script)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows.csv.gz and model/, averaged and raw weights that halt now and then."""
    folder = tmp_path_factory.mktemp("files")
    questions, answers = PUZZLE.generate(NUM, 7, "val")
    with gzip.open(folder / "rows.csv.gz", "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "question", "answer", "rating"])
        for question, answer in zip(questions.tolist(), answers.tolist(), strict=True):
            texts = [PUZZLE.format(t).replace("\n", "") for t in (question, answer)]
            writer.writerow(["made", *texts, 0])
    save_puzzle_model(folder / "model", *knowing(4), raw=knowing(0)[0].state_dict())
    return folder


def knowing(seed: int) -> tuple[PuzzleModel, str]:
    """Return a model with its name whose answers and halts differ from puzzle to puzzle."""
    model = make_puzzle_model("attention", seed)
    with torch.no_grad():
        model.q_head.bias.fill_(0.0)
    return model, NAME


def answers_of(model: PuzzleModel, questions: Tensor, steps: int) -> tuple[list[Tensor], list[int]]:
    """Return the answers after each step, and where each puzzle stops, one puzzle at a time."""
    answers, stops = [], []
    for question in questions.long():
        carry = model.initial_carry(1, PUZZLE.num_cells)
        proposed, stop = [], steps
        for step in range(1, steps + 1):
            with torch.no_grad():
                output = model(carry, question[None], puzzle_identifiers=torch.zeros(1).long())
            carry = output.carry
            proposed.append(output.logits[0].argmax(dim=-1))
            if output.q_halt_logits > 0:
                stop = min(stop, step)
        answers.append(torch.stack(proposed))
        stops.append(stop)
    return answers, stops


def test_rows_of_averaged_and_raw_weights(files: Path) -> None:
    words = ["--model", "model", "--data", "rows.csv.gz", "--refinement-steps", "3", "1"]
    out, results = evaluate(script, files, *words, "--batch-size", "5")
    rows = results["rows"]
    assert results["packages"]["torch"]
    data = read_puzzles(files / "rows.csv.gz", PUZZLE)
    for seed, system, part in ((4, "reasoner", rows[:3]), (0, "reasoner, raw weights", rows[3:])):
        answers, stops = answers_of(knowing(seed)[0].eval(), data.questions, 3)
        mean = sum(stops) / NUM
        assert 1 < mean < 3
        halts = f"{system}, halts itself"
        assert [row["system"] for row in part] == [system, system, halts]
        assert [row["refinement_steps"] for row in part] == [1, 3, 3]
        assert part[2]["mean_refinement_steps"] == pytest.approx(mean)
        chosen = [[0] * NUM, [2] * NUM, [stop - 1 for stop in stops]]
        for row, at in zip(part, chosen, strict=True):
            picked = torch.stack([a[i] for a, i in zip(answers, at, strict=True)])
            right = picked == data.answers
            assert (row["task"], row["split"], row["n"]) == ("rows", "file", NUM)
            assert row["exact_accuracy"] == right.all(dim=1).float().mean().item()
            assert row["accuracy"] == pytest.approx(right.float().mean().item())
            num_right = int(right.all(dim=1).sum())
            assert row["ci95"] == pytest.approx(wilson_interval(num_right, NUM))
        assert [row["valid_accuracy"] for row in part] == [0.0] * 3
        halted_at = dict(part[2]["halted_at"])
        assert [halted_at.get(step, 0) for step in (1, 2)] == [stops.count(1), stops.count(2)]
        assert part[0]["accuracy"] > 0
    assert rows[0]["accuracy"] != rows[3]["accuracy"]
    assert "rows/file" in out and "valid %" not in out, "nothing is valid that is not exact"


def test_puzzles_with_several_solutions_are_refused(files: Path) -> None:
    (files / "two.csv").write_text("question,answer\n1" + "." * 15 + ",1234341221434321\n")
    done = run(files, "--model", "model", "--data", "two.csv")
    assert_refused(done, "error: two.csv:2: the question has several solutions; remove it")
    assert done.out == ""


def test_one_kind_of_weights(files: Path) -> None:
    words = ["--model", "model", "--data", "rows.csv.gz", "--refinement-steps", "1"]
    for weights, system in (("averaged", "reasoner"), ("raw", "reasoner, raw weights")):
        rows = evaluate(script, files, *words, "--weights", weights)[1]["rows"]
        assert len(rows) == 2 and rows[0]["system"] == system


@pytest.mark.parametrize(
    ("words", "about"),
    [
        (["--data", "rows.csv.gz"], ("rows", "file", NUM, None)),
        (["--data", "rows.csv.gz", "--num", "5"], ("rows", "file", 5, "first 5")),
        (
            ["--data", "rows.csv.gz", "--num", "5", "--seed", "3"],
            ("rows", "file", 5, "5 drawn with seed 3"),
        ),
        (["--num", "6"], (NAME, "test", 6, "6 generated with seed 0")),
        (["--num", "6", "--seed", "3"], (NAME, "test", 6, "6 generated with seed 3")),
    ],
)
def test_named_subsets(files: Path, words: list[str], about: tuple[str, str, int, str]) -> None:
    words += ["--model", "model", "--refinement-steps", "1", "--weights", "averaged", "--bf16"]
    for row in evaluate(script, files, *words)[1]["rows"]:
        assert (row["task"], row["split"], row["n"], row.get("subset")) == about


def test_a_compiled_model_gives_the_same_rows(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--model", "model", "--data", "rows.csv.gz", "--refinement-steps", "1", "3"]
    plain = evaluate(script, files, *words)[1]["rows"]

    def backend(graph: GraphModule, inputs: list[Tensor]) -> GraphModule:
        (files / "compiled").touch()
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    assert evaluate(script, files, *words, "--compile")[1]["rows"] == plain
    assert (files / "compiled").exists()


def test_a_subset_holds_the_puzzles_it_names(files: Path) -> None:
    """Its accuracy is that of these rows of the file, not of others."""
    data = read_puzzles(files / "rows.csv.gz", PUZZLE)
    drawn = subsample(data, 5, 3)
    assert not torch.equal(drawn.questions, data.questions[:5])
    first, seen = data.subset(torch.arange(5)), set()
    for chosen, part in (([], first), (["--seed", "3"], drawn)):
        words = ["--model", "model", "--data", "rows.csv.gz", "--refinement-steps", "1", *chosen]
        words += ["--num", "5", "--weights", "averaged"]
        row = evaluate(script, files, *words)[1]["rows"][0]
        answers, _ = answers_of(knowing(4)[0].eval(), part.questions, 1)
        right = torch.cat(answers) == part.answers
        assert row["accuracy"] == pytest.approx(right.float().mean().item())
        seen.add(row["accuracy"])
    assert len(seen) == 2


BAD = [
    (["--model", "nowhere"], "model nowhere: not a complete model folder"),
    (["--data", "nowhere.csv"], "nowhere.csv: no such file"),
    (["--data", "bad.csv"], "bad.csv:2: the question has 3 cells, expected 16"),
    (["--refinement-steps", "0"], "refinement_steps: got [0], expected numbers from 1 up"),
    (["--refinement-steps", "two"], "'two'"),
    (["--refinement-steps", "1000000"], "got [1000000], expected numbers from 1 up to 100,000"),
    (["--batch-size", "0"], "batch_size: got 0, expected at least 1"),
    (["--num", "0"], "num: got 0, expected at least 1"),
    (["--num", "13"], "rows.csv.gz: 12 puzzles, 13 are asked for; lower --num"),
    (["--num", "13", "--seed", "1"], "rows.csv.gz: 12 puzzles, 13 are asked for; lower --num"),
    (["--seed", "1"], "seed: it draws some puzzles of the data; say how many with --num"),
    (["--seed", "-1", "--num", "3"], "seed: got -1, expected 0 to"),
    (["--model", "other"], "model: made for 'hexagons', which is not known here"),
    (["--model", "other", "--weights", "raw"], "raw.safetensors"),
    (["--output", "nowhere/found.json"], "output: there is no folder nowhere"),
    (["--output", "model"], "output: model cannot be written as a file; choose another"),
    (["--colour", "red"], "unrecognized arguments: --colour red; see puzzle.py --help"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=lambda value: " ".join(value)[:30])
def test_bad_input_is_one_line(files: Path, words: list[str], message: str) -> None:
    (files / "bad.csv").write_text("question,answer\n123,1234\n")
    save_puzzle_model(files / "other", knowing(1)[0], "hexagons")
    before = sorted(files.rglob("*"))
    done = run(files, "--model", "model", "--data", "rows.csv.gz", *words)
    assert_refused(done, message)
    assert done.out == ""
    assert sorted(files.rglob("*")) == before
