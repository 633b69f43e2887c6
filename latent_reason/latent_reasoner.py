"""`LatentReasoner`: read, think, write with a frozen base.

The base reads the prompt once, without gradient. The reasoner loops over prompt positions and K
answer slots; it never sees answer tokens. A writer turns the slots into answer tokens, either
through the frozen `lm_head` or as soft tokens from which the base generates.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from latent_reason.adapters import nearest_token_logits, soft_tokens
from latent_reason.base_check import check_base
from latent_reason.config import LatentReasonerConfig, check
from latent_reason.core import LatentCore, ReasonerOutput
from latent_reason.data.text import encode_answer
from latent_reason.errors import CheckpointError, ConfigError, DataError
from latent_reason.halting import Carry
from latent_reason.llm import FrozenLLM
from latent_reason.losses import IGNORE_INDEX, answer_loss, exactly_right, halt_loss
from latent_reason.model_folder import (
    CONFIG,
    check_fit,
    read_config,
    reading,
    without_memory,
    write_model_folder,
)
from latent_reason.prompts import PromptStates, pad

ADAPTER_WEIGHTS = "adapter.safetensors"
ADAPTER_CONFIG = CONFIG
ADAPTER_FORMAT = "latent_reason adapter 1"


class LatentReasoner(nn.Module):
    """A frozen causal LM with a recursive latent scratchpad.

    Args:
        llm: the frozen base.
        config: reader, reasoner and writer.

    Raises:
        ConfigError: if `read_layers` names a layer that the base lacks, or there are no slots.
    """

    def __init__(self, llm: FrozenLLM, config: LatentReasonerConfig | None = None) -> None:
        super().__init__()
        self.config = config or LatentReasonerConfig()
        self.llm = llm
        check(self.config.num_slots >= 1, "num_slots", self.config.num_slots, "at least 1")
        num_features = llm.num_features(self.config.read_layers)
        core = LatentCore(self.config, num_features, llm.hidden_size)
        self.core = core.to(llm.embedding.device)

    @classmethod
    def from_base(
        cls, base: str | FrozenLLM, config: LatentReasonerConfig | None = None, **kwargs: Any
    ) -> LatentReasoner:
        """Wrap a base given by Hub name, local folder or as a loaded `FrozenLLM`.

        Args:
            base: the frozen model.
            config: defaults to a TRM with writer head.
            kwargs: passed to `FrozenLLM.load`.

        Raises:
            ConfigError: if the base cannot be loaded or is unfit, see `check_base`.
        """
        llm = loaded(base, kwargs)
        check_base(llm)
        return cls(llm, config)

    def with_num_slots(self, num_slots: int) -> LatentReasoner:
        """Return the same model with another number of slots, for longer answers than trained.

        Raises:
            ConfigError: if the reasoner mixes positions by an MLP, which is made for one number.
        """
        if self.config.reasoner.mixer == "mlp" and num_slots != self.config.num_slots:
            raise ConfigError(
                f"num_slots: got {num_slots}, expected {self.config.num_slots} as trained, since "
                "the reasoner has mixer 'mlp'"
            )
        config = replace(self.config, num_slots=num_slots)
        model = LatentReasoner(self.llm, config)
        model.core.load_state_dict(self.core.state_dict())
        return model.eval()

    def initial_carry(self, num: int, num_tokens: int) -> Carry:
        """See `LatentCore.initial_carry`."""
        return self.core.initial_carry(num, num_tokens)

    def read_out(self, slots: Tensor) -> Tensor:
        """Turn written vectors (B, K, E) into logits (B, K, V) without a pass through the base."""
        end_row = self.core.writer.end_row
        if end_row is not None:
            logits = self.llm.lm_head(slots).float()
            logits[..., self.llm.eos_token_id] = slots.float() @ end_row
            return logits
        return nearest_token_logits(slots, self.llm.embedding, self.llm.row_norms)

    def refine(
        self, states: Tensor, attention_mask: Tensor, carry: Carry, labels: Tensor | None = None
    ) -> ReasonerOutput:
        """Run one refinement step and read it out without a pass through the base.

        Args:
            states: (B, T, F) fp32 from `FrozenLLM.read`.
            attention_mask: (B, T).
            carry: halted batch rows start anew.
            labels: (B, K), for the loss.
        """
        slots, q_halt_logits, carry = self.core(states, attention_mask, carry)
        logits = self.read_out(slots)
        if labels is None:
            return ReasonerOutput(None, logits, q_halt_logits, slots, carry, None)
        correct = exactly_right(logits, labels)
        loss = answer_loss(logits, labels) + 0.5 * halt_loss(q_halt_logits, correct)
        return ReasonerOutput(loss, logits, q_halt_logits, slots, carry, correct)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        states: Tensor | None = None,
        carry: Carry | None = None,
        refinement_steps: int = 1,
        through_base: bool = True,
    ) -> ReasonerOutput:
        """Think for `refinement_steps` and read the answer.

        With labels the loss is the mean over the refinement steps of: cross entropy of the
        read-out, plus half the halting loss, plus, for writer soft at the last step, the cross
        entropy of the answer under the base. States are detached between refinement steps.

        Args:
            input_ids: prompts only (B, T); not needed when `states` is given and the base is not
                asked to score the answer.
            attention_mask: (B, T), 1 for real tokens; defaults to all ones.
            labels: answer tokens with their end token (B, K or fewer), -100 where there is none.
            states: what `FrozenLLM.read` returned for these prompts, to save the base's pass.
            carry: states to continue from; defaults to a fresh start.
            refinement_steps: deep recursions to run, at least 1.
            through_base: writer soft only; False leaves the base's loss out.

        Raises:
            ValueError: if neither `input_ids` nor `states` is given, labels exceed the slots, or
                `refinement_steps` is below 1.
        """
        if refinement_steps < 1:
            raise ValueError(f"refinement_steps: got {refinement_steps}, expected at least 1")
        prompt: PromptStates | None = None
        score = labels is not None and self.config.writer == "soft" and through_base
        if states is None or score:
            if input_ids is None:
                raise ValueError("input_ids: got None, expected prompt tokens (B, T)")
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
            prompt = self.llm.read(input_ids, attention_mask, self.config.read_layers)
            states = prompt.states
        if attention_mask is None:
            attention_mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        if carry is None:
            carry = self.initial_carry(*states.shape[:2])
        if labels is not None:
            labels = self.pad_labels(labels)

        losses = []
        for _ in range(refinement_steps - 1):
            if labels is None:  # no one needs the answer of this step
                carry = self.core(states, attention_mask, carry)[-1]
                continue
            output = self.refine(states, attention_mask, carry, labels)
            carry = output.carry
            losses.append(output.loss)
        output = self.refine(states, attention_mask, carry, labels)
        if labels is not None:
            losses.append(output.loss)
            output.loss = torch.stack([loss for loss in losses if loss is not None]).mean()
            if score and prompt is not None:
                base_logits = self.answer_logits(prompt, output.slots, labels)
                output.loss = output.loss + answer_loss(base_logits, labels)
        return output

    def think(self, prompt: PromptStates) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield slots (B, K, E) and q_halt_logits (B,) of one refinement step after another.

        There is no last one, and nothing is read out.
        """
        carry = self.initial_carry(*prompt.states.shape[:2])
        while True:
            slots, q_halt_logits, carry = self.core(prompt.states, prompt.attention_mask, carry)
            yield slots, q_halt_logits

    def pad_labels(self, labels: Tensor) -> Tensor:
        """Fill (B, A) labels up to the K slots with -100."""
        missing = self.config.num_slots - labels.shape[1]
        if missing < 0:
            raise ValueError(
                f"labels: got {labels.shape[1]} columns, expected at most "
                f"num_slots = {self.config.num_slots}"
            )
        return nn.functional.pad(labels, (0, missing), value=IGNORE_INDEX)

    def answer_logits(self, prompt: PromptStates, slots: Tensor, labels: Tensor) -> Tensor:
        """Score answers (B, K) under the base, the slots (B, K, E) given as soft tokens."""
        soft = soft_tokens(slots, self.llm.embedding_norm)
        return self.llm.answer_logits(prompt, soft, self.config.answer_delimiter, labels)

    @torch.no_grad()
    def write(self, prompt: PromptStates, slots: Tensor | None, **options: Any) -> Tensor:
        """Turn written vectors into answer tokens.

        Args:
            prompt: what `FrozenLLM.read` returned.
            slots: (B, K, E), or None to answer without slots (a control).
            options: writer soft only, passed to the base's `generate`.

        Returns:
            Tokens (B, N), padded with end tokens; N is K for writer head.

        Raises:
            ConfigError: for options with writer head.
        """
        if self.config.writer == "soft":
            soft = None if slots is None else soft_tokens(slots, self.llm.embedding_norm)
            options.setdefault("max_new_tokens", self.config.num_slots)
            return self.llm.generate_after(prompt, soft, self.config.answer_delimiter, **options)
        if options:
            raise ConfigError(f"generate: writer 'head' takes no options, got {sorted(options)}")
        if slots is None:
            shape = (len(prompt.attention_mask), self.config.num_slots, self.llm.hidden_size)
            slots = torch.zeros(shape, device=prompt.attention_mask.device)
        tokens = self.read_out(slots).argmax(dim=-1)
        eos = self.llm.eos_token_id
        ended = (tokens == eos).long().cumsum(dim=1) > 0
        return tokens.masked_fill(ended, eos)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        refinement_steps: int = 16,
        **options: Any,
    ) -> Tensor:
        """Think, then answer.

        Args:
            input_ids: prompts (B, T), padded on either side.
            attention_mask: (B, T), 1 for real tokens; defaults to all ones.
            refinement_steps: how long to think.
            options: see `write` (max_new_tokens, do_sample, num_beams, ...).

        Returns:
            Answer tokens only (B, N), padded with end tokens.

        Raises:
            ConfigError: see `write`.
            ValueError: if `refinement_steps` is below 1.
        """
        if refinement_steps < 1:
            raise ValueError(f"refinement_steps: got {refinement_steps}, expected at least 1")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        prompt = self.llm.read(input_ids, attention_mask, self.config.read_layers)
        slots, _ = next(islice(self.think(prompt), refinement_steps - 1, None))
        return self.write(prompt, slots, **options)

    @property
    def num_after(self) -> int:
        """Tokens that the base takes after a prompt: soft tokens, delimiter, answer; or none."""
        if self.config.writer == "head":
            return 0
        delimiter, _ = self.llm.embed_text(self.config.answer_delimiter, 1)
        return len(delimiter) + 2 * self.config.num_slots

    def encode(
        self, prompts: str | list[str], answers: list[str] | None = None
    ) -> dict[str, Tensor]:
        """Tokenise a batch for `forward`: input_ids and attention_mask (B, T).

        With answers also labels (B, longest answer): their tokens and the end token, then -100.

        Raises:
            DataError: there is no prompt, one is empty or longer than the base takes, the
                tokenizer loses characters of an answer, or there are more or fewer answers.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        batch = self.llm.encode(prompts, self.num_after)
        if answers is not None:
            if len(answers) != len(prompts):
                raise DataError(f"answers: got {len(answers)} for {len(prompts)} prompts")
            rows = [encode_answer(self.llm.tokenizer, answer) for answer in answers]
            batch["labels"] = pad(rows, IGNORE_INDEX).to(batch["input_ids"].device)
        return batch

    def answer(self, prompts: str | list[str], refinement_steps: int = 16) -> list[str]:
        """Answer prompts in text, one string per prompt.

        Raises:
            DataError: see `encode`; no prompts have no answers.
        """
        if not prompts and not isinstance(prompts, str):
            return []
        batch = self.encode(prompts)
        return self.llm.decode(self.generate(**batch, refinement_steps=refinement_steps))

    def print_trainable_parameters(self) -> None:
        """Print how many parameters train, as PEFT does."""
        trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        total = sum(p.numel() for p in self.parameters())
        share = 100 * trainable / total
        print(  # noqa: T201
            f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {share:.4f}"
        )

    def save_pretrained(self, folder: str | Path, card: str = "") -> None:
        """Save the adapter only: weights (safetensors), config.json and a model card.

        Args:
            folder: created if missing.
            card: Markdown for README.md; a short default if empty.

        Raises:
            CheckpointError: files of the same names there are not of this library, or the folder
                cannot be written.
        """
        config = self.config.to_dict() | {
            "format": ADAPTER_FORMAT,
            "base": self.llm.name,
            "base_hidden_size": self.llm.hidden_size,
            "base_sha256": self.llm.fingerprint(),
        }
        default = (
            f"# Latent reasoner for {self.llm.name}\n\nLoad with `LatentReasoner.from_pretrained`."
        )
        weights = {ADAPTER_WEIGHTS: self.core.state_dict()}
        write_model_folder(folder, weights, config, card or default)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, base: str | FrozenLLM | None = None, **kwargs: Any
    ) -> LatentReasoner:
        """Load an adapter and its base.

        Args:
            folder: written by `save_pretrained`.
            base: the base, if it is not to be loaded by the name saved with the adapter.
            kwargs: passed to `FrozenLLM.load` (quantization_config for 4-bit, say).

        Raises:
            CheckpointError: if files are missing or corrupt, or the base has other weights than
                the one the adapter was made for (rounded to bf16, so that bf16 and fp32 are alike;
                quantised bases and those in fp16 are compared by width only).
        """
        folder = Path(folder)
        with reading(folder, "adapter", "save_pretrained"):
            saved = read_config(folder, ADAPTER_FORMAT)
            tensors = load_file(folder / ADAPTER_WEIGHTS)
            name, width, digest = (saved.pop(f"base{k}") for k in ("", "_hidden_size", "_sha256"))
            config = LatentReasonerConfig.from_dict(saved)
            complete = json.loads(json.dumps(config.to_dict()))
            if lost := [key for key in complete if saved.get(key) != complete[key]]:
                raise ValueError(f"{ADAPTER_CONFIG}: incomplete {', '.join(lost)}")
        llm = loaded(base or name, kwargs)
        known = digest and llm.fingerprint()
        if llm.hidden_size != width or (known and known != digest):
            raise CheckpointError(
                f"adapter {folder}: made for base {name} (width {width}), got {llm.name} (width "
                f"{llm.hidden_size}) with other weights; pass the base that it was trained with"
            )
        with reading(folder, "adapter", "save_pretrained"), without_memory():
            core = LatentCore(config, llm.num_features(config.read_layers), llm.hidden_size)
            check_fit(core.state_dict(), tensors)
        model = cls(llm, config)
        model.core.load_state_dict(tensors)
        return model


def loaded(base: str | FrozenLLM, kwargs: dict[str, Any]) -> FrozenLLM:
    """Return a base, loaded with `kwargs` of `FrozenLLM.load` if it is not yet.

    Raises:
        ConfigError: it is loaded and there are kwargs, or it is neither.
    """
    if isinstance(base, FrozenLLM):
        check(not kwargs, "base", sorted(kwargs), "no options for a base that is loaded already")
        return base
    expected = "a Hub name, a folder or a FrozenLLM(model, tokenizer, name)"
    check(isinstance(base, str | Path), "base", base, expected)
    return FrozenLLM.load(str(base), **kwargs)
