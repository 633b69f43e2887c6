"""Sorting and state tracking against plain Python."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latent_reason.data.grid_tasks import Sorting, StateTracking
from latent_reason.data.order import Draws
from latent_reason.data.puzzle_splits import SPLITS
from latent_reason.data.puzzles import PuzzleDataset
from latent_reason.errors import ConfigError, DataError

PUZZLES = [Sorting(6), StateTracking(5, 3), StateTracking(4, 5)]
SEEDS = st.integers(0, 2**32 - 1)


def answer_by_hand(puzzle: Sorting | StateTracking, question: list[int]) -> list[int]:
    if isinstance(puzzle, Sorting):
        return sorted(question)
    num_objects = {6: 3, 120: 5}[len(puzzle.alphabet)]
    orders = list(permutations(range(num_objects)))
    state, answer = list(range(num_objects)), []
    for token in question:
        state = [state[place] for place in orders[token - 1]]
        answer.append(orders.index(tuple(state)) + 1)
    return answer


@pytest.fixture(params=PUZZLES, ids=lambda puzzle: f"{puzzle.name}{puzzle.num_cells}")
def puzzle(request: pytest.FixtureRequest) -> Sorting | StateTracking:
    return request.param


@pytest.mark.parametrize("split", SPLITS)
def test_generated_answers_are_right(puzzle: Sorting | StateTracking, split: str) -> None:
    questions, answers = puzzle.generate(40, seed=1, split=split)
    assert questions.shape == answers.shape == (40, puzzle.num_cells)
    assert questions.min() >= 1 and questions.max() < puzzle.vocab_size
    assert puzzle.valid(questions, answers).all()
    for question, answer in zip(questions.tolist(), answers.tolist(), strict=True):
        assert answer == answer_by_hand(puzzle, question)
        assert puzzle.conflicts(question, answer) == []
        assert puzzle.parse(puzzle.format(question)) == question


@given(st.sampled_from(PUZZLES), st.data())
def test_changed_answers_are_wrong(puzzle: Sorting | StateTracking, data: st.DataObject) -> None:
    tokens = st.integers(1, puzzle.vocab_size - 1)
    question = data.draw(st.lists(tokens, min_size=puzzle.num_cells, max_size=puzzle.num_cells))
    answer = answer_by_hand(puzzle, question)
    cell = data.draw(st.integers(0, puzzle.num_cells - 1))
    answer[cell] = data.draw(st.integers(0, puzzle.vocab_size - 1))
    right = answer == answer_by_hand(puzzle, question)
    assert puzzle.valid(torch.tensor([question]), torch.tensor([answer])).tolist() == [right]
    assert (puzzle.conflicts(question, answer) == []) == right


@given(st.sampled_from(PUZZLES), SEEDS)
def test_symmetry_turns_answers_into_answers(puzzle: Sorting | StateTracking, seed: int) -> None:
    draws = Draws(torch.arange(32), seed)
    questions = draws.bits(puzzle.num_cells).remainder(len(puzzle.alphabet)) + 1
    answers = torch.tensor([answer_by_hand(puzzle, question) for question in questions.tolist()])
    symmetry = puzzle.symmetry(draws)
    turned = symmetry.apply(questions)
    assert torch.equal(symmetry.inverse().apply(turned), questions)
    want = [answer_by_hand(puzzle, question) for question in turned.tolist()]
    assert symmetry.apply(answers).tolist() == want
    assert torch.equal(puzzle.fingerprints(turned), puzzle.fingerprints(questions))


@pytest.mark.parametrize(("puzzle", "num"), [(Sorting(6), 2), (StateTracking(5, 3), 6)])
def test_all_symmetries_come(puzzle: Sorting | StateTracking, num: int) -> None:
    symmetry = puzzle.symmetry(Draws(torch.arange(300), 0))
    both = torch.cat((symmetry.cells, symmetry.symbols), dim=1)
    assert len(both.unique(dim=0)) == num
    assert (symmetry.symbols[:, 0] == 0).all()


def test_splits_are_the_same_each_time_and_share_nothing(puzzle: Sorting | StateTracking) -> None:
    owners = {}
    for split in SPLITS:
        questions, _ = puzzle.generate(60, seed=2, split=split)
        assert torch.equal(questions[:20], puzzle.generate(20, seed=2, split=split)[0])
        others, _ = puzzle.generate(60, seed=3, split=split)
        assert not torch.equal(questions, others)
        assert len(puzzle.fingerprints(questions).unique()) == 60
        owners[split] = set(puzzle.fingerprints(torch.cat((questions, others))).tolist())
    assert not owners["train"] & owners["val"]
    assert not owners["train"] & owners["test"]
    assert not owners["val"] & owners["test"]


def test_dataset_draws_symmetries(puzzle: Sorting | StateTracking) -> None:
    data = PuzzleDataset(puzzle, *puzzle.generate(8, seed=0))
    batch = data.at(torch.arange(64), seed=1)
    assert puzzle.valid(batch["inputs"], batch["labels"]).all()
    assert len(batch["inputs"].unique(dim=0)) > 8


def test_conflicts_name_what_is_wrong() -> None:
    assert Sorting(4).conflicts([4, 3, 2, 2], [2, 4, 3, 3]) == [
        "digit 1 comes 1 times, not 2",
        "digit 2 comes 2 times, not 1",
        "cell 3 is less than the one before",
    ]
    assert StateTracking(3, 3).conflicts([1, 1, 2], [1, 2, 2]) == [
        "the arrangement after move 2 is wrong"
    ]


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_digits: got 1"):
        Sorting(1)
    with pytest.raises(ConfigError, match="num_moves: got 1"):
        StateTracking(1)
    with pytest.raises(ConfigError, match="num_objects: got 6"):
        StateTracking(8, 6)
    with pytest.raises(ConfigError, match="split: got 'dev'"):
        Sorting(4).generate(1, seed=0, split="dev")
    with pytest.raises(DataError, match="different puzzles for split 'val', not 99"):
        Sorting(2).generate(99, seed=0, split="val")
