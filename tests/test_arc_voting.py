"""ARC by votes: what a perfect and a broken predictor score, ranking, and the submission."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from arc_tasks import FOLDER, make_task, official
from torch import Tensor

from latent_reason.data.arc import ArcDataset
from latent_reason.data.arc_canvas import crop
from latent_reason.data.arc_files import ArcPair, ArcTask, read_arc
from latent_reason.errors import ConfigError, DataError
from latent_reason.puzzles.arc_voting import ArcVotes, evaluation_batches

EVALUATION = [make_task("c", 2, 2), make_task("d", 3, 1), make_task("e", 2, 3)]


def make_dataset(evaluation: list[ArcTask] = EVALUATION, num_augmentations: int = 6) -> ArcDataset:
    return ArcDataset([make_task("a"), make_task("b")], evaluation, num_augmentations, seed=1)


def vote(dataset: ArcDataset, predict, num_augmentations: int = 6) -> ArcVotes:
    """Votes of a predictor: a function of the batch that returns tokens."""
    votes = ArcVotes(dataset)
    for tests, batch in evaluation_batches(dataset, num_augmentations, batch_size=7):
        logits = torch.linspace(-3, 3, len(tests))
        votes.add(tests, batch["puzzle_identifiers"], predict(batch), logits)
    return votes


def perfect(batch: dict[str, Tensor]) -> Tensor:
    return batch["labels"].clamp(min=0)


def place_at_corner(rows: list[list[int]]) -> Tensor:
    canvas = torch.zeros(30, 30, dtype=torch.long)
    grid = torch.tensor(rows)
    canvas[: grid.shape[0], : grid.shape[1]] = grid + 2
    return canvas.flatten()


def test_a_perfect_predictor_scores_everything_at_the_first_try():
    dataset = make_dataset()
    votes = vote(dataset, perfect)
    assert votes.pass_at(1) == votes.pass_at(2) == 1.0
    for test in range(6):
        (candidate,) = votes.ranked(test)  # every augmentation undone gives the same grid
        assert candidate.num_votes == 7 and 0 < candidate.confidence < 1


BROKEN = {
    "padding": lambda batch: torch.zeros_like(batch["inputs"]),
    "borders": lambda batch: torch.ones_like(batch["inputs"]),
    "ignored": lambda batch: torch.full_like(batch["inputs"], -100),
    "too_large": lambda batch: torch.full_like(batch["inputs"], 12),
    "noise": lambda batch: torch.randint_like(batch["inputs"], 0, 12),
    "question": lambda batch: batch["inputs"],
    "full": lambda batch: torch.full_like(batch["inputs"], 5),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_predictor_scores_nothing_and_still_submits(name, tmp_path):
    votes = vote(make_dataset(), BROKEN[name])
    assert votes.pass_at(1) == votes.pass_at(1000) == 0.0
    votes.write_submission(tmp_path / "submission.json")
    assert set(json.loads((tmp_path / "submission.json").read_text())) == {"c", "d", "e"}


def test_batches_hold_every_test_under_every_augmentation_once():
    dataset = make_dataset()
    seen = []
    for tests, batch in evaluation_batches(dataset, 3, batch_size=5):
        for index, test in enumerate(tests.tolist()):
            task, number = dataset.tests[test]
            identifier = int(batch["puzzle_identifiers"][index])
            seen.append((test, (identifier - 1) % 7))
            assert (identifier - 1) // 7 == task
            pair, undo = dataset.tasks[task].test[number], dataset.symmetry(identifier).inverse()
            for side, grid in (("inputs", pair.input), ("labels", pair.output)):
                shown = crop(batch[side][index])
                assert shown is not None and np.array_equal(undo.apply(shown), grid)
    assert sorted(seen) == [(test, k) for test in range(6) for k in range(4)]
    assert [k for _, k in seen] == sorted(k for _, k in seen)  # whole rounds, identity first


def test_augmentations_that_were_not_trained_are_refused():
    with pytest.raises(ConfigError, match="votes: got 7, expected 0 to the model's 6"):
        next(evaluation_batches(make_dataset(), 7, batch_size=5))
    assert list(evaluation_batches(make_dataset([]), 6, batch_size=5)) == []


def ranking(predictions: list[tuple[list[list[int]], float]]) -> list[list[list[int]]]:
    """The ranked grids of one test for predictions (grid, q_halt_logit)."""
    dataset = make_dataset()
    votes = ArcVotes(dataset)
    own = torch.full((len(predictions),), 1 + dataset.tests[0][0] * 7)
    tokens = torch.stack([place_at_corner(rows) for rows, _ in predictions])
    logits = torch.tensor([logit for _, logit in predictions])
    votes.add(torch.zeros(len(predictions), dtype=torch.long), own, tokens, logits)
    return [candidate.grid.tolist() for candidate in votes.ranked(0)]


def test_grids_are_ranked_by_votes_then_by_mean_confidence():
    sure, often, tied = [[1, 2]], [[3]], [[4], [4]]
    order = ranking([(sure, 9.0), (tied, 2.0), (often, -5.0), (tied, 1.0), (often, -4.0)])
    assert order == [tied, often, sure]
    assert ranking([(sure, float("nan")), (often, -9.0)]) == [often, sure]
    assert ranking([(often, 1.0), (sure, 1.0)]) == ranking([(sure, 1.0), (often, 1.0)])


def test_two_tries_and_a_share_of_each_task():
    dataset = make_dataset()
    votes = ArcVotes(dataset)

    def add(test: int, rows: list[list[int]], num: int) -> None:
        identifier = 1 + dataset.tests[test][0] * 7
        tests, own = torch.full((num,), test), torch.full((num,), identifier)
        votes.add(tests, own, place_at_corner(rows).expand(num, -1), torch.zeros(num))

    def answer(test: int) -> list[list[int]]:
        task, number = dataset.tests[test]
        output = dataset.tasks[task].test[number].output
        assert output is not None
        return output.tolist()

    add(0, answer(0), 1)  # the first of two tests of c at the first try
    add(2, [[1]], 2)
    add(2, answer(2), 1)  # the only test of d at the second try
    add(3, [[1]], 3)
    add(3, [[2]], 2)
    add(3, answer(3), 1)  # the first of three tests of e at the third try
    assert votes.pass_at(1) == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert votes.pass_at(2) == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert votes.pass_at(3) == pytest.approx((1 / 2 + 1 + 1 / 3) / 3)
    submission = votes.submission()
    assert submission["c"] == [
        {"attempt_1": answer(0), "attempt_2": [[0]]},
        {"attempt_1": [[0]], "attempt_2": [[0]]},
    ]
    assert submission["d"] == [{"attempt_1": [[1]], "attempt_2": answer(2)}]
    assert submission["e"][0] == {"attempt_1": [[1]], "attempt_2": [[2]]}


def test_the_placeholder_is_a_wrong_answer_even_where_it_would_be_right():
    pair = ArcPair(np.zeros((2, 2), np.uint8), np.zeros((1, 1), np.uint8))
    votes = ArcVotes(make_dataset([replace(EVALUATION[1], test=(pair,))]))
    assert votes.submission() == {"d": [{"attempt_1": [[0]], "attempt_2": [[0]]}]}
    assert votes.pass_at(2) == 0.0


def test_tasks_without_solutions_can_be_submitted_but_not_scored(tmp_path):
    pair = ArcPair(EVALUATION[1].test[0].input, None)
    votes = vote(make_dataset([replace(EVALUATION[1], test=(pair,))]), lambda b: b["inputs"])
    with pytest.raises(DataError, match="task 'd', test pair 1: no output"):
        votes.pass_at(1)
    assert votes.submission()["d"][0]["attempt_1"] == pair.input.tolist()
    with pytest.raises(DataError, match="no evaluation tasks"):
        ArcVotes(make_dataset([])).pass_at(1)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="give a path that can be written"):
        votes.write_submission(tmp_path / "file" / "submission.json")


@pytest.mark.skipif(FOLDER is None, reason="no shared/data/arc here")
def test_the_official_evaluation_tasks(tmp_path):
    evaluation = read_arc(official("evaluation"))
    dataset = ArcDataset(read_arc(official("training")), evaluation, 2, seed=0)
    votes = vote(dataset, perfect, 2)
    assert votes.pass_at(1) == 1.0
    assert vote(dataset, BROKEN["question"], 0).pass_at(1000) == 0.0
    votes.write_submission(tmp_path / "new" / "submission.json")
    submission = json.loads((tmp_path / "new" / "submission.json").read_text())
    assert list(submission) == [task.name for task in evaluation]
    for task in evaluation:
        answers = [pair.output.tolist() for pair in task.test if pair.output is not None]
        assert [attempts["attempt_1"] for attempts in submission[task.name]] == answers
