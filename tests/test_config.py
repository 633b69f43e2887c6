"""Configurations: every refusal, the way to JSON and back, schedules."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_reason.config import (
    HRMConfig,
    JsonConfig,
    LatentReasonerConfig,
    PuzzleModelConfig,
    ReasonerConfig,
    TRMConfig,
)
from latent_reason.errors import ConfigError, UserError
from latent_reason.train_config import HaltConfig, TrainConfig

CONCAT_OF_MLP = {"reader": "concat", "reasoner": {"mixer": "mlp"}}
ROPE_IN_GROUPS = {"reasoner": {"mixer": "groups", "positions": "rope"}}
PERCEIVER_OF_GROUPS = {"reasoner": {"mixer": "groups"}}
TEXT_WITH_LEARNED = {"reasoner": {"positions": "learned"}}
PREFIX_IN_GROUPS = {
    "reasoner": {"mixer": "groups", "positions": "none"},
    "puzzle_emb_size": 128,
    "puzzle_emb_len": 1,
}
MODES = r"\('one_step', 'last_cycle', 'k_cycles', 'full'\)"
RISING = "None or two rising shares from 0 to 1"
# class, values, field named by the message, expected; "got" is the field's value.
REFUSED: list[tuple[type[JsonConfig], dict[str, Any], str, str]] = [
    *[
        (ReasonerConfig, {name: value}, name, "at least 1")
        for name in ("hidden_size", "num_heads", "L_layers", "L_cycles", "H_cycles",
                     "width_multiple")
        for value in (0, -3)
    ],
    *[
        (ReasonerConfig, {name: most + 1}, name, f"at most {most:,}")
        for name, most in (("hidden_size", 65536), ("num_heads", 65536), ("width_multiple", 65536),
                           ("L_layers", 1000), ("L_cycles", 1000), ("H_cycles", 1000))
    ],
    (ReasonerConfig, {"expansion": 1e4}, "expansion", "at most 1,000"),
    (HRMConfig, {"H_layers": 1001}, "H_layers", "at most 1,000"),
    (ReasonerConfig, {"hidden_size": 12}, "hidden_size", r"a multiple of 2 \* num_heads = 8"),
    (ReasonerConfig, {"hidden_size": 64.0}, "hidden_size", "a whole number"),
    (ReasonerConfig, {"hidden_size": "64"}, "hidden_size", "a whole number"),
    (ReasonerConfig, {"L_cycles": True}, "L_cycles", "a whole number"),
    (ReasonerConfig, {"L_cycles": None}, "L_cycles", "a whole number"),
    *[(ReasonerConfig, {"norm_swiglu": value}, "norm_swiglu", "True or False")
      for value in ("no", 1, None)],
    (ReasonerConfig, {"expansion": True}, "expansion", "a finite number"),
    (ReasonerConfig, {"expansion": 0.0}, "expansion", "above 0"),
    (ReasonerConfig, {"expansion": math.inf}, "expansion", "a finite number"),
    (ReasonerConfig, {"rope_theta": 0}, "rope_theta", "above 0"),
    (ReasonerConfig, {"norm_eps": -1e-5}, "norm_eps", "above 0"),
    (ReasonerConfig, {"kind": "TRM"}, "kind", r"one of \('trm', 'hrm'\)"),
    (ReasonerConfig, {"H_layers": 2}, "H_layers", r"0 for kind 'trm' \(one net\)"),
    (ReasonerConfig, {"kind": "hrm", "H_layers": 0}, "H_layers", "at least 1 for kind 'hrm'"),
    (HRMConfig, {"H_layers": 0}, "H_layers", "at least 1 for kind 'hrm'"),
    (TRMConfig, {"H_layers": 1}, "H_layers", r"0 for kind 'trm' \(one net\)"),
    (ReasonerConfig, {"gradient": "bptt"}, "gradient", f"one of {MODES}"),
    (ReasonerConfig, {"gradient_cycles": 0}, "gradient_cycles", "1 to H_cycles = 3"),
    (ReasonerConfig, {"gradient_cycles": 4}, "gradient_cycles", "1 to H_cycles = 3"),
    *[
        (ReasonerConfig, {"gradient": gradient, "gradient_cycles": 2}, "gradient_cycles",
         f"1, the default: gradient '{gradient}' does not read it")
        for gradient in ("one_step", "last_cycle", "full")
    ],
    (ReasonerConfig, {"width_multiple": 1.5}, "width_multiple", "a whole number"),
    (ReasonerConfig, {"mixer": "conv"}, "mixer", r"one of \('attention', 'mlp', 'groups'\)"),
    (ReasonerConfig, {"residual_init": ""}, "residual_init", r"one of \('zero', 'normal'\)"),
    (ReasonerConfig, {"positions": "x"}, "positions", r"one of \('rope', 'learned', 'none'\)"),
    (LatentReasonerConfig, {"reasoner": "trm"}, "reasoner", "a ReasonerConfig"),
    (LatentReasonerConfig, {"reader": "lm"}, "reader", r"one of \('perceiver', 'concat'\)"),
    (LatentReasonerConfig, {"writer": "xattn"}, "writer", r"one of \('head', 'soft'\)"),
    (LatentReasonerConfig, {"num_slots": -1}, "num_slots", "at least 0"),
    (LatentReasonerConfig, {"num_slots": 10_001}, "num_slots", "at most 10,000"),
    (LatentReasonerConfig, {"num_slots": 1.5}, "num_slots", "a whole number"),
    (LatentReasonerConfig, {"read_layers": []}, "read_layers", "a list of at least one layer"),
    (LatentReasonerConfig, {"read_layers": "last"}, "read_layers", "a list of at least one layer"),
    (LatentReasonerConfig, {"answer_delimiter": 3}, "answer_delimiter", "a text"),
    (LatentReasonerConfig, CONCAT_OF_MLP, "reasoner.mixer",
     r"one of \('attention',\) for 'concat'"),
    (LatentReasonerConfig, PERCEIVER_OF_GROUPS, "reasoner.mixer",
     r"one of \('attention', 'mlp'\) for 'perceiver'"),
    (LatentReasonerConfig, TEXT_WITH_LEARNED, "reasoner.positions", "'rope' or 'none' for text"),
    *[
        (PuzzleModelConfig, {name: least - 1}, name, f"at least {least}")
        for name, least in (("vocab_size", 2), ("num_cells", 1), ("num_puzzles", 1),
                            ("num_chains", 1))
    ],
    *[
        (PuzzleModelConfig, {name: most + 1}, name, f"at most {most:,}")
        for name, most in (("vocab_size", 256), ("num_cells", 65536), ("num_puzzles", 10**9),
                           ("num_chains", 64), ("puzzle_emb_size", 2**20),
                           ("puzzle_emb_len", 1000))
    ],
    (PuzzleModelConfig, {"num_cells": "81"}, "num_cells", "a whole number"),
    (PuzzleModelConfig, {"puzzle_emb_size": -1}, "puzzle_emb_size", "at least 0"),
    (PuzzleModelConfig, {"puzzle_emb_size": 129, "puzzle_emb_len": 1}, "puzzle_emb_len",
     "at least 2 to hold puzzle_emb_size 129"),
    (PuzzleModelConfig, {"puzzle_emb_len": 1}, "puzzle_emb_len", "0 without one"),
    (PuzzleModelConfig, PREFIX_IN_GROUPS, "puzzle_emb_len", "0 with mixer 'groups'"),
    (PuzzleModelConfig, ROPE_IN_GROUPS, "reasoner.positions", "'none' with mixer 'groups'"),
    (PuzzleModelConfig, {"symbol_states": True}, "symbol_states", "False unless mixer 'groups'"),
    (PuzzleModelConfig, {"q_continue": "false"}, "q_continue", "True or False"),
    (PuzzleModelConfig, {"q_continue": True, "halt_confidence": 0.9}, "halt_confidence",
     "0.5, the default: q_continue does not read it"),
    (PuzzleModelConfig, {"loss": "hinge"}, "loss", r"one of \('softmax', 'stablemax'\)"),
    (PuzzleModelConfig, {"reasoner": {"mixer": "conv"}}, "mixer", "one of"),
    (HaltConfig, {"halt_max_steps": 0}, "halt_max_steps", "at least 1"),
    (HaltConfig, {"halt_max_steps": 10**20}, "halt_max_steps", "at most 100,000"),
    *[
        (HaltConfig, {"halt_exploration_prob": p}, "halt_exploration_prob", "a probability from")
        for p in (-0.1, 1.5)
    ],
    (HaltConfig, {"halt_exploration_prob": "x"}, "halt_exploration_prob", "a finite number"),
    *[
        (HaltConfig, {"curriculum": shares}, "curriculum", RISING)
        for shares in ((0.5, 0.5), (0.6, 0.1), (-0.1, 1), (0, 1.1), (0.1,), (0, 0.1, 1), 0.5,
                       "ab", (math.nan, 1), ("0", "1"), (False, True))
    ],
    *[
        (TrainConfig, {name: 0}, name, "at least 1")
        for name in ("max_steps", "batch_size", "log_every", "eval_every", "save_every")
    ],
    *[
        (TrainConfig, {name: -1}, name, "at least 0")
        for name in ("warmup_steps", "weight_decay", "puzzle_weight_decay")
    ],
    (TrainConfig, {"optimizer": "sgd"}, "optimizer",
     r"one of \('adamw', 'adam_atan2', 'muon'\)"),
    *[(TrainConfig, {"adamw_eps": eps}, "adamw_eps", "above 0 and at most 1")
      for eps in (0.0, -1e-8, 2.0)],
    *[
        (TrainConfig, {"optimizer": optimizer, "muon_learning_rate": 0.03}, "muon_learning_rate",
         f"0.02, the default: optimizer '{optimizer}' does not read it")
        for optimizer in ("adamw", "adam_atan2")
    ],
    *[(TrainConfig, {"beta2": beta}, "beta2", "between 0 and 1") for beta in (0.0, 1.0)],
    (TrainConfig, {"seed": -1}, "seed", r"from 0 to 2\*\*32 - 1"),
    (TrainConfig, {"seed": 2**32}, "seed", r"from 0 to 2\*\*32 - 1"),
    (TrainConfig, {"max_seconds": 0.0}, "max_seconds", "None or above 0"),
    (TrainConfig, {"max_seconds": "60"}, "max_seconds", "a finite number"),
    *[
        (TrainConfig, {name: rate}, name, "above 0 and at most 0.1")
        for name in ("learning_rate", "muon_learning_rate", "puzzle_learning_rate")
        for rate in (0.0, -1e-3, 2)
    ],
    (TrainConfig, {"learning_rate": math.nan}, "learning_rate", "a finite number"),
    (TrainConfig, {"grad_clip": 0.0}, "grad_clip", "None or above 0"),
    (TrainConfig, {"grad_clip": math.inf}, "grad_clip", "a finite number"),
    *[(TrainConfig, {"ema_decay": d}, "ema_decay", "from 0 to below 1") for d in (-0.1, 1.0)],
    *[
        (TrainConfig, {name: value}, name, "from 0 to 1")
        for name in ("cooldown", "through_base_from")
        for value in (-0.1, 1.1)
    ],
    (TrainConfig, {"compile": "false"}, "compile", "True or False"),
    (TrainConfig, {"precision": "fp16"}, "precision", r"one of \('auto', 'fp32', 'bf16'\)"),
    (TrainConfig, {"halt": 16}, "halt", "a HaltConfig"),
    (TrainConfig, {"halt": {"halt_max_steps": 0}}, "halt_max_steps", "at least 1"),
    (LatentReasonerConfig, {"reasoner": {"num_heads": 0}}, "num_heads", "at least 1"),
]  # fmt: skip


def value_at(values: dict[str, Any], name: str) -> Any:
    """Return the value of a field, wherever it is nested."""
    name = name.rpartition(".")[2]
    if name in values:
        return values[name]
    return next(value_at(v, name) for v in values.values() if isinstance(v, dict))


@pytest.mark.parametrize(
    ("cls", "values", "name", "expected"), REFUSED, ids=lambda part: str(part)[:40]
)
def test_a_wrong_value_is_refused_with_field_got_and_expected(
    cls: type[JsonConfig], values: dict[str, Any], name: str, expected: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: got .*, expected {expected}") as caught:
        cls(**values)
    assert f"got {value_at(values, name)!r}, " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UserError) and isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "config",
    [
        ReasonerConfig(kind="hrm", H_layers=1, gradient="k_cycles", gradient_cycles=2),
        TRMConfig(mixer="mlp", positions="none", norm_eps=1e-6),
        HRMConfig(hidden_size=64, expansion=3),
        LatentReasonerConfig(),
        LatentReasonerConfig(
            reasoner=ReasonerConfig(L_cycles=1), reader="concat", read_layers=(3, "last")
        ),
        PuzzleModelConfig(),
        PuzzleModelConfig(
            reasoner=ReasonerConfig(positions="learned"), puzzle_emb_size=9, puzzle_emb_len=3
        ),
        PuzzleModelConfig(
            reasoner=ReasonerConfig(mixer="groups", positions="none", width_multiple=8),
            symbol_states=True,
        ),
        HaltConfig(halt_max_steps=3, curriculum=(0.25, 0.5)),
        HaltConfig(),
        TrainConfig(halt=HaltConfig(curriculum=(0, 1)), max_seconds=2.5, seed=2**32 - 1),
        TrainConfig(optimizer="muon", grad_clip=None, compile=True),
        TrainConfig(),
    ],
    ids=lambda config: type(config).__name__,
)
def test_json_and_back_gives_the_same_configuration(config: JsonConfig) -> None:
    text = json.dumps(config.to_dict(), allow_nan=False)
    back = type(config).from_dict(json.loads(text))
    assert back == config
    assert json.dumps(back.to_dict()) == text
    for field in dataclasses.fields(config):
        assert type(getattr(back, field.name)) is type(getattr(config, field.name))


@pytest.mark.parametrize("reasoner", [TRMConfig(), HRMConfig(L_cycles=3)])
def test_a_preset_of_the_reasoner_keeps_its_values_inside_json(reasoner: ReasonerConfig) -> None:
    config = LatentReasonerConfig(reasoner=reasoner)
    back = LatentReasonerConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert isinstance(back.reasoner, ReasonerConfig)
    assert back.reasoner.to_dict() == reasoner.to_dict()
    assert back.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("cls", "values", "owner"),
    [
        (ReasonerConfig, {"hidden_sizes": 3}, "ReasonerConfig"),
        (TrainConfig, {"halt": {"hidden_sizes": 3}}, "HaltConfig"),
        (LatentReasonerConfig, {"reasoner": {"hidden_sizes": 3}}, "ReasonerConfig"),
        (PuzzleModelConfig, {"reasoner": {"hidden_sizes": 3}}, "ReasonerConfig"),
    ],
)
def test_an_unknown_field_is_named(
    cls: type[JsonConfig], values: dict[str, Any], owner: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^{owner}: got \['hidden_sizes'\], expected only the"):
        cls.from_dict(values)


def test_configurations_cannot_be_changed() -> None:
    kinds = (ReasonerConfig, LatentReasonerConfig, PuzzleModelConfig, HaltConfig, TrainConfig)
    for config in (kind() for kind in kinds):
        name = dataclasses.fields(config)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, name, 1)
        assert hash(config) == hash(type(config)())


def test_presets_are_the_published_settings() -> None:
    trm, hrm = TRMConfig(), HRMConfig()
    published = ("kind", "L_layers", "H_layers", "L_cycles", "H_cycles", "gradient")
    assert [getattr(trm, n) for n in published] == ["trm", 2, 0, 6, 3, "last_cycle"]
    assert [getattr(hrm, n) for n in published] == ["hrm", 4, 4, 2, 2, "one_step"]


SHARE = st.floats(0, 1)


@given(st.integers(1, 40), st.lists(SHARE, min_size=2, max_size=2, unique=True), st.lists(SHARE))
def test_curriculum_rises_from_one_to_the_limit(
    most: int, curriculum: list[float], shares: list[float]
) -> None:
    start, end = sorted(curriculum)
    halt = HaltConfig(halt_max_steps=most, curriculum=(start, end))
    steps = [halt.limit_at(share) for share in sorted(shares)]
    assert steps == sorted(steps) and all(1 <= s <= most for s in steps)
    assert halt.limit_at(0.0) == halt.limit_at(start) == 1
    assert halt.limit_at(end) == halt.limit_at(1.0) == most
    assert {HaltConfig(halt_max_steps=most).limit_at(p) for p in (0, start, 1)} == {most}


def test_curriculum_spends_equal_shares_on_each_limit_below_the_last() -> None:
    halt = HaltConfig(halt_max_steps=5, curriculum=(0.2, 0.6))
    at = [(0.0, 1), (0.29, 1), (0.31, 2), (0.39, 2), (0.41, 3), (0.51, 4), (0.59, 4), (0.6, 5)]
    assert [halt.limit_at(share) for share, _ in at] == [steps for _, steps in at]


def test_learning_rate_warms_up_stays_and_cools_down() -> None:
    config = TrainConfig(max_steps=1000, learning_rate=0.01, warmup_steps=10, cooldown=0.4)

    def factor(step: int) -> float:
        return config.learning_rate_factor(step, config.progress(step, 0.0))

    assert [factor(s) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1])
    assert [factor(s) for s in (10, 300, 600)] == pytest.approx([1] * 3)
    assert [factor(s) for s in (700, 800, 900)] == pytest.approx([0.75, 0.5, 0.25])
    assert [factor(s) for s in (995, 999, 1000)] == pytest.approx([0.02] * 3)  # never 0
    flat = dataclasses.replace(config, cooldown=0.0, warmup_steps=0)
    assert {flat.learning_rate_factor(s, s / 1000) for s in (0, 500, 1000)} == {1}


def test_progress_counts_steps_or_seconds() -> None:
    by_steps, by_clock = TrainConfig(max_steps=200), TrainConfig(max_steps=200, max_seconds=60)
    assert [by_steps.progress(s, 1e9) for s in (0, 50, 200, 300)] == [0, 0.25, 1, 1]
    assert [by_clock.progress(10**9, s) for s in (0, 15, 60, 61)] == [0, 0.25, 1, 1]


def test_a_message_is_short_whatever_was_given() -> None:
    nested: Any = [0]
    for _ in range(30):
        nested = [nested, nested]
    for value in ("x" * 10**6, nested, [10**300] * 10**5):
        with pytest.raises(ConfigError, match="^loss: got .* expected") as caught:
            PuzzleModelConfig(loss=value)
        assert len(str(caught.value)) < 400
