"""The main recipe from its command line: a whole run, a killed one, stopped ones, bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recipes import (
    ROOT,
    assert_help_names,
    assert_not_overwritten,
    assert_refused,
    assert_same_results,
    assert_two_processes_do_as_one,
    at_step,
    no_report,
    path_of,
    run_by_itself,
    run_once,
    run_recipe,
    run_well,
)
from tiny_runs import make_examples, read_lines

from latent_reason.data import TASKS, Example, write_jsonl
from latent_reason.latent_reasoner import LatentReasoner
from latent_reason.llm import FrozenLLM
from latent_reason.results import load_results
from latent_reason.run_lock import run_lock
from latent_reason.training import Trainer
from recipes import train_latent_trm as recipe

pytestmark = pytest.mark.usefixtures("one_process")
run_here, run_to_end = partial(run_recipe, recipe), partial(run_well, recipe)
WEIGHTS = "adapter/adapter.safetensors"
OUTPUT = ["--output-dir", "run"]
SPLITS = {"train": 24, "val": 6, "test": 7, "wording": 7, "longer": 7}
SHRUNK = (
    "--task sorting --num-train 24 --num-val 6 --num-test 7 --refinement-steps 1 4 "
    "--model.reasoner.hidden-size 16 --train.max-steps 12 --train.batch-size 4 "
    "--train.warmup-steps 4 --train.log-every 4 --train.eval-every 6 --train.save-every 6 "
    "--train.halt.halt-max-steps 3 --train.precision fp32"
).split()


@pytest.fixture
def base(
    make_llm: Callable[..., FrozenLLM],
    save_llm: Callable[[FrozenLLM, Any], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """The folder of a tiny base with random weights; it is made once."""
    folder = tmp_path_factory.getbasetemp() / "tiny_base"
    if not folder.exists():
        save_llm(make_llm(max_position_embeddings=256), folder)
    return str(folder)


def smoke(base: str, *words: str) -> list[str]:
    return ["smoke", "--base", base, *SHRUNK, *words]


@pytest.fixture
def whole(base: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A copy of a run folder that nobody interrupted; the run is made once."""
    folder = tmp_path_factory.getbasetemp() / "whole_recipe"
    return shutil.copytree(run_once(recipe, folder, smoke(base)), tmp_path / "whole")


# A whole run


def test_a_run_from_the_command_line(base: str, whole: Path, tmp_path: Path) -> None:
    folder, lines = run_by_itself(recipe, tmp_path, smoke(base))
    assert "latent reasoner" in "\n".join(lines)
    assert_same_results(folder, whole, WEIGHTS)


def test_the_run_folder_is_complete(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    files = {".lock", "config.json", "environment.json", "metrics.jsonl", "perf.jsonl"}
    files |= {"results.json", "samples.json", "report.html", "read_seconds.json"}
    assert names == files | {"checkpoints", "adapter"}
    checkpoints = {path.name for path in (whole / "checkpoints").iterdir()}
    assert {"step-00000006", "step-00000012"} == checkpoints
    steps = [line["step"] for line in read_lines(whole / "metrics.jsonl")]
    assert steps == [4, 6, 8, 12, 12]
    config = json.loads((whole / "config.json").read_text())
    assert config["preset"] == "smoke"
    assert config["task"] == "sorting"
    assert config["train"]["halt"]["halt_max_steps"] == 3
    assert json.loads((whole / "environment.json").read_text())["packages"]["torch"]
    assert "<html" in (whole / "report.html").read_text()


def test_results_are_valid_and_complete(whole: Path, base: str) -> None:
    results = load_results(whole / "results.json")
    assert results["base_unchanged"] is True
    # Each prompt once for all training and evaluation, the test split once more by the bare base.
    assert results["base_prompts_read"] == sum(SPLITS.values()) + SPLITS["test"]
    assert results["base"] == base
    assert results["halt_max_steps"] == 3
    assert results["preset"] == "smoke"
    assert results["wall_seconds"] > 0
    rows = results["rows"]
    assert {row["task"] for row in rows} == {"sorting"}
    own = [row for row in rows if row["system"] == "latent reasoner"]
    found = [(row["split"], row["refinement_steps"]) for row in own]
    tests = [("test", 1), ("test", 3), ("test", 4)]
    assert found == [*tests, *((split, n) for split in ("wording", "longer") for n in (3, 6))]
    others = [row["system"] for row in rows if row["system"] != "latent reasoner"]
    assert others[0] == "latent reasoner, halts itself"
    slots = [f"latent reasoner, {kind} slots" for kind in ("shuffled", "mean", "no")]
    assert others[1:] == [*slots, "bare base"]
    assert all(row["n"] == SPLITS[row["split"]] for row in rows)
    for row in own[:3]:
        assert row["trainable_parameters"] > 1000
        assert row["train_steps"] == 12


def test_samples_are_the_first_test_examples(whole: Path) -> None:
    samples = json.loads((whole / "samples.json").read_text())
    examples = TASKS["sorting"].generate("test", 7, seed=0)
    assert [sample["prompt"] for sample in samples] == [e.prompt for e in examples[:6]]
    steps = [step["refinement_steps"] for step in samples[0]["steps"]]
    assert steps == [1, 3, 4]


def test_the_adapter_answers_as_the_run_did(whole: Path) -> None:
    model = LatentReasoner.from_pretrained(whole / "adapter").eval()
    for sample in json.loads((whole / "samples.json").read_text()):
        texts = [step["text"] for step in sample["steps"]]
        assert texts == [model.answer(sample["prompt"], n)[0] for n in (1, 3, 4)]
    card = (whole / "adapter" / "README.md").read_text()
    assert "Preset smoke, seed 0" in card


def test_more_refinement_steps_than_the_report_shows(base: str, tmp_path: Path) -> None:
    words = ["--refinement-steps", "9", *OUTPUT, "--train.max-steps", "2"]
    run_to_end(tmp_path, smoke(base, *words))
    samples = json.loads((tmp_path / "run" / "samples.json").read_text())
    assert [step["refinement_steps"] for step in samples[0]["steps"]] == [3]


# Two processes


def test_two_processes_share_one_run_folder(base: str, whole: Path, tmp_path: Path) -> None:
    assert_two_processes_do_as_one(recipe, tmp_path, smoke(base), whole)


@pytest.mark.slow
def test_torchrun_stopped_and_resumed(base: str, tmp_path: Path) -> None:
    script = str(ROOT / path_of(recipe))
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone"]
    command = [*torchrun, "--nproc_per_node", "2", script]
    variables = {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options: dict[str, Any] = {"cwd": tmp_path, "env": os.environ | variables, "text": True}
    words = smoke(base, "--train.max-steps", "300", *OUTPUT)
    checkpoints = tmp_path / "run" / "checkpoints"
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen([*command, *words], stdout=log, stderr=log, **options)
        while not list(checkpoints.glob("step-*")) and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) != 0
    text = (tmp_path / "log").read_text()
    assert text.count("stopped by signal 15 after step ") == 1, text
    step = int(text.split("stopped by signal 15 after step ")[1].split(";")[0])
    assert step == max(int(path.name.removeprefix("step-")) for path in checkpoints.iterdir())
    assert step < 300
    done = subprocess.run([*command, "--resume", "run"], capture_output=True, **options)
    assert done.returncode == 0, done.stderr
    assert f"resumed run at step {step}" in done.stdout
    assert load_results(tmp_path / "run" / "results.json")["rows"][0]["train_steps"] == 300


# Own data, writer soft, controls


def write_rows(path: Path, examples: list[Example]) -> str:
    write_jsonl(path, examples)
    return str(path)


def own_data(folder: Path) -> list[str]:
    train = write_rows(folder / "mine.jsonl", make_examples(24))
    test = write_rows(folder / "held_out.jsonl", make_examples(7, start=60))
    return ["--train-data", train, "--test-data", test]


def test_own_data(base: str, tmp_path: Path) -> None:
    run_to_end(tmp_path, smoke(base, *own_data(tmp_path), *OUTPUT))
    results = load_results(tmp_path / "run" / "results.json")
    assert {row["task"] for row in results["rows"]} == {"mine"}
    assert {(row["split"], row["n"]) for row in results["rows"]} == {("test", 7)}
    assert results["base_prompts_read"] == 24 + 7 + 7
    samples = json.loads((tmp_path / "run" / "samples.json").read_text())
    assert [s["answer"] for s in samples] == [e.answer for e in make_examples(6, start=60)]


def test_the_first_rows_of_own_data(base: str, tmp_path: Path) -> None:
    words = own_data(tmp_path)
    few = ["--num-train", "10", "--num-test", "5", "--train.max-steps", "2", *OUTPUT]
    done = run_to_end(tmp_path, smoke(base, *words, *few))
    mine, held_out = (str(tmp_path / name) for name in ("mine.jsonl", "held_out.jsonl"))
    assert f"{mine}: the first 16 of 24 rows are taken; --num-train 0 takes all" in done.out
    assert f"{held_out}: the first 5 of 7 rows are taken; --num-test 0 takes all" in done.out
    results = load_results(tmp_path / "run" / "results.json")
    assert results["base_prompts_read"] == 10 + 6 + 5 + 5
    assert {row["n"] for row in results["rows"]} == {5}


def test_all_rows_of_own_data(base: str, tmp_path: Path) -> None:
    every = ["--num-train", "0", "--num-test", "0", "--train.max-steps", "2", *OUTPUT]
    done = run_to_end(tmp_path, smoke(base, *own_data(tmp_path), *every))
    assert "rows are taken" not in done.out
    results = load_results(tmp_path / "run" / "results.json")
    assert results["base_prompts_read"] == 24 + 7 + 7


def test_writer_soft(base: str, tmp_path: Path) -> None:
    words = ["--model.writer", "soft", "--train.through-base-from", "0.5", *OUTPUT]
    run_to_end(tmp_path, smoke(base, *own_data(tmp_path), *words))
    results = load_results(tmp_path / "run" / "results.json")
    assert results["base_unchanged"] is True
    losses = [
        line["train/loss"]
        for line in read_lines(tmp_path / "run" / "metrics.jsonl")
        if "train/loss" in line
    ]
    # From the second half on the loss has the base's part too.
    assert losses[2] > losses[0]
    model = LatentReasoner.from_pretrained(tmp_path / "run" / "adapter")
    assert model.config.writer == "soft"


def test_controls_stop_and_resume(base: str, tmp_path: Path) -> None:
    words = smoke(base, *own_data(tmp_path), "--controls", *OUTPUT)

    def stop_the_second_control() -> None:
        init = Trainer.__init__

        def stopping(self: Trainer, *args: Any, **options: Any) -> None:
            init(self, *args, **options)
            if self.run_dir.name == "lora":
                self.train_step = lambda: (Trainer.train_step(self), signal.raise_signal(15))[0]  # type: ignore[method-assign]

        Trainer.__init__ = stopping  # type: ignore[method-assign]

    done = run_here(tmp_path, words, stop_the_second_control)
    assert done.code == 128 + signal.SIGTERM, done.err
    assert not (tmp_path / "run" / "results.json").exists()
    done = run_to_end(tmp_path, ["--resume", "run"])
    assert "resumed run/controls/lora at step 1" in done.out
    results = load_results(tmp_path / "run" / "results.json")
    assert results["base_unchanged"] is True
    rows = {row["system"]: row for row in results["rows"]}
    controls = [name for name in rows if name.startswith("control: ")]
    assert controls == [
        "control: same network, one pass",
        "control: LoRA on the base",
        "control: pause slots",
    ]
    own = rows["latent reasoner"]
    for name in controls:
        assert rows[name]["n"] == 7
        assert rows[name]["train_steps"] >= 1
        assert rows[name]["train_seconds"] >= own["train_seconds"] - 0.1
    assert rows[controls[0]]["trainable_parameters"] == own["trainable_parameters"]
    assert rows[controls[1]]["trainable_parameters"] >= own["trainable_parameters"]
    run_to_end(tmp_path, ["--resume", "run"])
    again = load_results(tmp_path / "run" / "results.json")
    assert again["rows"] == results["rows"]


# Killed and stopped runs


def kill_in_the_save() -> None:
    rename = os.rename

    def kill_at(source: Any, target: Any) -> None:
        if Path(target).name == "step-00000012":
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.rename = kill_at


@pytest.mark.parametrize(
    ("prepare", "resumed"),
    [
        (at_step(5, signal.SIGKILL), 0),
        (at_step(9, signal.SIGKILL), 6),
        (kill_in_the_save, 6),
    ],
)
def test_a_killed_run_resumes_bit_by_bit(
    base: str, whole: Path, tmp_path: Path, prepare: Callable[[], None], resumed: int
) -> None:
    killed = run_here(tmp_path, smoke(base, *OUTPUT), prepare)
    assert killed.code == -signal.SIGKILL
    done = run_to_end(tmp_path, ["--resume", "run"])
    assert ("resumed run at step 6" in done.out) == (resumed == 6)
    assert_same_results(tmp_path / "run", whole, WEIGHTS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_says_how_to_resume(
    base: str, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    words = smoke(base, *OUTPUT)
    done = run_here(tmp_path, words, at_step(7, number))
    assert done.code == 128 + number
    lines = done.out.splitlines()
    assert lines[-2].startswith(f"stopped by signal {int(number)} after step 7; a checkpoint is")
    assert lines[-1] == "resume with: python recipes/train_latent_trm.py --resume run"
    assert done.err == ""
    done = run_to_end(tmp_path, ["--resume=run"])
    assert "resumed run at step 7" in done.out
    assert_same_results(tmp_path / "run", whole, WEIGHTS)


def signal_in_evaluation(number: int) -> Callable[[], None]:
    """Return what makes a run send itself a signal as soon as it evaluates."""

    def prepare() -> None:
        no_report()
        recipe.evaluate_reasoner = lambda *arguments: os.kill(os.getpid(), number)

    return prepare


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_stopped_outside_of_training_says_how_to_resume(
    base: str, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    words = smoke(base, *OUTPUT)
    done = run_here(tmp_path, words, signal_in_evaluation(number))
    assert done.code == 128 + number
    assert done.out.splitlines()[-2:] == [
        f"stopped by signal {int(number)}",
        "resume with: python recipes/train_latent_trm.py --resume run",
    ]
    assert done.err == ""
    run_to_end(tmp_path, ["--resume", "run"])
    assert_same_results(tmp_path / "run", whole, WEIGHTS)


FEW = "--num-train 16 --num-val 4 --num-test 4 --train.max-steps 2 --train.batch-size 4".split()


@pytest.mark.parametrize(
    "preset", [name for name in recipe.PRESETS if name not in ("qwen3-0.6b", "smoke")]
)
def test_every_preset_of_cpus_runs_on_the_embedded_base(preset: str, tmp_path: Path) -> None:
    words = [preset, *FEW, "--refinement-steps", "1", *OUTPUT]
    run_to_end(tmp_path, words)
    rows = load_results(tmp_path / "run" / "results.json")["rows"]
    expected = "permutations" if preset in ("default", "soft") else preset.replace("-", "_")
    assert {row["task"] for row in rows} == {expected}


# Bad input: one line, exit code 2, no run folder


BAD_OPTIONS = [
    (["smoek"], ["preset 'smoek': unknown", "did you mean 'smoke'?"]),
    (["smoke", "--num-train", "0"], ["num_train: got 0, expected at least 1"]),
    (["smoke", "--model.answer-delimiter", ""], ["answer_delimiter: got '', expected some text"]),
    (["smoke", "--train.cycles-curriculum", "0.1", "0.5"], ["cycles_curriculum: got (0.1, 0.5)"]),
    (["smoke", "--train.puzzle-learning-rate", "0.5"], ["puzzle_learning_rate: got 0.5, expected"]),
    (["smoke", "--train.through-base-from", "0.5"], ["through_base_from: got 0.5, expected 1.0"]),
    (["smoke", "--train-data", "x.jsonl"], ["train_data and test_data: got one"]),
    (["smoke", "--base", "/no/such/folder"], ["base /no/such/folder: no such folder"]),
    (["smoke", "--base", "./nomodel"], ["base ./nomodel: no such folder"]),
    (["smoke", "--base", "nobody/no-such-model"], ["base nobody/no-such-model: cannot be loaded"]),
]


@pytest.mark.parametrize(("words", "message"), BAD_OPTIONS, ids=lambda value: " ".join(value)[:40])
def test_bad_options(tmp_path: Path, words: list[str], message: list[str]) -> None:
    assert_refused(run_here(tmp_path, [*words, *OUTPUT]), *message)
    assert list(tmp_path.iterdir()) == []


BAD_SETTINGS = [
    (["--task", "sortin"], ["task: got 'sortin'; did you mean 'sorting'?"]),
    (["--model.read-layers", "last", "9"], ["read_layers: got 9", "from 0 to 2"]),
    (["--model.num-slots", "3"], ["sorting/train:1: the answer needs 33 slots", "there are 3"]),
]


@pytest.mark.parametrize(("words", "message"), BAD_SETTINGS, ids=lambda value: " ".join(value)[:40])
def test_bad_settings(base: str, tmp_path: Path, words: list[str], message: list[str]) -> None:
    assert_refused(run_here(tmp_path, smoke(base, *words, *OUTPUT)), *message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed(base: str, tmp_path: Path, name: str) -> None:
    if find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    done = run_here(tmp_path, smoke(base, "--log-with", name, *OUTPUT))
    assert_refused(done, f"log_with: {name} is not installed", f"pip install {name}")
    assert list(tmp_path.iterdir()) == []


def line(prompt: str, answer: Any) -> str:
    return json.dumps({"prompt": prompt, "answer": answer})


BAD_ROWS = [
    ("mine.jsonl", 3, '{"prompt": "add 1 1"}', "no field 'answer'"),
    ("mine.jsonl", 3, line("add 1 1", 2), "'answer' is a number, not a string"),
    ("held_out.jsonl", 2, line("add 1 1", " "), "'answer' is empty"),
    ("mine.jsonl", 4, '{"prompt": "add', "not JSON at character"),
    ("mine.jsonl", 1, line("add 1 1", "1 2 3 4 5"), "the answer needs 11 slots"),
    ("mine.jsonl", 23, line("add 1 1", "1 2 3 4 5"), "the answer needs 11 slots"),
    ("held_out.jsonl", 7, line("add 1 1", "1 2 3 4 5"), "the answer needs 11 slots"),
    (
        "mine.jsonl",
        22,
        line("add 1 1", "caf\u00e9"),
        "tokenizer writes the answer 'caf\u00e9' as ' caf'",
    ),
]


@pytest.mark.parametrize(
    ("name", "number", "row", "message"), BAD_ROWS, ids=lambda value: str(value)[:20]
)
def test_bad_rows(
    base: str, tmp_path: Path, name: str, number: int, row: str, message: str
) -> None:
    words = own_data(tmp_path)
    rows = (tmp_path / name).read_text().splitlines()
    rows[number - 1] = row
    (tmp_path / name).write_text("\n".join(rows) + "\n")
    done = run_here(tmp_path, smoke(base, *words, "--model.num-slots", "8", *OUTPUT))
    assert_refused(done, f"{tmp_path / name}:{number}: ", message)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.jsonl", "held_out.jsonl"}


def test_a_prompt_in_training_and_test(base: str, tmp_path: Path) -> None:
    words = own_data(tmp_path)
    write_rows(tmp_path / "held_out.jsonl", [*make_examples(2, start=60), make_examples(5)[4]])
    done = run_here(tmp_path, smoke(base, *words, *OUTPUT))
    assert_refused(
        done, "held_out.jsonl:3: this prompt, held out for test, is line 5 of", "mine.jsonl"
    )
    assert not (tmp_path / "run").exists()


def test_a_prompt_in_training_and_validation(base: str, tmp_path: Path) -> None:
    words = own_data(tmp_path)
    rows = make_examples(24)
    write_rows(tmp_path / "mine.jsonl", [*rows[:23], rows[4]])
    done = run_here(tmp_path, smoke(base, *words, *OUTPUT))
    assert_refused(done, "mine.jsonl:24: this prompt, held out for validation, is line 5 of")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["mine.jsonl", "held_out.jsonl"])
def test_a_prompt_longer_than_the_context(base: str, tmp_path: Path, name: str) -> None:
    words = own_data(tmp_path)
    rows = (tmp_path / name).read_text().splitlines()
    rows[3] = line("add " + 300 * "1 ", "2")
    (tmp_path / name).write_text("\n".join(rows) + "\n")
    done = run_here(tmp_path, smoke(base, *words, *OUTPUT))
    assert_refused(done, f"{name}:4: the prompt has ", "takes 256, ", "for slots and answer")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "answers"),
    [((), 1), (("--controls",), 2), (("--model.writer", "soft"), 2)],
)
def test_room_is_kept_for_what_follows_a_prompt(
    base: str, tmp_path: Path, words: tuple[str, ...], answers: int
) -> None:
    """The bare base writes an answer after it; pause slots and soft tokens come in between."""
    source = own_data(tmp_path)
    rows = (tmp_path / "mine.jsonl").read_text().splitlines()
    rows[3] = line("add " + 300 * "1 ", "2")
    (tmp_path / "mine.jsonl").write_text("\n".join(rows) + "\n")
    done = run_here(tmp_path, smoke(base, *source, *words, "--model.num-slots", "12", *OUTPUT))
    delimiter = len(FrozenLLM.load(base).tokenizer(" Answer:")["input_ids"])
    room = delimiter + answers * 12
    assert_refused(done, "mine.jsonl:4: ", f"takes 256, {room} of them for slots and answer")


def test_a_base_whose_output_layer_does_not_fit(
    make_llm: Callable[..., FrozenLLM], base: str, tmp_path: Path
) -> None:
    def prepare() -> None:
        no_report()
        monkey = pytest.MonkeyPatch()
        monkey.setattr(FrozenLLM, "lm_head", lambda self, hidden: hidden @ torch.zeros(3, 4))

    done = run_here(tmp_path, smoke(base, *OUTPUT), prepare)
    assert_refused(done, "its output layer does not take its hidden states")
    assert list(tmp_path.iterdir()) == []


def test_too_few_rows_to_validate(base: str, tmp_path: Path) -> None:
    words = own_data(tmp_path)
    done = run_here(tmp_path, smoke(base, *words, "--num-val", "24", *OUTPUT))
    assert_refused(done, "mine.jsonl: 24 rows, of which the last 24 are for validation")
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use(base: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with run_lock(folder):
        done = run_here(tmp_path, smoke(base, *OUTPUT))
        assert_refused(done, "run is in use by another run", "--output-dir")
        assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_finished_run_is_not_overwritten(base: str, whole: Path) -> None:
    assert_not_overwritten(recipe, whole, smoke(base))


def test_an_output_folder_that_is_a_file(base: str, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    done = run_here(tmp_path, smoke(base, *OUTPUT))
    assert_refused(done, "cannot lock output folder run", "choose another --output-dir")
    assert (tmp_path / "run").read_text() == "mine"


def test_resume_with_a_broken_config(whole: Path, tmp_path: Path) -> None:
    (whole / "config.json").write_text('{"preset": "smoke", "num_train": "many"}')
    assert_refused(run_here(tmp_path, ["--resume", "whole"]), "whole: no run to resume")


def test_resume_with_damaged_checkpoints(whole: Path, tmp_path: Path) -> None:
    for path in (whole / "checkpoints").glob("step-*"):
        (path / "state.json").unlink()
    done = run_here(tmp_path, ["--resume", "whole"])
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("error: whole/checkpoints: all checkpoints are")


def test_help_names_presets_and_options(tmp_path: Path) -> None:
    assert_help_names(recipe, tmp_path, "--train.learning-rate", "--model.reasoner.L-cycles")
