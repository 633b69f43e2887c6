"""What every recipe has: presets and options, the run folder, training with resume, results."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_runs import make_puzzle_trainer, on_two_processes

from latent_reason import run_frame
from latent_reason.config import check
from latent_reason.errors import CheckpointError, ConfigError
from latent_reason.metrics import AccuracyCounter
from latent_reason.results import load_results
from latent_reason.run_frame import RunFrame, facts_of, start_time
from latent_reason.run_options import FrameConfig, parse
from latent_reason.train_config import HaltConfig, TrainConfig

pytestmark = pytest.mark.usefixtures("one_process")


@dataclass(frozen=True, kw_only=True)
class Config(FrameConfig):
    """What every recipe's configuration has, and a field of its own."""

    size: int = 3
    """Size of it."""

    def __post_init__(self) -> None:
        if isinstance(self.train, dict):
            object.__setattr__(self, "train", TrainConfig.from_dict(self.train))
        object.__setattr__(self, "refinement_steps", tuple(self.refinement_steps))
        self.settle()
        check(self.size >= 1, "size", self.size, "at least 1")


@dataclass(frozen=True, kw_only=True)
class OtherConfig(Config):
    """A preset may have a configuration of another class."""

    depth: int = 1
    """Depth of it."""


PRESETS: dict[str, tuple[str, Config]] = {
    "plain": ("nothing special", Config()),
    "large": ("as plain, but large", Config(size=9)),
    "deep": ("another class", OtherConfig(depth=2)),
}


# The command line


def test_without_words_the_first_preset_is_taken() -> None:
    assert parse([], PRESETS, "") == ("plain", PRESETS["plain"][1], False)


def test_a_preset_and_options_on_top() -> None:
    assert parse(["large"], PRESETS, "") == ("large", Config(size=9), False)
    words = ["deep", "--depth", "5", "--train.max-steps", "7", "--output-dir", "x"]
    expected = OtherConfig(depth=5, train=TrainConfig(max_steps=7), output_dir=Path("x"))
    assert parse(words, PRESETS, "") == ("deep", expected, False)
    assert parse(["--size", "4"], PRESETS, "") == ("plain", Config(size=4), False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lareg"], "preset 'lareg': unknown; did you mean 'large'? there are plain, large, deep"),
        (["xyz"], "preset 'xyz': unknown; there are plain, large, deep"),
        (["plain", "--depth", "5"], "Unrecognized options: --depth"),
        (["plain", "large"], "'large' is a preset; give one, as the first word, before all"),
        (["--size", "4", "large"], "'large' is a preset; give one, as the first word"),
        (["--size", "4", "lareg"], "Unrecognized options: lareg"),
        (["--size", "0"], "size: got 0, expected at least 1; see --help"),
        (["--size", "many"], "--size: "),
        (["--train.optimizer", "sgd"], "invalid choice 'sgd'"),
        (["--resume"], "--resume FOLDER: give the folder of a run, as in --resume runs/NAME"),
        (["--resume="], "--resume FOLDER: give the folder of a run, as in --resume runs/NAME"),
        (["--resume", "x", "--size", "3"], "--resume FOLDER takes no other options"),
        (["plain", "--resume", "x"], "--resume FOLDER takes no other options"),
    ],
)
def test_bad_words_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}") as error:
        parse(words, PRESETS, "")
    assert "\n" not in str(error.value)


def test_help_names_presets_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(["--help"], PRESETS, "What this is for.")
    assert end.value.code == 0
    text = capsys.readouterr().out
    for part in ("What this is for.", "large: as plain, but large", "--size", "Size of it."):
        assert part in text


def frame(folder: Path, name: str = "plain", resume: bool = False, **changes: Any) -> RunFrame:
    kind = type(PRESETS[name][1])
    return RunFrame("some.py", name, kind(output_dir=folder, **changes), resume)


@pytest.mark.parametrize("form", [["--resume", "FOLDER"], ["--resume=FOLDER"]])
@pytest.mark.parametrize(("name", "changes"), [("large", {"size": 8}), ("deep", {"depth": 4})])
def test_a_run_folder_is_resumed_with_its_own_configuration(
    tmp_path: Path, form: list[str], name: str, changes: dict[str, int]
) -> None:
    train = TrainConfig(max_steps=5, halt=HaltConfig(curriculum=(0.1, 0.5)))
    written = frame(tmp_path / "run", name, train=train, **changes)
    written.open_folder()
    (tmp_path / "run").rename(tmp_path / "moved")
    words = [word.replace("FOLDER", str(tmp_path / "moved")) for word in form]
    found, config, resume = parse(words, PRESETS, "")
    kind = type(PRESETS[name][1])
    assert (found, resume) == (name, True)
    assert config == kind(output_dir=tmp_path / "moved", train=train, **changes)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "{",
        "[1]",
        "3",
        "{}",
        '{"preset": "gone", "size": 3}',
        '{"preset": "plain", "size": "many"}',
        '{"preset": "plain", "depth": 2}',
        '{"preset": "plain", "train": {"max_steps": 0}}',
        "[" * 20_000,
        " " * 2**20 + "{}",
    ],
    ids=lambda text: str(text)[:40],
)
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}: no run to resume \("):
        parse(["--resume", str(tmp_path)], PRESETS, "")


def test_a_run_of_another_recipe_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"preset": "gone", "size": 3}')
    with pytest.raises(CheckpointError, match="of another recipe; resume it there"):
        parse(["--resume", str(tmp_path)], PRESETS, "")


# The run folder


def test_the_folder_is_named_after_preset_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_frame, "start_time", lambda: "20260101-120000")
    run = RunFrame("some.py", "large", Config(), False)
    assert run.folder == Path("runs/large-20260101-120000")
    assert capsys.readouterr().out == "preset large, run folder runs/large-20260101-120000\n"
    assert list(tmp_path.iterdir()) == [], "nothing may be written before open_folder"
    run.open_folder()
    assert run.folder.is_dir()


def test_the_time_is_a_sortable_name() -> None:
    assert re.fullmatch(r"20\d{6}-\d{6}", start_time())


def test_opening_writes_configuration_and_environment(tmp_path: Path) -> None:
    run = frame(tmp_path / "a" / "run", "large", size=7)
    run.open_folder()
    assert {path.name for path in run.folder.iterdir()} == {"config.json", "environment.json"}
    config = json.loads((run.folder / "config.json").read_text())
    assert config["preset"] == "large" and config["size"] == 7
    assert config["train"]["halt"]["halt_max_steps"] == 16
    assert json.loads((run.folder / "environment.json").read_text())["packages"]["torch"]


def test_a_folder_with_a_run_is_not_overwritten_but_resumed(tmp_path: Path) -> None:
    frame(tmp_path / "run").open_folder()
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(ConfigError, match="run: holds a run already; resume it with --resume"):
        frame(tmp_path / "run", size=8).open_folder()
    frame(tmp_path / "run", "large", resume=True).open_folder()
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def started(monkeypatch: pytest.MonkeyPatch, commit: str, command: str) -> None:
    about = {"commit": commit, "hardware": "1 x H", "command": command, "started": "now"}
    monkeypatch.setattr(run_frame, "environment", lambda: about | {"python": commit})


def test_a_resumed_run_keeps_where_it_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run" / "environment.json"
    started(monkeypatch, "a1", "python some.py large")
    frame(tmp_path / "run").open_folder()
    first = json.loads(path.read_text())
    for commit in ("a1", "b2", "b2"):
        started(monkeypatch, commit, "python some.py --resume run")
        run = frame(tmp_path / "run", resume=True)
        run.open_folder()
    saved = json.loads(path.read_text())
    resumed = saved.pop("resumed")
    assert saved == first
    assert [again["commit"] for again in resumed] == ["a1", "b2", "b2"]
    assert {again["command"] for again in resumed} == {"python some.py --resume run"}
    results = run.results()
    assert (results["commit"], results["command"]) == ("a1", "python some.py large")
    assert results["resumed_commits"] == ["b2"]


def test_a_run_resumed_with_its_own_commit_names_no_other(tmp_path: Path) -> None:
    for resume in (False, True):
        run = frame(tmp_path / "run", resume=resume)
        run.open_folder()
    assert run.results()["resumed_commits"] == []


@pytest.mark.parametrize("text", [None, "{}", '{"commit": "a1"}'])
def test_a_folder_that_knows_less_of_its_start_is_resumed(tmp_path: Path, text: str | None) -> None:
    frame(tmp_path / "run").open_folder()
    path = tmp_path / "run" / "environment.json"
    path.unlink() if text is None else path.write_text(text)
    run = frame(tmp_path / "run", resume=True)
    run.open_folder()
    assert run.results()["command"].startswith("python ")
    assert json.loads(path.read_text())["packages"]["torch"]


def test_a_locked_folder_is_refused_and_released(tmp_path: Path) -> None:
    run = frame(tmp_path / "run")
    with run.hold():
        with pytest.raises(ConfigError, match="in use by another run"), run.hold():
            pass
    with run.hold():
        pass


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_frame, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="log_with: wandb is not installed; run pip install"):
        RunFrame("some.py", "plain", Config(log_with="wandb"), False)


def frame_on_two(folder: Path) -> None:
    os.chdir(folder)
    with pytest.raises(ConfigError, match="batch_size: got 3, expected a multiple of the 2"):
        RunFrame("some.py", "plain", Config(train=TrainConfig(batch_size=3)), False)
    with open(folder / f"out-{os.getpid()}", "w") as stream:
        sys.stdout = stream
        run = RunFrame("some.py", "plain", Config(), False)
        with run.hold():
            run.accelerator.wait_for_everyone()
            assert (run.folder / ".lock").exists()
            run.open_folder()
            run.accelerator.wait_for_everyone()
        run.say("done")
    assert run.accelerator.num_processes == 2


def test_two_processes_share_folder_lock_and_voice(tmp_path: Path) -> None:
    on_two_processes(frame_on_two, tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "config.json").exists()
    texts = sorted(path.read_text() for path in tmp_path.glob("out-*"))
    assert texts == ["", f"preset plain, run folder runs/{folder.name}\ndone\n"]


# Training


class Scripted:
    """A trainer that does as told and remembers what was asked of it."""

    def __init__(self, resumed: bool, stopped: int) -> None:
        self.resumed, self.stopped, self.step = resumed, stopped, 12
        self.calls: list[str] = []

    def resume(self) -> bool:
        self.calls.append("resume")
        return self.resumed

    def run(self) -> int:
        self.calls.append("run")
        return self.stopped

    def use_best_weights(self) -> None:
        self.calls.append("use_best_weights")


@pytest.mark.parametrize("resumed", [True, False])
def test_training_resumes_and_ends_with_the_best_weights(
    tmp_path: Path, resumed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = frame(tmp_path / "run")
    capsys.readouterr()
    trainer: Any = Scripted(resumed, stopped=0)
    run.train(trainer, run.folder / "controls")
    assert trainer.calls == ["resume", "run", "use_best_weights"]
    expected = f"resumed {run.folder}/controls at step 12\n" if resumed else ""
    assert capsys.readouterr().out == expected


def test_a_stopped_training_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = frame(tmp_path / "run")
    capsys.readouterr()
    trainer: Any = Scripted(False, stopped=15)
    with pytest.raises(SystemExit) as end:
        run.train(trainer, run.folder / "controls")
    assert end.value.code == 128 + 15
    assert trainer.calls == ["resume", "run"]
    assert capsys.readouterr().out.splitlines() == [
        "stopped by signal 15 after step 12; a checkpoint is saved",
        f"resume with: python recipes/some.py --resume {run.folder}",
    ]


def test_facts_count_the_puzzle_table_too(tmp_path: Path) -> None:
    trainer = make_puzzle_trainer(tmp_path)
    trainer.step, trainer.seconds = 7, 1.26
    facts = facts_of(trainer)
    size = sum(p.numel() for p in trainer.model.parameters())
    assert facts == {"trainable_parameters": size, "train_seconds": 1.3, "train_steps": 7}
    assert size > trainer.tables[0].numel() > 0


# Results


def counter() -> AccuracyCounter:
    return AccuracyCounter(num_examples=8, num_exact=6, num_cells=40, num_correct_cells=38)


def test_rows_become_results_samples_report_and_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    halt = HaltConfig(halt_max_steps=4, curriculum=(0.1, 0.5))
    run = frame(tmp_path / "run", "large", train=TrainConfig(seed=5, halt=halt))
    run.open_folder()
    run.add("reasoner", "sorting", "test", 4, counter(), trainable_parameters=10)
    run.add("control", "sorting", "test", None, counter())
    samples = [
        {
            "prompt": "3 1",
            "answer": "1 3",
            "steps": [{"refinement_steps": 4, "text": "1 3", "correct": True, "q_halt": 0.5}],
        }
    ]
    capsys.readouterr()
    table = run.write_results(samples, base="none")
    results = load_results(run.folder / "results.json")
    assert results["preset"] == "large" and results["seed"] == 5 and results["base"] == "none"
    assert results["halt_max_steps"] == 4
    assert results["wall_seconds"] >= 0 and results["peak_memory_gib"] > 0
    on_gpu = run.accelerator.device.type == "cuda"
    assert (results["peak_gpu_memory_gib"] is not None) == on_gpu
    assert results["commit"] and results["hardware"] and results["command"].startswith("python ")
    first, second = results["rows"]
    assert first["exact_accuracy"] == 0.75 and first["accuracy"] == 0.95 and first["n"] == 8
    assert (first["system"], first["task"], first["split"]) == ("reasoner", "sorting", "test")
    assert (first["refinement_steps"], first["trainable_parameters"]) == (4, 10)
    assert second["refinement_steps"] is None and "trainable_parameters" not in second
    assert json.loads((run.folder / "samples.json").read_text()) == samples
    assert "<html" in (run.folder / "report.html").read_text()
    out = capsys.readouterr().out
    assert table in out and "75.0" in table and "control" in table
    assert f"report: {run.folder / 'report.html'}" in out.splitlines()


def test_facts_of_results_may_not_lose_what_every_run_has(tmp_path: Path) -> None:
    run = frame(tmp_path / "run")
    names = {"schema_version", "preset", "seed", "commit", "hardware", "wall_seconds", "command"}
    assert names <= run.results(note="x").keys()
    assert run.results(note="x")["note"] == "x"
    assert run.results()["rows"] is run.rows


def test_the_tracker_is_told_the_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = frame(tmp_path / "run")
    calls: list[Any] = []
    tracked = SimpleNamespace(
        is_main_process=False, init_trackers=lambda *args, **facts: calls.append((args, facts))
    )
    monkeypatch.setattr(run, "accelerator", tracked)
    run.open_folder()
    assert calls == []
    monkeypatch.setattr(run, "config", Config(log_with="tensorboard"))
    run.open_folder()
    assert calls == [(("latent_reason",), {"config": {"preset": "plain"}})]
