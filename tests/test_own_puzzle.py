"""A puzzle of the user's own, module:Name: trained, evaluated, solved; never imported unasked."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
from tiny_recipes import assert_refused, at_step, evaluate, run_recipe, run_well

from eval import puzzle as eval_script
from latent_reason.__main__ import main as command
from latent_reason.data.own_puzzle import named_puzzle
from latent_reason.data.puzzle_commands import write_puzzles
from latent_reason.data.puzzles import Puzzle
from latent_reason.errors import ConfigError, DataError
from latent_reason.puzzles.folder import load_puzzle_model
from latent_reason.results import load_results
from recipes import train_puzzle as recipe

pytestmark = pytest.mark.usefixtures("one_process")

MODULE = '''
from itertools import permutations

import torch

from latent_reason.data.puzzles import Puzzle

open("imported", "a").close()


class Latin(Puzzle):
    """Every row and every column of a 3 x 3 square holds a, b and c."""

    name, height, width, alphabet, blank = "latin", 3, 3, ".abc", "."

    def groups(self):
        cell = torch.arange(9)
        line = torch.arange(3)[:, None]
        return torch.cat((cell // 3 == line, cell % 3 == line))

    def conflicts(self, question, answer):
        lines = [answer[i : i + 3] for i in (0, 3, 6)] + [answer[i::3] for i in range(3)]
        found = [f"line {i} is wrong" for i, s in enumerate(lines) if sorted(s) != [2, 3, 4]]
        kept = all(clue in (1, cell) for clue, cell in zip(question, answer))
        return found if kept else [*found, "a clue is changed"]

    def valid(self, questions, answers):
        pairs = zip(questions.tolist(), answers.tolist())
        return torch.tensor([not self.conflicts(q, a) for q, a in pairs])

    def generate(self, num, seed, split="train"):
        rows = torch.tensor(list(permutations((2, 3, 4))))
        triples = torch.tensor(list(permutations(range(6), 3)))
        grids = rows[triples].flatten(1)
        grids = grids[self.valid(torch.ones_like(grids), grids)].repeat(num, 1)[:num]
        draws = torch.Generator().manual_seed(seed + {"train": 0, "val": 1, "test": 2}[split])
        hidden = torch.rand(grids.shape, generator=draws) < 0.4
        return grids.masked_fill(hidden, 1), grids


class Twice(Latin):
    alphabet = ".aab"


class BlankLast(Latin):
    alphabet = "abc."


class RuleOnly(Puzzle):
    name, height, width, alphabet = "rule_only", 1, 3, "abc"
    valid = Latin.valid


class Loose(Latin):
    def groups(self):
        return torch.ones(2, 9)


class Careless(Latin):
    def generate(self, *wanted):
        questions, answers = super().generate(*wanted)
        return questions, answers.flip(0)


class Other:
    def __init__(self, size):
        pass


other, number = Other.__mro__[-1], 3
'''
NAME = "latin_squares:Latin"
TINY = (
    f"sudoku-4x4 --puzzle {NAME} --num-train 12 --num-val 4 --num-test 5 --refinement-steps 1 2 "
    "--model.reasoner.hidden-size 8 --train.max-steps 2 --train.batch-size 4 --train.log-every 1 "
    "--train.save-every 1 --train.halt.halt-max-steps 2 --output-dir run"
).split()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the module; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "latin_squares", raising=False)
    (tmp_path / "latin_squares.py").write_text(MODULE)
    return tmp_path


def was_imported(folder: Path) -> bool:
    found = (folder / "imported").exists()
    (folder / "imported").unlink(missing_ok=True)
    return found


def test_it_is_trained_evaluated_and_solved(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_well(recipe, folder, TINY)
    assert was_imported(folder)
    rows = load_results(folder / "run" / "results.json")["rows"]
    assert [(row["task"], row["n"]) for row in rows] == [(NAME, 5)] * 3

    saved = load_puzzle_model("run/model")
    assert (saved.puzzle_name, saved.puzzle) == (NAME, None) and not was_imported(folder)
    assert isinstance(load_puzzle_model("run/model", puzzle_name=NAME).puzzle, Puzzle)
    assert was_imported(folder)
    words = ["--model", "run/model", "--puzzle", NAME, "--num", "5"]
    assert evaluate(eval_script, folder, *words)[1]["rows"][0]["task"] == NAME
    words = ["solve", "ab.\n.ca\nc.b", "--model", "run/model", "--puzzle", NAME]
    assert command(words) in (0, 1)
    assert "confidence" in capsys.readouterr().out


def test_a_folder_does_not_choose_what_is_imported(folder: Path) -> None:
    stopped = run_recipe(recipe, folder, TINY, at_step(1, 15))
    assert stopped.code == 143 and was_imported(folder)
    again = ["--resume", "run", "--puzzle", NAME]
    assert stopped.out.splitlines()[-1].endswith(" ".join(again))
    assert_refused(run_recipe(recipe, folder, again[:2]), "which is code", " ".join(again))
    assert_refused(run_recipe(recipe, folder, [*again[:3], "sudoku-4x4"]), "which is code")
    assert not was_imported(folder)
    run_well(recipe, folder, again)
    (folder / "imported").unlink()
    for words in (["--model", "run/model"], ["--model", "run/model", "--puzzle", "sudoku-4x4"]):
        with pytest.raises(Exception, match=r"name it with --puzzle|the model is made for"):
            command(["solve", "ab..cac.b", *words])
    assert not was_imported(folder)
    config = json.loads((folder / "run" / "config.json").read_text())
    config["puzzle"] = "sudoku-4x4"
    (folder / "run" / "config.json").write_text(json.dumps(config))
    assert_refused(run_recipe(recipe, folder, again), "knows its puzzle")


def test_wrong_puzzles_are_not_written(folder: Path) -> None:
    args = argparse.Namespace(puzzle="latin_squares:Careless", num=9, seed=0, split="train")
    args.min_length, args.output = None, "x.csv"
    with pytest.raises(DataError, match=r"the answer is wrong by Careless.valid\(\)"):
        list(write_puzzles(args))
    assert not Path("x.csv").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere:Latin", "there is no module nowhere"),
        ("latin_squares.deep:Latin", "there is no module latin_squares.deep"),
        ("latin_squares:Greek", "module latin_squares has no class or function Greek"),
        ("latin_squares:number", "module latin_squares has no class or function number"),
        ("latin_squares:other", "gives a object, expected a Puzzle"),
        ("latin_squares:Other", "is not made without arguments"),
        ("latin_squares:Puzzle", "lacks the attribute name"),
        (
            "latin_squares:Twice",
            "has an alphabet of 4 characters, expected 1 to 255, all",
        ),
        ("latin_squares:BlankLast", "has the blank '.'; put it first in its alphabet"),
        ("latin_squares:RuleOnly", "does not say what breaks it; write conflicts"),
        ("latin_squares:Loose", r"Loose.groups\(\) is float32 \(2, 9\), expected bool"),
        ("latin squares:Latin", "expected module:Name"),
        ("latin_squares:Latin.x", "expected module:Name"),
        ("futoshiki", "or module:Name"),
    ],
)
def test_a_wrong_name_is_one_line(name: str, words: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=f"^puzzle: .*{words}") as caught:
        named_puzzle(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
