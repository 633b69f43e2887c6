"""The commands of `python -m latent_reason` besides `solve`, which test_solving.py tests."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_originals import assert_equal, make_weights, write_original
from tiny_recipes import run_main

from latent_reason.__main__ import main
from latent_reason.puzzles.folder import load_puzzle_model

run = partial(run_main, main)


def test_import_and_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_original(tmp_path / "original", make_weights())
    words = ["import", "original/step_5", "--puzzle", "sudoku-4x4", "--output", "model"]
    assert run(*words) == 0
    assert load_puzzle_model("model").puzzle_name == "sudoku-4x4"
    assert run("export", "model", "--output", "step_0") == 0
    assert_equal(torch.load("step_0"), make_weights())
    assert capsys.readouterr() == ("model\nstep_0\n", "")


def test_import_with_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_original(tmp_path / "original", make_weights())
    Path("original/all_config.yaml").rename("elsewhere.yaml")
    words = ["import", "original/step_5", "--config", "elsewhere.yaml", "--num-cells", "16"]
    words += ["--num-puzzles", "7", "--output", "model"]
    assert run(*words) == 2
    assert "7 are wanted; choose what becomes of them" in capsys.readouterr().err
    assert run(*words, "--puzzles", "mean") == 0
    assert load_puzzle_model("model").model.config.num_puzzles == 7


def test_report_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"system": "reasoner", "task": "x", "split": "test", "n": 4, "exact_accuracy": 0.5}
    rows = [row | {"refinement_steps": step, "ci95": [0.2, 0.8]} for step in (1, 2)]
    Path("run").mkdir()
    Path("run/results.json").write_text(json.dumps({"schema_version": 1, "rows": rows}))
    assert run("report", "run", "--picture", "depth.png") == 0
    assert capsys.readouterr().out == "run/report.html\ndepth.png\n"
    assert Path("depth.png").read_bytes().startswith(b"\x89PNG")
    assert "reasoner" in Path("run/report.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND; see python -m latent_reason --help"),
        (["dance"], "invalid choice: 'dance'"),
        (["import", "nowhere", "--output", "x"], "nowhere: cannot be read"),
        (["export", "nowhere", "--output", "x"], "model nowhere: not a complete model folder"),
        (["report", "nowhere"], "nowhere/results.json: no such file"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []
