"""Text examples as tensors."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from latent_reason.data import Example
from latent_reason.data.text import TextDataset, encode_answer
from latent_reason.errors import DataError
from latent_reason.prompts import pad

EXAMPLES = [Example("sort: 3 1", "1 3"), Example("a", "5"), Example("bcd", "0 1 2")]


@pytest.fixture
def tokenizer(make_llm):
    return make_llm().tokenizer


def test_an_answer_begins_with_a_space_and_ends_with_the_end_token(tokenizer):
    ids = encode_answer(tokenizer, "1 ab")
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:-1]) == " 1 ab"


def test_a_tokenizer_with_a_space_before_every_text_gives_an_answer_one_space_only():
    pieces = {piece: index for index, piece in enumerate(["<|end|>", "\u2581", ":", "1", "2"])}
    model = Tokenizer(models.BPE(vocab=pieces, merges=[]))
    model.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    model.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|end|>")
    assert len(tokenizer(" 1")["input_ids"]) == 3
    ids = encode_answer(tokenizer, "1 2")
    assert tokenizer.convert_ids_to_tokens(ids) == ["\u2581", "1", "\u2581", "2", "<|end|>"]


@pytest.mark.parametrize("answer", ["1 €", "Y", "a\u00df"])
def test_an_answer_with_lost_characters_is_refused(tokenizer, answer):
    with pytest.raises(DataError, match=f"writes the answer '{answer}' as "):
        encode_answer(tokenizer, answer)
    examples = [EXAMPLES[0], Example("a", answer)]
    with pytest.raises(DataError, match="^data.jsonl:2: this base's tokenizer"):
        TextDataset.build(examples, tokenizer, source="data.jsonl")


def test_rows_are_padded_on_the_right(tokenizer):
    data = TextDataset.build(EXAMPLES, tokenizer)
    assert len(data) == 3
    assert data.num_tokens == 9
    assert data.input_ids.dtype == data.attention_mask.dtype == data.labels.dtype == torch.int64
    assert data.attention_mask.sum(dim=1).tolist() == [9, 1, 3]
    assert data.labels.shape == (3, 7)
    for row, example in enumerate(EXAMPLES):
        length = len(example.prompt)
        assert data.attention_mask[row].tolist() == [1] * length + [0] * (9 - length)
        assert tokenizer.decode(data.input_ids[row, :length]) == example.prompt
        assert (data.input_ids[row, length:] == tokenizer.eos_token_id).all()
        answer = encode_answer(tokenizer, example.answer)
        assert data.labels[row].tolist() == answer + [-100] * (7 - len(answer))


def test_labels_fill_the_slots(tokenizer):
    data = TextDataset.build(EXAMPLES, tokenizer, num_slots=10)
    assert data.labels.shape == (3, 10)
    assert (data.labels[:, 7:] == -100).all()
    assert torch.equal(data.labels[:, :7], TextDataset.build(EXAMPLES, tokenizer).labels)
    assert TextDataset.build(EXAMPLES, tokenizer, num_slots=7).labels.shape == (3, 7)


def test_too_few_slots_are_refused_with_file_and_line(tokenizer):
    with pytest.raises(DataError, match=r"^rows.jsonl:3: the answer needs 7 slots .* are 6;"):
        TextDataset.build(EXAMPLES, tokenizer, num_slots=6, source="rows.jsonl")


def test_a_prompt_without_tokens_is_refused_with_file_and_line(tokenizer):
    with pytest.raises(DataError, match="^rows.jsonl:2: the prompt has no tokens"):
        TextDataset.build([EXAMPLES[0], Example("€", "1")], tokenizer, source="rows.jsonl")


def test_batch_gathers_rows(tokenizer):
    data = TextDataset.build(EXAMPLES, tokenizer)
    batch = data.batch(torch.tensor([2, 0, 2]))
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    for name, value in batch.items():
        assert torch.equal(value, getattr(data, name)[[2, 0, 2]])


def test_pad():
    assert pad([[1, 2], [], [3]], -7).tolist() == [[1, 2], [-7, -7], [3, -7]]
