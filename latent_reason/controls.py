"""Controls: what the same budget buys without recursion.

`AnswerLM` answers with the base alone, token by token: as it is, with LoRA adapters, or with K
learned constant vectors (pause slots) after the prompt. It trains in the same loop as
`LatentReasoner`. The one-pass control needs no code: it is a `LatentReasoner` with
`halt_max_steps` 1.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from latent_reason.core import AnswerOutput
from latent_reason.halting import Carry, empty_carry
from latent_reason.llm import FrozenLLM
from latent_reason.losses import answer_loss, exactly_right


def adapted_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the linear layers of the language model by name, without output layer and vision."""
    head, own = model.get_output_embeddings(), {*model.get_decoder().modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module in own and module is not head
    }


def lora_rank(model: PreTrainedModel, min_parameters: int) -> int:
    """Return the smallest LoRA rank on `adapted_layers` with at least `min_parameters`."""
    per_rank = 0
    for module in adapted_layers(model).values():
        if isinstance(module, Conv1D):
            per_rank += module.nx + module.nf
        elif isinstance(module, nn.Linear):
            per_rank += module.in_features + module.out_features
    return max(1, -(-min_parameters // per_rank))


class AnswerLM(nn.Module):
    """A base that answers token by token, with or without something trained.

    Args:
        llm: the frozen base; "lora" works on a copy of it.
        kind: "bare" trains nothing; "lora" adapts its `adapted_layers`; "pause" learns `num_slots`
            constant vectors between prompt and answer.
        num_slots: most answer tokens K, and the number of pause slots.
        delimiter: text before the answer.
        min_parameters: "lora" takes the smallest rank with at least as many.
    """

    def __init__(
        self,
        llm: FrozenLLM,
        kind: Literal["bare", "lora", "pause"],
        num_slots: int,
        delimiter: str,
        min_parameters: int = 0,
    ) -> None:
        super().__init__()
        self.kind, self.num_slots, self.delimiter = kind, num_slots, delimiter
        self.pause: nn.Parameter | None = None
        if kind == "lora":
            base = copy.deepcopy(llm.model)
            rank = lora_rank(base, min_parameters)
            names = [*adapted_layers(base)]
            config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names)
            inject_adapter_in_model(config, base)
            llm = FrozenLLM(base, llm.tokenizer, llm.name)
            for name, parameter in llm.named_parameters():
                parameter.requires_grad_("lora_" in name)
                if parameter.requires_grad:
                    # Small updates and moving averages are lost in the bf16 of a base.
                    parameter.data = parameter.data.float()
        if kind == "pause":
            table = llm.embedding.float()
            noise = torch.randn(num_slots, table.shape[1]).to(table.device)
            self.pause = nn.Parameter(table.mean(dim=0) + table.std(dim=0) * noise)
        self.llm = llm

    def initial_carry(self, num: int, num_tokens: int) -> Carry:
        """Return a carry that holds nothing."""
        return empty_carry(num, self.llm.embedding.device)

    def soft(self, num: int) -> Tensor | None:
        """Return the pause slots (num, K, E), or None."""
        return None if self.pause is None else self.pause.expand(num, -1, -1)

    def forward(
        self, carry: Carry, input_ids: Tensor, attention_mask: Tensor, labels: Tensor
    ) -> AnswerOutput:
        """Score answers by teacher forcing: prompts (B, T), labels (B, K)."""
        prompt = self.llm.read(input_ids, attention_mask, gradient=self.kind == "lora")
        logits = self.llm.answer_logits(prompt, self.soft(len(labels)), self.delimiter, labels)
        loss = answer_loss(logits, labels)
        return AnswerOutput(loss, logits, carry, exactly_right(logits, labels))

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Tensor:
        """Answer prompts (B, T) token by token; returns (B, N), N at most K."""
        prompt = self.llm.read(input_ids, attention_mask)
        options.setdefault("max_new_tokens", self.num_slots)
        return self.llm.generate_after(prompt, self.soft(len(input_ids)), self.delimiter, **options)
