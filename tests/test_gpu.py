"""On a CUDA device: training in the real loop, the same answers and the same data as on the CPU."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from arc_tasks import make_task
from tiny_runs import PUZZLE_MODEL, make_puzzle_trainer, make_puzzles, read_lines

from latent_reason.config import LatentReasonerConfig, ReasonerConfig
from latent_reason.data.arc import ArcDataset
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


# Puzzles

TRM_MLP = replace(
    PUZZLE_MODEL,
    reasoner=replace(PUZZLE_MODEL.reasoner, mixer="mlp", positions="none", residual_init="normal"),
    loss="stablemax",
)


def train_and_resume(folder):
    """Train ten compiled steps as the originals do and ten more from the checkpoint."""
    settings = {
        "model_config": TRM_MLP,
        "optimizer": "adam_atan2",
        "grad_clip": None,
        "precision": "bf16",
        "compile": True,
        "max_steps": 20,
    }
    first = make_puzzle_trainer(folder, **settings)
    for _ in range(10):
        first.train_step()
    first.save()
    trainer = make_puzzle_trainer(folder, **settings)
    assert trainer.resume() and trainer.step == 10
    for ours, theirs in zip(trainer.model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert trainer.run() == 0 and trainer.step == 20
    return trainer


@pytest.mark.usefixtures("one_process")
def test_a_model_with_a_table_trains_compiled_in_bf16_and_resumes(tmp_path):
    trainer = train_and_resume(tmp_path)
    assert trainer.accelerator.device.type == "cuda" and trainer.bf16
    lines = read_lines(tmp_path / "metrics.jsonl")
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses and all(map(math.isfinite, losses))
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    (table,) = trainer.tables
    assert table.device.type == "cuda" and (table != 0).any()
    assert [line["step"] for line in lines if "val/accuracy" in line][-1] == 20


def make_arc():
    tasks = [make_task(name) for name in ("a", "b", "c")]
    return ArcDataset(tasks[:2], tasks[2:], num_augmentations=5, seed=0)


def make_sudoku(hints=0.0):
    data = make_puzzles()
    data.hints = hints
    return data


def make_hinted():
    return make_sudoku(hints=0.5)


def assert_same_batch(make_data, device):
    positions = torch.arange(0, 300, 7)
    here = make_data().at(positions, seed=3)
    there = make_data().to(device).at(positions.to(device), seed=3)
    assert there.keys() == here.keys()
    for name, tensor in there.items():
        assert tensor.device.type == device, name
        assert torch.equal(tensor.cpu(), here[name]), name


@pytest.mark.parametrize("make_data", [make_sudoku, make_hinted, make_arc])
def test_data_is_the_same_as_on_the_cpu(make_data):
    assert_same_batch(make_data, "cuda")
