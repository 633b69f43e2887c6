"""The one training loop: deep supervision with a carry, on Accelerate.

Each optimizer step runs one refinement step for every row of the batch. An example stays in its
row until it halts; then the row takes the next example of its own column of the data order, a
pure function of (seed, epoch, position). So nothing but the carry has to be remembered, and one
process with batch 8 does exactly what two with batch 4 do.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from latent_reason.checkpoint import latest_checkpoint, rotate_checkpoints, save_checkpoint
from latent_reason.config import flatten
from latent_reason.environment import has_amx
from latent_reason.errors import CheckpointError, ConfigError, NonFiniteError
from latent_reason.halting import Carry, minimum_steps, refill, should_halt
from latent_reason.optim import (
    load_optimizer_tensors,
    make_ema,
    make_optimizers,
    optimizer_tensors,
    sparse_tables,
)
from latent_reason.progress import Progress, gather_numbers
from latent_reason.stop_request import StopRequest
from latent_reason.train_config import TrainConfig


class Data(Protocol):
    """What the loop needs of a dataset."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the longest prompt, or cells of a puzzle."""
        ...

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def at(self, positions: Tensor, seed: int) -> dict[str, Tensor]:
        """Return the examples at positions (B,) of the endless data order: arguments of the model.

        A pure function of (seed, position).
        """
        ...


def local_batch_size(config: TrainConfig, num_processes: int) -> int:
    """Return the batch rows of one process.

    Raises:
        ConfigError: if the batch size is no multiple of the number of processes.
    """
    if config.batch_size % num_processes:
        raise ConfigError(
            f"batch_size: got {config.batch_size}, expected a multiple of the {num_processes} "
            "processes"
        )
    return config.batch_size // num_processes


def use_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Say whether to compute in bf16; "auto" takes it where it is faster."""
    if config.precision != "auto":
        return config.precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and config.compile and has_amx()


def digest_of(data: Data, seed: int) -> str:
    """Return a short digest of the first examples of the data order, to know the data again by.

    Only of whole numbers: what a base says of a prompt is not the same on all hardware.
    """
    digest = hashlib.sha256()
    for key, value in sorted(data.at(torch.arange(min(len(data), 256)), seed).items()):
        if not value.is_floating_point():
            digest.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Return what a checkpoint must hold of a model: trained parameters, buffers but the base's."""
    tensors = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
    return tensors | {n: b for n, b in model.named_buffers() if not n.startswith("llm.")}


def compiled(module: nn.Module) -> Callable[..., Any]:
    """Return a module's forward, compiled anew for every number of cycles that a run grows through.

    At its limit, 8 by default, torch would go on without compiling. Tables are left out: sparse
    gradients cannot be compiled.
    """
    for table in sparse_tables(module).values():
        table.forward = torch.compiler.disable(table.forward)
    return torch._dynamo.config.patch(recompile_limit=64)(torch.compile(module))


class Trainer:
    """Trains one model in one run folder.

    Args:
        accelerator: decides device and processes.
        model: offers `initial_carry(num, num_tokens)` and `model(carry=..., **batch)` giving an
            output with loss, logits, stop, correct and carry.
        data: training examples.
        config: how to train.
        run_dir: gets metrics.jsonl, perf.jsonl and checkpoints/.
        evaluate: called with the model holding averaged weights; returns `val/...` metrics, of
            which the better of `val/exact_accuracy` and, where it is told,
            `val/halted_exact_accuracy`, then `val/accuracy`, choose the best checkpoint.
        report: called on the main process with one line of progress.
        options: called before each step with (progress, most refinement steps now); returns
            further arguments of the model.
        trained_before: whether the weights are worth a validation before the first step: they may
            stay the best.

    Raises:
        ConfigError: if the batch size is no multiple of the number of processes.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        data: Data,
        config: TrainConfig,
        run_dir: Path,
        evaluate: Callable[[], dict[str, float]],
        report: Callable[[str], None] = print,
        options: Callable[[float, int], dict[str, Any]] = lambda progress, limit: {},
        trained_before: bool = False,
    ) -> None:
        local = local_batch_size(config, accelerator.num_processes)
        self.accelerator, self.data, self.config, self.run_dir = accelerator, data, config, run_dir
        self.evaluate, self.options, self.trained_before = evaluate, options, trained_before
        self.log = Progress(accelerator, config, run_dir, report)
        self.examples = digest_of(data, config.seed)
        self.model = model.to(accelerator.device)
        tables = sparse_tables(self.model)
        # Their optimizer gathers sparse gradients itself; DDP cannot with every backend. Buffers
        # are the same on all ranks and stay so.
        ignored = [f"{name}.weight" for name in tables]
        ignored += [name for name, _ in self.model.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.model, ignored)
        self.wrapped = accelerator.prepare(self.model)
        self.forward = compiled(self.wrapped) if config.compile else self.wrapped
        self.optimizers = make_optimizers(self.model, config)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.tables = [table.weight for table in tables.values()]
        dense = [p for p in parameters if not any(p is table for table in self.tables)]
        self.trainable = nn.ParameterList(dense)
        self.ema = make_ema(self.trainable, config.ema_decay)
        self.averages = list(self.ema.parameters())
        self.bf16 = use_bf16(config, accelerator.device)
        self.step, self.seconds = 0, 0.0
        self.best: dict[str, Any] = {}
        self.best_weights: list[Tensor] = []
        self.batch_rows = slice(
            accelerator.process_index * local, (accelerator.process_index + 1) * local
        )
        self.carry: Carry = cast(Any, self.model).initial_carry(local, data.num_tokens)
        columns = torch.arange(config.batch_size)[self.batch_rows].to(accelerator.device)
        self.carry.data["position"] = columns - config.batch_size

    @property
    def progress(self) -> float:
        """Share of training done."""
        return self.config.progress(self.step, self.seconds)

    def run(self) -> int:
        """Train to the end, or until a signal asks to stop.

        Returns:
            0, or the number of the signal; a checkpoint was saved.

        Raises:
            NonFiniteError: loss or gradient is NaN or infinite; nothing was updated.
        """
        config = self.config
        with StopRequest() as stop, self.log.open(self.step):
            if self.trained_before and self.step == 0:
                self._evaluate()
            while self.progress < 1:
                start = time.perf_counter()
                self.train_step()
                self.seconds += time.perf_counter() - start
                ended, signalled = self._agree(stop)
                if self.step % config.log_every == 0 or ended:
                    self.log.write_means(self.step, self.seconds, self.progress)
                if self.step % config.eval_every == 0 or ended:
                    self._evaluate()
                if self.step % config.save_every == 0 or ended or signalled:
                    self.save()
                if signalled:
                    return signalled
            return self._agree(stop)[1]

    def train_step(self) -> None:
        """Refill halted batch rows, run one refinement step, update weights, decide who halts."""
        config, device, progress = self.config, self.accelerator.device, self.progress
        limit = config.halt.limit_at(progress)
        options = self.options(progress, limit)
        position = self.carry.data["position"] + config.batch_size
        self.carry = refill(self.carry, {"position": position})
        batch = self.data.at(self.carry.data["position"], config.seed)
        batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        factor = config.learning_rate_factor(self.step, progress)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

        self.wrapped.train()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16):
            output = self.forward(carry=self.carry, **batch, **options)
        self.accelerator.backward(output.loss)
        self._update(output.loss)

        self.carry = output.carry
        exploration = config.halt.halt_exploration_prob
        minimum = minimum_steps(config.batch_size, limit, exploration, config.seed, self.step)
        minimum = minimum[self.batch_rows]
        self.carry.halted = should_halt(output.stop, self.carry.refinement_steps, limit, minimum)
        self.step += 1
        self.log.add(output, batch["labels"], factor * config.learning_rate, limit)

    def _update(self, loss: Tensor) -> None:
        """Check on all ranks, clip, step the optimizer and the moving average."""
        dense = [p for p in self.trainable if p.grad is not None]
        norm = dense_norm = nn.utils.get_total_norm([cast(Tensor, p.grad) for p in dense])
        for table in self.tables:
            if table.grad is not None:
                norm = norm + table.grad._values().abs().sum()
        if not torch.isfinite(norm):
            bad = [
                name
                for name, p in self.model.named_parameters()
                if p.grad is not None
                and not (p.grad._values() if p.grad.is_sparse else p.grad).isfinite().all()
            ]
            what = f"gradient of {bad[0]}" if bad else "norm of all gradients"
            raise NonFiniteError(
                f"step {self.step + 1}, process {self.accelerator.process_index}: loss "
                f"{loss.item()}, {what} is not finite; nothing was updated; start again with a "
                "lower learning_rate or precision fp32"
            )
        if self.config.grad_clip is not None:
            nn.utils.clip_grads_with_norm_(dense, self.config.grad_clip, dense_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.ema.update_parameters(self.trainable)

    def _agree(self, stop: StopRequest) -> tuple[bool, int]:
        """Let all ranks see the same clock and the same signal: (training ended, signal)."""
        numbers = gather_numbers(self.accelerator, self.seconds, stop.signal)
        self.seconds, number = numbers.amax(dim=0).tolist()
        return self.progress >= 1, int(number)

    def _evaluate(self) -> None:
        """Evaluate with averaged weights, remember the best step."""
        with self.averaged_weights():
            metrics = self.evaluate()
        exact = metrics["val/exact_accuracy"]
        # A net that finds answers and loses them again is as good as its head says when to stop.
        exact = max(exact, metrics.get("val/halted_exact_accuracy", exact))
        score = [exact, metrics["val/accuracy"]]
        if not self.best or score >= self.best["score"]:
            self.best = {"step": self.step, "score": score}
            self.best_weights = [p.detach().clone() for p in [*self.averages, *self.tables]]
        self.log.write_metrics(self.step, metrics)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Let the model hold the averaged weights inside a `with` block."""
        raw = [p.detach().clone() for p in self.trainable]
        self._set_weights([*self.averages, *self.tables])
        self.model.eval()
        try:
            yield
        finally:
            self._set_weights([*raw, *self.tables])

    def use_best_weights(self) -> None:
        """Leave the model with the weights that were best on the validation split."""
        self._set_weights(self.best_weights)
        self.model.eval()

    @torch.no_grad()
    def _set_weights(self, weights: Iterable[Tensor]) -> None:
        for parameter, weight in zip([*self.trainable, *self.tables], weights, strict=True):
            parameter.copy_(weight)

    def save(self) -> None:
        """Write a complete checkpoint; older ones but the newest two and the best are removed."""
        carry = {k: self.accelerator.gather(v) for k, v in self.carry.tensors().items()}
        rng = torch.get_rng_state().to(self.accelerator.device)
        rng = self.accelerator.gather(rng[None])
        log = self.log.state()
        if self.accelerator.is_main_process:
            state = {
                "config": self._settings(),
                "seconds": self.seconds,
                "best": self.best,
                **log,
            }
            tensors = {
                "model": trainable_state(self.model),
                "ema": {str(i): p.detach() for i, p in enumerate(self.averages)},
                "best": {str(i): p for i, p in enumerate(self.best_weights)},
                "optimizer": optimizer_tensors(self.optimizers),
                "carry": carry,
                "rng": {"torch": rng, "num_averaged": self.ema.n_averaged},
            }
            folder = self.run_dir / "checkpoints"
            save_checkpoint(folder, self.step, tensors, state)
            rotate_checkpoints(folder, keep_last=2, protect={self.best.get("step", self.step)})
        self.accelerator.wait_for_everyone()

    def _settings(self) -> dict[str, Any]:
        """Return what must not change between a checkpoint and its resumption."""
        return self.config.to_dict() | {"num_examples": len(self.data), "examples": self.examples}

    def resume(self) -> bool:
        """Continue from the newest valid checkpoint of the run folder.

        Returns:
            False if there is none.

        Raises:
            CheckpointError: if the checkpoint was made with another training configuration,
                another number of examples or for other weights, or if all are damaged.
        """
        folder = self.run_dir / "checkpoints"
        saved = latest_checkpoint(folder)
        if saved is None:
            if found := sorted(folder.glob("step-*")):
                raise CheckpointError(
                    f"{folder}: all checkpoints are damaged ({', '.join(p.name for p in found)}); "
                    "restore one, or delete them to start from the beginning"
                )
            return False
        ours, theirs = flatten(self._settings()), flatten(saved.state["config"])
        changed = [k for k in ours if ours[k] != theirs.get(k)]
        if changed:
            diff = ", ".join(f"{k} {theirs.get(k)} -> {ours[k]}" for k in changed)
            raise CheckpointError(
                f"checkpoint {saved.path}: made with other settings ({diff}); "
                "resume with the same ones or choose another --output-dir"
            )
        device = self.accelerator.device
        own, tensors = trainable_state(self.model), saved.tensors
        if {k: v.shape for k, v in own.items()} != {
            k: v.shape for k, v in tensors["model"].items()
        }:
            raise CheckpointError(f"checkpoint {saved.path}: its weights are for another model")
        for name, value in tensors["model"].items():
            own[name].copy_(value)
        with torch.no_grad():
            for i, parameter in enumerate(self.averages):
                parameter.copy_(tensors["ema"][str(i)])
        best = tensors["best"]
        self.best_weights = [best[str(i)].to(device) for i in range(len(best))]
        self.ema.n_averaged.copy_(tensors["rng"]["num_averaged"])
        load_optimizer_tensors(self.optimizers, tensors["optimizer"])
        carry = {k: v[self.batch_rows].to(device) for k, v in tensors["carry"].items()}
        self.carry = Carry.from_tensors(carry)
        state, rank = saved.state, self.accelerator.process_index
        if len(state["sums"]) == self.accelerator.num_processes:
            # A copy, since torch crashes on a state that is not aligned in memory.
            torch.set_rng_state(tensors["rng"]["torch"][rank].clone())
        self.log.load(state)
        self.step, self.seconds, self.best = saved.step, state["seconds"], state["best"]
        return True
