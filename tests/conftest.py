"""Settings of every test: offline, one thread, seeded; GPU tests skip without a GPU.

Also tiny random base models, made in code: two layers, width 32, one token per character.
"""

from __future__ import annotations

import os
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from hypothesis import settings
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from latent_reason.llm import FrozenLLM

pytest.register_assert_rewrite("arc_tasks", "tiny_originals", "tiny_recipes", "tiny_runs")
torch.set_num_threads(1)
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def one_process() -> Iterator[None]:
    """Let Accelerate know nothing of the processes of other tests, before and after."""
    from tiny_runs import reset_accelerate

    reset_accelerate()
    yield
    reset_accelerate()


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save without fsync, which is slow on a busy disk; a kill, unlike a power cut, needs none."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def dataset_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let data sets be kept in a folder of the test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character; characters that it does not know are lost."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    tokens = [
        "<|end|>",
        *string.digits,
        *string.ascii_lowercase,
        *"A :,",
        *"BCDEFGHIJKLMNOPQRSTUVWX",
    ]
    model = models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[])
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


@pytest.fixture
def make_llm() -> Callable[..., FrozenLLM]:
    """Return a function of (kind, seed, name, **config) that makes a base with random weights."""
    import transformers

    from latent_reason.llm import FrozenLLM

    common = {"vocab_size": 64, "eos_token_id": 0, "bos_token_id": None, "pad_token_id": None}
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    }
    kinds = {
        "llama": (transformers.LlamaConfig, sizes),
        "qwen3": (transformers.Qwen3Config, sizes),
        "gpt2": (
            transformers.GPT2Config,
            {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.2},
        ),
        "mistral": (transformers.MistralConfig, sizes),
        "gemma3": (transformers.Gemma3TextConfig, sizes),
        "granite": (transformers.GraniteConfig, sizes),
    }

    def make(kind: str = "llama", seed: int = 0, name: str = "tiny", **config: Any) -> FrozenLLM:
        config_class, values = kinds[kind]
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(
            config_class(**(common | values | config))
        )
        return FrozenLLM(model, make_tokenizer(), name)

    return make


@pytest.fixture(params=["llama", "qwen3", "gpt2"])
def llm(request: pytest.FixtureRequest, make_llm: Callable[..., FrozenLLM]) -> FrozenLLM:
    """A base of each architecture in turn."""
    return make_llm(request.param)


@pytest.fixture
def save_llm() -> Callable[[FrozenLLM, Any], str]:
    """Return a function that saves weights and tokenizer of a base and returns the folder."""

    def save(llm: FrozenLLM, folder: Any) -> str:
        llm.model.save_pretrained(folder)
        llm.tokenizer.save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture
def pad_left() -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Return a function that moves the padding of a batch from the right to the left."""

    def move(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        return {
            key: torch.stack([row.roll(len(row) - n) for row, n in zip(rows, lengths, strict=True)])
            for key, rows in batch.items()
        }

    return move
