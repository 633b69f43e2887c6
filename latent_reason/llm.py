"""`FrozenLLM`: a Hugging Face causal LM that never changes.

It gives hidden states at chosen layers, its token embedding and its `lm_head`, and counts the
prompts it has read. Nothing here knows about recursion.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from latent_reason.config import ReadLayer
from latent_reason.errors import ConfigError, DataError
from latent_reason.layers import position_ids, rms_norm


def embedded_base() -> str:
    """Return the folder of the small causal LM shipped with this package."""
    return str(Path(__file__).parent / "embedded")


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


@dataclass
class PromptStates:
    """What one pass of the base over B prompts leaves behind.

    states: (B, T, F) fp32, the chosen layers, each RMS-normalised without scale, concatenated.
    attention_mask: (B, T). keys_values: per layer two (B, heads, T, width) tensors, read-only.
    """

    states: Tensor
    attention_mask: Tensor
    keys_values: list[tuple[Tensor, Tensor]]


class FrozenLLM(nn.Module):
    """A causal LM in eval mode with every parameter frozen.

    Args:
        model: any `AutoModelForCausalLM`; it is used as it is, its weights are never written.
        tokenizer: its tokenizer, with an end-of-text token.
        name: Hub name or local folder, saved with adapters to find the base again.

    Raises:
        ConfigError: if the tokenizer has no end-of-text token or the model no token embedding.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, name: str) -> None:
        super().__init__()
        if tokenizer.eos_token_id is None:
            raise ConfigError(f"base {name}: its tokenizer has no end-of-text token (eos_token)")
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.name = name
        self.num_prompts = 0
        self._disable_gemv_without_backward()

    @classmethod
    def load(cls, name: str, **kwargs: Any) -> FrozenLLM:
        """Load a base by Hub name or local folder.

        Args:
            name: for example "Qwen/Qwen3-0.6B" or a folder with config.json.
            kwargs: passed to `AutoModelForCausalLM.from_pretrained` (dtype,
                quantization_config, device_map, revision). Remote code stays off.

        Raises:
            ConfigError: if there is no such model or it is no causal LM.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False, **kwargs)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"base {name}: cannot be loaded as a causal language model ({reason}); "
                "give a Hub name or a folder with config.json, weights and tokenizer"
            ) from error
        return cls(model, tokenizer, name)

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

    def lm_head(self, hidden: Tensor) -> Tensor:
        """Turn (..., E) into logits (..., V) by the frozen output layer."""
        head = self.model.get_output_embeddings()
        return head(hidden.to(head.weight.dtype))

    def num_features(self, layers: tuple[ReadLayer, ...]) -> int:
        """Return F, the width of what `read` gives for these layers."""
        for layer in layers:
            layer_index(layer, self.num_layers)
        return len(layers) * self.hidden_size

    def encode(self, texts: list[str]) -> dict[str, Tensor]:
        """Tokenise with the tokenizer's special tokens; pad on the right.

        Returns:
            input_ids and attention_mask, each (B, T) int64, on the device of the base.

        Raises:
            DataError: if a text has no tokens.
        """
        rows = [self.tokenizer(text)["input_ids"] for text in texts]
        if not all(rows):
            raise DataError(f"prompt {rows.index([])}: it is empty; give at least one character")
        ids = [torch.tensor(row) for row in rows]
        pad = nn.utils.rnn.pad_sequence
        masks = [torch.ones_like(row) for row in ids]
        device = self.embedding.device
        return {
            "input_ids": pad(ids, batch_first=True, padding_value=self.eos_token_id).to(device),
            "attention_mask": pad(masks, batch_first=True).to(device),
        }

    @torch.no_grad()
    def read(
        self, input_ids: Tensor, attention_mask: Tensor, layers: tuple[ReadLayer, ...]
    ) -> PromptStates:
        """Run the base once over the prompts and keep what the reader and the writers need.

        Args:
            input_ids: (B, T), padded on either side.
            attention_mask: (B, T), 1 for real tokens.
            layers: which hidden states, see `layer_index`.

        Raises:
            ConfigError: if the base returns no hidden states.
        """
        self.num_prompts += input_ids.shape[0]
        indices = [layer_index(layer, self.num_layers) for layer in layers]
        cache = DynamicCache(config=self.model.config)
        with torch.autocast(input_ids.device.type, enabled=False):
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
        states = torch.cat([rms_norm(hidden[i].float(), 1e-6) for i in indices], dim=-1)
        return PromptStates(states, attention_mask, [(c.keys, c.values) for c in cache.layers])

    def continue_from(self, prompt: PromptStates, embeds: Tensor) -> tuple[Tensor, DynamicCache]:
        """Run the base over (B, Q, E) input embeddings that follow the prompts.

        The prompts' keys and values are only read: any number of continuations may share them.

        Returns:
            Hidden states (B, Q, E) before `lm_head`, and the cache of prompt and continuation.
        """
        cache = DynamicCache(config=self.model.config)
        for index, (keys, values) in enumerate(prompt.keys_values):
            cache.update(keys, values, index)
        ones = prompt.attention_mask.new_ones(embeds.shape[:2])
        mask = torch.cat((prompt.attention_mask, ones), dim=1)
        output = self.model.base_model(
            inputs_embeds=embeds.to(self.embedding.dtype),
            attention_mask=mask,
            position_ids=position_ids(mask)[:, -embeds.shape[1] :],
            past_key_values=cache,
            use_cache=True,
        )
        return output.last_hidden_state, cache

    def sha256(self) -> str:
        """Return a digest of all parameters and buffers, to prove that nothing changed."""
        digest = hashlib.sha256()
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
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
