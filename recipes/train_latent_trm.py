"""Train a TRM in the latent space of a frozen causal LM and compare it with honest controls.

    accelerate launch recipes/train_latent_trm.py                    # default preset, CPU minutes
    accelerate launch recipes/train_latent_trm.py smoke              # under a minute
    accelerate launch recipes/train_latent_trm.py default --controls # also trains the controls
    accelerate launch recipes/train_latent_trm.py --base Qwen/Qwen3-0.6B
    accelerate launch recipes/train_latent_trm.py --train-data my.jsonl --test-data held_out.jsonl
    accelerate launch recipes/train_latent_trm.py --resume runs/default-20260101-120000
    torchrun --nproc_per_node 8 recipes/train_latent_trm.py          # 8 GPUs
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 recipes/train_latent_trm.py   # 2 CPUs

The run folder gets config.json, environment.json, metrics.jsonl, checkpoints/, results.json,
report.html and adapter/. Expected figures stand in README.md and recipes/README.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import shutil
import sys
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.utils import broadcast, parse_flag_from_env
from transformers.utils import logging as transformers_logging

from latent_reason.checkpoint import RunLock
from latent_reason.config import (
    HaltConfig,
    JsonConfig,
    LatentReasonerConfig,
    ReasonerConfig,
    TrainConfig,
    check,
)
from latent_reason.controls import AnswerLM
from latent_reason.data import TASKS, Example, find_leaks, read_jsonl
from latent_reason.data.features import StateCache
from latent_reason.data.tasks import find_task
from latent_reason.data.text import TextDataset
from latent_reason.errors import CheckpointError, ConfigError, DataError
from latent_reason.evaluation import Counters, Evaluator, trace
from latent_reason.latent_reasoner import LatentReasoner
from latent_reason.llm import FrozenLLM, embedded_base
from latent_reason.metrics import AccuracyCounter
from latent_reason.report import format_table, write_report
from latent_reason.runs import (
    check_world,
    environment,
    peak_memory_gib,
    read_options,
    run_script,
    write_json,
)
from latent_reason.training import Trainer, local_batch_size, use_bf16

NUM_SAMPLES = 6


@dataclass(frozen=True, kw_only=True)
class RunConfig(JsonConfig):
    """Everything that defines a run; a preset is one of these."""

    base: str = "embedded"
    """Hub name or local folder of a causal LM; "embedded" is the small one in this package."""
    task: str = "permutations"
    """Generated text task; see `python -m latent_reason.data list`."""
    train_data: Path | None = None
    """Your own JSONL with `prompt` and `answer` in place of the task."""
    test_data: Path | None = None
    """Held-out JSONL; needed with train_data."""
    num_train: int = 20_000
    """Generated training examples."""
    num_val: int = 256
    """Examples for evaluation during training (the last ones of train_data, if given)."""
    num_test: int = 1000
    """Test examples."""
    model: LatentReasonerConfig = field(default_factory=LatentReasonerConfig)
    """Reader, reasoner, writer; num_slots 0 takes what the longest answer needs."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How to train."""
    refinement_steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Refinement steps to evaluate at; more than trained are worth a look."""
    controls: bool = False
    """Also train the same network in one pass, LoRA and pause slots for as long."""
    output_dir: Path | None = None
    """Run folder; runs/PRESET-TIME if not given."""
    log_with: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Tracker besides metrics.jsonl."""

    def __post_init__(self) -> None:
        for name, cls in (("model", LatentReasonerConfig), ("train", TrainConfig)):
            if isinstance(getattr(self, name), dict):
                object.__setattr__(self, name, cls.from_dict(getattr(self, name)))
        for name in ("train_data", "test_data", "output_dir"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, Path(getattr(self, name)))
        object.__setattr__(self, "refinement_steps", tuple(self.refinement_steps))
        for name in ("num_train", "num_val", "num_test"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        steps = self.refinement_steps
        check(bool(steps) and min(steps) >= 1, "refinement_steps", steps, "numbers from 1 up")
        if (self.train_data is None) != (self.test_data is None):
            raise ConfigError("train_data and test_data: got one, expected both or none")


def preset(
    task: str = "permutations",
    *,
    writer: Literal["head", "soft"] = "head",
    hidden_size: int = 96,
    max_steps: int = 2400,
    halt_max_steps: int = 16,
    curriculum: tuple[float, float] | None = (0.15, 0.65),
    **changes: Any,
) -> RunConfig:
    """Return the recipe that the presets share: one block evaluation per update, curriculum."""
    reasoner = ReasonerConfig(hidden_size=hidden_size, L_cycles=1, H_cycles=1)
    model = LatentReasonerConfig(
        reasoner=reasoner, writer=writer, num_slots=0, read_layers=("embedding", "last")
    )
    halt = HaltConfig(
        halt_max_steps=halt_max_steps, halt_exploration_prob=0.5, curriculum=curriculum
    )
    train = TrainConfig(max_steps=max_steps, learning_rate=1e-3, halt=halt)
    run = RunConfig(task=task, model=model, train=train)
    return dataclasses.replace(run, **changes)


def smoke() -> RunConfig:
    """Return a run of seconds that shows that everything works; it learns next to nothing."""
    run = preset(
        hidden_size=32,
        max_steps=60,
        halt_max_steps=4,
        num_train=256,
        num_val=64,
        num_test=64,
        refinement_steps=(1, 2, 4, 8),
    )
    often = dataclasses.replace(run.train, log_every=20, eval_every=30, save_every=30)
    return dataclasses.replace(run, train=often)


def hub() -> RunConfig:
    """Return a recipe for a 0.5-1B model from the Hub on one GPU; not run yet."""
    run = preset(hidden_size=256, base="Qwen/Qwen3-0.6B")
    return dataclasses.replace(run, train=dataclasses.replace(run.train, batch_size=256))


PRESETS: dict[str, tuple[str, RunConfig]] = {
    "default": ("S5 tracking: minutes on two CPU cores", preset()),
    "soft": (
        "as default, but the base generates the answer from soft tokens",
        preset(writer="soft"),
    ),
    "qwen3-0.6b": ("as default on a Hub model; for one GPU, not run yet", hub()),
    "smoke": ("everything once in under a minute; learns nothing", smoke()),
} | {
    name.replace("_", "-"): (task.description, preset(name))
    for name, task in TASKS.items()
    if name != "permutations"
}


def parse(argv: list[str]) -> tuple[str, RunConfig, bool]:
    """Return (preset name, configuration, whether to resume).

    Raises:
        ConfigError: on an unknown preset or a value out of range.
        CheckpointError: on a folder that cannot be resumed.
    """
    if argv and argv[0].startswith("--resume="):
        argv = [*argv[0].split("=", 1), *argv[1:]]
    if "--resume" in argv:
        if len(argv) != 2 or argv[0] != "--resume":
            raise ConfigError("--resume FOLDER takes no other options: the folder knows them")
        folder = Path(argv[1])
        try:
            saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            name = saved.pop("preset")
            config = RunConfig.from_dict(saved)
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(
                f"{folder}: no run to resume ({error}); give a run folder with config.json"
            ) from error
        return name, dataclasses.replace(config, output_dir=folder), True
    name = argv[0] if argv and not argv[0].startswith("-") else "default"
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"preset {name!r}: unknown; {hint}there are {', '.join(PRESETS)}")
    options = argv[1:] if argv and argv[0] == name else argv
    described = "\n".join(f"  {key}: {text}" for key, (text, _) in PRESETS.items())
    about = f"{__doc__}\nPresets (first argument):\n{described}"
    return name, read_options(PRESETS[name][1], options, about), False


def load_examples(config: RunConfig) -> dict[str, list[Example]]:
    """Return train, val and test examples, and the task's harder splits.

    Raises:
        DataError: on malformed files, or prompts that stand in two splits.
    """
    if config.train_data is None or config.test_data is None:
        task = find_task(config.task)
        sizes = {"train": config.num_train, "val": config.num_val, "test": config.num_test}
        sizes |= {"wording": config.num_test}
        return {split: task.generate(split, num, config.train.seed) for split, num in sizes.items()}
    rows, test = read_jsonl(config.train_data), read_jsonl(config.test_data)
    if len(rows) <= config.num_val:
        raise DataError(
            f"{config.train_data}: {len(rows)} rows, of which the last {config.num_val} are for "
            "validation; add rows or lower num_val"
        )
    leaks = find_leaks(rows, test)
    if leaks:
        raise DataError(
            f"{config.test_data}:{leaks[0][1] + 1}: this prompt is line {leaks[0][0] + 1} of "
            f"{config.train_data} too ({len(leaks)} such rows); remove it from one of them"
        )
    return {"train": rows[: -config.num_val], "val": rows[-config.num_val :], "test": test}


def start_time() -> str:
    """Return the time now, as the main process sees it, for the name of the run folder."""
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    now = broadcast(torch.tensor(int(time.time()), device=state.device))
    return time.strftime("%Y%m%d-%H%M%S", time.localtime(now.item()))


class Run:
    """One run: base, data, run folder and the rows of its table.

    Raises:
        UserError: on a bad base, data or folder, before anything is written.
    """

    def __init__(self, name: str, config: RunConfig, resume: bool) -> None:
        self.name, self.config, self.resume = name, config, resume
        self.started = time.perf_counter()
        tracker = None if config.log_with == "none" else config.log_with
        if tracker is not None and find_spec(tracker) is None:
            raise ConfigError(f"log_with: {tracker} is not installed; run pip install {tracker}")
        self.folder = config.output_dir or Path("runs") / f"{name}-{start_time()}"
        self.accelerator = Accelerator(
            mixed_precision="no",  # the training loop itself decides on bf16
            log_with=tracker,
            project_dir=str(self.folder),
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        check_world(self.accelerator)
        local_batch_size(config.train, self.accelerator.num_processes)
        self.llm = FrozenLLM.load(embedded_base() if config.base == "embedded" else config.base)
        self.llm.num_features(config.model.read_layers)
        self.examples = load_examples(config)
        wanted = config.model.num_slots or None
        files = {"train": config.train_data, "val": config.train_data, "test": config.test_data}
        train = self.dataset("train", wanted, files)
        self.num_slots = train.labels.shape[1]
        self.datasets = {"train": train}
        for split in [*self.examples][1:]:
            self.datasets[split] = self.dataset(split, self.num_slots, files)
        self.task = config.train_data.stem if config.train_data else config.task
        self.rows: list[dict[str, Any]] = []

    def dataset(
        self, split: str, num_slots: int | None, files: dict[str, Path | None]
    ) -> TextDataset:
        """Tokenise a split; errors name the file it came from."""
        source = str(files.get(split) or f"{self.config.task}/{split}")
        rows = self.examples[split]
        if split != "val" or self.config.train_data is None:
            return TextDataset.build(rows, self.llm.tokenizer, num_slots, source)
        # The last lines of train_data; errors must tell the line in the file.
        first = len(self.examples["train"])
        both = [*self.examples["train"], *rows]
        data = TextDataset.build(both, self.llm.tokenizer, num_slots, source)
        return TextDataset(rows, **data.batch(torch.arange(first, len(both))))

    def say(self, text: str) -> None:
        """Print on the main process, at once."""
        if self.accelerator.is_main_process:
            print(text, flush=True)

    def prepare(self) -> None:
        """Move the base to the device, make the run folder, read all prompts once."""
        self.llm.to(self.accelerator.device)
        if self.accelerator.is_main_process:
            if not self.resume and (self.folder / "config.json").exists():
                raise ConfigError(
                    f"{self.folder}: holds a run already; resume it with --resume {self.folder} "
                    "or choose another --output-dir"
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self.resume:
                write_json(
                    self.folder / "config.json", {"preset": self.name} | self.config.to_dict()
                )
            write_json(self.folder / "environment.json", environment())
        self.base_digest = self.llm.sha256()
        with self.accelerator.main_process_first():
            self.data = {split: self.cached(split) for split in self.datasets}
        if self.config.log_with != "none":
            self.accelerator.init_trackers("latent_reason", config={"preset": self.name})

    def cached(self, split: str) -> StateCache:
        """Let the base read a split once and keep its states on disk."""

        def progress(done: int, total: int) -> None:
            if done == total or done % 5120 == 0:
                self.say(f"base reads {split} prompts: {done}/{total}")

        layers = self.config.model.read_layers
        folder = self.folder / "states"
        return StateCache(self.datasets[split], self.llm, layers, folder, progress=progress)

    def add(
        self, system: str, split: str, steps: int | None, counter: AccuracyCounter, **facts: Any
    ) -> None:
        """Add a row to the table."""
        row = {"system": system, "task": self.task, "split": split, "refinement_steps": steps}
        self.rows.append(row | counter.as_dict() | facts)

    def evaluator(self, split: str) -> Evaluator:
        """Return an evaluator of a split in the precision of training."""
        bf16 = use_bf16(self.config.train, self.accelerator.device)
        return Evaluator(self.data[split], self.accelerator, bf16)


def train_reasoner(run: Run, folder: Path, train: TrainConfig) -> tuple[LatentReasoner, Trainer]:
    """Train a `LatentReasoner` in `folder`; the trainer's `stopped` tells of a signal."""
    torch.manual_seed(train.seed)
    model = LatentReasoner(run.llm, dataclasses.replace(run.config.model, num_slots=run.num_slots))
    val = run.evaluator("val")

    def evaluate() -> dict[str, float]:
        limit = train.halt.halt_max_steps
        counter = val.by_refinement_steps(model, [limit])[limit]
        return {"val/exact_accuracy": counter.exact_accuracy, "val/accuracy": counter.accuracy}

    trainer = Trainer(run.accelerator, model, run.data["train"], train, folder, evaluate, run.say)
    finish(run, trainer, folder)
    return model, trainer


def train_control(run: Run, kind: Literal["lora", "pause"], train: TrainConfig, size: int) -> None:
    """Train LoRA or pause slots for the same time and add its row."""
    torch.manual_seed(train.seed)
    delimiter = run.config.model.answer_delimiter
    model = AnswerLM(run.llm, kind, run.num_slots, delimiter, min_parameters=size)
    val = Evaluator(run.datasets["val"], run.accelerator)

    def evaluate() -> dict[str, float]:
        counter = val.by_base(model)
        return {"val/exact_accuracy": counter.exact_accuracy, "val/accuracy": counter.accuracy}

    folder = run.folder / "controls" / kind
    trainer = Trainer(
        run.accelerator, model, run.datasets["train"], train, folder, evaluate, run.say
    )
    finish(run, trainer, folder)
    counter = Evaluator(run.datasets["test"], run.accelerator).by_base(model)
    names = {"lora": "control: LoRA on the base", "pause": "control: pause slots"}
    run.add(names[kind], "test", None, counter, **facts_of(trainer))


def finish(run: Run, trainer: Trainer, folder: Path) -> None:
    """Resume if there is something to resume, train to the end, take the best weights."""
    if trainer.resume():
        run.say(f"resumed {folder} at step {trainer.step}")
    stopped = trainer.run()
    if stopped:
        run.say(f"stopped by signal {stopped} after step {trainer.step}; a checkpoint is saved")
        run.say(f"resume with: python recipes/train_latent_trm.py --resume {run.folder}")
        raise SystemExit(128 + stopped)
    trainer.use_best_weights()


def facts_of(trainer: Trainer) -> dict[str, Any]:
    """Return what a row says of a training."""
    size = sum(p.numel() for p in trainer.trainable)
    return {
        "trainable_parameters": size,
        "train_seconds": round(trainer.seconds, 1),
        "train_steps": trainer.step,
    }


def evaluate_reasoner(run: Run, model: LatentReasoner, facts: dict[str, Any]) -> None:
    """Add the rows of the trained reasoner: by steps, by slots, on the harder splits."""
    config = run.config
    trained = config.train.halt.max_steps_at(1.0)
    steps = sorted({*config.refinement_steps, trained})
    for step, counter in run.evaluator("test").by_refinement_steps(model, steps).items():
        run.add("latent reasoner", "test", step, counter, **facts)
    counter, mean_steps = run.evaluator("test").by_halting(model, max(steps))
    name = f"latent reasoner, halts itself at {mean_steps:.1f} on average"
    run.add(name, "test", max(steps), counter, mean_refinement_steps=mean_steps)
    slots: Counters = run.evaluator("test").by_slots(model, trained)
    for name in ("shuffled slots", "mean slots", "no slots"):
        run.add(f"latent reasoner, {name}", "test", trained, slots[name])
    for split in [*run.data][3:]:
        counter = run.evaluator(split).by_refinement_steps(model, [trained])[trained]
        run.add("latent reasoner", split, trained, counter)
    bare = AnswerLM(run.llm, "bare", run.num_slots, config.model.answer_delimiter)
    run.add(
        "bare base", "test", None, Evaluator(run.datasets["test"], run.accelerator).by_base(bare)
    )


def run_controls(run: Run, seconds: float, size: int) -> None:
    """Train the controls, each for as many seconds as the reasoner, on the same data."""
    train = dataclasses.replace(
        run.config.train,
        max_seconds=seconds,
        halt=HaltConfig(halt_max_steps=1, halt_exploration_prob=0.0),
        through_base_from=0.0,
    )
    run.say(f"control: the same network in one pass, {seconds:.0f} s")
    model, trainer = train_reasoner(run, run.folder / "controls" / "one_pass", train)
    counter = run.evaluator("test").by_refinement_steps(model, [1])[1]
    run.add("control: same network, one pass", "test", 1, counter, **facts_of(trainer))
    for kind in ("lora", "pause"):
        run.say(f"control: {kind}, {seconds:.0f} s")
        train_control(run, kind, train, size)


def write_results(run: Run, model: LatentReasoner) -> None:
    """Print the table; write results.json, samples.json, report.html and the adapter."""
    trained = run.config.train.halt.max_steps_at(1.0)
    steps = sorted({trained, *(n for n in run.config.refinement_steps if n <= 2 * trained)})
    samples = trace(model, run.data["test"], NUM_SAMPLES, steps)
    if not run.accelerator.is_main_process:
        return
    about = environment()
    results = {
        "schema_version": 1,
        "preset": run.name,
        "seed": run.config.train.seed,
        "commit": about["commit"],
        "hardware": about["hardware"],
        "wall_seconds": round(time.perf_counter() - run.started, 1),
        "peak_memory_gib": round(peak_memory_gib(), 2),
        "command": about["command"],
        "base": run.llm.name,
        "base_prompts_read": run.llm.num_prompts,
        "base_unchanged": run.llm.sha256() == run.base_digest,
        "halt_max_steps": trained,
        "rows": run.rows,
    }
    write_json(run.folder / "results.json", results)
    write_json(run.folder / "samples.json", samples)
    table = format_table(run.rows)
    card = f"# Latent reasoner for {run.llm.name}\n\nPreset {run.name}, seed {results['seed']}, "
    card += f"commit {results['commit']}.\n\n```\n{table}\n```\n"
    model.save_pretrained(run.folder / "adapter", card=card)
    report = write_report(run.folder)
    run.say(f"\n{table}\n")
    run.say(f"report: {report}")
    run.say(f"adapter: {run.folder / 'adapter'}")


def main() -> int:
    """Run the recipe; returns the exit code."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    name, config, resume = parse(sys.argv[1:])
    run = Run(name, config, resume)
    run.say(f"run folder: {run.folder}")
    lock = contextlib.nullcontext()
    if run.accelerator.is_main_process:
        lock = RunLock(run.folder)
    with lock:
        run.prepare()
        model, trainer = train_reasoner(run, run.folder, config.train)
        facts = facts_of(trainer)
        run.say("evaluating")
        evaluate_reasoner(run, model, facts)
        if config.controls:
            run_controls(run, facts["train_seconds"], facts["trainable_parameters"])
        write_results(run, model)
        if run.accelerator.is_main_process:
            shutil.rmtree(run.folder / "states", ignore_errors=True)
        run.accelerator.end_training()
    return 0


if __name__ == "__main__":
    run_script(main)
