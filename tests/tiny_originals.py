"""Checkpoints in the form of the originals, and where their reference numbers are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from latent_reason.puzzles.published_weights import PREFIX

REPOSITORY = Path(__file__).parents[1]
FOLDERS = [top / "shared/golden" for top in (REPOSITORY, REPOSITORY.parent)]
if CHOSEN := os.environ.get("LATENT_REASON_GOLDEN"):
    FOLDERS = [Path(CHOSEN)]
FILES = sorted(path for folder in FOLDERS for path in folder.glob("*.safetensors"))
ROWS = 3
ARCH: dict[str, Any] = {
    "name": "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1",
    "loss": {"name": "losses@ACTLossHead", "loss_type": "stablemax_cross_entropy"},
    "halt_exploration_prob": 0.1,
    "halt_max_steps": 16,
    "H_cycles": 3,
    "L_cycles": 2,
    "H_layers": 0,
    "L_layers": 1,
    "hidden_size": 8,
    "num_heads": 2,
    "expansion": 4,
    "puzzle_emb_ndim": 8,
    "pos_encodings": "rope",
    "forward_dtype": "bfloat16",
    "mlp_t": False,
    "puzzle_emb_len": 2,
    "no_ACT_continue": True,
}
"""As in config/arch/trm.yaml of the original, with small sizes."""


def make_weights(prefix: str = PREFIX) -> dict[str, Tensor]:
    """Return random weights of `ARCH` on 16 cells and 6 tokens, in the dtypes of the originals."""
    shapes = {
        "H_init": (8,),
        "L_init": (8,),
        "embed_tokens.embedding_weight": (6, 8),
        "lm_head.weight": (6, 8),
        "q_head.weight": (2, 8),
        "q_head.bias": (2,),
        "puzzle_emb.weights": (ROWS, 8),
        "L_level.layers.0.self_attn.qkv_proj.weight": (24, 8),
        "L_level.layers.0.self_attn.o_proj.weight": (8, 8),
        "L_level.layers.0.mlp.gate_up_proj.weight": (512, 8),
        "L_level.layers.0.mlp.down_proj.weight": (8, 256),
    }
    torch.manual_seed(0)
    weights = {prefix + name: torch.randn(shape) for name, shape in shapes.items()}
    for name in ("H_init", "L_init"):
        weights[prefix + name] = weights[prefix + name].bfloat16()
    return weights


def write_original(folder: Path, weights: Any, **arch: Any) -> Path:
    """Write step_5 and all_config.yaml as the originals do; return step_5."""
    folder.mkdir(exist_ok=True)
    content = {"arch": ARCH | arch, "beta1": 0.9, "data_paths": ["data/sudoku"], "epochs": 60000}
    (folder / "all_config.yaml").write_text(yaml.dump(content))
    torch.save(weights, folder / "step_5")
    return folder / "step_5"


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and ours[name].shape == tensor.shape, name
        same = ours[name].view(torch.uint8).equal(tensor.contiguous().view(torch.uint8))
        assert same, name
