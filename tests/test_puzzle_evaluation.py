"""Evaluation of puzzle models: against a naive loop, by the halting head, by rule, by two."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tiny_runs import on_two_processes
from torch import Tensor, nn

from latent_reason.config import PuzzleModelConfig, ReasonerConfig
from latent_reason.data.puzzles import Puzzle, PuzzleDataset
from latent_reason.data.sudoku import Sudoku
from latent_reason.halting import Carry
from latent_reason.puzzles.evaluation import CONFIDENCES, PuzzleEvaluator, Sweep, refine, trace
from latent_reason.puzzles.model import PuzzleModel
from latent_reason.results import format_table

pytestmark = pytest.mark.usefixtures("one_process")
PUZZLE = Sudoku(2, 2)
NUM_ROWS, MAX_STEPS = 12, 5


def answers_after(model: PuzzleModel, questions: Tensor, steps: int) -> Tensor:
    """Return the most likely tokens after some refinement steps."""
    carry = model.initial_carry(*questions.shape)
    for _ in range(steps):
        output = model(carry, questions)
        carry = output.carry
    return output.logits.argmax(dim=-1)


@pytest.fixture
def model() -> PuzzleModel:
    """A model of which half of the puzzles stop at the first step."""
    reasoner = ReasonerConfig(
        hidden_size=16,
        num_heads=1,
        mixer="groups",
        positions="none",
        width_multiple=8,
        L_layers=1,
        L_cycles=1,
        H_cycles=1,
        residual_init="normal",
    )
    config = PuzzleModelConfig(
        reasoner=reasoner, vocab_size=6, num_cells=16, symbol_states=True, q_continue=True
    )
    model = PuzzleModel(config, PUZZLE.groups()).eval()
    nn.init.normal_(model.q_head.weight)
    questions, _ = PUZZLE.generate(NUM_ROWS, seed=0)
    with torch.no_grad():
        output = model(model.initial_carry(NUM_ROWS, 16), questions)
        gain = output.q_halt_logits - output.q_continue_logits
        model.q_head.bias[0] -= gain.sort().values[5:7].mean()
    return model


@pytest.fixture
def data(model: PuzzleModel) -> PuzzleDataset:
    """Puzzles of which the model knows a part: some labels are what it says, some are not asked."""
    questions, answers = PUZZLE.generate(NUM_ROWS, seed=0)
    answers[:5] = answers_after(model, questions, 2)[:5]
    answers[3:8] = answers[3:8].masked_fill(questions[3:8] > 1, 0)
    return PuzzleDataset(PUZZLE, questions, answers)


def evaluator(data: PuzzleDataset, **options: Any) -> PuzzleEvaluator:
    return PuzzleEvaluator(data, Accelerator(mixed_precision="no"), **options)


def naive_counts(model: PuzzleModel, data: PuzzleDataset, steps: list[int]) -> dict[str, Any]:
    """Answer row by row, one call after the other, and compare lists of tokens."""
    at = {step: [0, 0, 0, 0] for step in steps}
    valid, halted, used = dict.fromkeys(steps, 0), [0, 0, 0, 0], 0
    valid_halted, halted_at = 0, {}
    for row in range(len(data)):
        question = data.questions[row].long()
        labels = data.answers[row].tolist()
        carry, stopped = model.initial_carry(1, 16), False
        for step in range(1, max(steps) + 1):
            output = model(carry, question[None])
            carry = output.carry
            tokens = output.logits[0].argmax(dim=-1).tolist()
            hits = [a == b for a, b in zip(tokens, labels, strict=True) if b != 0]
            counts = [1, int(all(hits)), len(hits), sum(hits)]
            if step in at:
                at[step] = [a + b for a, b in zip(at[step], counts, strict=True)]
                valid[step] += not PUZZLE.conflicts(question.tolist(), tokens)
            used += not stopped
            stop = (output.q_halt_logits > output.q_continue_logits).item()
            if not stopped and (stop or step == max(steps)):
                halted = [a + b for a, b in zip(halted, counts, strict=True)]
                valid_halted += not PUZZLE.conflicts(question.tolist(), tokens)
                stopped = True
                if stop:
                    halted_at[step] = halted_at.get(step, 0) + 1
    return {
        "at": at,
        "valid": valid,
        "halted": halted,
        "valid_halted": valid_halted,
        "halted_at": halted_at,
        "mean_steps": used / len(data),
    }


def as_numbers(sweep: Sweep) -> dict[str, Any]:
    return {
        "at": {step: counter.counts() for step, counter in sweep.at.items()},
        "valid": sweep.valid,
        "halted": sweep.halted.counts(),
        "valid_halted": sweep.valid_halted,
        "halted_at": sweep.halted_at,
        "mean_steps": sweep.mean_steps,
    }


def test_a_sweep_agrees_with_a_naive_loop(model: PuzzleModel, data: PuzzleDataset) -> None:
    sweep = evaluator(data, batch_size=5).sweep(model.train(), [MAX_STEPS, 1, 2])
    assert not model.training
    assert list(sweep.at) == [1, 2, MAX_STEPS]
    assert as_numbers(sweep) == naive_counts(model, data, [1, 2, MAX_STEPS])
    assert sweep.at[2].num_exact >= 5
    assert sweep.at[1].num_exact < NUM_ROWS
    assert 1 < sweep.mean_steps < MAX_STEPS, "all stop at the same step"
    assert sweep.halted.counts() not in [counter.counts() for counter in sweep.at.values()]
    once = evaluator(data).sweep(model, [1])
    assert as_numbers(once) == naive_counts(model, data, [1])
    assert 0 < once.halted_at[1] < NUM_ROWS, "the head stops all of them or none"


def test_halting_at_once_and_never(model: PuzzleModel, data: PuzzleDataset) -> None:
    for bias, steps in ((1e4, 1), (-1e4, 4)):
        nn.init.constant_(model.q_head.bias, 0.0)
        with torch.no_grad():
            model.q_head.bias[0] = bias
        sweep = evaluator(data).sweep(model, [1, 4])
        assert sweep.mean_steps == steps
        assert sweep.halted.counts() == sweep.at[steps].counts()
        assert sweep.halted_at == ({1: NUM_ROWS} if steps == 1 else {})


@pytest.mark.parametrize("shift", [-6.0, -1.0, 0.0, 2.0, 6.0])
def test_the_confidence_is_the_lowest_that_costs_nothing(model: PuzzleModel, shift: float) -> None:
    questions, _ = PUZZLE.generate(NUM_ROWS, seed=0)
    data = PuzzleDataset(PUZZLE, questions, answers_after(model, questions, MAX_STEPS))
    with torch.no_grad():
        model.q_head.bias[0] += shift

    def right_at(confidence: float) -> int:
        config = dataclasses.replace(model.config, q_continue=False, halt_confidence=confidence)
        model.config = config
        return evaluator(data).sweep(model, [MAX_STEPS]).halted.num_exact

    good = [confidence for confidence in CONFIDENCES if right_at(confidence) == NUM_ROWS]
    chosen = evaluator(data, batch_size=5).choose_confidence(model, MAX_STEPS)
    assert chosen == (good[0] if good else CONFIDENCES[-1])


def test_batches_do_not_change_the_counts(model: PuzzleModel, data: PuzzleDataset) -> None:
    expected = as_numbers(evaluator(data).sweep(model, [1, 3]))
    for batch_size in (1, 4, NUM_ROWS):
        assert as_numbers(evaluator(data, batch_size=batch_size).sweep(model, [3, 1])) == expected


# The rule


class Reciter(nn.Module):
    """A model that knows a grid for each puzzle by its identifier, and never stops."""

    def __init__(self, tokens: Tensor, vocab_size: int) -> None:
        super().__init__()
        self.logits = nn.functional.one_hot(tokens, vocab_size).float()
        self.autocast: list[bool] = []

    def initial_carry(self, num: int, num_tokens: int) -> Carry:
        zeros = torch.zeros(num, 1, 1)
        return Carry(zeros, zeros, torch.zeros(num), torch.ones(num).bool())

    def forward(self, carry: Carry, inputs: Tensor, puzzle_identifiers: Tensor) -> Any:
        assert not torch.is_grad_enabled()
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        stop = torch.zeros(len(inputs), dtype=torch.bool)
        return SimpleNamespace(logits=self.logits[puzzle_identifiers], carry=carry, stop=stop)


def reciter(tokens: Tensor, vocab_size: int = 6) -> Any:
    return Reciter(tokens, vocab_size)


def test_another_solution_is_valid_and_not_exact() -> None:
    _, solutions = PUZZLE.generate(3, seed=0)
    open_grids = torch.ones_like(solutions)  # every grid without conflicts solves them
    data = PuzzleDataset(PUZZLE, open_grids, solutions, puzzle_identifiers=torch.arange(3))
    other = solutions.where(solutions < 4, 9 - solutions)  # tokens 4 and 5 change places
    other[2, 0] = other[2, 1]
    for batch_size in (1, 3):
        sweep = evaluator(data, batch_size=batch_size).sweep(reciter(other), [1])
        assert sweep.at[1].num_exact == 0
        assert sweep.valid == {1: 2}
        rows = sweep.rows("reciter", task="open", split="test")
        assert [row["valid_accuracy"] for row in rows] == [2 / 3, 2 / 3]
        assert rows[1]["halted_at"] == [] and rows[1]["mean_refinement_steps"] == 1
        assert format_table(rows).count("66.7") == 2
    rows = evaluator(data).sweep(reciter(solutions), [1]).rows("reciter", task="o", split="test")
    assert [row["valid_accuracy"] for row in rows] == [1.0, 1.0]
    assert "valid %" not in format_table(rows)


class Wanderer(Reciter):
    """Finds the answer to puzzle 0 in step 1 and loses it again; that to puzzle 1 in step 2."""

    def forward(self, carry: Carry, inputs: Tensor, puzzle_identifiers: Tensor) -> Any:
        step = int(carry.refinement_steps[0])
        right = puzzle_identifiers == step
        logits = torch.where(right[:, None, None], self.logits, self.logits.roll(1, dims=2))
        sure = torch.where(right, 0.97, 0.55).logit()
        carry = dataclasses.replace(carry, refinement_steps=carry.refinement_steps + 1)
        return SimpleNamespace(logits=logits, carry=carry, q_halt_logits=sure)


def test_the_confidence_keeps_answers_that_more_steps_lose() -> None:
    questions, answers = PUZZLE.generate(2, seed=0)
    data = PuzzleDataset(PUZZLE, questions, answers, puzzle_identifiers=torch.arange(2))
    model: Any = Wanderer(answers, 6)
    assert evaluator(data).choose_confidence(model, 2) == 0.6  # 0.5 stops puzzle 1 too early


class Plain(Puzzle):
    """A puzzle that states neither rule nor symmetry."""

    name, height, width, alphabet = "plain", 1, 3, "ab"


def test_a_puzzle_without_a_rule_has_no_valid_accuracy() -> None:
    grids = torch.tensor([[1, 2, 1], [2, 2, 1]])
    data = PuzzleDataset(Plain(), grids, grids, puzzle_identifiers=torch.arange(2))
    sweep = evaluator(data).sweep(reciter(grids, 3), [1, 2])
    assert sweep.at[2].num_exact == 2
    assert sweep.valid == {} and sweep.valid_halted is None
    assert not any("valid_accuracy" in row for row in sweep.rows("plain"))


@pytest.mark.parametrize("bf16", [False, True])
def test_precision_is_that_of_the_evaluator(bf16: bool) -> None:
    grids = torch.tensor([[1, 2, 1], [2, 2, 1]])
    model = reciter(grids, 3)
    evaluator(PuzzleDataset(Plain(), grids, grids), bf16=bf16).sweep(model, [2])
    assert model.autocast == [bf16, bf16]


# Traces


def test_refine_goes_on_from_step_to_step(model: PuzzleModel, data: PuzzleDataset) -> None:
    batch = data.batch(torch.arange(4))
    outputs = list(refine(model, batch, 3))
    assert [output.carry.refinement_steps.tolist() for output in outputs] == [
        [1] * 4,
        [2] * 4,
        [3] * 4,
    ]
    for step, output in enumerate(outputs, start=1):
        assert not output.logits.requires_grad
        expected = answers_after(model, batch["inputs"], step)
        assert torch.equal(output.logits.argmax(dim=-1), expected)


def test_a_trace_tells_how_answers_grow(model: PuzzleModel, data: PuzzleDataset) -> None:
    data.answers[3:8] = PUZZLE.generate(NUM_ROWS, seed=0)[1][3:8].to(torch.uint8)
    samples = trace(model, data, 30, [4, 2])
    assert json.loads(json.dumps(samples, allow_nan=False)) == samples
    assert len(samples) == NUM_ROWS and len(trace(model, data, 3, [1])) == 3
    right = 0
    for row, sample in enumerate(samples):
        assert sample.keys() == {"prompt", "answer", "steps"}
        assert PUZZLE.parse(sample["prompt"]) == data.questions[row].tolist()
        assert PUZZLE.parse(sample["answer"]) == data.answers[row].tolist()
        assert [step["refinement_steps"] for step in sample["steps"]] == [2, 4]
        for step in sample["steps"]:
            tokens = answers_after(
                model, data.questions[row : row + 1].long(), step["refinement_steps"]
            )
            assert PUZZLE.parse(step["text"]) == tokens[0].tolist()
            assert step["correct"] == (step["text"] == sample["answer"])
            assert 0 <= step["q_halt"] <= 1
        right += sample["steps"][0]["correct"]
    assert right == evaluator(data).sweep(model, [2]).at[2].num_exact >= 3


def test_what_is_not_asked_is_no_mistake_in_a_trace(
    model: PuzzleModel, data: PuzzleDataset
) -> None:
    questions = data.questions[:3]
    answers = answers_after(model, questions.long(), 2)
    wrong = answers.clone()
    wrong[:, 3] = 1 + answers[:, 3] % 4
    for given, correct in ((wrong, False), (wrong.index_fill(1, torch.tensor([3]), 0), True)):
        samples = trace(model, PuzzleDataset(PUZZLE, questions, given), 3, [2])
        assert [sample["steps"][0]["correct"] for sample in samples] == [correct] * 3


# Two processes


def sweep_on_two(model: PuzzleModel, data: PuzzleDataset, folder: Path) -> None:
    found = evaluator(data, batch_size=4)
    assert found.accelerator.num_processes == 2
    numbers = as_numbers(found.sweep(model, [1, 3]))
    (folder / str(found.accelerator.process_index)).write_text(json.dumps(numbers))


@pytest.mark.parametrize("num_rows", [11, 1])
def test_two_processes_count_the_same_integers(
    model: PuzzleModel, data: PuzzleDataset, tmp_path: Path, num_rows: int
) -> None:
    part = data.subset(torch.arange(num_rows))
    expected = json.loads(json.dumps(as_numbers(evaluator(part).sweep(model, [1, 3]))))
    assert expected["at"]["1"][0] == num_rows
    on_two_processes(sweep_on_two, model, part, tmp_path)
    for rank in ("0", "1"):
        assert json.loads((tmp_path / rank).read_text()) == expected
