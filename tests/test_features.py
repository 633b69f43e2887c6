"""The cache of base states on disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from latent_reason.data import Example
from latent_reason.data.features import StateCache, cache_key
from latent_reason.data.text import TextDataset

EXAMPLES = [Example("sort: 3 1", "1 3"), Example("a", "5"), Example("bcd", "0 1 2")]
LAYERS = ("embedding", "last")


@pytest.fixture
def data(make_llm):
    return TextDataset.build(EXAMPLES, make_llm().tokenizer)


def files(folder):
    return sorted(folder.glob("states-*.npy"))


def test_cached_states_are_those_of_the_base_at_fp16(llm, data, tmp_path):
    progress = []
    cache = StateCache(
        data, llm, LAYERS, tmp_path / "new", batch_size=2, progress=lambda *a: progress.append(a)
    )
    assert llm.num_prompts == 3
    assert progress == [(2, 3), (3, 3)]
    assert (len(cache), cache.num_tokens, cache.examples) == (3, 9, data.examples)
    rows = torch.tensor([2, 0])
    batch = cache.batch(rows)
    states = llm.read(data.input_ids, data.attention_mask, LAYERS).states[rows]
    assert batch["states"].dtype == torch.float32
    inside = data.attention_mask[rows].bool()
    torch.testing.assert_close(batch["states"][inside], states[inside], atol=1e-3, rtol=1e-3)
    for name, value in data.batch(rows).items():
        assert torch.equal(batch[name], value)


def test_a_second_cache_does_not_call_the_base(make_llm, data, tmp_path):
    llm, again = make_llm(), make_llm()
    first = StateCache(data, llm, LAYERS, tmp_path)
    second = StateCache(data, again, LAYERS, tmp_path)
    assert again.num_prompts == 0
    assert len(files(tmp_path)) == 1
    assert np.array_equal(first.states, second.states)


def test_another_base_other_layers_or_other_prompts_have_another_file(make_llm, data, tmp_path):
    llm = make_llm()
    prompts = TextDataset.build([*EXAMPLES[:2], Example("bce", "0 1 2")], llm.tokenizer)
    answers = TextDataset.build([*EXAMPLES[:2], Example("bcd", "9 1 2")], llm.tokenizer)
    StateCache(data, llm, LAYERS, tmp_path)
    StateCache(data, make_llm(seed=1), LAYERS, tmp_path)
    StateCache(data, llm, ("last",), tmp_path)
    StateCache(prompts, llm, LAYERS, tmp_path)
    assert len(files(tmp_path)) == 4
    assert llm.num_prompts == 9
    StateCache(answers, llm, LAYERS, tmp_path)
    assert len(files(tmp_path)) == 4


def test_the_same_tokens_in_another_shape_have_another_key(make_llm):
    llm = make_llm()
    one = TextDataset.build([Example("abcd", "1")], llm.tokenizer)
    two = TextDataset.build([Example("ab", "1"), Example("cd", "1")], llm.tokenizer)
    assert cache_key(llm, LAYERS, one) != cache_key(llm, LAYERS, two)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_no_file_that_looks_valid(
    make_llm, data, tmp_path, monkeypatch, error
):
    llm = make_llm()
    read = llm.read

    def fail(*arguments):
        if llm.num_prompts >= 2:
            raise error
        return read(*arguments)

    monkeypatch.setattr(llm, "read", fail)
    with pytest.raises(error):
        StateCache(data, llm, LAYERS, tmp_path, batch_size=2)
    assert not files(tmp_path)
    monkeypatch.undo()
    llm.num_prompts = 0
    cache = StateCache(data, llm, LAYERS, tmp_path, batch_size=2)
    assert llm.num_prompts == 3
    assert len(files(tmp_path)) == 1
    assert np.isfinite(cache.states).all()
