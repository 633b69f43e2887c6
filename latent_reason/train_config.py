"""How to train: optimizer, rates, refinement steps per example, what grows over the training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from latent_reason.config import (
    MAX_REFINEMENT_STEPS,
    JsonConfig,
    ReasonerConfig,
    check,
    check_range,
    check_unread,
)


def check_curriculum(config: JsonConfig, name: str) -> None:
    """Check that a field holds None or two rising shares of training, and make it a tuple."""
    shares = getattr(config, name)
    if shares is not None:
        pair = isinstance(shares, (list, tuple)) and len(shares) == 2
        pair = pair and all(type(share) in (int, float) for share in shares)
        rising = pair and 0 <= shares[0] < shares[1] <= 1
        check(rising, name, shares, "None or two rising shares from 0 to 1")
        object.__setattr__(config, name, tuple(shares))


def grown(full: int, curriculum: tuple[float, float] | None, progress: float) -> int:
    """Return what has grown from 1 towards `full` at `progress` (0..1) of the training."""
    if curriculum is None:
        return full
    start, end = curriculum
    return 1 + int(min(1.0, max(0.0, (progress - start) / (end - start))) * (full - 1))


@dataclass(frozen=True, kw_only=True)
class HaltConfig(JsonConfig):
    """When an example of a training batch ends and its row is refilled."""

    halt_max_steps: int = 16
    """Most refinement steps per example in training."""
    halt_exploration_prob: float = 0.1
    """Chance, in every step anew, that an example may only stop from a step on that is drawn from 2
    to the limit."""
    curriculum: tuple[float, float] | None = None
    """Shares of training between which the limit grows from 1 to halt_max_steps; None: the full
    limit from the start."""

    def __post_init__(self) -> None:
        self.settle()
        check_range(self, "halt_max_steps", 1, MAX_REFINEMENT_STEPS)
        check(
            0 <= self.halt_exploration_prob <= 1,
            "halt_exploration_prob",
            self.halt_exploration_prob,
            "a probability from 0 to 1",
        )
        check_curriculum(self, "curriculum")

    def limit_at(self, progress: float) -> int:
        """Return the limit of refinement steps at `progress` (0..1) of the training."""
        return grown(self.halt_max_steps, self.curriculum, progress)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(JsonConfig):
    """One training run; a step is an optimizer step, one refinement step for each batch row."""

    max_steps: int = 4000
    """Optimizer steps."""
    max_seconds: float | None = None
    """Wall-clock budget in place of max_steps, for controls; such a run is not repeatable."""
    batch_size: int = 64
    """Rows of a batch over all processes."""
    optimizer: Literal["adamw", "adam_atan2", "muon"] = "adamw"
    """adam_atan2: the originals' AdamW without epsilon; muon: Muon for the matrices of the nets,
    AdamW for the rest."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; adam_atan2 decays vectors and biases too."""
    beta2: float = 0.95
    """Decay of the second moment; that of the first is 0.9."""
    adamw_eps: float = 1e-8
    """Epsilon of AdamW; read for optimizers adamw and muon only."""
    muon_learning_rate: float = 0.02
    """Peak learning rate of Muon; read for optimizer muon only."""
    puzzle_learning_rate: float = 0.01
    """Peak learning rate of the sign-SGD of puzzle embeddings."""
    puzzle_weight_decay: float = 0.1
    """Decoupled weight decay of the puzzle embeddings in a batch."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    cooldown: float = 0.3
    """Last share of training over which the learning rate falls linearly to 2 % of its peak."""
    grad_clip: float | None = 1.0
    """Largest gradient norm; None: no clipping, as the originals."""
    ema_decay: float = 0.99
    """Decay of the exponential moving average of the trainable weights, used for evaluation."""
    halt: HaltConfig = field(default_factory=HaltConfig)
    """Refinement steps per example."""
    cycles_curriculum: tuple[float, float] | None = None
    """Shares of training between which H_cycles and L_cycles grow from 1 to those of the model
    (puzzles only; after CGAR, arXiv 2511.08653); None: all cycles from the start."""
    through_base_from: float = 1.0
    """Share of training after which writer soft also learns through the frozen base (text only)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on CUDA devices that have it and, compiled, on CPUs with AMX; others emulate it,
    many times slower than fp32."""
    compile: bool = False
    """Compile the training step with torch.compile: a minute at the start, then two to three
    times as fast; needs a C++ compiler on CPU."""
    log_every: int = 50
    """Steps between two lines of progress and metrics."""
    eval_every: int = 500
    """Steps between two evaluations on the validation split."""
    save_every: int = 500
    """Steps between two checkpoints."""
    seed: int = 0
    """Of initial weights, data order and exploration."""

    def __post_init__(self) -> None:
        self.settle()
        for name in ("max_steps", "batch_size", "log_every", "eval_every", "save_every"):
            check_range(self, name, 1, 10**9)
        for name in ("warmup_steps", "weight_decay", "puzzle_weight_decay"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        check(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 2**32 - 1")
        check_curriculum(self, "cycles_curriculum")
        budget = self.max_seconds
        check(budget is None or budget > 0, "max_seconds", budget, "None or above 0")
        for name in ("learning_rate", "muon_learning_rate", "puzzle_learning_rate"):
            rate = getattr(self, name)
            check(0 < rate <= 0.1, name, rate, "above 0 and at most 0.1")
        check(0 < self.adamw_eps <= 1, "adamw_eps", self.adamw_eps, "above 0 and at most 1")
        reason = f"optimizer {self.optimizer!r} does not read it"
        if self.optimizer != "muon":
            check_unread(self, "muon_learning_rate", reason)
        if self.optimizer == "adam_atan2":
            check_unread(self, "adamw_eps", reason)
        check(0 < self.beta2 < 1, "beta2", self.beta2, "between 0 and 1")
        clip = self.grad_clip
        check(clip is None or clip > 0, "grad_clip", clip, "None or above 0")
        check(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "from 0 to below 1")
        for name in ("cooldown", "through_base_from"):
            check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "from 0 to 1")

    def cycles_at(self, progress: float, reasoner: ReasonerConfig) -> tuple[int, int]:
        """Return (H_cycles, L_cycles) at `progress` (0..1) of the training."""
        full = reasoner.H_cycles, reasoner.L_cycles
        H_cycles, L_cycles = (grown(n, self.cycles_curriculum, progress) for n in full)
        return H_cycles, L_cycles

    def progress(self, step: int, seconds: float) -> float:
        """Return the share of training done after `step` steps and `seconds` seconds, 0..1."""
        if self.max_seconds is not None:
            return min(1.0, seconds / self.max_seconds)
        return min(1.0, step / self.max_steps)

    def learning_rate_factor(self, step: int, progress: float) -> float:
        """Return the share of the peak rates at step `step` (from 0): warm-up, flat, cooldown."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.cooldown == 0:
            return warm
        left = (1 - progress) / self.cooldown
        return warm * min(1.0, max(0.02, left))
