"""Checkpoints of the original HRM and TRM as our models, and back, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from latent_reason.config import PuzzleModelConfig, ReasonerConfig
from latent_reason.errors import CheckpointError

PREFIX = "_orig_mod.model.inner."
"""Before every name in the originals' checkpoints: torch.compile, the loss head, the model."""
NAMES = {
    "embed_tokens.embedding_weight": "embed_tokens.weight",
    "embed_pos.embedding_weight": "embed_pos.weight",
    "puzzle_emb.weights": "puzzle_emb.weight",
    "H_init": "reasoner.H_init",
    "L_init": "reasoner.L_init",
}


def our_name(name: str) -> str:
    """Return our name of a tensor of the originals, given without `PREFIX`."""
    if name in NAMES:
        return NAMES[name]
    name = name.replace("mlp_t.", "mixer.mlp_t.")
    if name.startswith("H_level."):
        return f"reasoner._{name}"
    return f"reasoner.{name}" if name.startswith("L_level.") else name


def original_config(values: Mapping[str, Any]) -> PuzzleModelConfig:
    """Translate the configuration of an original (the `arch` of its all_config.yaml and its sizes).

    Args:
        values: their field names; of vocab_size, seq_len and num_puzzle_identifiers as well.

    Raises:
        CheckpointError: a field is missing.
        ConfigError: a value is out of range.
    """
    try:
        hrm = "H_layers" in values and not values.get("no_ACT_continue", False)
        size, emb_size = values["hidden_size"], values["puzzle_emb_ndim"]
        reasoner = ReasonerConfig(
            kind="hrm" if hrm else "trm",
            hidden_size=size,
            num_heads=values["num_heads"],
            expansion=float(values["expansion"]),
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
        least = -(-emb_size // size)
        return PuzzleModelConfig(
            reasoner=reasoner,
            vocab_size=values["vocab_size"],
            num_cells=values["seq_len"],
            num_puzzles=values["num_puzzle_identifiers"],
            puzzle_emb_size=emb_size,
            puzzle_emb_len=(values.get("puzzle_emb_len") or least) if emb_size else 0,
            loss="stablemax",
            q_continue=hrm,
        )
    except KeyError as error:
        raise CheckpointError(f"configuration of the original: {error} is missing") from error


def from_published(weights: Mapping[str, Tensor], config: PuzzleModelConfig) -> dict[str, Tensor]:
    """Return a state dict of our `PuzzleModel` from tensors under the originals' names."""
    renamed = {our_name(name.removeprefix(PREFIX)): value for name, value in weights.items()}
    return renamed
