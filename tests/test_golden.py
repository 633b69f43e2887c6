"""One deep recursion against what the original TRM and HRM computed: states and gradients.

Reads `shared/golden` in or beside the repository; skips without it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from latent_reason.config import ReasonerConfig
from latent_reason.layers import Positions
from latent_reason.reasoner import Reasoner

REPOSITORY = Path(__file__).parents[1]
FILES = sorted(
    path for top in (REPOSITORY, REPOSITORY.parent) for path in top.glob("shared/golden/*")
)
PREFIX = "weights/_orig_mod.model.inner."


def original_name(name: str) -> str:
    return name.replace("_H_level", "H_level").replace("mixer.mlp_t", "mlp_t")


def embed(weights: dict[str, Tensor], batch: dict[str, Tensor], num_prefix: int) -> Tensor:
    """Return x (B, prefix + cells, D): puzzle rows, then cells, positions if learned."""
    x = weights["embed_tokens.embedding_weight"][batch["inputs"].long()]
    size = x.shape[-1]
    if num_prefix:
        rows = weights["puzzle_emb.weights"][batch["puzzle_identifiers"].long()]
        rows = F.pad(rows, (0, num_prefix * size - rows.shape[1]))
        x = torch.cat((rows.view(len(x), num_prefix, size), x), dim=1)
    if "embed_pos.embedding_weight" in weights:
        x = (x + weights["embed_pos.embedding_weight"]) / 2**0.5
    return x * size**0.5


def loss_of(
    z_H: Tensor, weights: dict[str, Tensor], labels: Tensor, target_q_continue: Tensor | None
) -> Tensor:
    """Return the originals' loss: stablemax cross entropy and half the halting losses."""
    logits = z_H[:, -labels.shape[1] :] @ weights["lm_head.weight"].T
    labelled = labels != -100
    s = torch.where(logits >= 0, logits + 1, 1 / (1 - logits.clamp(max=0))).double()
    log_probs = (s / s.sum(dim=-1, keepdim=True)).log()
    picked = log_probs.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1) * labelled
    loss = -(picked.sum(dim=1) / labelled.sum(dim=1)).sum()
    right = ((logits.argmax(dim=-1) == labels) | ~labelled).all(dim=1).float()
    q = z_H[:, 0] @ weights["q_head.weight"].T + weights["q_head.bias"]
    targets = [right] if target_q_continue is None else [right, target_q_continue]
    for column, target in enumerate(targets):
        halting = F.binary_cross_entropy_with_logits(q[:, column], target, reduction="sum")
        loss = loss + 0.5 * halting
    return loss


@pytest.mark.skipif(not FILES, reason="no shared/golden here")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_states_and_gradients_are_those_of_the_original(path: Path) -> None:
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        theirs = json.loads(file.metadata()["config"])
    hrm = theirs["class"].startswith("Hier")
    config = ReasonerConfig(
        kind="hrm" if hrm else "trm",
        hidden_size=theirs["hidden_size"],
        num_heads=theirs["num_heads"],
        expansion=float(theirs["expansion"]),
        L_layers=theirs["L_layers"],
        H_layers=theirs["H_layers"] if hrm else 0,
        L_cycles=theirs["L_cycles"],
        H_cycles=theirs["H_cycles"],
        gradient="one_step" if hrm else "last_cycle",
        mixer="mlp" if theirs.get("mlp_t") else "attention",
        positions="rope" if theirs["pos_encodings"] == "rope" else "none",
    )
    weights = {k.removeprefix(PREFIX): v for k, v in tensors.items() if k.startswith(PREFIX)}
    length = tensors["train0/z_H"].shape[1]
    reasoner = Reasoner(config, length)
    reasoner.load_state_dict({name: weights[original_name(name)] for name in reasoner.state_dict()})

    current = {k: tensors[f"train0/current/{k}"] for k in ("inputs", "puzzle_identifiers")}
    labels = tensors["train0/current/labels"].long()
    x = embed(weights, current, length - labels.shape[1])
    where = Positions(config, torch.arange(length).expand(len(x), -1))
    z_H, z_L = reasoner(x, *reasoner.initial_states(len(x), length), where)
    torch.testing.assert_close(z_H, tensors["train0/z_H"], rtol=0, atol=5e-5)
    torch.testing.assert_close(z_L, tensors["train0/z_L"], rtol=0, atol=5e-5)

    loss = loss_of(z_H, weights, labels, tensors.get("train0/target_q_continue"))
    assert loss.item() == pytest.approx(tensors["train0/loss_sum"].item(), rel=1e-6)
    (loss / len(x)).backward()
    for name, parameter in reasoner.named_parameters():
        expected = tensors[f"train0/grad/model.inner.{original_name(name)}"]
        assert parameter.grad is not None
        error = (parameter.grad - expected).abs().max() / expected.abs().max()
        assert error < 1e-4, name
