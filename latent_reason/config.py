"""Configurations: frozen dataclasses that check themselves and turn into plain JSON and back.

A wrong value raises `ConfigError` naming the field, what was given and what is expected.
Attribute docstrings are the only description of a field; the command line shows them as help.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from latent_reason.errors import ConfigError

Gradient = Literal["one_step", "last_cycle", "k_cycles", "full"]
ReadLayer = int | Literal["embedding", "middle", "last"]
MAX_REFINEMENT_STEPS = 100_000
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict = 3, 16, 16, 16
_SHORT.maxstring = _SHORT.maxother = 200


def check(condition: bool, name: str, got: object, expected: str) -> None:
    """Raise `ConfigError` for field `name` unless `condition` holds."""
    if not condition:
        shown = _SHORT.repr(got)[:300]
        raise ConfigError(f"{name}: got {shown}, expected {expected}")


def check_request(split: str, num: int, splits: Sequence[str]) -> None:
    """Raise `ConfigError` unless `num` examples of `split` can be asked for."""
    check(split in splits, "split", split, f"one of {', '.join(splits)}")
    check(num >= 1, "num", num, "1 or more")


def check_refinement_steps(steps: Sequence[int]) -> None:
    """Raise `ConfigError` unless an evaluation can be asked for at these refinement steps."""
    fits = bool(steps) and 1 <= min(steps) and max(steps) <= MAX_REFINEMENT_STEPS
    expected = f"numbers from 1 up to {MAX_REFINEMENT_STEPS:,}"
    check(fits, "refinement_steps", steps, expected)


def check_range(config: JsonConfig, name: str, least: int, most: int) -> None:
    """Raise `ConfigError` for a field outside of least..most.

    No model that is trained comes near the upper bounds: they keep a file of someone else from
    taking all memory or time.
    """
    value = getattr(config, name)
    check(value >= least, name, value, f"at least {least}")
    check(value <= most, name, value, f"at most {most:,}")


def check_unread(config: JsonConfig, name: str, reason: str) -> None:
    """Raise `ConfigError` unless a field that nothing reads holds its default."""
    default = type(config).__dataclass_fields__[name].default  # type: ignore[attr-defined]
    value = getattr(config, name)
    check(value == default, name, value, f"{default}, the default: {reason}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_list(value: object, kind: Callable[[object], bool]) -> bool:
    return isinstance(value, (list, tuple)) and all(map(kind, value))


TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (_is_whole, "a whole number"),
    "float": (_is_number, "a finite number"),
    "float | None": (lambda value: value is None or _is_number(value), "a finite number or None"),
    "bool": (lambda value: isinstance(value, bool), "True or False"),
    "str": (lambda value: isinstance(value, str), "a text"),
    "str | None": (lambda value: value is None or isinstance(value, str), "a text or None"),
    "Path | None": (lambda value: value is None or isinstance(value, Path), "a path or None"),
    "tuple[int, ...]": (lambda value: _is_list(value, _is_whole), "a list of whole numbers"),
    "tuple[str, ...]": (
        lambda value: _is_list(value, lambda part: isinstance(part, str)),
        "a list of texts",
    ),
}
"""Annotations that `JsonConfig.settle` knows: what holds of a value, what is expected."""


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested JSON values as {"a.b": value}, tuples as lists."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


class JsonConfig:
    """Mixin of the dataclasses below: to and from plain JSON values."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values (tuples become lists on dumping, paths are text)."""
        values = asdict(self)  # type: ignore[call-overload]
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}

    def settle(self) -> None:
        """Turn what JSON has into what the fields hold: configurations, paths, tuples.

        Raises:
            ConfigError: for a configuration or a field of one of `TYPES`, or of choices, that holds
                something else.
        """
        hints = get_type_hints(type(self))
        for f in fields(self):  # type: ignore[arg-type]
            value, hint = getattr(self, f.name), hints[f.name]
            if isinstance(hint, type) and issubclass(hint, JsonConfig):
                value = hint.from_dict(value) if isinstance(value, Mapping) else value
                check(isinstance(value, hint), f.name, value, f"a {hint.__name__}")
            elif f.type == "Path | None" and isinstance(value, str):
                value = Path(value)
            if f.type in TYPES:
                fits, expected = TYPES[f.type]
                check(fits(value), f.name, value, expected)
            elif get_origin(hint) is Literal:
                choices = get_args(hint)
                check(value in choices, f.name, value, f"one of {choices}")
            if f.type in TYPES and isinstance(value, list):
                value = tuple(value)
            object.__setattr__(self, f.name, value)

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
    and learns from the first steps; normal: all weights start as the originals'."""
    norm_swiglu: bool = False
    """Normalise within SwiGLU, as SIC (arXiv 2601.19085)."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-5
    """Epsilon of RMSNorm."""

    def __post_init__(self) -> None:
        self.settle()
        for name in ("hidden_size", "num_heads", "width_multiple"):
            check_range(self, name, 1, 2**16)
        for name in ("L_layers", "L_cycles", "H_cycles"):
            check_range(self, name, 1, 1000)
        check(
            self.hidden_size % (2 * self.num_heads) == 0,
            "hidden_size",
            self.hidden_size,
            f"a multiple of 2 * num_heads = {2 * self.num_heads}",
        )
        for name in ("expansion", "rope_theta", "norm_eps"):
            check(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        check(self.expansion <= 1000, "expansion", self.expansion, "at most 1,000")
        check_range(self, "H_layers", 0, 1000)
        if self.kind == "hrm":
            check(self.H_layers >= 1, "H_layers", self.H_layers, "at least 1 for kind 'hrm'")
        else:
            check(self.H_layers == 0, "H_layers", self.H_layers, "0 for kind 'trm' (one net)")
        check(
            1 <= self.gradient_cycles <= self.H_cycles,
            "gradient_cycles",
            self.gradient_cycles,
            f"1 to H_cycles = {self.H_cycles}",
        )
        if self.gradient != "k_cycles":
            check_unread(self, "gradient_cycles", f"gradient {self.gradient!r} does not read it")


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
        self.settle()
        layers = self.read_layers
        listed = isinstance(layers, (list, tuple)) and len(layers) >= 1
        check(listed, "read_layers", layers, "a list of at least one layer")
        object.__setattr__(self, "read_layers", tuple(layers))
        check_range(self, "num_slots", 0, 10_000)
        check(bool(self.answer_delimiter), "answer_delimiter", self.answer_delimiter, "some text")
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
    halt_confidence: float = 0.5
    """The halting head stops above this probability of being right; without q_continue. The recipe
    chooses it on the validation split when the training is over."""
    num_chains: int = 1
    """Latent chains per puzzle. The best trains (winner takes all, SIC) and the halting head
    chooses in use; memory and time grow with their number."""

    def __post_init__(self) -> None:
        self.settle()
        check_range(self, "vocab_size", 2, 256)  # a data set holds tokens as bytes
        check_range(self, "num_cells", 1, 2**16)
        check_range(self, "num_puzzles", 1, 10**9)
        check_range(self, "num_chains", 1, 64)
        check_range(self, "puzzle_emb_size", 0, 2**20)
        check_range(self, "puzzle_emb_len", 0, 1000)
        confidence = self.halt_confidence
        check(0 < confidence < 1, "halt_confidence", confidence, "between 0 and 1")
        if self.q_continue:
            check_unread(self, "halt_confidence", "q_continue does not read it")
        check(
            self.num_chains == 1 or not self.q_continue,
            "num_chains",
            self.num_chains,
            "1 with q_continue",
        )
        size, length = self.puzzle_emb_size, self.puzzle_emb_len
        least = -(-size // self.reasoner.hidden_size)
        fits = length >= least if size else length == 0
        expected = f"at least {least} to hold puzzle_emb_size {size}" if size else "0 without one"
        check(fits, "puzzle_emb_len", length, expected)
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
