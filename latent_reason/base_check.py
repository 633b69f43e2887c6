"""A trial of a base in a few milliseconds: some would be read wrongly without any error."""

from __future__ import annotations

import torch
from torch import Tensor

from latent_reason.errors import ConfigError, first_line
from latent_reason.llm import FrozenLLM
from latent_reason.prompts import PromptStates

FAILURES = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What the code of an unfit base may raise."""


@torch.no_grad()
def check_base(llm: FrozenLLM) -> None:
    """Read a few tokens and read an answer out, so that an unfit base is refused at once.

    Raises:
        ConfigError: the base gives no hidden states or no keys and values, its output layer does
            not take its states, or padding or later tokens change them.
    """
    counted, device = llm.num_prompts, llm.embedding.device
    prompt = None
    try:
        prompt = llm.read(*(rows.to(device) for rows in trial(llm)), layers=("last",))
        llm.lm_head(torch.zeros(1, llm.hidden_size, device=device))
        reason = find_fault(llm, prompt)
    except ConfigError:
        raise
    except FAILURES as error:
        part = "it cannot be read as a causal language model"
        if prompt is not None:
            part = "its output layer does not take its hidden states"
        reason = f"{part} ({first_line(error)})"
    finally:
        llm.num_prompts = counted
    if reason is not None:
        raise ConfigError(f"base {llm.name}: {reason}; choose another base")


def trial(llm: FrozenLLM) -> tuple[Tensor, Tensor]:
    """Return input_ids and attention_mask (3, 5): the same three tokens in every row.

    They stand after padding, before padding, and before two more tokens.
    """
    end = llm.eos_token_id
    a, b, c, d, e = (torch.arange(1, 6) * len(llm.embedding) // 6).tolist()
    rows = [[end, end, a, b, c], [a, b, c, end, end], [a, b, c, d, e]]
    masks = [[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    return torch.tensor(rows), torch.tensor(masks)


def find_fault(llm: FrozenLLM, prompt: PromptStates) -> str | None:
    """Return what is wrong with the states of a `trial`, or None."""
    if len(prompt.keys_values) != llm.num_layers:
        return f"{len(prompt.keys_values)} of its {llm.num_layers} layers keep keys and values"
    after, before, more = prompt.states[0, 2:], prompt.states[1, :3], prompt.states[2, :3]
    if not all(bool(states.isfinite().all()) for states in (after, before, more)):
        return "its states are not finite; another dtype may help"
    # States have a mean square of 1. In bf16 every layer rounds to 8 bits.
    most = max(1e-3, torch.finfo(llm.embedding.dtype).eps ** 0.5)
    if (before - more).square().mean().sqrt() > most:
        return "later tokens change the states of those before them: it is not causal"
    if (before - after).square().mean().sqrt() > most:
        return "padding changes its states: it ignores the mask or the positions given to it"
    return None
