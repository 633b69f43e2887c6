"""A base that would be read wrongly is refused before anything is trained on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from conftest import make_tokenizer

from latent_reason.base_check import check_base
from latent_reason.errors import ConfigError
from latent_reason.latent_reasoner import LatentReasoner
from latent_reason.llm import FrozenLLM

COMMON = {"vocab_size": 64, "eos_token_id": 0, "bos_token_id": None, "pad_token_id": 1}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
HALVES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 128,
    "init_std": 0.2,
    "forced_eos_token_id": None,
    "decoder_start_token_id": 0,
}


def make_base(kind: str, **config: Any) -> FrozenLLM:
    config_class = getattr(transformers, f"{kind}Config")
    model = transformers.AutoModelForCausalLM.from_config(config_class(**(COMMON | config)))
    return FrozenLLM(model, make_tokenizer(), "mine")


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        ("Bert", SIZES, "later tokens change the states"),
        ("Roberta", SIZES, "later tokens change the states"),
        ("Rwkv", {"hidden_size": 32, "num_hidden_layers": 2}, "0 of its 2 layers keep keys"),
        ("Bart", HALVES, "padding changes its states"),
        ("Marian", HALVES, "padding changes its states"),
        ("CodeGen", {"n_embd": 32, "n_layer": 2, "n_head": 2}, "cannot be read as a causal"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_base_that_would_be_read_wrongly_is_refused(
    kind: str, config: dict[str, Any], words: str
) -> None:
    llm = make_base(kind, **config)
    with pytest.raises(ConfigError, match=f"^base mine: .*{words}.*; choose another base$"):
        LatentReasoner.from_base(llm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "mistral", "gemma3", "granite"])
def test_a_fit_base_passes_and_no_prompt_is_counted(
    make_llm: Callable[..., FrozenLLM], kind: str, dtype: torch.dtype
) -> None:
    llm = make_llm(kind)
    llm.model.to(dtype)
    llm.num_prompts = 3
    check_base(llm)
    assert llm.num_prompts == 3


def test_states_that_are_not_finite_are_refused(make_llm: Callable[..., FrozenLLM]) -> None:
    llm = make_llm()
    llm.embedding.data.fill_(torch.nan)
    with pytest.raises(ConfigError, match="^base tiny: its states are not finite"):
        check_base(llm)
