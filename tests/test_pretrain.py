"""The recipe of the embedded base: a run of a few steps, bad input, and what it once made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_recipes import assert_refused, run_recipe, run_well
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from latent_reason import embedded_base
from recipes import pretrain_llm as recipe

pytestmark = pytest.mark.usefixtures("one_process")
TINY = (
    "--output-dir run --hidden-size 16 --num-layers 1 --num-heads 2 --vocab-size 300 "
    "--num-blocks 16 --block-size 16 --max-steps 3 --batch-size 4"
).split()


def test_a_model_is_made_and_loads(tmp_path: Path) -> None:
    run_well(recipe, tmp_path, TINY)
    folder = tmp_path / "run" / "model"
    tokens = AutoTokenizer.from_pretrained(folder)("Sort: 3 1", return_tensors="pt")
    logits = AutoModelForCausalLM.from_pretrained(folder)(input_ids=tokens["input_ids"]).logits
    assert logits.shape[-1] == 300
    card = (folder / "README.md").read_text()
    assert "3 steps of 4 x 16 tokens" in card


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--vocab-size", "-5"], "vocab_size: got -5, expected at least 257"),
        (["--hidden-size", "30"], "hidden_size: got 30, expected a multiple of 8"),
        (["--max-stpes", "5"], "Unrecognized options: --max-stpes"),
    ],
)
def test_bad_options(tmp_path: Path, words: list[str], message: str) -> None:
    assert_refused(run_recipe(recipe, tmp_path, ["--output-dir", "run", *words]), message)
    assert list(tmp_path.iterdir()) == []


def test_the_embedded_base_is_small_and_loads_as_any_model() -> None:
    model = AutoModelForCausalLM.from_pretrained(embedded_base())
    assert isinstance(model, LlamaForCausalLM)
    assert sum(p.numel() for p in model.parameters()) <= 4_000_000
    assert sum(file.stat().st_size for file in Path(embedded_base()).iterdir()) <= 10_000_000
    tokenizer = AutoTokenizer.from_pretrained(embedded_base())
    tokens = tokenizer("1 2 3 Answer:", return_tensors="pt")["input_ids"]
    assert torch.isfinite(model(input_ids=tokens).logits).all()


def test_the_carry_is_where_the_model_is() -> None:
    config = recipe.PretrainConfig(hidden_size=16, num_layers=1, num_heads=2)
    tokenizer = AutoTokenizer.from_pretrained(embedded_base())
    model = recipe.NextToken(recipe.make_model(config, tokenizer).to("meta"))
    carry = model.initial_carry(2, 8)
    assert {tensor.device.type for tensor in carry.tensors().values()} == {"meta"}


@pytest.mark.gpu
def test_a_model_is_made_on_a_gpu(tmp_path: Path) -> None:
    config = recipe.PretrainConfig(
        output_dir=tmp_path / "run",
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        vocab_size=300,
        num_blocks=16,
        block_size=16,
        max_steps=3,
        batch_size=4,
    )
    assert recipe.pretrain(config) == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
