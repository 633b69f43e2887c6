"""Evaluation against a naive loop, on two processes, and with slots that carry the answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tiny_runs import MODEL, NUM_SLOTS, make_data, on_two_processes, train_once

from latent_reason.controls import AnswerLM
from latent_reason.data.features import StateCache
from latent_reason.data.text import TextDataset
from latent_reason.evaluation import Evaluator, count, trace
from latent_reason.latent_reasoner import LatentReasoner
from latent_reason.llm import FrozenLLM
from latent_reason.metrics import AccuracyCounter
from latent_reason.prompts import PromptStates

pytestmark = pytest.mark.usefixtures("one_process")
NUM_ROWS = 12


@pytest.fixture
def base(make_llm: Callable[..., FrozenLLM]) -> FrozenLLM:
    return make_llm()


@pytest.fixture
def trained(base: FrozenLLM, tmp_path_factory: pytest.TempPathFactory) -> LatentReasoner:
    """A reasoner that knows the first half of the rows by heart."""
    return train_once(base, tmp_path_factory.getbasetemp())


def soft_reasoner(base: FrozenLLM) -> LatentReasoner:
    torch.manual_seed(1)
    return LatentReasoner(base, replace(MODEL, writer="soft")).eval()


def evaluator(data: Any, **options: Any) -> Evaluator:
    return Evaluator(data, Accelerator(mixed_precision="no"), **options)


def as_labels(tokens: torch.Tensor, eos: int) -> torch.Tensor:
    """Turn generated tokens into labels: up to the first end token."""
    ended = (tokens == eos).long().cumsum(dim=1) - (tokens == eos).long()
    labels = tokens.masked_fill(ended > 0, -100)
    return torch.nn.functional.pad(labels, (0, NUM_SLOTS - tokens.shape[1]), value=-100)


def naive_counts(model: LatentReasoner, data: TextDataset, steps: int) -> list[int]:
    """Answer row by row, unpadded, by the model's own generate; compare lists of tokens."""
    counts = [0, 0, 0, 0]
    for row in range(len(data)):
        prompt = data.input_ids[row][data.attention_mask[row].bool()][None]
        expected = [token for token in data.labels[row].tolist() if token != -100]
        tokens = model.generate(prompt, refinement_steps=steps)[0].tolist()
        hits = [a == b for a, b in zip(tokens, expected, strict=False)]
        counts[0] += 1
        counts[1] += sum(hits) == len(expected)
        counts[2] += len(expected)
        counts[3] += sum(hits)
    return counts


def test_steps_agree_with_a_naive_loop(trained: LatentReasoner, base: FrozenLLM) -> None:
    data = make_data(base, NUM_ROWS)
    before = base.num_prompts
    counters = evaluator(data, batch_size=5).by_refinement_steps(trained, [6, 1, 3])
    assert base.num_prompts - before == NUM_ROWS
    assert list(counters) == [1, 3, 6]
    counts = {steps: counter.counts() for steps, counter in counters.items()}
    assert counts == {steps: naive_counts(trained, data, steps) for steps in (1, 3, 6)}
    assert 3 <= counters[3].num_exact < NUM_ROWS


def test_steps_of_writer_soft_agree_with_a_naive_loop(base: FrozenLLM) -> None:
    data, model = make_data(base, 6), soft_reasoner(base)
    # Answers that the base does give, so that something is right.
    tokens = model.generate(data.input_ids, data.attention_mask, refinement_steps=2)
    data.labels = as_labels(tokens, base.eos_token_id)
    counters = evaluator(data, batch_size=4).by_refinement_steps(model, [1, 2])
    assert counters[2].num_exact == 6
    assert {n: c.counts() for n, c in counters.items()} == {
        n: naive_counts(model, data, n) for n in (1, 2)
    }


def test_cached_states_give_the_same_counts(
    trained: LatentReasoner, base: FrozenLLM, tmp_path: Path
) -> None:
    data = make_data(base, NUM_ROWS)
    cache = StateCache(data, base, MODEL.read_layers, tmp_path / "states")
    before = base.num_prompts
    counts = evaluator(cache).by_refinement_steps(trained, [3])[3].counts()
    assert base.num_prompts == before
    assert counts == evaluator(data).by_refinement_steps(trained, [3])[3].counts()


def test_halting_stops_each_example_at_its_own_step(
    trained: LatentReasoner, base: FrozenLLM
) -> None:
    data = make_data(base, NUM_ROWS)
    logits = trained(input_ids=data.input_ids, attention_mask=data.attention_mask).q_halt_logits
    # Half of the examples stop at the first step.
    with torch.no_grad():
        trained.core.q_head.bias -= logits.sort().values[5:7].mean()
    counter, mean_steps = evaluator(data, batch_size=5).by_halting(trained, limit=4)
    counts, used = [0, 0, 0, 0], 0
    for row in range(NUM_ROWS):
        batch = {key: value[row : row + 1] for key, value in data.batch(torch.arange(12)).items()}
        labels = batch.pop("labels")
        carry = None
        for step in range(1, 5):
            output = trained(**batch, carry=carry)
            carry = output.carry
            if output.q_halt_logits.item() > 0 or step == 4:
                break
        used += step
        single = AccuracyCounter()
        count(single, trained.generate(**batch, refinement_steps=step), labels)
        counts = [a + b for a, b in zip(counts, single.counts(), strict=True)]
    assert counter.counts() == counts
    assert mean_steps == used / NUM_ROWS
    assert 1 < mean_steps < 4


class Reciter(torch.nn.Module):
    """A model whose slots are the answer itself, and which writes what the slots say."""

    def __init__(self, llm: FrozenLLM, data: TextDataset, listens: bool) -> None:
        super().__init__()
        self.llm, self.data, self.config, self.listens = llm, data, MODEL, listens
        self.thinking = LatentReasoner(llm, MODEL).eval()

    def answers_to(self, states: torch.Tensor) -> torch.Tensor:
        known = self.llm.read(self.data.input_ids, self.data.attention_mask, MODEL.read_layers)
        rows = torch.cdist(states.flatten(1), known.states.flatten(1)).argmin(dim=1)
        return self.data.labels[rows].clamp(min=0)

    def think(self, prompt: PromptStates) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _, q_halt_logits in self.thinking.think(prompt):
            yield self.answers_to(prompt.states)[..., None].float(), q_halt_logits

    def write(self, prompt: Any, slots: torch.Tensor | None) -> torch.Tensor:
        if not self.listens or slots is None:
            return torch.zeros(len(prompt.states), NUM_SLOTS, dtype=torch.long)
        return slots[..., 0].round().long()


@pytest.mark.parametrize("listens", [True, False])
def test_slots_that_carry_the_answer_are_told_from_others(base: FrozenLLM, listens: bool) -> None:
    data = make_data(base, NUM_ROWS)
    model: Any = Reciter(base, data, listens)
    counters = evaluator(data, batch_size=5).by_slots(model, 2)
    exact = {name: counter.num_exact for name, counter in counters.items()}
    own = NUM_ROWS if listens else 0
    assert exact == {"own slots": own, "shuffled slots": 0, "mean slots": 0, "no slots": 0}
    accuracies = {counter.accuracy for counter in counters.values()}
    assert (len(accuracies) == 1) != listens


def test_own_slots_are_the_row_of_the_same_depth(trained: LatentReasoner, base: FrozenLLM) -> None:
    """Shuffled slots are really those of the row before, across the edge of a batch too."""
    data = make_data(base, NUM_ROWS)
    counters = evaluator(data, batch_size=5).by_slots(trained, 3)
    by_steps = evaluator(data).by_refinement_steps(trained, [3])[3]
    assert counters["own slots"].counts() == by_steps.counts()
    moved = replace(data, labels=data.labels.roll(-1, dims=0))
    expected = evaluator(moved).by_refinement_steps(trained, [3])[3]
    assert counters["shuffled slots"].counts() == expected.counts()


def test_the_bare_base_is_counted(base: FrozenLLM) -> None:
    data = make_data(base, 7)
    model = AnswerLM(base, "bare", NUM_SLOTS, " Answer:")
    tokens = model.generate(data.input_ids, data.attention_mask)
    data.labels = as_labels(tokens, base.eos_token_id)
    data.labels[2, 0] = (data.labels[2, 0] + 1) % 60
    counter = evaluator(data, batch_size=3).by_base(model)
    assert (counter.num_examples, counter.num_exact) == (7, 6)
    assert counter.num_cells - counter.num_correct_cells == 1


def test_short_generations_are_wrong_where_tokens_are_missing() -> None:
    counter = AccuracyCounter()
    labels = torch.tensor([[5, 6, 0, -100], [5, 0, -100, -100]])
    count(counter, torch.tensor([[5, 6], [5, 0]]), labels)
    assert counter.counts() == [2, 1, 5, 4]


def test_a_trace_tells_how_answers_grow(trained: LatentReasoner, base: FrozenLLM) -> None:
    data = make_data(base, NUM_ROWS)
    samples = trace(trained, data, 30, [4, 1, 2])
    assert json.loads(json.dumps(samples, allow_nan=False)) == samples
    assert [sample["prompt"] for sample in samples] == [e.prompt for e in data.examples]
    right = 0
    for sample, example in zip(samples, data.examples, strict=True):
        assert sample.keys() == {"prompt", "answer", "steps"}
        assert sample["answer"] == example.answer
        assert [step["refinement_steps"] for step in sample["steps"]] == [1, 2, 4]
        for step in sample["steps"]:
            steps = step["refinement_steps"]
            assert step["text"] == trained.answer(example.prompt, refinement_steps=steps)[0]
            assert step["correct"] == (step["text"] == example.answer)
            assert 0 < step["q_halt"] < 1
        right += sample["steps"][-1]["correct"]
    counters = evaluator(data).by_refinement_steps(trained, [4])
    assert right >= counters[4].num_exact >= 3
    assert len(trace(trained, data, 3, [1])) == 3


def evaluate_97_rows(model: LatentReasoner) -> dict[str, Any]:
    data = make_data(model.llm, 97)
    own = evaluator(data, batch_size=20)
    steps = own.by_refinement_steps(model, [1, 3])
    halting, mean_steps = own.by_halting(model, 4)
    bare = AnswerLM(model.llm, "bare", NUM_SLOTS, " Answer:")
    return {
        "steps": [counter.counts() for counter in steps.values()],
        "slots": [counter.counts() for counter in own.by_slots(model, 2).values()],
        "halting": [*halting.counts(), mean_steps],
        "base": own.by_base(bare).counts(),
    }


def evaluate_on_two(model: LatentReasoner, path: Path, num_rows: int) -> None:
    assert Accelerator(mixed_precision="no").num_processes == 2
    if num_rows == 1:
        data = make_data(model.llm, 1)
        found: Any = evaluator(data).by_refinement_steps(model, [1])[1].counts()
    else:
        found = evaluate_97_rows(model)
    path.with_suffix(f".{Accelerator().process_index}").write_text(json.dumps(found))


def test_two_processes_count_the_same_integers(trained: LatentReasoner, tmp_path: Path) -> None:
    expected = evaluate_97_rows(trained)
    assert expected["steps"][0][0] == 97
    on_two_processes(evaluate_on_two, trained, tmp_path / "found", 97)
    for rank in (0, 1):
        assert json.loads((tmp_path / f"found.{rank}").read_text()) == expected


def test_more_processes_than_rows(trained: LatentReasoner, tmp_path: Path) -> None:
    expected = evaluator(make_data(trained.llm, 1)).by_refinement_steps(trained, [1])[1].counts()
    on_two_processes(evaluate_on_two, trained, tmp_path / "found", 1)
    for rank in (0, 1):
        assert json.loads((tmp_path / f"found.{rank}").read_text()) == expected
