"""`FrozenLLM`: a Hugging Face causal LM that never changes.

It gives hidden states at chosen layers, its token embedding and its `lm_head`, and counts the
prompts it has read. Nothing here knows about recursion.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from latent_reason.config import ReadLayer
from latent_reason.errors import ConfigError, DataError
from latent_reason.generation import after_end, generation_options
from latent_reason.layers import position_ids, rms_norm
from latent_reason.loading import check_tokenizer, load_base
from latent_reason.losses import IGNORE_INDEX
from latent_reason.prompts import PromptStates, pad_prompts


def layer_index(layer: ReadLayer, num_layers: int) -> int:
    """Turn 'embedding', 'middle' (two thirds of the depth), 'last' or an index into an index.

    Raises:
        ConfigError: if the index is outside 0..num_layers.
    """
    names = {"embedding": 0, "middle": round(num_layers * 2 / 3), "last": num_layers}
    index = names.get(layer, layer) if isinstance(layer, str) else layer
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index <= num_layers:
        raise ConfigError(
            f"read_layers: got {layer!r}, expected 'embedding', 'middle', 'last' "
            f"or an index from 0 to {num_layers}"
        )
    return index


class FrozenLLM(nn.Module):
    """A causal LM in eval mode with every parameter frozen.

    Args:
        model: any `AutoModelForCausalLM`; it is used as it is, its weights are never written.
        tokenizer: its tokenizer, with an end-of-text token.
        name: Hub name or local folder, saved with adapters to find the base again.

    Raises:
        ConfigError: if the tokenizer has no end-of-text token or more tokens than the model, or a
            layer of the model keeps something else than keys and values of its own (linear
            attention, state space).
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, name: str) -> None:
        super().__init__()
        kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
        if not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
            raise ConfigError(
                f"base {name}: some layers do not keep keys and values of their own (linear "
                "attention, state space); choose a base with plain attention in every layer"
            )
        self.model: Any = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.name = name
        check_tokenizer(tokenizer, len(self.embedding), name)
        self.num_prompts = 0
        self._row_norms: Tensor | None = None
        self._disable_gemv_without_backward()

    @classmethod
    def load(cls, name: str, **kwargs: Any) -> FrozenLLM:
        """Load a base by Hub name or local folder.

        Args:
            name: for example "Qwen/Qwen3-0.6B" or a folder with config.json; "embedded" is the
                small base shipped with this package, wherever that lies.
            kwargs: passed to `AutoModelForCausalLM.from_pretrained` (dtype,
                quantization_config, device_map), and those of `loading.WHERE` (revision, token)
                to the tokenizer too. Remote code stays off; dtype is the checkpoint's on machines
                with CUDA, else fp32.

        Raises:
            ConfigError: if they cannot be loaded, see `load_base`, or do not fit.
        """
        return cls(*load_base(name, **kwargs))

    def train(self, mode: bool = True) -> FrozenLLM:
        """Stay in eval mode whatever the surrounding model does."""
        return super().train(False)

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return self.model.config.get_text_config(decoder=True).num_hidden_layers

    @property
    def hidden_size(self) -> int:
        """Width E of its hidden states."""
        return self.model.config.get_text_config(decoder=True).hidden_size

    @property
    def eos_token_id(self) -> int:
        """The token that ends an answer."""
        return int(self.tokenizer.eos_token_id)

    @property
    def embedding(self) -> Tensor:
        """The token embedding table (V, E), frozen."""
        return self.model.get_input_embeddings().weight

    def embed(self, tokens: Tensor) -> Tensor:
        """Turn tokens (...) into input embeddings (..., E), scaled where the base scales them."""
        return self.model.get_input_embeddings()(tokens)

    @cached_property
    def embedding_norm(self) -> float:
        """Mean norm of the input embeddings of all tokens."""
        tokens = torch.arange(len(self.embedding), device=self.embedding.device)
        norms = [self.embed(part).float().norm(dim=-1) for part in tokens.split(8192)]
        return torch.cat(norms).mean().item()

    @property
    def row_norms(self) -> Tensor:
        """Norms (V,) fp32 of the rows of `embedding`, at least 1e-12; computed once per device."""
        table = self.embedding
        if self._row_norms is None or self._row_norms.device != table.device:
            norms = [part.detach().float().norm(dim=-1) for part in table.split(8192)]
            self._row_norms = torch.cat(norms).clamp_min(1e-12)
        return self._row_norms

    @property
    def is_quantized(self) -> bool:
        """Whether the weights are quantised (4-bit, say)."""
        return getattr(self.model, "hf_quantizer", None) is not None

    def lm_head(self, hidden: Tensor) -> Tensor:
        """Turn (..., E) into logits (..., V) by the frozen output layer."""
        head = self.model.get_output_embeddings()
        return head(hidden.to(head.weight.dtype))

    @property
    def context(self) -> int | None:
        """Most tokens the base is made for, if it says so."""
        config = self.model.config.get_text_config(decoder=True)
        return getattr(config, "max_position_embeddings", None)

    def num_features(self, layers: tuple[ReadLayer, ...]) -> int:
        """Return F, the width of what `read` gives for these layers."""
        for layer in layers:
            layer_index(layer, self.num_layers)
        return len(layers) * self.hidden_size

    def encode(self, texts: list[str], more: int = 0) -> dict[str, Tensor]:
        """Tokenise with the tokenizer's special tokens; pad on the right.

        Args:
            texts: at least one.
            more: tokens that the base shall take after each of them.

        Returns:
            input_ids and attention_mask, each (B, T) int64, on the device of the base.

        Raises:
            DataError: if there is no text, one has no tokens, or see `check_prompts`.
        """
        if not texts:
            raise DataError("prompts: got none, expected at least one")
        rows = [self.tokenizer(text)["input_ids"] for text in texts]
        if not all(rows):
            number = rows.index([]) + 1
            raise DataError(f"prompt {number}: it is empty; give at least one character")
        batch = pad_prompts(rows, self.eos_token_id)
        self.check_prompts(**batch, where="prompt ", more=more)
        return {key: value.to(self.embedding.device) for key, value in batch.items()}

    def check_prompts(
        self, input_ids: Tensor, attention_mask: Tensor, where: str, more: int = 0
    ) -> None:
        """Refuse prompts (N, T) that the base cannot read.

        Args:
            input_ids: padded on either side.
            attention_mask: 1 for real tokens.
            where: begins the message, before the number of the row.
            more: tokens that follow each prompt.

        Raises:
            DataError: if one and what follows exceed the base's context, or a token has no
                embedding.
        """
        unknown = (input_ids >= len(self.embedding)).any(dim=1)
        if bool(unknown.any()):
            row = int(unknown.nonzero()[0])
            raise DataError(
                f"{where}{row + 1}: it has special tokens that base {self.name} has no embedding "
                "for; leave them out"
            )
        lengths, context = attention_mask.sum(dim=1), self.context
        if context is not None and bool((lengths > context - more).any()):
            row = int((lengths > context - more).nonzero()[0])
            rest = f", {more} of them for slots and answer" if more else ""
            raise DataError(
                f"{where}{row + 1}: the prompt has {int(lengths[row])} tokens; base {self.name} "
                f"takes {context}{rest}; shorten it or choose another base"
            )

    def decode(self, tokens: Tensor) -> list[str]:
        """Return the text of each row of tokens (B, N), without special tokens."""
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        layers: tuple[ReadLayer, ...] = (),
        gradient: bool = False,
    ) -> PromptStates:
        """Run the base once over the prompts and keep what reader and writers need.

        Args:
            input_ids: (B, T), padded on either side.
            attention_mask: (B, T), 1 for real tokens.
            layers: which hidden states, see `layer_index`; none if only the cache is wanted.
            gradient: keep the graph, for adapters inside the base (the LoRA control).

        Raises:
            ConfigError: if the base returns no hidden states.
        """
        self._count(input_ids.shape[0])
        cache = DynamicCache()
        with torch.set_grad_enabled(gradient and torch.is_grad_enabled()):
            output = self.model.base_model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids(attention_mask),
                output_hidden_states=True,
                past_key_values=cache,
                use_cache=True,
            )
        hidden = getattr(output, "hidden_states", None)
        if hidden is None:
            raise ConfigError(f"base {self.name}: it returns no hidden states; choose another base")
        indices = [layer_index(layer, self.num_layers) for layer in layers]
        normed = [rms_norm(hidden[i].float(), 1e-6) for i in indices]
        states = torch.cat(normed, dim=-1) if normed else hidden[-1][..., :0].float()
        return PromptStates(states, attention_mask, [(keys, values) for keys, values, *_ in cache])

    def _after(self, prompt: PromptStates, embeds: Tensor, cache: DynamicCache) -> dict[str, Any]:
        """Return the arguments of a pass over embeddings that follow the prompts in `cache`."""
        ones = prompt.attention_mask.new_ones(embeds.shape[:2])
        mask = torch.cat((prompt.cache_mask, ones), dim=1)
        return {
            "inputs_embeds": embeds.to(self.embedding.dtype),
            "attention_mask": mask,
            "position_ids": position_ids(mask)[:, -embeds.shape[1] :],
            "past_key_values": cache,
            "use_cache": True,
        }

    def embed_text(self, text: str, num: int, soft: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the token ids (d,) of a text and their embeddings repeated to (num, d, E).

        Soft tokens (num, R, E), if there are any, come before them: (num, R + d, E).

        Raises:
            ConfigError: if the text has no tokens.
        """
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ConfigError(f"answer_delimiter: got {text!r}, expected text with a token or more")
        tokens = torch.tensor(ids, device=self.embedding.device)
        embeds = self.embed(tokens).expand(num, -1, -1)
        return tokens, embeds if soft is None else torch.cat((soft.to(embeds.dtype), embeds), dim=1)

    def answer_logits(
        self, prompt: PromptStates, soft: Tensor | None, delimiter: str, labels: Tensor
    ) -> Tensor:
        """Score answers by teacher forcing.

        Args:
            prompt: what `read` returned.
            soft: tokens (B, R, E) between prompt and delimiter, or None.
            delimiter: text before the answer.
            labels: (B, K) answer tokens, -100 where there is none.

        Returns:
            Logits (B, K, V) fp32 with whatever scale the base gives them: row k predicts answer
            token k from all tokens before it.
        """
        answer = labels.masked_fill(labels == IGNORE_INDEX, self.eos_token_id)
        _, before = self.embed_text(delimiter, len(labels), soft)
        embeds = torch.cat((before, self.embed(answer[:, :-1])), dim=1)
        arguments = self._after(prompt, embeds, prompt.fill_cache())
        return self.model(**arguments, logits_to_keep=labels.shape[1]).logits.float()

    @torch.no_grad()
    def generate_after(
        self, prompt: PromptStates, soft: Tensor | None, delimiter: str, **options: Any
    ) -> Tensor:
        """Generate an answer by the base's own `generate`, greedy by default.

        Args:
            prompt: what `read` returned.
            soft: tokens (B, R, E) between prompt and delimiter, or None.
            delimiter: text before the answer.
            options: passed to `generate`.

        Returns:
            New tokens only (B * sequences returned per prompt, N). Whichever end token the base
            chose, the answer ends and is padded with `eos_token_id`.

        Raises:
            ConfigError: for an option of `generation.REFUSED`.
        """
        arguments = generation_options(self.model.generation_config, self.eos_token_id, options)
        tokens, before = self.embed_text(delimiter, len(prompt.attention_mask), soft)
        cache = prompt.fill_cache()
        if before.shape[1] > 1:
            self.model.base_model(**self._after(prompt, before[:, :-1], cache))
        repeats = max(arguments["num_beams"], arguments["num_return_sequences"])
        if repeats > 1:
            cache.batch_repeat_interleave(repeats)
        mask = prompt.cache_mask
        generated = self.model.generate(
            tokens[-1:].expand(len(mask), 1),
            attention_mask=torch.cat((mask, mask.new_ones(before.shape[:2])), dim=1),
            past_key_values=cache,
            **arguments,
        )
        return after_end(generated[:, 1:], arguments["eos_token_id"], self.eos_token_id)

    def fingerprint(self) -> str | None:
        """Return a digest to know the base again by, whether it is loaded in bf16 or fp32.

        None where the weights are not those of the checkpoint: quantised, or rounded to fp16.
        """
        if self.is_quantized or self.embedding.dtype == torch.float16:
            return None
        return self.sha256(torch.bfloat16)

    @torch.compiler.disable
    def _count(self, num: int) -> None:
        """Add to `num_prompts`, outside of compiled code: it would be compiled for every number."""
        self.num_prompts += num

    def sha256(self, dtype: torch.dtype | None = None) -> str:
        """Return a digest of all parameters and saved buffers, to prove that nothing changed.

        Args:
            dtype: round floating point tensors to it first. In bf16 a base has one digest whether
                it is loaded in bf16 or fp32.
        """
        digest = hashlib.sha256()
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            if dtype is not None and value.is_floating_point():
                value = value.to(dtype)
            flat = value.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _disable_gemv_without_backward(self) -> None:
        """Keep 4-bit layers on CPU off a kernel that has no backward.

        bitsandbytes 0.50: `Linear4bit` in eval mode repacks its weight for AVX512-BF16; gradients
        through it are silently wrong from then on. Remove when its backward exists.
        """
        for module in self.model.modules():
            if type(module).__name__ == "Linear4bit":
                module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
