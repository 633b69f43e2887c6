"""The recursion against a slow twin: states, gradients, and which updates enter the graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from twin import (
    GRADIENTS,
    KINDS,
    LENGTH,
    MIXERS,
    distance,
    gradients_of,
    make_config,
    make_states,
    run_both,
    where_of,
)

from latent_reason.config import ReasonerConfig
from latent_reason.reasoner import Reasoner
from latent_reason.recursion import deep_recursion


@pytest.mark.parametrize("positions", ["rope", "none"])
@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_states_and_all_gradients_agree_with_the_twin(
    gradient: str, kind: str, mixer: str, positions: str
) -> None:
    config = make_config(kind, gradient=gradient, mixer=mixer, positions=positions)
    ours, theirs, our_grads, their_grads = run_both(config)
    assert distance(ours, theirs) < 1e-5
    assert distance(our_grads, their_grads) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cycles", [(1, 1), (1, 3), (3, 1)])
@pytest.mark.parametrize("gradient", ["one_step", "last_cycle"])
def test_few_cycles_agree_with_the_twin(gradient: str, cycles: tuple[int, int], kind: str) -> None:
    H_cycles, L_cycles = cycles
    config = make_config(
        kind, gradient=gradient, H_cycles=H_cycles, L_cycles=L_cycles, gradient_cycles=1
    )
    ours, theirs, our_grads, their_grads = run_both(config)
    assert distance(ours, theirs) < 1e-5
    assert distance(our_grads, their_grads) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("gradient", "other"), list(zip(GRADIENTS, GRADIENTS[1:], strict=False)))
def test_twin_of_another_gradient_mode_disagrees(gradient: str, other: str, kind: str) -> None:
    config = make_config(kind, gradient=gradient, mixer="mlp")
    ours, theirs, our_grads, their_grads = run_both(config, gradient=other)
    assert distance(ours, theirs) < 1e-5
    assert distance(our_grads, their_grads) > 1e-2


@pytest.mark.parametrize(
    "changes", [{"rope_theta": 60.0}, {"positions": "none"}, {"norm_eps": 1e-2}, {"num_heads": 4}]
)
def test_twin_with_another_setting_disagrees(changes: dict[str, Any]) -> None:
    ours, theirs, *_ = run_both(make_config(), **changes)
    assert distance(ours, theirs) > 1e-3


def states_and_gradients(config: ReasonerConfig) -> list[Tensor]:
    """Return both states and all gradients of one seeded reasoner."""
    torch.manual_seed(0)
    reasoner, states = Reasoner(config, LENGTH), make_states()
    outputs = reasoner(*states, where_of(config))
    return [*outputs, *gradients_of(outputs, [*reasoner.parameters(), *states])]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("gradient", "gradient_cycles"), [("full", 3), ("last_cycle", 1)])
def test_k_cycles_contains_full_and_last_cycle(
    gradient: str, gradient_cycles: int, kind: str
) -> None:
    named = states_and_gradients(make_config(kind, gradient=gradient))
    counted = states_and_gradients(
        make_config(kind, gradient="k_cycles", gradient_cycles=gradient_cycles)
    )
    assert all(torch.equal(a, b) for a, b in zip(named, counted, strict=True))


L, H = "L", "H"
CYCLE = [L, L, H]


@pytest.mark.parametrize(
    ("gradient", "without", "with_graph"),
    [
        ("one_step", [*CYCLE, *CYCLE, L], [L, H]),
        ("last_cycle", [*CYCLE, *CYCLE], CYCLE),
        ("k_cycles", CYCLE, [*CYCLE, *CYCLE]),
        ("full", [], [*CYCLE, *CYCLE, *CYCLE]),
    ],
)
def test_updates_run_in_order_and_only_the_last_ones_enter_the_graph(
    gradient: Any, without: list[str], with_graph: list[str]
) -> None:
    calls = []

    def net_of(name: str) -> Any:
        def net(state: Tensor, injection: Tensor) -> Tensor:
            calls.append((name, torch.is_grad_enabled()))
            return torch.tanh(state + injection)

        return net

    x = torch.randn(1, 2, 3, requires_grad=True)
    z_H, _ = deep_recursion(
        net_of(L), net_of(H), x, x * 0, x * 0, H_cycles=3, L_cycles=2,
        gradient=gradient, gradient_cycles=2,
    )  # fmt: skip
    assert calls == [(n, False) for n in without] + [(n, True) for n in with_graph]
    assert count_nodes(z_H, "TanhBackward0") == len(with_graph)


def count_nodes(output: Tensor, start: str) -> int:
    """Count the nodes in the graph behind `output` whose name starts so."""
    seen, left = set(), [output.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [parent for parent, _ in node.next_functions]
    return sum(node.name().startswith(start) for node in seen)


@pytest.mark.parametrize(("gradient", "blocks"), [("one_step", 3), ("last_cycle", 5), ("full", 15)])
def test_graph_of_a_reasoner_holds_one_attention_per_block_with_gradient(
    gradient: str, blocks: int
) -> None:
    config = make_config("hrm", gradient=gradient)
    z_H, _ = Reasoner(config)(*make_states(), where_of(config))
    assert count_nodes(z_H, "ScaledDotProduct") == blocks


def test_unknown_gradient_is_refused() -> None:
    x = torch.zeros(1, 1, 2)
    with pytest.raises(ValueError, match="gradient: got 'most', expected one_step or"):
        deep_recursion(
            torch.add,
            torch.add,
            x,
            x,
            x,
            H_cycles=1,
            L_cycles=1,
            gradient="most",  # type: ignore
        )
