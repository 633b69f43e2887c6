"""On a CUDA device: bf16 training in the real loop, the same answers as on the CPU, soft writer."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from latent_reason.config import LatentReasonerConfig, ReasonerConfig
from latent_reason.data.tasks import Example
from latent_reason.data.text import TextDataset
from latent_reason.latent_reasoner import LatentReasoner
from latent_reason.train_config import HaltConfig, TrainConfig
from latent_reason.training import Trainer

pytestmark = pytest.mark.gpu

EXAMPLES = [Example(f"copy: {a} {b}", f"{a} {b}") for a in range(4) for b in range(4)]
SMALL = ReasonerConfig(hidden_size=32, num_heads=2, L_cycles=1, H_cycles=1)


def make_model(make_llm, writer="head"):
    llm = make_llm("llama")
    config = LatentReasonerConfig(reasoner=SMALL, num_slots=8, writer=writer)
    return LatentReasoner(llm, config)


@pytest.mark.parametrize("writer", ["head", "soft"])
def test_trains_in_bf16_on_the_device(make_llm, tmp_path, writer):
    model = make_model(make_llm, writer)
    data = TextDataset.build(EXAMPLES, model.llm.tokenizer, 8)
    digest = model.llm.sha256()
    train = TrainConfig(
        max_steps=200,
        batch_size=16,
        learning_rate=3e-3,
        log_every=50,
        eval_every=200,
        save_every=200,
        halt=HaltConfig(halt_max_steps=2),
        through_base_from=0.5,
        precision="bf16",
    )
    losses = []
    values = {"val/exact_accuracy": 0.0, "val/accuracy": 0.0}
    trainer = Trainer(
        Accelerator(),
        model,
        data,
        train,
        tmp_path,
        lambda: values,
        lambda line: losses.append(line),
    )
    assert trainer.accelerator.device.type == "cuda"
    trainer.run()
    assert all(p.isfinite().all() for p in trainer.trainable)
    batch = {k: v.cuda() for k, v in data.batch(torch.arange(16)).items()}
    loss = model(**batch, refinement_steps=2, through_base=False).loss
    assert loss < 1.0  # four digits by chance: 1.4 nats on each of two tokens out of five
    assert model.llm.sha256() == digest


@pytest.mark.parametrize("writer", ["head", "soft"])
def test_gives_the_answers_of_the_cpu(make_llm, writer):
    model = make_model(make_llm, writer).eval()
    batch = model.llm.encode([example.prompt for example in EXAMPLES] + ["copy: 1"])
    here = model(**batch, refinement_steps=3)
    tokens = model.generate(**batch, refinement_steps=3)
    model.cuda()
    batch = {key: value.cuda() for key, value in batch.items()}
    there = model(**batch, refinement_steps=3)
    torch.testing.assert_close(there.slots.cpu(), here.slots, atol=1e-3, rtol=1e-3)
    assert torch.equal(model.generate(**batch, refinement_steps=3).cpu(), tokens)
