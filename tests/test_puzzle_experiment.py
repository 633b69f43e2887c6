"""Puzzle runs: their configuration and data, and the recipe from its command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tiny_recipes import (
    assert_help_names,
    assert_not_overwritten,
    assert_refused,
    assert_same_results,
    assert_two_processes_do_as_one,
    at_step,
    no_report,
    run_by_itself,
    run_once,
    run_recipe,
    run_well,
)
from tiny_runs import read_lines
from torch import Tensor

from latent_reason.config import PuzzleModelConfig, ReasonerConfig
from latent_reason.data.kinds import find_puzzle
from latent_reason.data.puzzles import Puzzle
from latent_reason.errors import ConfigError, DataError
from latent_reason.puzzles.evaluation import PuzzleEvaluator
from latent_reason.puzzles.experiment import PuzzleRun, PuzzleRunConfig, load_splits
from latent_reason.puzzles.folder import load_puzzle_model
from latent_reason.puzzles.model import PuzzleModel
from latent_reason.results import load_results
from latent_reason.train_config import HaltConfig, TrainConfig
from latent_reason.training import Trainer
from recipes import train_puzzle as recipe

pytestmark = pytest.mark.usefixtures("one_process")
run_here, run_to_end = partial(run_recipe, recipe), partial(run_well, recipe)
WEIGHTS = ("model/model.safetensors", "model/raw.safetensors")
OUTPUT = ["--output-dir", "run"]
SUDOKU = find_puzzle("sudoku-4x4")
SHRUNK = (
    "--num-train 24 --num-val 6 --num-test 7 --refinement-steps 1 4 "
    "--model.reasoner.hidden-size 8 --model.reasoner.width-multiple 8 "
    "--model.reasoner.residual-init normal --train.max-steps 12 --train.batch-size 4 "
    "--train.warmup-steps 4 --train.log-every 4 --train.eval-every 6 --train.save-every 6 "
    "--train.halt.halt-max-steps 3 --train.precision fp32 --hints 0.8"
).split()


# Configuration


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_train": -1}, "num_train: got -1, expected at least 0"),
        ({"num_test": -1}, "num_test: got -1, expected at least 0"),
        ({"num_val": 0}, "num_val: got 0, expected at least 1"),
        ({"refinement_steps": ()}, r"refinement_steps: got \(\), expected numbers from 1 up"),
        ({"refinement_steps": [4, 0]}, r"refinement_steps: got \(4, 0\)"),
        ({"train_data": ["a.csv"]}, "train_data and test_data: got one, expected both or none"),
        ({"test_data": "a.csv"}, "train_data and test_data: got one, expected both or none"),
        ({"train": {"max_steps": 0}}, "max_steps: got 0"),
        ({"model": {"loss": "hinge"}}, "loss: got 'hinge'"),
        ({"num_train": 2.5}, "num_train: got 2.5, expected a whole number"),
        ({"num_train": True}, "num_train: got True, expected a whole number"),
        ({"augment": "no"}, "augment: got 'no', expected True or False"),
        ({"controls": 1}, "controls: got 1, expected True or False"),
        ({"hints": "x"}, "hints: got 'x', expected a finite number"),
        ({"refinement_steps": 4}, "refinement_steps: got 4, expected a list of whole numbers"),
        ({"refinement_steps": (1.5, True)}, r"refinement_steps: got \(1.5, True\), expected a l"),
        ({"train_data": "a.csv", "test_data": "b"}, "train_data: got 'a.csv', expected a list of"),
        (
            {"start_from": "x", "controls": True},
            "start_from: got 'x', expected None with --controls: its training is no part of",
        ),
        ({"test_data": 5}, "test_data: got 5, expected a text or None"),
        ({"output_dir": 5}, "output_dir: got 5, expected a path or None"),
        ({"train": 5}, "train: got 5, expected a TrainConfig"),
        ({"colour": 1}, r"PuzzleRunConfig: got \['colour'\], expected only the fields"),
    ],
)
def test_a_wrong_value_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        PuzzleRunConfig.from_dict(values)


def test_nothing_grows_anew_in_what_was_trained_before() -> None:
    _, config = recipe.PRESETS["sudoku-6x6"]
    assert config.train.cycles_curriculum and config.train.halt.curriculum
    train = replace(config, start_from=Path("x")).train
    assert train.cycles_curriculum is None and train.halt.curriculum is None


def test_a_whole_number_is_a_number() -> None:
    assert PuzzleRunConfig(hints=1).hints == 1


def test_all_of_the_files_may_be_asked_for() -> None:
    files = {"train_data": ("a.csv",), "test_data": "b.csv"}
    config = PuzzleRunConfig(num_train=0, num_test=0, **files)
    assert (config.num_train, config.num_test) == (0, 0)
    with pytest.raises(ConfigError, match="num_val"):
        PuzzleRunConfig(num_val=0, **files)


def test_json_and_back_gives_the_same_configuration() -> None:
    for _, config in recipe.PRESETS.values():
        values = config.to_dict() | {"output_dir": "runs/x"}
        back = type(config).from_dict(json.loads(json.dumps(values)))
        assert back.output_dir == Path("runs/x")
        assert json.dumps(back.to_dict() | {"output_dir": None}) == json.dumps(config.to_dict())
        assert (back.train, back.refinement_steps) == (config.train, config.refinement_steps)


# Data


def grids(*parts: Tensor) -> set[tuple[int, ...]]:
    return {tuple(row) for part in parts for row in part.tolist()}


SMALL = {"num_train": 20, "num_val": 6, "num_test": 9}


@pytest.mark.parametrize("puzzle", ["sudoku-4x4", "maze-5x7"])
@pytest.mark.parametrize("augment", [True, False])
def test_generated_splits_share_no_puzzle(puzzle: str, augment: bool) -> None:
    config = PuzzleRunConfig(puzzle=puzzle, augment=augment, **SMALL)
    data = load_splits(config)
    assert {split: len(part) for split, part in data.items()} == {"train": 20, "val": 6, "test": 9}
    questions = [grids(part.questions) for part in data.values()]
    assert len(set.union(*questions)) == 35
    for part in data.values():
        valid = part.puzzle.valid(part.questions.long(), part.answers.long())
        assert valid is not None and valid.all()
    again = load_splits(config)
    other = load_splits(PuzzleRunConfig(puzzle=puzzle, train=TrainConfig(seed=1), **SMALL))
    for split, part in data.items():
        assert torch.equal(part.questions, again[split].questions)
        assert not torch.equal(part.questions, other[split].questions)
    train = data["train"]
    same = torch.equal(train.at(torch.arange(20), 0)["inputs"], plain_order(train))
    assert same != augment


def plain_order(train: Any) -> Tensor:
    """Return the questions of the first epoch as they are."""
    train.augment, before = False, train.augment
    inputs = train.at(torch.arange(20), 0)["inputs"]
    train.augment = before
    return inputs


def write_csv(path: Path, split: str, num: int, puzzle: Puzzle = SUDOKU) -> str:
    rows = ["question,answer"]
    for question, answer in zip(*puzzle.generate(num, 0, split), strict=True):
        texts = (puzzle.format(g.tolist()).replace("\n", "") for g in (question, answer))
        rows.append(",".join(texts))
    path.write_text("\n".join(rows) + "\n")
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """Two training files of 12 and 8 puzzles, and a test file of 9."""
    one = write_csv(tmp_path / "one.csv", "train", 20)
    lines = Path(one).read_text().splitlines()
    Path(one).write_text("\n".join(lines[:13]) + "\n")
    (tmp_path / "two.csv").write_text("\n".join([lines[0], *lines[13:]]) + "\n")
    test = write_csv(tmp_path / "test.csv", "test", 9)
    return {"train_data": (one, str(tmp_path / "two.csv")), "test_data": test}


def seeded(seed: int, files: dict[str, Any], **values: Any) -> PuzzleRunConfig:
    return PuzzleRunConfig(train=TrainConfig(seed=seed), num_val=5, **files, **values)


def test_validation_puzzles_are_taken_out_of_the_files_whatever_the_seed(
    files: dict[str, Any],
) -> None:
    all_of_it = grids(SUDOKU.generate(20, 0, "train")[0])
    splits = [load_splits(seeded(seed, files, num_train=0, num_test=0)) for seed in (0, 1)]
    for data in splits:
        assert {split: len(part) for split, part in data.items()} == {
            "train": 15,
            "val": 5,
            "test": 9,
        }
        train, val = grids(data["train"].questions), grids(data["val"].questions)
        assert not train & val and train | val == all_of_it
    assert torch.equal(splits[0]["val"].questions, splits[1]["val"].questions)


def test_fewer_puzzles_are_drawn_by_seed_and_tests_are_the_first_ones(
    files: dict[str, Any],
) -> None:
    splits = [load_splits(seeded(seed, files, num_train=7, num_test=4)) for seed in (0, 0, 1)]
    train = [grids(data["train"].questions) for data in splits]
    assert [len(part) for part in train] == [7, 7, 7]
    assert train[0] == train[1] != train[2]
    assert not train[0] & grids(splits[0]["val"].questions)
    questions, answers = SUDOKU.generate(9, 0, "test")
    assert torch.equal(splits[2]["test"].questions.long(), questions[:4])
    assert torch.equal(splits[2]["test"].answers.long(), answers[:4])


def test_files_with_too_few_puzzles_are_refused(files: dict[str, Any]) -> None:
    config = PuzzleRunConfig(num_val=20, **files)
    with pytest.raises(DataError, match=r"one.csv, .*two.csv: 20 puzzles, of which 20 are for val"):
        load_splits(config)
    with pytest.raises(DataError, match="num_train: 16 of 15 puzzles; 0 takes all"):
        load_splits(seeded(0, files, num_train=16))


def test_a_question_in_two_files_is_refused_with_both_places(files: dict[str, Any]) -> None:
    one, two = map(Path, files["train_data"])
    row = one.read_text().splitlines()[3]
    two.write_text(two.read_text() + row + "\n")
    with pytest.raises(DataError) as caught:
        load_splits(seeded(0, files))
    message = f"{two}:10: the same question as in {one}:4, with the same answer; remove one"
    assert str(caught.value) == message


# A run


def make_run(folder: Path, resume: bool = False, **values: Any) -> PuzzleRun:
    config = PuzzleRunConfig(output_dir=folder, **(SMALL | values))
    return PuzzleRun("mine", config, resume)


def test_sizes_are_those_of_the_puzzle_and_weights_those_of_the_seed(tmp_path: Path) -> None:
    reasoner = ReasonerConfig(
        hidden_size=16, num_heads=2, width_multiple=8, mixer="groups", positions="none"
    )
    config = PuzzleModelConfig(reasoner=reasoner, vocab_size=3, num_cells=2)
    runs = [
        make_run(tmp_path, puzzle="maze-5x7", train=TrainConfig(seed=seed)) for seed in (0, 0, 1)
    ]
    models = [run.make_model(config) for run in runs]
    assert (models[0].config.vocab_size, models[0].config.num_cells) == (6, 35)
    assert torch.equal(models[0].groups, find_puzzle("maze-5x7").groups())
    weights = [model.embed_tokens.weight for model in models]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_the_trainer_tells_the_limit_and_evaluates_by_it(tmp_path: Path) -> None:
    reasoner = ReasonerConfig(
        hidden_size=16, num_heads=2, width_multiple=8, mixer="groups", positions="none"
    )
    halt = HaltConfig(halt_max_steps=3)
    run = make_run(tmp_path, hints=0.8)
    train = TrainConfig(batch_size=4, halt=halt, cycles_curriculum=(0.0, 1.0))
    model, trainer = run.make_trainer(tmp_path, PuzzleModelConfig(reasoner=reasoner), train)
    assert trainer.options(0.5, 2) == {"max_refinement_steps": 2, "cycles": (2, 3)}
    assert run.data["train"].hints == 0.4, "hints fall to none over the training"
    torch.nn.init.constant_(model.q_head.bias, 1e4)  # stops at once
    metrics = trainer.evaluate()
    sweep = run.evaluator("val").sweep(model, [1, 3])
    assert metrics == {
        "val/exact_accuracy": sweep.at[3].exact_accuracy,
        "val/accuracy": sweep.at[3].accuracy,
        "val/halted_exact_accuracy": sweep.at[1].exact_accuracy,
        "val/mean_refinement_steps": 1.0,
    }


def disguised(rows: list[str]) -> list[str]:
    """Exchange the digits 1 and 2."""
    return [row.translate(str.maketrans("12", "21")) for row in rows]


def test_puzzles_that_splits_share_are_counted(
    files: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values: dict[str, Any] = {"num_train": 0, "num_val": 3, "num_test": 0} | files
    run = make_run(tmp_path, **values)
    assert run.num_leaks == 0 and "warning" not in capsys.readouterr().out
    train, val = (run.data[split].place(0).rpartition(":") for split in ("train", "val"))
    rows = [Path(file).read_text().splitlines()[int(row) - 1] for file, _, row in (train, val)]
    Path(files["test_data"]).write_text("\n".join(["question,answer", *disguised(rows), ""]))
    more = tmp_path / "more.csv"
    more.write_text("\n".join(["question,answer", *disguised(rows), ""]))
    assert make_run(tmp_path, **values).num_leaks == 2
    lines = [s for s in capsys.readouterr().out.splitlines() if s.startswith("warning: 1 of 2 ")]
    assert len(lines) == 2 and "test puzzles are in train up to symmetry, such as" in lines[0]
    assert f"{files['test_data']}:3, which is {val[0]}:{val[2]}" in lines[1]
    values["train_data"] = (*files["train_data"], str(more))
    make_run(tmp_path, **values | {"num_val": 11})
    assert "val puzzles are in train up to symmetry" in capsys.readouterr().out


@pytest.mark.parametrize("split", ["train", "test"])
def test_puzzles_with_several_solutions_are_refused(
    files: dict[str, Any], tmp_path: Path, split: str
) -> None:
    path = tmp_path / "more.csv"
    path.write_text("question,answer\n1..............." + ",1234341221434321\n")
    more = {"train_data": (*files["train_data"], str(path)), "test_data": str(path)}
    words: dict[str, Any] = files | {f"{split}_data": more[f"{split}_data"]}
    with pytest.raises(DataError, match=f"^{path}:2: the question has several solutions; remove"):
        make_run(tmp_path, **words, num_val=1, num_train=0, num_test=0)


def test_nothing_is_written_before_the_data_is_there(tmp_path: Path) -> None:
    files = {"train_data": (str(tmp_path / "no.csv"),), "test_data": "no.csv"}
    for values, error in (({"puzzle": "chess"}, ConfigError), (files, DataError)):
        with pytest.raises(error):
            make_run(tmp_path / "run", **values)
    assert list(tmp_path.iterdir()) == []


# The recipe


def tiny(*words: str, preset: str = "sudoku-4x4") -> list[str]:
    return [preset, *SHRUNK, *words]


@pytest.fixture
def whole(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A copy of a run folder that nobody interrupted; the run is made once."""
    folder = tmp_path_factory.getbasetemp() / "whole_puzzle"
    return shutil.copytree(run_once(recipe, folder, tiny("--augment")), tmp_path / "whole")


def test_a_run_from_the_command_line(whole: Path, tmp_path: Path) -> None:
    folder, lines = run_by_itself(recipe, tmp_path, tiny("--augment"))
    assert lines[1:3] == [
        "making puzzles of sudoku-4x4",
        "puzzles of sudoku-4x4: train 24, val 6, test 7",
    ]
    assert_same_results(folder, whole, *WEIGHTS)


def test_the_run_folder_is_complete(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    files = {".lock", "config.json", "environment.json", "metrics.jsonl", "perf.jsonl"}
    files |= {"results.json", "samples.json", "report.html"}
    assert names == files | {"checkpoints", "model"}
    lines = read_lines(whole / "metrics.jsonl")
    assert [line["step"] for line in lines] == [4, 6, 8, 12, 12]
    evaluated = [line for line in lines if "val/exact_accuracy" in line]
    for line in evaluated:
        assert 1 <= line["val/mean_refinement_steps"] <= 3
        assert 0 <= line["val/halted_exact_accuracy"] <= 1
        assert 0 <= line["val/accuracy"] <= 1
    config = json.loads((whole / "config.json").read_text())
    assert (config["preset"], config["puzzle"]) == ("sudoku-4x4", "sudoku-4x4")
    assert config["train"]["halt"]["halt_max_steps"] == 3 and config["augment"] is True
    assert "<html" in (whole / "report.html").read_text()


def test_results_are_valid_and_complete(whole: Path) -> None:
    results = load_results(whole / "results.json")
    assert (results["preset"], results["halt_max_steps"]) == ("sudoku-4x4", 3)
    own, halting = results["rows"][:3], results["rows"][3]
    assert len(results["rows"]) == 4
    assert [(row["system"], row["refinement_steps"]) for row in own] == [
        ("reasoner", 1),
        ("reasoner", 3),
        ("reasoner", 4),
    ]
    for row in own:
        assert (row["task"], row["split"], row["n"]) == ("sudoku-4x4", "test", 7)
        assert row["valid_accuracy"] == row["exact_accuracy"], "these puzzles have one answer"
        assert (
            row["num_leaks"] == 0 and row["train_steps"] == 12 and row["trainable_parameters"] > 300
        )
    used = halting["mean_refinement_steps"]
    assert halting["system"] == "reasoner, halts itself"
    assert halting["n"] == 7 and halting["refinement_steps"] == 4 and 1 <= used <= 4
    assert 0 <= halting["valid_accuracy"] <= 1
    stopped = {step: num for step, num in halting["halted_at"]}
    rest = 7 - sum(stopped.values())
    assert used == (sum(step * num for step, num in stopped.items()) + 4 * rest) / 7


def test_the_saved_model_gives_the_rows(whole: Path) -> None:
    config = PuzzleRunConfig.from_dict(
        {k: v for k, v in json.loads((whole / "config.json").read_text()).items() if k != "preset"}
    )
    model = load_puzzle_model(whole / "model").model
    data = load_splits(config)["test"]
    sweep = PuzzleEvaluator(data, Accelerator(mixed_precision="no")).sweep(model, [1, 3, 4])
    rows = load_results(whole / "results.json")["rows"]
    for row in rows[:3]:
        counter = sweep.at[row["refinement_steps"]]
        assert row["exact_accuracy"] == counter.exact_accuracy
        assert row["accuracy"] == counter.accuracy
    assert rows[3]["accuracy"] == sweep.halted.accuracy
    samples = json.loads((whole / "samples.json").read_text())
    assert [SUDOKU.parse(s["prompt"]) for s in samples] == data.questions[:4].tolist()
    assert [step["refinement_steps"] for step in samples[0]["steps"]] == [1, 3, 4]
    raw = load_puzzle_model(whole / "model", weights="raw").model
    assert not torch.equal(raw.lm_head.weight, model.lm_head.weight)


def test_training_starts_from_a_saved_model(whole: Path, tmp_path: Path) -> None:
    saved = load_puzzle_model(whole / "model").model
    words = {"puzzle": "sudoku-6x6", "model": saved.config, "start_from": whole / "model"}
    run = make_run(tmp_path / "more", **words, train=TrainConfig(seed=5))
    model = run.make_model(saved.config)
    assert model.config.num_cells == 36
    own, theirs = model.state_dict(), saved.state_dict()
    del theirs["groups"]
    assert all(torch.equal(own[name], value) for name, value in theirs.items()), "states too"
    run_to_end(tmp_path, tiny("--start-from", "whole/model", "--output-dir", "more"))
    values = json.loads((tmp_path / "more" / "config.json").read_text())
    assert values["start_from"] == "whole/model"


def worse_with_every_step() -> None:
    """Let a run find that validation falls."""
    evaluate = Trainer._evaluate

    def spoiled(self: Trainer) -> None:
        own, self.evaluate = (
            self.evaluate,
            lambda: own() | {"val/exact_accuracy": 1 / (1 + self.step)},
        )
        evaluate(self)

    Trainer._evaluate = spoiled  # type: ignore[method-assign]


def test_a_start_that_training_does_not_better_stays_the_best(whole: Path, tmp_path: Path) -> None:
    words = ["--start-from", "whole/model", "--train.learning-rate", "0.1"]
    run_to_end(tmp_path, tiny(*words, "--output-dir", "more"), worse_with_every_step)
    lines = read_lines(tmp_path / "more" / "metrics.jsonl")
    assert [line["step"] for line in lines if "val/accuracy" in line][0] == 0
    saved, start = (
        load_puzzle_model(tmp_path / name / "model").model for name in ("more", "whole")
    )
    assert torch.equal(saved.lm_head.weight, start.lm_head.weight)


def test_a_start_killed_before_its_first_checkpoint_starts_from_there_again(
    whole: Path, tmp_path: Path
) -> None:
    saved = load_puzzle_model(whole / "model").model
    words = {"puzzle": "sudoku-4x4", "model": saved.config, "start_from": whole / "model"}
    run = make_run(tmp_path / "more", resume=True, **words)
    assert torch.equal(run.make_model(saved.config).lm_head.weight, saved.lm_head.weight)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.reasoner.hidden-size 16", "start_from: got 'whole/model', expected the weights"),
        ("--start-from none", "none: "),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    whole: Path, tmp_path: Path, option: str, message: str
) -> None:
    words = tiny("--start-from", "whole/model", "--output-dir", "more", *option.split())
    done = run_here(tmp_path, words)
    assert done.code == 2 and message in done.err, done.err
    assert not (tmp_path / "more").exists()


def test_the_halting_row_stops_by_the_head(tmp_path: Path) -> None:
    """A head that always says stop uses one step, and its row is that of one step."""

    def prepare() -> None:
        no_report()
        use_best = Trainer.use_best_weights

        def stop_at_once(self: Trainer) -> None:
            use_best(self)
            torch.nn.init.constant_(self.model.q_head.bias, 1e4)

        Trainer.use_best_weights = stop_at_once  # type: ignore[method-assign]

    run_to_end(tmp_path, tiny("--train.max-steps", "2", *OUTPUT), prepare)
    rows = load_results(tmp_path / "run" / "results.json")["rows"]
    assert rows[3]["system"] == "reasoner, halts itself"
    assert rows[3]["mean_refinement_steps"] == 1.0 and rows[3]["halted_at"] == [[1, 7]]
    for name in ("exact_accuracy", "accuracy"):
        assert rows[3][name] == rows[0][name]


@pytest.mark.parametrize("step", [5, 9])
def test_a_killed_run_resumes_bit_by_bit(whole: Path, tmp_path: Path, step: int) -> None:
    words = tiny("--augment", *OUTPUT)
    killed = run_here(tmp_path, words, at_step(step, signal.SIGKILL))
    assert killed.code == -signal.SIGKILL
    done = run_to_end(tmp_path, ["--resume", "run"])
    assert ("resumed run at step 6" in done.out) == (step > 6)
    assert_same_results(tmp_path / "run", whole, *WEIGHTS)


def test_a_stopped_run_says_how_to_resume(whole: Path, tmp_path: Path) -> None:
    words = tiny("--augment", *OUTPUT)
    done = run_here(tmp_path, words, at_step(7, signal.SIGTERM))
    assert done.code == 128 + signal.SIGTERM
    assert done.out.splitlines()[-1] == "resume with: python recipes/train_puzzle.py --resume run"
    assert not (tmp_path / "run" / "results.json").exists()
    done = run_to_end(tmp_path, ["--resume=run"])
    assert "resumed run at step 7" in done.out
    assert_same_results(tmp_path / "run", whole, *WEIGHTS)


def test_two_processes_share_one_run_folder(whole: Path, tmp_path: Path) -> None:
    assert_two_processes_do_as_one(recipe, tmp_path, tiny("--augment"), whole)


def test_the_control_has_the_same_net_in_one_pass(tmp_path: Path) -> None:
    words = ["--controls", "--model.reasoner.L-cycles", "2", "--model.reasoner.H-cycles", "2"]
    run_to_end(tmp_path, tiny(*words, *OUTPUT))
    rows = load_results(tmp_path / "run" / "results.json")["rows"]
    control = rows[-1]
    assert control["system"] == "control: same network, one pass"
    assert (control["refinement_steps"], control["n"]) == (1, 7)
    assert control["trainable_parameters"] == rows[0]["trainable_parameters"]
    assert control["train_seconds"] >= rows[0]["train_seconds"] - 0.1
    assert "valid_accuracy" in control
    lines = read_lines(tmp_path / "run" / "controls" / "one_pass" / "metrics.jsonl")
    limits = {line["train/max_refinement_steps"] for line in lines if "train/loss" in line}
    assert limits == {1}


def test_the_control_of_a_net_with_q_continue_has_nothing_to_go_on_with(tmp_path: Path) -> None:
    def note_every_model() -> None:
        init = PuzzleModel.__init__

        def noting(self: PuzzleModel, config: PuzzleModelConfig, *rest: Any) -> None:
            with open(tmp_path / "models.txt", "a") as file:
                file.write(f"{config.reasoner.L_cycles} {config.q_continue}\n")
            init(self, config, *rest)

        PuzzleModel.__init__ = noting  # type: ignore[method-assign]

    words = ["--controls", "--model.q-continue", "--model.reasoner.L-cycles", "2"]
    run_to_end(tmp_path, tiny(*words, *OUTPUT), note_every_model)
    assert (tmp_path / "models.txt").read_text().splitlines() == ["2 True", "1 False"]


def test_mazes_from_own_files(tmp_path: Path) -> None:
    maze = find_puzzle("maze-5x5")
    train = [write_csv(tmp_path / "train.csv", "train", 30, maze)]
    test = write_csv(tmp_path / "test.csv", "test", 9, maze)
    files = ["--train-data", *train, "--test-data", test, "--puzzle", "maze-5x5"]
    done = run_to_end(
        tmp_path,
        tiny(*files, "--num-train", "0", *OUTPUT, preset="perfect-maze-11x11"),
    )
    assert "puzzles of maze-5x5: train 24, val 6, test 7" in done.out.splitlines()
    rows = load_results(tmp_path / "run" / "results.json")["rows"]
    assert all(row["task"] == "maze-5x5" for row in rows)
    assert all(row["valid_accuracy"] >= row["exact_accuracy"] for row in rows[:3])
    samples = json.loads((tmp_path / "run" / "samples.json").read_text())
    assert samples[0]["prompt"] == maze.format(maze.generate(9, 0, "test")[0][0].tolist())


def test_compiling_on_a_cpu_needs_a_compiler(tmp_path: Path) -> None:
    def no_compiler() -> None:
        no_report()
        os.environ["CXX"] = "no-such-compiler"

    done = run_here(tmp_path, tiny("--train.compile", *OUTPUT), no_compiler)
    assert_refused(done, "compiler no-such-compiler", "--train.no-compile")
    assert not (tmp_path / "run").exists()


BAD_OPTIONS = [
    (["sudoku-4x5"], ["preset 'sudoku-4x5': unknown", "did you mean 'sudoku-4x4'?"]),
    (["--puzzle", "chess"], ["puzzle: got 'chess'", "sudoku-NxN", "maze-HxW"]),
    (["--puzzle", "sudoku-5x5"], ["puzzle: got 'sudoku-5x5'", "[4, 6, 9, 16]"]),
    (["--puzzle", "maze-2x9"], ["height: got 2, expected 3"]),
    (["--num-train", "0"], ["num_train: got 0, expected at least 1"]),
    (["--train.through-base-from", "0.5"], ["train.through_base_from: got 0.5, expected 1.0"]),
    (["--train-data", "x.csv", "--test-data", "y.csv"], ["x.csv"]),
]


@pytest.mark.parametrize(("words", "message"), BAD_OPTIONS, ids=lambda value: " ".join(value)[:40])
def test_bad_options(tmp_path: Path, words: list[str], message: list[str]) -> None:
    assert_refused(run_here(tmp_path, [*words, *OUTPUT]), *message)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_row_is_named(files: dict[str, Any], tmp_path: Path) -> None:
    path = Path(files["train_data"][1])
    lines = path.read_text().splitlines()
    question, answer = lines[4].split(",")
    lines[4] = f"{question},{answer[::-1]}"
    path.write_text("\n".join(lines) + "\n")
    words = ["--train-data", *files["train_data"], "--test-data", files["test_data"]]
    done = run_here(tmp_path, tiny(*words, "--num-train", "0", *OUTPUT))
    assert_refused(done, f"{path}:5: ", "answer")
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_not_overwritten(whole: Path) -> None:
    assert_not_overwritten(recipe, whole, tiny())


def test_help_names_presets_and_options(tmp_path: Path) -> None:
    assert_help_names(recipe, tmp_path, "--train.optimizer", "--model.symbol-states", "--puzzle")


# Presets


def test_presets_fit_their_puzzles() -> None:
    for name, (text, config) in recipe.PRESETS.items():
        assert text, name
        if config.puzzle != "arc":
            puzzle = find_puzzle(config.puzzle)
            model = on_meta(config, puzzle)
            state = model.initial_carry(2, puzzle.num_cells).z_H
            copies = puzzle.vocab_size - 2 if config.model.symbol_states else 1
            length = config.model.puzzle_emb_len + copies * puzzle.num_cells
            assert state.shape[1] == config.model.num_chains * length
            assert puzzle.blank or not config.model.symbol_states, "no symbol may be the blank"
            assert not (config.augment and config.model.symbol_states), name


def on_meta(config: PuzzleRunConfig, puzzle: Puzzle) -> PuzzleModel:
    """Return the model of a preset without its memory."""
    sizes = {"vocab_size": puzzle.vocab_size, "num_cells": puzzle.num_cells}
    groups = puzzle.groups()
    with torch.device("meta"):
        return PuzzleModel(replace(config.model, **sizes), groups)


@pytest.mark.parametrize(
    ("name", "millions", "cycles", "batch_size", "learning_rate"),
    [
        ("sudoku-extreme-trm-mlp", 5, (3, 6), 768, 1e-4),
        ("sudoku-extreme-trm-attention", 7, (3, 6), 768, 1e-4),
        ("sudoku-extreme-hrm", 27, (2, 2), 384, 7e-5),
        ("maze-hard", 7, (3, 4), 768, 1e-4),
    ],
)
def test_published_presets_have_the_published_settings(
    name: str, millions: int, cycles: tuple[int, int], batch_size: int, learning_rate: float
) -> None:
    config = recipe.PRESETS[name][1]
    model = on_meta(config, find_puzzle(config.puzzle))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions
    reasoner, train = config.model.reasoner, config.train
    assert (reasoner.H_cycles, reasoner.L_cycles) == cycles
    assert (config.model.loss, reasoner.residual_init) == ("stablemax", "normal")
    assert config.model.q_continue == (reasoner.kind == "hrm") == (name == "sudoku-extreme-hrm")
    assert reasoner.gradient == ("one_step" if reasoner.kind == "hrm" else "last_cycle")
    assert (train.batch_size, train.learning_rate) == (batch_size, learning_rate)
    epochs = train.max_steps * train.batch_size / 1000
    assert round(epochs, -3) == (20_000 if reasoner.kind == "hrm" else 50_000)
    # The training set of Maze-Hard holds 1,000 mazes; 0 takes all of it.
    assert config.num_train == (0 if name == "maze-hard" else 1000)
    size, length = config.model.puzzle_emb_size, config.model.puzzle_emb_len
    assert (size, length) == (512, 1 if reasoner.kind == "hrm" else 16)
    assert (train.optimizer, train.weight_decay, train.beta2) == ("adam_atan2", 1.0, 0.95)
    rate, decay = train.puzzle_learning_rate, train.puzzle_weight_decay
    assert (rate, decay) == (learning_rate, 1.0)
    assert (train.warmup_steps, train.cooldown, train.grad_clip) == (2000, 0.0, None)
    assert train.halt == HaltConfig(halt_max_steps=16, halt_exploration_prob=0.1)
    assert train.ema_decay == (0.0 if reasoner.kind == "hrm" else 0.999)


@pytest.mark.parametrize("name", [name for name in recipe.PRESETS if "extreme" in name])
def test_the_settings_for_sudoku_extreme_train(name: str, tmp_path: Path) -> None:
    """Optimizer, halting, chains and table of each preset, with a small net on small puzzles."""
    config = recipe.PRESETS[name][1]
    sizes = {"hidden_size": 16, "num_heads": 2, "width_multiple": 8, "H_cycles": 2, "L_cycles": 1}
    reasoner = replace(config.model.reasoner, **sizes)
    table = 16 if config.model.puzzle_emb_size else 0
    model = replace(config.model, reasoner=reasoner, puzzle_emb_size=table)
    every = {"max_steps": 3, "warmup_steps": 1, "log_every": 1, "eval_every": 3, "save_every": 3}
    train = replace(config.train, batch_size=4, compile=False, **every)
    run = make_run(tmp_path, puzzle="sudoku-4x4", model=model, train=train)
    run.open_folder()
    before = run.make_model(model).state_dict()
    trained, trainer = run.train_model(run.folder, model, train)
    assert trainer.step == 3
    after = trained.state_dict()
    changed = [key for key, value in before.items() if not torch.equal(value, after[key])]
    assert {key for key in before if key.endswith("weight")} <= {*changed, "q_head.weight"}
    assert all(torch.isfinite(value).all() for value in after.values())
