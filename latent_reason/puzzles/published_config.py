"""`all_config.yaml` of the original HRM and TRM, read and written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from latent_reason.config import PuzzleModelConfig, ReasonerConfig, check
from latent_reason.errors import CheckpointError
from latent_reason.files import replacing

ORIGINAL_CONFIG = "all_config.yaml"
MAX_CONFIG_BYTES = 2**16
CLASSES = {
    "TinyRecursiveReasoningModel_ACTV1": ("trm", "trm"),
    "HierarchicalReasoningModel_ACTV1": ("hrm", "hrm_act_v1"),
}
"""Classes of the originals, with the names of the modules that define them."""
FIELDS = {
    *("name", "class", "loss", "H_cycles", "L_cycles", "H_layers", "L_layers", "hidden_size"),
    *("num_heads", "expansion", "pos_encodings", "rms_norm_eps", "rope_theta", "halt_max_steps"),
    *("halt_exploration_prob", "forward_dtype", "puzzle_emb_ndim", "puzzle_emb_len", "mlp_t"),
    *("no_ACT_continue", "vocab_size", "seq_len", "num_puzzle_identifiers", "batch_size"),
    *("causal", "seed"),
}


def read_original_config(path: Path) -> dict[str, Any]:
    """Read all_config.yaml, or its `arch` alone, in YAML or JSON.

    Raises:
        CheckpointError: it is missing, too large or holds something else than plain values.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"larger than {MAX_CONFIG_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("it holds YAML aliases; write the values out")
        content = yaml.safe_load(text)
        content = content.get("arch", content)
        return {**content}
    except (
        OSError,
        ValueError,
        AttributeError,
        TypeError,
        RecursionError,
        yaml.YAMLError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: not a configuration of the originals ({reason}); give their all_config.yaml"
        ) from error


def original_config(values: Mapping[str, Any]) -> PuzzleModelConfig:
    """Translate the configuration of an original (the `arch` of its all_config.yaml and its sizes).

    Args:
        values: their field names; of vocab_size, seq_len and num_puzzle_identifiers as well.

    Raises:
        CheckpointError: a field is missing or unknown, or it is of another model.
        ConfigError: a value is out of range.
    """
    unknown = sorted(str(key) for key in values if key not in FIELDS)
    if unknown:
        raise CheckpointError(f"fields that HRM and TRM do not have: {', '.join(unknown)[:200]}")
    try:
        hrm = is_hrm(values)
        reasoner = ReasonerConfig(
            kind="hrm" if hrm else "trm",
            hidden_size=values["hidden_size"],
            num_heads=values["num_heads"],
            expansion=values["expansion"],
            L_layers=values["L_layers"],
            H_layers=values["H_layers"] if hrm else 0,
            L_cycles=values["L_cycles"],
            H_cycles=values["H_cycles"],
            gradient="one_step" if hrm else "last_cycle",
            mixer="mlp" if values.get("mlp_t") else "attention",
            positions=values["pos_encodings"],
            residual_init="normal",
            rope_theta=values.get("rope_theta", 10000.0),
            norm_eps=values.get("rms_norm_eps", 1e-5),
        )
        loss = values.get("loss", "stablemax_cross_entropy")
        loss = str(loss.get("loss_type") if isinstance(loss, Mapping) else loss)
        return PuzzleModelConfig(
            reasoner=reasoner,
            vocab_size=values["vocab_size"],
            num_cells=values["seq_len"],
            num_puzzles=values["num_puzzle_identifiers"],
            puzzle_emb_size=values.get("puzzle_emb_ndim", 0),
            puzzle_emb_len=prefix_length(values, hrm),
            loss=loss.removesuffix("_cross_entropy"),  # type: ignore[arg-type]
            q_continue=hrm or not values.get("no_ACT_continue", True),
        )
    except KeyError as error:
        raise CheckpointError(f"configuration of the original: {error} is missing") from error


def is_hrm(values: Mapping[str, Any]) -> bool:
    """Say which of the two originals it is, by its class and the module that defines it."""
    name = str(values.get("name", values.get("class")))
    module, _, cls = name.rpartition("@")
    if cls not in CLASSES or module.rpartition(".")[2] not in ("", *CLASSES[cls]):
        raise CheckpointError(f"model {name[:200]!r}: not one of {', '.join(CLASSES)}")
    return CLASSES[cls][0] == "hrm"


def prefix_length(values: Mapping[str, Any], hrm: bool) -> int:
    """Return the prefix positions of an original, 0 without a puzzle table."""
    size = values.get("puzzle_emb_ndim", 0)
    check(type(size) is int, "puzzle_emb_ndim", size, "a whole number")
    if size == 0:
        return 0
    if "hidden_size" not in values:
        raise CheckpointError("configuration of the original: 'hidden_size' is missing")
    length = 0 if hrm else values.get("puzzle_emb_len", 16)
    return length or -(-size // values["hidden_size"])


def write_original_config(path: Path, config: PuzzleModelConfig) -> None:
    """Write all_config.yaml, from which the originals and `import_published` make the same net.

    Args:
        path: of the file; one that is there already and says the same stays.
        config: of a model that `check_exportable` passes; the originals get their own halting.

    Raises:
        CheckpointError: another configuration is there already, or it cannot be written.
    """
    reasoner = config.reasoner
    cls, (kind, module) = next(item for item in CLASSES.items() if item[1][0] == reasoner.kind)
    arch = {
        "name": f"{'recursive_reasoning' if kind == 'trm' else 'hrm'}.{module}@{cls}",
        "loss": {"name": "losses@ACTLossHead", "loss_type": f"{config.loss}_cross_entropy"},
        "halt_exploration_prob": 0.1,
        "halt_max_steps": 16,
        "H_cycles": reasoner.H_cycles,
        "L_cycles": reasoner.L_cycles,
        "H_layers": reasoner.H_layers,
        "L_layers": reasoner.L_layers,
        "hidden_size": reasoner.hidden_size,
        "num_heads": reasoner.num_heads,
        "expansion": reasoner.expansion,
        "puzzle_emb_ndim": config.puzzle_emb_size,
        "pos_encodings": reasoner.positions,
        "rope_theta": reasoner.rope_theta,
        "rms_norm_eps": reasoner.norm_eps,
    }
    if kind == "trm":
        arch["mlp_t"] = reasoner.mixer == "mlp"
        arch["puzzle_emb_len"] = config.puzzle_emb_len
        arch["no_ACT_continue"] = not config.q_continue
    if path.exists():
        sizes = {"vocab_size": config.vocab_size, "seq_len": config.num_cells}
        sizes["num_puzzle_identifiers"] = config.num_puzzles
        if original_config(read_original_config(path) | sizes) != original_config(arch | sizes):
            raise CheckpointError(f"{path}: is of another model; export into another folder")
        return
    try:
        with replacing(path) as temporary:
            temporary.write_text(yaml.safe_dump({"arch": arch}, sort_keys=False))
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error}; choose another folder") from error


def check_exportable(config: PuzzleModelConfig) -> None:
    """Refuse what the original of this kind would compute differently.

    What only training and halting read (gradient, loss, q_continue, halt_confidence) is free: their
    evaluation always runs all refinement steps.

    Raises:
        ConfigError: naming the field.
    """
    reasoner, size = config.reasoner, config.puzzle_emb_size
    hrm = reasoner.kind == "hrm"
    length = config.puzzle_emb_len
    allowed: dict[str, tuple[object, tuple[object, ...]]] = {
        "mixer": (reasoner.mixer, ("attention",) if hrm else ("attention", "mlp")),
        "positions": (
            reasoner.positions,
            ("rope", "learned") if hrm else ("rope", "learned", "none"),
        ),
        "width_multiple": (reasoner.width_multiple, (256,)),
        "norm_swiglu": (reasoner.norm_swiglu, (False,)),
        "num_chains": (config.num_chains, (1,)),
        "puzzle_emb_len": (length, (-(-size // reasoner.hidden_size) if hrm else length,)),
    }
    for name, (got, values) in allowed.items():
        expected = " or ".join(repr(value) for value in values)
        check(got in values, name, got, f"{expected} as the originals of kind {reasoner.kind!r}")
