"""`LatentReasoner`: the base stays as it is, the reasoner trains, answers agree both ways."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import until_end

from latent_reason.config import LatentReasonerConfig, ReasonerConfig
from latent_reason.data.tasks import Example
from latent_reason.data.text import TextDataset
from latent_reason.errors import CheckpointError, ConfigError, DataError
from latent_reason.latent_reasoner import ADAPTER_CONFIG, ADAPTER_WEIGHTS, LatentReasoner
from latent_reason.llm import FrozenLLM
from latent_reason.losses import answer_loss

WRITERS = ("head", "soft")
READERS = ("perceiver", "concat")
PROMPTS = ["sort: 3 1 2", "a", "reach 0110: abc d"]
NUM_SLOTS = 4
LABELS = torch.tensor([[5, 6, 7, 0], [9, 0, -100, -100], [8, 8, 8, 0]])


def make_model(llm, writer="head", reader="perceiver", num_slots=NUM_SLOTS, **reasoner):
    sizes = {
        "hidden_size": 32,
        "num_heads": 2,
        "L_layers": 1,
        "L_cycles": 2,
        "H_cycles": 2,
        "residual_init": "normal",
    }
    config = LatentReasonerConfig(
        reasoner=ReasonerConfig(**(sizes | reasoner)),
        reader=reader,
        writer=writer,
        num_slots=num_slots,
    )
    torch.manual_seed(1)
    return LatentReasoner(llm, config)


def train(model, num_steps, **options):
    """A few optimizer steps with deep supervision; returns the losses."""
    optimizer = torch.optim.AdamW(model.core.parameters(), lr=1e-2)
    losses = []
    for _ in range(num_steps):
        output = model(**model.llm.encode(PROMPTS), labels=LABELS, **options)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    return losses


def assert_equal_outputs(ours, theirs):
    assert torch.equal(ours.slots, theirs.slots)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.q_halt_logits, theirs.q_halt_logits)


# --- the frozen base ------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", WRITERS)
def test_training_and_generation_leave_the_base_bit_identical_and_causal(llm, writer):
    ids = llm.encode(PROMPTS)["input_ids"]
    before, digest = llm.model(ids).logits, llm.sha256()
    model = make_model(llm, writer).train()
    assert model.core.training
    assert not any(module.training for module in model.llm.modules())
    train(model, 2, refinement_steps=2)
    model.generate(**llm.encode(PROMPTS), refinement_steps=2)
    assert llm.sha256() == digest
    assert torch.equal(llm.model(ids).logits, before)
    torch.testing.assert_close(llm.model(ids[:, :5]).logits, before[:, :5])  # causal
    assert all(p.grad is None and not p.requires_grad for p in llm.parameters())


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("writer", WRITERS)
def test_every_parameter_trains(llm, writer, reader):
    model = make_model(llm, writer, reader, residual_init="zero")
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {f"core.{name}" for name, _ in model.core.named_parameters()}
    for num_steps in (0, 1):
        train(model, num_steps)
        model.zero_grad()
        model(**llm.encode(PROMPTS), labels=LABELS).loss.backward()
        for name, parameter in model.core.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            # An output that starts at zero hides what is behind it from the first gradient.
            assert num_steps == 0 or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("changes", [{"kind": "hrm", "H_layers": 1}, {"mixer": "mlp"}])
def test_every_parameter_trains_in_other_reasoners(make_llm, changes):
    model = make_model(make_llm(), "soft", **changes)
    train(model, 1)
    assert all(p.grad.abs().sum() > 0 for p in model.core.parameters())


def test_initial_states_are_buffers(make_llm):
    core = make_model(make_llm()).core
    buffers = {name for name, _ in core.named_buffers()}
    assert buffers == {"reasoner.H_init", "reasoner.L_init"}
    assert buffers <= set(core.state_dict())


@pytest.mark.parametrize("writer", WRITERS)
def test_training_lowers_the_loss(make_llm, writer):
    losses = train(make_model(make_llm(), writer), 15)
    assert losses[-1] < 0.6 * losses[0]


def test_a_bf16_base_trains_an_fp32_adapter(make_llm):
    llm = make_llm()
    llm.model.bfloat16()
    model = make_model(llm, "soft")
    losses = train(model, 3)
    assert losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 for p in model.core.parameters())
    assert model.generate(**llm.encode(PROMPTS), refinement_steps=1).shape[0] == 3


def test_the_adapter_goes_where_the_base_is(make_llm):
    llm = make_llm()
    llm.model.to("meta")
    model = make_model(llm)
    assert {t.device.type for t in model.core.state_dict().values()} == {"meta"}


def test_soft_adds_the_bases_loss_once_at_the_last_step(llm):
    model = make_model(llm, "soft")
    batch = llm.encode(PROMPTS)
    output = model(**batch, labels=LABELS, refinement_steps=3)
    without = model(**batch, labels=LABELS, refinement_steps=3, through_base=False)
    prompt = llm.read(**batch, layers=model.config.read_layers)
    added = answer_loss(model.answer_logits(prompt, output.slots, LABELS), LABELS)
    torch.testing.assert_close(output.loss, without.loss + added)
    head = make_model(llm, "head")
    losses = [head(**batch, labels=LABELS, through_base=value).loss for value in (True, False)]
    assert torch.equal(*losses)


# --- what may depend on what ----------------------------------------------------------------------


@pytest.mark.parametrize("writer", WRITERS)
def test_each_prompt_is_read_once(llm, writer):
    model = make_model(llm, writer)
    batch = llm.encode(PROMPTS)
    model(**batch, labels=LABELS, refinement_steps=4)
    assert llm.num_prompts == 3
    model.generate(**batch, refinement_steps=4)
    assert llm.num_prompts == 6
    states = llm.read(**batch, layers=model.config.read_layers).states
    mask = batch["attention_mask"]
    llm.num_prompts = 0
    model(states=states, attention_mask=mask, refinement_steps=4)
    model(states=states, attention_mask=mask, labels=LABELS, through_base=False)
    assert llm.num_prompts == 0
    model(**batch, states=states, labels=LABELS)
    assert llm.num_prompts == (3 if writer == "soft" else 0)


@pytest.mark.parametrize("writer", WRITERS)
def test_cached_states_give_the_same_output(llm, writer):
    model = make_model(llm, writer)
    batch = llm.encode(PROMPTS)
    states = llm.read(**batch, layers=model.config.read_layers).states
    direct = model(**batch, labels=LABELS, refinement_steps=2)
    cached = model(**batch, states=states, labels=LABELS, refinement_steps=2)
    assert_equal_outputs(direct, cached)
    assert torch.equal(direct.loss, cached.loss)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("reader", READERS)
def test_answers_and_other_rows_cannot_influence_slots(llm, writer, reader):
    model = make_model(llm, writer, reader)
    batch = llm.encode(PROMPTS)
    output = model(**batch, labels=LABELS, refinement_steps=2)
    other_labels = (LABELS + 1).where(LABELS >= 0, LABELS)
    other = model(**batch, labels=other_labels, refinement_steps=2)
    assert not torch.equal(other.loss, output.loss)
    assert torch.equal(other.slots, output.slots)
    assert torch.equal(model(**batch, refinement_steps=2).slots, output.slots)
    changed = {key: value.clone() for key, value in batch.items()}
    changed["input_ids"][0, 3] = 20
    slots = model(**changed, refinement_steps=2).slots
    assert torch.equal(slots[1:], output.slots[1:])
    assert not torch.allclose(slots[0], output.slots[0], atol=1e-4)
    for i, prompt in enumerate(PROMPTS):
        alone = model(**llm.encode([prompt]), refinement_steps=2).slots[0]
        torch.testing.assert_close(alone, output.slots[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("reader", READERS)
def test_padding_on_either_side_gives_the_same(llm, pad_left, writer, reader):
    model = make_model(llm, writer, reader)
    right = llm.encode(PROMPTS)
    left = pad_left(right)
    ours, theirs = (model(**b, labels=LABELS, refinement_steps=2) for b in (right, left))
    for name in ("slots", "logits", "q_halt_logits", "loss"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=2e-5, rtol=1e-5)
    tokens = model.generate(**right, refinement_steps=2)
    assert torch.equal(model.generate(**left, refinement_steps=2), tokens)
    for i, prompt in enumerate(PROMPTS):
        alone = model.generate(**llm.encode([prompt]), refinement_steps=2)
        assert until_end(alone[0]) == until_end(tokens[i])


# --- generation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("side", ["right", "left"])
def test_soft_generation_follows_the_teacher_forced_logits(llm, pad_left, num, side):
    model = make_model(llm, "soft")
    train(model, 5)
    batch = llm.encode(PROMPTS[:num])
    batch = pad_left(batch) if side == "left" else batch
    tokens = model.generate(**batch, refinement_steps=2, max_new_tokens=6)
    prompt = llm.read(**batch, layers=model.config.read_layers)
    slots = model(**batch, refinement_steps=2).slots
    with torch.no_grad():
        forced = model.answer_logits(prompt, slots, tokens).argmax(dim=-1)
        plain = llm.answer_logits(prompt, None, model.config.answer_delimiter, tokens)
    for row, expected in zip(tokens, forced, strict=True):
        assert until_end(row) == expected.tolist()[: len(until_end(row))]
    assert num == 1 or not torch.equal(plain.argmax(dim=-1), forced)  # the slots matter


def test_head_generation_is_the_read_out_up_to_the_end(llm):
    model = make_model(llm, "head")
    batch = llm.encode(PROMPTS)
    read_out = model(**batch, refinement_steps=2).logits.argmax(dim=-1)
    assert torch.equal(model.generate(**batch, refinement_steps=2), read_out)  # no end among them
    slots = torch.randn(3, NUM_SLOTS, llm.hidden_size)
    slots[0, 3] = -slots[0, 1]
    model.core.writer.end_row.data = 100 * slots[0, 1]
    logits = model.read_out(slots).argmax(dim=-1)
    assert logits[0, 1] == 0
    assert logits[0, 3] != 0
    tokens = model.write(llm.read(**batch), slots)
    assert tokens.shape == (3, NUM_SLOTS)
    for row, expected in zip(tokens, logits, strict=True):
        kept = until_end(expected)
        assert row.tolist() == kept + [0] * (NUM_SLOTS - len(kept))


def test_head_reads_slots_by_the_lm_head_and_the_end_by_its_own_row(llm):
    model = make_model(llm, "head")
    model.core.writer.end_row.data.normal_()
    output = model(**llm.encode(PROMPTS))
    own = llm.model.get_output_embeddings()(output.slots)
    assert torch.equal(output.logits[..., 1:], own[..., 1:])
    torch.testing.assert_close(output.logits[..., 0], output.slots @ model.core.writer.end_row)


def test_soft_generation_options(make_llm):
    llm = make_llm()
    model, batch = make_model(llm, "soft"), llm.encode(PROMPTS) | {"refinement_steps": 2}
    assert model.generate(**batch).shape[1] <= NUM_SLOTS
    assert model.generate(**batch, max_new_tokens=2).shape == (3, 2)
    assert model.generate(**batch, num_beams=3, num_return_sequences=2).shape[0] == 6
    sampled = model.generate(**batch, do_sample=True, num_return_sequences=3, temperature=3.0)
    assert sampled.shape[0] == 9
    assert len({tuple(row.tolist()) for row in sampled[:3]}) > 1
    with pytest.raises(ConfigError, match="^generate: past_key_values"):
        model.generate(**batch, past_key_values=None)


def test_head_generation_takes_no_options(make_llm):
    model = make_model(make_llm(), "head")
    with pytest.raises(ConfigError, match=r"^generate: writer 'head' .* \['num_beams'\]"):
        model.generate(**model.llm.encode(PROMPTS), num_beams=3)


@pytest.mark.parametrize("writer", WRITERS)
def test_thinking_reads_nothing_out_before_the_end(make_llm, writer, monkeypatch):
    model, calls = make_model(make_llm(), writer), []
    read_out = model.read_out
    monkeypatch.setattr(model, "read_out", lambda slots: (calls.append(1), read_out(slots))[1])
    batch = model.llm.encode(PROMPTS)
    model.generate(**batch, refinement_steps=4)
    assert len(calls) == (1 if writer == "head" else 0)
    calls.clear()
    model(**batch, refinement_steps=4)
    assert len(calls) == 1
    with pytest.raises(ValueError, match="refinement_steps: got 0"):
        model.generate(**batch, refinement_steps=0)


@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)]
)
def test_no_refinement_step_keeps_a_copy_of_the_embedding(make_llm, dtype, autocast):
    llm = make_llm()
    llm.model.to(dtype)
    model, batch, size = make_model(llm, "soft"), llm.encode(PROMPTS), llm.embedding.numel()

    def copies(refinement_steps):
        kept = {}

        def keep(tensor):
            if tensor.numel() == size:
                kept[tensor.data_ptr()] = tensor
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            options = {"refinement_steps": refinement_steps, "through_base": False}
            model(**batch, labels=LABELS, **options).loss.backward()
        return len(kept)

    assert copies(3) == copies(1)


@pytest.mark.parametrize("writer", WRITERS)
def test_answer_returns_text(make_llm, writer):
    model = make_model(make_llm(), writer)
    texts = model.answer(PROMPTS, refinement_steps=2)
    assert len(texts) == 3
    tokens = model.generate(**model.llm.encode(PROMPTS), refinement_steps=2)
    assert texts == model.llm.decode(tokens)
    assert model.answer(PROMPTS[0], refinement_steps=2) == texts[:1]
    assert any(texts)


@pytest.mark.parametrize(("writer", "most"), [("head", 128), ("soft", 128 - 8 - 2 * NUM_SLOTS)])
def test_prompts_as_long_as_the_base_takes_are_answered(make_llm, writer, most):
    model = make_model(make_llm("gpt2"), writer)
    assert model.answer([]) == []
    assert len(model.answer("a" * most, refinement_steps=1)) == 1
    with pytest.raises(DataError, match=f"^prompt 1: the prompt has {most + 1} tokens"):
        model.answer("a" * (most + 1))


def test_a_batch_of_texts_has_the_labels_of_training(make_llm):
    llm = make_llm()
    batch = make_model(llm).encode(PROMPTS, ["a b", "c", "a b c"])
    examples = [*map(Example, PROMPTS, ["a b", "c", "a b c"])]
    data = TextDataset.build(examples, llm.tokenizer)
    assert torch.equal(batch["input_ids"], data.input_ids)
    assert torch.equal(batch["attention_mask"], data.attention_mask)
    assert torch.equal(batch["labels"], data.labels)
    assert (batch["labels"] == llm.eos_token_id).sum() >= 3 and (batch["labels"] == -100).any()


@pytest.mark.parametrize("writer", WRITERS)
def test_write_without_slots_does_not_depend_on_the_reasoner(make_llm, writer):
    llm = make_llm()
    prompt = llm.read(**llm.encode(PROMPTS))
    ours, theirs = make_model(llm, writer), make_model(llm, writer, L_layers=2)
    assert torch.equal(ours.write(prompt, None), theirs.write(prompt, None))


# --- refinement steps and labels ------------------------------------------------------------------


@pytest.mark.parametrize("reader", READERS)
def test_a_carry_continues_where_it_was(llm, reader):
    model = make_model(llm, reader=reader)
    batch = llm.encode(PROMPTS)
    first = model(**batch, labels=LABELS)
    second = model(**batch, labels=LABELS, carry=first.carry)
    both = model(**batch, labels=LABELS, refinement_steps=2)
    assert_equal_outputs(second, both)
    torch.testing.assert_close(both.loss, (first.loss + second.loss) / 2)
    assert both.carry.refinement_steps.tolist() == [2, 2, 2]
    assert not both.carry.z_H.requires_grad
    assert not torch.allclose(first.slots, second.slots)


def test_halted_slots_start_anew_and_the_callers_carry_is_left_alone(llm):
    model = make_model(llm)
    batch = llm.encode(PROMPTS)
    first = model(**batch)
    carry = copy.deepcopy(first.carry)
    carry.halted[1] = True
    before = copy.deepcopy(carry)
    second = model(**batch, carry=carry)
    assert torch.equal(second.slots[1], first.slots[1])
    assert not torch.allclose(second.slots[0], first.slots[0])
    assert second.carry.refinement_steps.tolist() == [2, 1, 2]
    assert not second.carry.halted.any()
    for key, value in before.tensors().items():
        assert torch.equal(carry.tensors()[key], value)


@pytest.mark.parametrize("writer", WRITERS)
def test_short_labels_are_padded(make_llm, writer):
    model = make_model(make_llm(), writer)
    batch = model.llm.encode(PROMPTS)
    short = LABELS[:, :2].clone()
    padded = torch.nn.functional.pad(short, (0, 2), value=-100)
    ours, theirs = (model(**batch, labels=labels) for labels in (short, padded))
    assert torch.equal(ours.loss, theirs.loss)
    assert ours.logits.shape == (3, NUM_SLOTS, 64)


def test_impossible_arguments_are_refused(make_llm):
    model = make_model(make_llm())
    batch = model.llm.encode(PROMPTS)
    long = torch.ones(3, NUM_SLOTS + 1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"^labels: got 5 columns, expected .* num_slots = 4$"):
        model(**batch, labels=long)
    with pytest.raises(ValueError, match="^input_ids: got None"):
        model()
    with pytest.raises(ValueError, match="^refinement_steps: got 0"):
        model(**batch, refinement_steps=0)
    with pytest.raises(ConfigError, match="^read_layers: got 3"):
        LatentReasoner(model.llm, dataclasses.replace(model.config, read_layers=(3,)))


def test_the_mask_defaults_to_all_ones(make_llm):
    model = make_model(make_llm(), "soft")
    ids = model.llm.encode(["abc", "xyz"])["input_ids"]
    ones = torch.ones_like(ids)
    assert torch.equal(model(ids).slots, model(ids, ones).slots)
    tokens = model.generate(ids, ones, refinement_steps=1)
    assert torch.equal(model.generate(ids, refinement_steps=1), tokens)
    states = model.llm.read(ids, ones, model.config.read_layers).states
    assert torch.equal(model(states=states).slots, model(ids).slots)


def test_with_num_slots_keeps_weights_and_base(make_llm):
    model = make_model(make_llm())
    longer = model.with_num_slots(7)
    assert longer.llm is model.llm
    assert longer(**model.llm.encode(PROMPTS)).logits.shape == (3, 7, 64)
    for key, value in longer.core.state_dict().items():
        assert torch.equal(value, model.core.state_dict()[key])
    mlp = make_model(model.llm, mixer="mlp")
    assert mlp.with_num_slots(NUM_SLOTS).config == mlp.config
    with pytest.raises(ConfigError, match="^num_slots: got 7, expected 4"):
        mlp.with_num_slots(7)


def test_print_trainable_parameters(make_llm, capsys):
    model = make_model(make_llm())
    model.print_trainable_parameters()
    trainable = sum(p.numel() for p in model.core.parameters())
    assert f"trainable params: {trainable:,} ||" in capsys.readouterr().out


# --- saving ---------------------------------------------------------------------------------------


@pytest.fixture
def saved(make_llm, save_llm, tmp_path):
    """A saved base, a trained model on it and its adapter folder."""
    base = save_llm(make_llm(), tmp_path / "base")
    model = make_model(FrozenLLM.load(base), "soft", num_slots=3)
    model.core.q_head.weight.data.normal_()
    model.save_pretrained(tmp_path / "adapter")
    return model, tmp_path / "adapter"


def test_an_adapter_comes_back_bit_equal(llm, save_llm, tmp_path):
    model = make_model(FrozenLLM.load(save_llm(llm, tmp_path / "base")), "soft", "concat")
    train(model, 1)
    model.save_pretrained(tmp_path / "adapter")
    batch = llm.encode(PROMPTS)
    expected = model(**batch, refinement_steps=3)
    buffers = {name: b.clone() for name, b in llm.model.named_buffers()}
    for base in (None, llm):
        loaded = LatentReasoner.from_pretrained(tmp_path / "adapter", base=base)
        assert loaded.config == model.config
        assert_equal_outputs(loaded(**batch, refinement_steps=3), expected)
        tokens = model.generate(**batch, refinement_steps=2)
        assert torch.equal(loaded.generate(**batch, refinement_steps=2), tokens)
        for name, buffer in loaded.llm.model.named_buffers():
            assert torch.equal(buffer, buffers[name]), name
    assert loaded.llm is llm


def test_the_base_is_not_saved(saved):
    model, folder = saved
    assert {path.name for path in folder.iterdir()} == {
        ADAPTER_WEIGHTS,
        ADAPTER_CONFIG,
        "README.md",
    }
    assert set(load_file(folder / ADAPTER_WEIGHTS)) == set(model.core.state_dict())


def test_the_dtype_of_the_base_does_not_matter_but_its_weights_do(saved, make_llm, save_llm):
    model, folder = saved
    LatentReasoner.from_pretrained(folder, dtype=torch.bfloat16)
    half = copy.deepcopy(model)
    half.llm.model.bfloat16()
    half.save_pretrained(folder.parent / "half")
    LatentReasoner.from_pretrained(folder.parent / "half", base=model.llm)
    other = save_llm(make_llm(seed=7), folder.parent / "other")
    for options in ({}, {"dtype": torch.float32}):
        with pytest.raises(CheckpointError, match=f"^adapter {folder}: made for base .*/base "):
            LatentReasoner.from_pretrained(folder, base=other, **options)


def test_bases_in_fp16_are_compared_by_width(saved, make_llm):
    _, folder = saved
    half = LatentReasoner.from_pretrained(folder, dtype=torch.float16)
    assert half.llm.embedding.dtype == torch.float16
    half.save_pretrained(folder.parent / "half")
    LatentReasoner.from_pretrained(folder.parent / "half", dtype=torch.float32)
    with pytest.raises(CheckpointError, match="width 32"):
        LatentReasoner.from_pretrained(
            folder,
            base=FrozenLLM(make_llm(hidden_size=64).model.half(), half.llm.tokenizer, "wide"),
        )


def test_a_base_of_another_width_is_refused(saved, make_llm):
    _, folder = saved
    wide = make_llm(hidden_size=64, name="wide")
    with pytest.raises(CheckpointError, match=r"\(width 32\), got wide \(width 64\)"):
        LatentReasoner.from_pretrained(folder, base=wide)


def test_quantised_bases_are_compared_by_width(saved, make_llm):
    model, folder = saved
    quantised, wide = make_llm(seed=7), make_llm(hidden_size=64)
    quantised.model.hf_quantizer = wide.model.hf_quantizer = object()
    LatentReasoner.from_pretrained(folder, base=quantised)
    with pytest.raises(CheckpointError):
        LatentReasoner.from_pretrained(folder, base=wide)
    trained = LatentReasoner(quantised, model.config)
    trained.save_pretrained(folder.parent / "4bit")
    LatentReasoner.from_pretrained(folder.parent / "4bit", base=model.llm)


def assert_unusable(folder, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        LatentReasoner.from_pretrained(folder)
    assert str(caught.value).startswith(f"adapter {folder}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [ADAPTER_WEIGHTS, ADAPTER_CONFIG])
def test_a_missing_or_truncated_file_is_named(saved, name):
    _, folder = saved
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert_unusable(folder, "not a complete adapter folder")
    path.unlink()
    assert_unusable(folder, "not a complete adapter folder .*No such file")


@pytest.mark.parametrize(
    "key", ["base", "base_hidden_size", "base_sha256", "format", "num_slots", "reasoner"]
)
def test_a_missing_key_is_named(saved, key):
    _, folder = saved
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    del config[key]
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config))
    assert_unusable(folder, key)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "latent_reason adapter 9"}, "adapter 9"),
        ({"writer": "telepathy"}, "writer: got 'telepathy'"),
        ({"num_slots": "many"}, "not a complete"),
        ({"num_slot": 3}, "num_slot"),
        ({"reasoner": {}}, "incomplete reasoner"),
    ],
)
def test_an_impossible_config_is_refused(saved, change, words):
    _, folder = saved
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config | change))
    assert_unusable(folder, words)


def test_a_config_that_is_no_object_is_refused(saved):
    _, folder = saved
    (folder / ADAPTER_CONFIG).write_text("[]")
    assert_unusable(folder, "not a complete")


def test_weights_of_another_size_are_refused(saved):
    _, folder = saved
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    name = "reader.slot_query"
    save_file(tensors | {name: torch.zeros(5)}, folder / ADAPTER_WEIGHTS)
    assert_unusable(folder, f"weights do not fit: .*{name}")
    del tensors[name]
    save_file(tensors, folder / ADAPTER_WEIGHTS)
    assert_unusable(folder, f"weights do not fit: .*{name}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 2**16}, "weights do not fit: tensor .* expected .*65536"),
        ({"L_layers": 500}, "weights do not fit: tensor .*layers.1.* is missing"),
        ({"L_layers": 10**9}, "L_layers: got 1000000000, expected at most 1,000"),
        ({"H_cycles": 10**9}, "H_cycles: got 1000000000, expected at most 1,000"),
    ],
)
def test_sizes_are_checked_before_memory_is_taken(saved, change, words):
    _, folder = saved
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    config["reasoner"] |= change
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config))
    assert_unusable(folder, words)


def test_layers_that_the_base_lacks_are_refused(saved):
    _, folder = saved
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config | {"read_layers": ["last", 99]}))
    assert_unusable(folder, "99")


def test_a_lost_base_is_named(saved):
    _, folder = saved
    base = folder.parent / "base"
    base.rename(folder.parent / "moved")
    with pytest.raises(ConfigError, match=f"^base {base}: "):
        LatentReasoner.from_pretrained(folder)
    LatentReasoner.from_pretrained(folder, base=str(folder.parent / "moved"))


def test_one_prompt_and_answers_that_are_missing(make_llm):
    model = LatentReasoner(make_llm(), LatentReasonerConfig(num_slots=4))
    assert model.encode("abc")["input_ids"].shape == (1, 3)
    with pytest.raises(DataError, match="answers: got 1 for 2 prompts"):
        model.encode(["a", "b"], ["1"])


def test_a_base_that_is_loaded_or_is_none(make_llm):
    llm = make_llm()
    with pytest.raises(ConfigError, match="base: got .'revision'., expected no options for a base"):
        LatentReasoner.from_base(llm, revision="main")
    with pytest.raises(ConfigError, match=r"expected a Hub name, .* FrozenLLM\(model, tokenizer"):
        LatentReasoner.from_base(llm.model)
