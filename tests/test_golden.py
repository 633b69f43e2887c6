"""Training and evaluation calls against what the original TRM and HRM computed.

Reads the folder named by LATENT_REASON_GOLDEN, which must then hold every case, or `shared/golden`
in or beside the repository; skips without it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from tiny_originals import CHOSEN, FILES
from torch import Tensor

from latent_reason.config import PuzzleModelConfig
from latent_reason.halting import Carry, refill, should_halt
from latent_reason.losses import answer_loss, halt_loss
from latent_reason.puzzles.model import PuzzleModel, PuzzleOutput
from latent_reason.puzzles.published_weights import from_published, original_config

CASES = "hrm hrm_learned_pos trm_attention trm_learned_pos trm_mlp trm_no_puzzle_emb".split()
DATA = ("inputs", "labels", "puzzle_identifiers")
SAME_ROUNDING = torch.backends.cpu.get_cpu_capability() == "AVX512"
"""Whether this CPU rounds as that of the reference did.

Any other rounding, even that of float64, is multiplied by the recursion: up to 2e-3 after four
calls. There each call starts from the states of the reference, and the bound is wider.
"""
ATOL = 1e-5 if SAME_ROUNDING else 5e-5


@dataclass
class Case:
    tensors: dict[str, Tensor]
    config: dict[str, Any]

    def group(self, prefix: str) -> dict[str, Tensor]:
        start = f"{prefix}/"
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}

    def calls(self, kind: str) -> int:
        return len({k.split("/")[0] for k in self.tensors if k.startswith(kind)})

    def batch(self, index: int) -> dict[str, Tensor]:
        return {key: self.tensors[f"batch{index}/{key}"].long() for key in DATA}

    def model(self) -> PuzzleModel:
        config: PuzzleModelConfig = original_config(self.config)
        model = PuzzleModel(config)
        model.load_state_dict(from_published(self.group("weights")))
        return model


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest) -> Case:
    with safe_open(request.param, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        return Case(tensors, json.loads(file.metadata()["config"]))


def close(ours: Tensor, theirs: Tensor, name: str) -> None:
    theirs = theirs.reshape(ours.shape).to(ours.dtype)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=ATOL, msg=lambda m: f"{name}: {m}")


def compare_states(carry: Carry, expected: dict[str, Tensor]) -> Carry:
    """Compare the states after a call and return those from which the next one starts."""
    theirs = {key: expected[key].reshape(carry.z_H.shape).float() for key in ("z_H", "z_L")}
    close(carry.z_H, theirs["z_H"], "z_H")
    close(carry.z_L, theirs["z_L"], "z_L")
    return carry if SAME_ROUNDING else replace(carry, **theirs)


def losses_of(output: PuzzleOutput, labels: Tensor) -> dict[str, Tensor]:
    """Return the parts of a loss under their names, means over the examples."""
    assert output.correct is not None
    parts = {
        "lm_loss": answer_loss(output.logits, labels, "stablemax"),
        "q_halt_loss": halt_loss(output.q_halt_logits, output.correct),
    }
    if output.target_q_continue is not None:
        parts["q_continue_loss"] = F.binary_cross_entropy_with_logits(
            output.q_continue_logits, output.target_q_continue
        )
    return parts


@pytest.mark.skipif(not CHOSEN, reason="LATENT_REASON_GOLDEN is not set")
def test_the_chosen_folder_holds_every_case() -> None:
    assert [path.stem for path in FILES] == CASES, f"LATENT_REASON_GOLDEN={CHOSEN}"


@pytest.mark.skipif(not FILES, reason="no shared/golden here")
def test_training_calls_are_those_of_the_originals(case: Case) -> None:
    model, size = case.model().train(), case.config["batch_size"]
    carry, max_refinement_steps = model.initial_carry(size, case.config["seq_len"]), 3
    assert case.config["halt_max_steps"] == max_refinement_steps and case.calls("train") == 4
    for index in range(4):
        expected = case.group(f"train{index}")
        carry = refill(carry, case.batch(index))
        for key in DATA:
            assert torch.equal(carry.data[key], expected[f"current/{key}"].long()), key
        model.zero_grad()
        output = model(carry, **carry.data, max_refinement_steps=max_refinement_steps)
        carry = output.carry
        carry.halted = should_halt(
            output.stop, carry.refinement_steps, max_refinement_steps, torch.zeros(size).long()
        )
        for name in ("logits", "q_halt_logits", "q_continue_logits", "target_q_continue"):
            if name in expected:
                close(getattr(output, name), expected[name], name)
        carry = compare_states(carry, expected)
        close(output.loss * size, expected["loss_sum"], "loss")
        parts = losses_of(output, carry.data["labels"])
        assert parts.keys() == {k for k in case.group(f"train{index}/metric") if "loss" in k}
        for name, part in parts.items():
            close(part * size, expected[f"metric/{name}"], name)
        assert torch.equal(carry.halted, expected["halted"])
        assert torch.equal(carry.refinement_steps, expected["steps"].long())
        output.loss.backward()
        compare_gradients(model, carry.data["puzzle_identifiers"], case.group(f"train{index}/grad"))


def compare_gradients(model: PuzzleModel, rows: Tensor, expected: dict[str, Tensor]) -> None:
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    table = gradients.pop("puzzle_emb.weight", None)
    if table is not None:
        # Theirs are gradients of the rows before equal ones are summed.
        theirs = torch.zeros(table.shape).index_add_(0, rows, expected.pop("puzzle_emb_local"))
        relative(table.to_dense(), theirs, "puzzle_emb")
    expected.pop("puzzle_emb_local", None)
    theirs = from_published({f"_orig_mod.{name}": value for name, value in expected.items()})
    assert gradients.keys() == theirs.keys()
    for name, gradient in gradients.items():
        relative(gradient, theirs[name], name)


def relative(ours: Tensor, theirs: Tensor, name: str) -> None:
    """Compare gradients, which are small: an absolute bound alone would say little."""
    bound = min(1e-5, 1e-4 * theirs.abs().max().item())
    assert (ours - theirs).abs().max() <= bound, name


@pytest.mark.skipif(not FILES, reason="no shared/golden here")
def test_evaluation_calls_are_those_of_the_originals(case: Case) -> None:
    model, batch = case.model().eval(), case.batch(0)
    carry = model.initial_carry(case.config["batch_size"], case.config["seq_len"])
    assert case.calls("eval") == 3
    for index in range(3):
        expected = case.group(f"eval{index}")
        with torch.no_grad():
            output = model(carry, **batch)
        carry = output.carry
        carry.halted = torch.zeros_like(carry.halted)
        for name in ("logits", "q_halt_logits"):
            close(getattr(output, name), expected[name], name)
        carry = compare_states(carry, expected)
        close(output.loss * case.config["batch_size"], expected["loss_sum"], "loss")
