"""The controls: what they train, what they leave alone, and that they learn."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import until_end

from latent_reason.controls import AnswerLM, lora_rank
from latent_reason.core import AnswerOutput
from latent_reason.halting import empty_carry
from latent_reason.llm import FrozenLLM
from latent_reason.losses import answer_loss

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")

PROMPTS = ["sort: 3 1 2", "a", "reach 0110: abc d", "follow b"]
LABELS = torch.tensor([[5, 6, 7, 0], [9, 0, -100, -100], [8, 8, 8, 0], [3, 4, 0, -100]])
DELIMITER = " Answer:"
NUM_SLOTS = 4


def make(llm, kind, **options):
    return AnswerLM(llm, kind, NUM_SLOTS, DELIMITER, **options)


def score(model):
    batch = model.llm.encode(PROMPTS)
    carry = model.initial_carry(len(PROMPTS), batch["input_ids"].shape[1])
    return model(carry, **batch, labels=LABELS)


def train(model, num_steps, learning_rate):
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    losses = []
    for _ in range(num_steps):
        loss = score(model).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_bare_is_the_base_itself(llm):
    model = make(llm, "bare")
    assert model.llm is llm
    assert not trainable(model)
    tokens = model.generate(**llm.encode(PROMPTS))
    logits = score(model).logits
    for i, prompt in enumerate(PROMPTS):
        ids = llm.tokenizer(prompt + DELIMITER, return_tensors="pt")["input_ids"]
        greedy = llm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NUM_SLOTS,
            do_sample=False,
            pad_token_id=0,
        )
        assert until_end(tokens[i]) == until_end(greedy[0, ids.shape[1] :])
        torch.testing.assert_close(logits[i, 0], llm.model(ids).logits[0, -1], atol=1e-5, rtol=1e-5)


def test_lora_rank_is_the_smallest_that_is_enough(llm):
    per_rank = make(llm, "lora", min_parameters=1)
    per_rank = sum(p.numel() for p in trainable(per_rank).values())
    for wanted, rank in ((0, 1), (1, 1), (per_rank, 1), (per_rank + 1, 2), (3 * per_rank, 3)):
        assert lora_rank(llm.model, wanted) == rank
    model = make(llm, "lora", min_parameters=2 * per_rank - 1)
    assert sum(p.numel() for p in trainable(model).values()) == 2 * per_rank


def test_fresh_lora_is_the_bare_base_and_trains_only_lora_on_a_copy(llm):
    digest = llm.sha256()
    model, bare = make(llm, "lora", min_parameters=3000), make(llm, "bare")
    assert all("lora_" in name for name in trainable(model))
    assert not any("lora_" in name for name, _ in llm.named_parameters())
    assert torch.equal(score(model).logits, score(bare).logits)
    assert torch.equal(model.generate(**llm.encode(PROMPTS)), bare.generate(**llm.encode(PROMPTS)))
    own = {n: p.clone() for n, p in model.named_parameters() if "lora_" not in n}
    train(model, 2, 1e-2)
    assert llm.sha256() == digest
    assert all(torch.equal(p, own[n]) for n, p in model.named_parameters() if n in own)
    assert all(p.grad.abs().sum() > 0 for p in trainable(model).values())
    assert not torch.allclose(score(model).logits, score(bare).logits)


def test_lora_learns_from_its_pass_over_the_prompt_too(llm):
    model = make(llm, "lora", min_parameters=1)
    for name, parameter in trainable(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    carry, answer = model.initial_carry(1, 1), LABELS[:1]
    model(carry, **model.llm.encode(PROMPTS[:1]), labels=answer).loss.backward()
    cached = {name: p.grad.clone() for name, p in trainable(model).items()}
    model.zero_grad()
    start = model.llm.tokenizer(PROMPTS[0] + DELIMITER, return_tensors="pt")["input_ids"]
    logits = model.llm.model(torch.cat((start, answer[:, :-1]), dim=1)).logits
    answer_loss(logits[:, start.shape[1] - 1 :], answer).backward()
    for name, parameter in trainable(model).items():
        torch.testing.assert_close(cached[name], parameter.grad, atol=1e-5, rtol=1e-3)


def test_pause_slots_train_alone_and_change_the_output(llm):
    digest = llm.sha256()
    model = make(llm, "pause")
    assert {n: p.shape for n, p in trainable(model).items()} == {
        "pause": (NUM_SLOTS, llm.hidden_size)
    }
    assert not torch.allclose(score(model).logits, score(make(llm, "bare")).logits)
    before = score(model).logits
    train(model, 1, 1e-2)
    assert not torch.allclose(score(model).logits, before)
    assert llm.sha256() == digest


@pytest.mark.parametrize(("kind", "rate", "share"), [("lora", 1e-2, 0.3), ("pause", 0.1, 0.8)])
def test_controls_learn_four_examples(llm, kind, rate, share):
    losses = train(make(llm, kind, min_parameters=3000), 30, rate)
    assert losses[-1] < share * losses[0]


@pytest.mark.parametrize("kind", ["bare", "lora", "pause"])
def test_generation_follows_the_teacher_forced_logits(llm, kind):
    model = make(llm, kind, min_parameters=1)
    batch = llm.encode(PROMPTS)
    tokens = model.generate(**batch, max_new_tokens=5)
    forced = model(model.initial_carry(4, 1), **batch, labels=tokens).logits.argmax(dim=-1)
    for row, expected in zip(tokens, forced, strict=True):
        assert until_end(row) == expected.tolist()[: len(until_end(row))]


def test_loss_and_correctness_are_over_labelled_tokens(make_llm):
    output = score(make(make_llm(), "bare"))
    kept = LABELS >= 0
    picked = output.logits.log_softmax(-1).gather(-1, LABELS.clamp(min=0)[..., None])[..., 0]
    rows = -(picked * kept).sum(dim=1) / kept.sum(dim=1)
    torch.testing.assert_close(output.loss, rows.mean())
    assert output.correct.tolist() == [False] * 4


def test_an_example_counts_one_step_and_the_callers_carry_is_left_alone():
    carry = empty_carry(2)
    first = AnswerOutput(torch.zeros(()), torch.zeros(2, 1, 3), carry)
    assert first.carry.refinement_steps.tolist() == [1, 1]
    assert carry.refinement_steps.tolist() == [0, 0]
    assert carry.halted.all()
    first.carry.halted[0] = True
    second = AnswerOutput(torch.zeros(()), torch.zeros(2, 1, 3), first.carry)
    assert second.carry.refinement_steps.tolist() == [1, 2]
    assert second.correct.tolist() == [False, False]


def test_lora_trains_in_fp32_on_a_base_in_bf16(make_llm, save_llm, tmp_path):
    folder = save_llm(make_llm(), tmp_path / "base")
    llm = FrozenLLM.load(folder, dtype=torch.bfloat16)
    digest = llm.sha256()
    model = make(llm, "lora", min_parameters=1000)
    assert llm.embedding.dtype == model.llm.embedding.dtype == torch.bfloat16
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    losses = train(model, 30, 1e-2)
    assert losses[-1] < 0.5 * losses[0]
    assert model.generate(**llm.encode(PROMPTS)).shape[0] == len(PROMPTS)
    assert llm.sha256() == digest


def test_lora_leaves_the_vision_of_a_base_alone(make_llm):
    from transformers import AutoModelForCausalLM, Gemma3Config

    text = make_llm("gemma3")
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(
        text_config=text.model.config, vision_config=vision, mm_tokens_per_image=4
    )
    both = FrozenLLM(AutoModelForCausalLM.from_config(config), text.tokenizer, "both")
    assert any("vision" in name for name, _ in both.named_parameters())
    model, expected = (make(llm, "lora", min_parameters=5000) for llm in (both, text))
    assert not any("vision" in name for name in trainable(model))
    shapes = [[p.shape for p in trainable(m).values()] for m in (model, expected)]
    assert shapes[0] == shapes[1]
    score(model).loss.backward()
    assert all(p.grad is not None for p in trainable(model).values())
