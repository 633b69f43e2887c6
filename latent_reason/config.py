"""Configurations: frozen dataclasses that check themselves and turn into plain JSON and back.

A wrong value raises `ConfigError` naming the field, what was given and what is expected.
Attribute docstrings are the only description of a field; the command line shows them as help.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from latent_reason.errors import ConfigError

Gradient = Literal["one_step", "last_cycle", "k_cycles", "full"]
ReadLayer = int | Literal["embedding", "middle", "last"]


def check(condition: bool, name: str, got: object, expected: str) -> None:
    """Raise `ConfigError` for field `name` unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{name}: got {got!r}, expected {expected}")


class JsonConfig:
    """Mixin of the dataclasses below: to and from plain JSON values."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values (tuples become lists on dumping)."""
        return asdict(self)  # type: ignore[call-overload]

    def check_types(self) -> None:
        """Raise `ConfigError` for a number or text field that holds something else, NaN or inf."""
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if f.type == "int":
                whole = isinstance(value, int) and not isinstance(value, bool)
                check(whole, f.name, value, "a whole number")
            elif f.type == "float" or (f.type == "float | None" and value is not None):
                number = isinstance(value, (int, float)) and not isinstance(value, bool)
                check(number and math.isfinite(value), f.name, value, "a finite number")
            elif f.type == "str":
                check(isinstance(value, str), f.name, value, "a text")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from JSON values.

        Raises:
            ConfigError: on an unknown field or a value out of range.
        """
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(values) - known)
        check(not unknown, cls.__name__, unknown, f"only the fields {sorted(known)}")
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class ReasonerConfig(JsonConfig):
    """The recursive module; `TRMConfig` and `HRMConfig` are its two published settings."""

    kind: Literal["trm", "hrm"] = "trm"
    """trm: one net serves both levels; hrm: a net per level."""
    hidden_size: int = 128
    """Reasoner width D; a multiple of 2 * num_heads."""
    num_heads: int = 4
    """Attention heads."""
    expansion: float = 4.0
    """SwiGLU width over D, before the 2/3 factor and rounding up."""
    width_multiple: int = 256
    """SwiGLU widths are rounded up to a multiple of this; 256 in the originals."""
    L_layers: int = 2
    """Blocks of the net that updates z_L (and z_H for trm)."""
    H_layers: int = 0
    """Blocks of the net that updates z_H; hrm only, 0 for trm."""
    L_cycles: int = 6
    """z_L updates per H cycle (n in the TRM paper)."""
    H_cycles: int = 3
    """H cycles per refinement step (T in the TRM paper)."""
    gradient: Gradient = "last_cycle"
    """one_step: last z_L and last z_H update (HRM); last_cycle: whole last H cycle (TRM);
    k_cycles: the last `gradient_cycles` H cycles; full: all H cycles."""
    gradient_cycles: int = 1
    """H cycles with gradient; read for k_cycles only."""
    mixer: Literal["attention", "mlp", "groups"] = "attention"
    """How positions exchange information. mlp mixes a fixed number of positions; groups passes
    messages over the sets of cells that a puzzle states, such as rows, columns and boxes."""
    positions: Literal["rope", "learned", "none"] = "rope"
    """Rotary position embedding, learned vectors added to the cells of a puzzle, or none."""
    residual_init: Literal["zero", "normal"] = "zero"
    """zero: attention and SwiGLU outputs start at zero, so a fresh recursion passes its inputs on
    and learns from the first steps; normal: as the originals."""
    norm_swiglu: bool = False
    """Normalise within SwiGLU, as SIC (arXiv 2601.19085)."""
    equilibrium: bool = False
    """Random initial states and a damped update, as EqR (arXiv 2605.21488)."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-5
    """Epsilon of RMSNorm."""

    def __post_init__(self) -> None:
        self.check_types()
        counts = ("hidden_size", "num_heads", "width_multiple", "L_layers", "L_cycles", "H_cycles")
        for name in counts:
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        check(
            self.hidden_size % (2 * self.num_heads) == 0,
            "hidden_size",
            self.hidden_size,
            f"a multiple of 2 * num_heads = {2 * self.num_heads}",
        )
        for name in ("expansion", "rope_theta", "norm_eps"):
            check(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        if self.kind == "hrm":
            check(self.H_layers >= 1, "H_layers", self.H_layers, "at least 1 for kind 'hrm'")
        else:
            check(self.kind == "trm", "kind", self.kind, "'trm' or 'hrm'")
            check(self.H_layers == 0, "H_layers", self.H_layers, "0 for kind 'trm' (one net)")
        modes = ("one_step", "last_cycle", "k_cycles", "full")
        check(self.gradient in modes, "gradient", self.gradient, f"one of {modes}")
        mixers = ("attention", "mlp", "groups")
        check(self.mixer in mixers, "mixer", self.mixer, f"one of {mixers}")
        inits = ("zero", "normal")
        check(self.residual_init in inits, "residual_init", self.residual_init, f"one of {inits}")
        positions = ("rope", "learned", "none")
        check(self.positions in positions, "positions", self.positions, f"one of {positions}")
        check(
            1 <= self.gradient_cycles <= self.H_cycles,
            "gradient_cycles",
            self.gradient_cycles,
            f"1 to H_cycles = {self.H_cycles}",
        )


@dataclass(frozen=True, kw_only=True)
class TRMConfig(ReasonerConfig):
    """Tiny Recursive Model (arXiv 2510.04871): one net, gradient through the last H cycle."""


@dataclass(frozen=True, kw_only=True)
class HRMConfig(ReasonerConfig):
    """Hierarchical Reasoning Model (arXiv 2506.21734): two nets, one-step gradient."""

    kind: Literal["trm", "hrm"] = "hrm"
    L_layers: int = 4
    H_layers: int = 4
    L_cycles: int = 2
    H_cycles: int = 2
    gradient: Gradient = "one_step"


@dataclass(frozen=True, kw_only=True)
class LatentReasonerConfig(JsonConfig):
    """What is built around the frozen base: reader, reasoner, writer."""

    reasoner: ReasonerConfig = field(default_factory=ReasonerConfig)
    """The recursion."""
    reader: Literal["perceiver", "concat"] = "perceiver"
    """perceiver: slots read the prompt by cross-attention and the recursion runs over them alone;
    concat: the recursion runs over prompt and slots together."""
    writer: Literal["head", "soft"] = "head"
    """head: slots through the frozen lm_head, all answer tokens in parallel;
    soft: slots as soft tokens after the prompt, the base generates the answer."""
    num_slots: int = 16
    """Answer positions K; the longest answer with its end token must fit. 0 lets a recipe take
    what its training data needs."""
    read_layers: tuple[ReadLayer, ...] = ("embedding", "middle", "last")
    """Hidden states of the base to read: 'embedding', 'middle', 'last' or a layer index."""
    answer_delimiter: str = " Answer:"
    """Text between the soft tokens and the answer (writer soft)."""

    def __post_init__(self) -> None:
        if isinstance(self.reasoner, Mapping):
            object.__setattr__(self, "reasoner", ReasonerConfig.from_dict(self.reasoner))
        self.check_types()
        reasoner = self.reasoner
        check(isinstance(reasoner, ReasonerConfig), "reasoner", reasoner, "a ReasonerConfig")
        layers = self.read_layers
        listed = isinstance(layers, (list, tuple)) and len(layers) >= 1
        check(listed, "read_layers", layers, "a list of at least one layer")
        object.__setattr__(self, "read_layers", tuple(layers))
        readers = ("perceiver", "concat")
        check(self.reader in readers, "reader", self.reader, f"one of {readers}")
        check(self.writer in ("head", "soft"), "writer", self.writer, "'head' or 'soft'")
        check(self.num_slots >= 0, "num_slots", self.num_slots, "at least 0")
        mixers = ("attention", "mlp") if self.reader == "perceiver" else ("attention",)
        mixer, positions = self.reasoner.mixer, self.reasoner.positions
        check(mixer in mixers, "reasoner.mixer", mixer, f"one of {mixers} for {self.reader!r}")
        check(positions != "learned", "reasoner.positions", positions, "'rope' or 'none' for text")


@dataclass(frozen=True, kw_only=True)
class PuzzleModelConfig(JsonConfig):
    """What is built around the reasoner for a grid puzzle."""

    reasoner: ReasonerConfig = field(default_factory=ReasonerConfig)
    """The recursion."""
    vocab_size: int = 11
    """V, tokens: padding (0) and the symbols of the puzzle."""
    num_cells: int = 81
    """S, cells of the grid; with mixer "groups" a trained model takes other sizes too."""
    symbol_states: bool = False
    """One state for each symbol of each cell, all symbols alike (mixer "groups" only); token 1 is
    the blank and has none."""
    num_puzzles: int = 1
    """Rows of the puzzle table."""
    puzzle_emb_size: int = 0
    """Width of a puzzle's learned embedding; 0: none."""
    puzzle_emb_len: int = 0
    """Prefix positions that hold the embedding, padded with zeros."""
    loss: Literal["softmax", "stablemax"] = "softmax"
    """How logits become probabilities."""
    q_continue: bool = False
    """Learn to halt by Q-learning with a second output for going on, as HRM."""
    loss_decay: float = 1.0
    """The answer loss after refinement step t counts loss_decay ** (t - 1); CGAR has 0.7."""
    num_chains: int = 1
    """Latent chains per puzzle. The best trains (winner takes all, SIC) and the halting head
    chooses in use; memory and time grow with their number."""

    def __post_init__(self) -> None:
        if isinstance(self.reasoner, Mapping):
            object.__setattr__(self, "reasoner", ReasonerConfig.from_dict(self.reasoner))
        self.check_types()
        for name, least in (("vocab_size", 2), ("num_cells", 1), ("num_puzzles", 1)):
            check(getattr(self, name) >= least, name, getattr(self, name), f"at least {least}")
        check(0 < self.loss_decay <= 2, "loss_decay", self.loss_decay, "above 0 and at most 2")
        check(self.num_chains >= 1, "num_chains", self.num_chains, "at least 1")
        check(
            self.num_chains == 1 or not self.q_continue,
            "num_chains",
            self.num_chains,
            "1 with q_continue",
        )
        size, length = self.puzzle_emb_size, self.puzzle_emb_len
        check(size >= 0, "puzzle_emb_size", size, "at least 0")
        least = -(-size // self.reasoner.hidden_size)
        fits = length >= least if size else length == 0
        expected = f"at least {least} to hold puzzle_emb_size {size}" if size else "0 without one"
        check(fits, "puzzle_emb_len", length, expected)
        losses = ("softmax", "stablemax")
        check(self.loss in losses, "loss", self.loss, f"one of {losses}")
        groups, positions = self.reasoner.mixer == "groups", self.reasoner.positions
        check(
            not groups or positions == "none",
            "reasoner.positions",
            positions,
            "'none' with mixer 'groups', which knows cells by their groups alone",
        )
        check(
            groups or not self.symbol_states, "symbol_states", True, "False unless mixer 'groups'"
        )
        check(
            not groups or self.puzzle_emb_len == 0,
            "puzzle_emb_len",
            self.puzzle_emb_len,
            "0 with mixer 'groups' (a prefix belongs to no group)",
        )


def check_curriculum(config: JsonConfig, name: str) -> None:
    """Check that a field holds None or two rising shares of training, and make it a tuple."""
    shares = getattr(config, name)
    if shares is not None:
        pair = isinstance(shares, (list, tuple)) and len(shares) == 2
        pair = pair and all(isinstance(share, (int, float)) for share in shares)
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
    """When an example of a training batch ends and its slot is refilled."""

    halt_max_steps: int = 16
    """Most refinement steps per example in training."""
    halt_exploration_prob: float = 0.1
    """Chance that an example must run a minimum of steps drawn from 2..halt_max_steps."""
    curriculum: tuple[float, float] | None = None
    """Shares of training between which the limit grows from 1 to halt_max_steps; None: the full
    limit from the start."""

    def __post_init__(self) -> None:
        self.check_types()
        check(self.halt_max_steps >= 1, "halt_max_steps", self.halt_max_steps, "at least 1")
        check(
            0 <= self.halt_exploration_prob <= 1,
            "halt_exploration_prob",
            self.halt_exploration_prob,
            "a probability from 0 to 1",
        )
        check_curriculum(self, "curriculum")

    def max_steps_at(self, progress: float) -> int:
        """Return the limit of refinement steps at `progress` (0..1) of the training."""
        return grown(self.halt_max_steps, self.curriculum, progress)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(JsonConfig):
    """One training run; a step is an optimizer step, one refinement step for every slot."""

    max_steps: int = 4000
    """Optimizer steps."""
    max_seconds: float | None = None
    """Wall-clock budget in place of max_steps, for controls; such a run is not repeatable."""
    batch_size: int = 64
    """Slots over all processes."""
    optimizer: Literal["adamw", "adam_atan2", "muon"] = "adamw"
    """adam_atan2: the originals' AdamW without epsilon; muon: Muon for the matrices of the nets,
    AdamW for the rest."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices."""
    beta2: float = 0.95
    """Decay of the second moment; that of the first is 0.9."""
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
    """Share of training after which writer soft also learns through the frozen base."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on CUDA, fp32 on CPU, where it gains nothing at these widths (RESULTS.md)."""
    compile: bool = False
    """Compile the training step with torch.compile: a minute at the start, then about twice as
    fast; needs a C++ compiler on CPU."""
    log_every: int = 50
    """Steps between two lines of progress and metrics."""
    eval_every: int = 500
    """Steps between two evaluations on the validation split."""
    save_every: int = 500
    """Steps between two checkpoints."""
    seed: int = 0
    """Of initial weights, data order and exploration."""

    def __post_init__(self) -> None:
        if isinstance(self.halt, Mapping):
            object.__setattr__(self, "halt", HaltConfig.from_dict(self.halt))
        self.check_types()
        check(isinstance(self.halt, HaltConfig), "halt", self.halt, "a HaltConfig")
        for name in ("max_steps", "batch_size", "log_every", "eval_every", "save_every"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("warmup_steps", "weight_decay", "puzzle_weight_decay"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        names = ("adamw", "adam_atan2", "muon")
        check(self.optimizer in names, "optimizer", self.optimizer, f"one of {names}")
        check(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 2**32 - 1")
        check_curriculum(self, "cycles_curriculum")
        budget = self.max_seconds
        check(budget is None or budget > 0, "max_seconds", budget, "None or above 0")
        for name in ("learning_rate", "muon_learning_rate", "puzzle_learning_rate"):
            rate = getattr(self, name)
            check(0 < rate <= 0.1, name, rate, "above 0 and at most 0.1")
        check(0 < self.beta2 < 1, "beta2", self.beta2, "between 0 and 1")
        clip = self.grad_clip
        check(clip is None or clip > 0, "grad_clip", clip, "None or above 0")
        check(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "from 0 to below 1")
        for name in ("cooldown", "through_base_from"):
            check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "from 0 to 1")
        precisions = ("auto", "fp32", "bf16")
        check(self.precision in precisions, "precision", self.precision, f"one of {precisions}")

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
