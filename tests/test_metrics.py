"""Counting, confidence intervals and the metrics log."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latent_reason.errors import DataError
from latent_reason.metrics import AccuracyCounter, MetricsLog, wilson_interval


@pytest.mark.parametrize(
    ("correct", "num", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_matches_published_values(
    correct: int, num: int, low: float, high: float
) -> None:
    assert wilson_interval(correct, num) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10**7), st.data())
def test_wilson_interval_is_inside_zero_one_and_mirrors(num: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, num))
    low, high = wilson_interval(correct, num)
    assert 0 <= low <= correct / num <= high <= 1
    assert low < high
    mirrored = wilson_interval(num - correct, num)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize(("correct", "num"), [(0, 0), (-1, 3), (4, 3), (0, -2)])
def test_wilson_interval_refuses_impossible_counts(correct: int, num: int) -> None:
    with pytest.raises(ValueError, match="correct"):
        wilson_interval(correct, num)


def test_accuracy_counts_labelled_cells_only() -> None:
    counter = AccuracyCounter()
    labels = torch.tensor([[1, 2, 3], [1, -100, 3], [4, 5, -100], [-100, -100, -100]])
    predictions = torch.tensor([[1, 2, 3], [1, 9, 3], [4, 6, 0], [-100, 7, 7]])
    counter.update(predictions, labels)
    assert counter.counts() == [3, 2, 7, 6]
    assert counter.exact_accuracy == 2 / 3
    assert counter.accuracy == 6 / 7
    assert counter.as_dict() == {
        "n": 3,
        "exact_accuracy": 2 / 3,
        "ci95": list(wilson_interval(2, 3)),
        "accuracy": 6 / 7,
    }
    assert json.loads(json.dumps(counter.as_dict())) == counter.as_dict()


@given(st.integers(1, 8), st.integers(0, 5), st.integers(0, 2**31))
def test_ranks_and_padding_do_not_change_the_counts(
    split: int, num_padding: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (9, 3), generator=generator)
    labels[torch.rand(9, 3, generator=generator) < 0.3] = -100
    predictions = torch.randint(0, 2, (9, 3), generator=generator)
    whole = AccuracyCounter()
    whole.update(predictions, labels)

    padding = torch.full((num_padding, 3), -100)
    ranks = [AccuracyCounter(), AccuracyCounter()]
    ranks[0].update(predictions[:split], labels[:split])
    ranks[1].update(torch.cat([predictions[split:], padding]), torch.cat([labels[split:], padding]))
    summed = [sum(pair) for pair in zip(*(rank.counts() for rank in ranks), strict=True)]
    assert AccuracyCounter.from_counts(summed) == whole

    expected_exact = sum(
        all(p == y for p, y in zip(row, target, strict=True) if y != -100)
        for row, target in zip(predictions.tolist(), labels.tolist(), strict=True)
        if any(y != -100 for y in target)
    )
    assert whole.num_exact == expected_exact


@pytest.mark.parametrize(
    ("predictions", "labels"),
    [((4, 3), (4, 1)), ((1, 3), (4, 3)), ((4,), (4,)), ((4, 3, 10), (4, 3))],
)
def test_accuracy_refuses_other_shapes(predictions: tuple[int], labels: tuple[int]) -> None:
    with pytest.raises(ValueError, match=r"expected the same shape \(B, K\)"):
        AccuracyCounter().update(
            torch.zeros(predictions, dtype=torch.long), torch.zeros(labels, dtype=torch.long)
        )


def test_accuracy_of_nothing_is_an_error() -> None:
    counter = AccuracyCounter()
    counter.update(torch.zeros(2, 3, dtype=torch.long), torch.full((2, 3), -100))
    with pytest.raises(ValueError, match="no examples"):
        counter.as_dict()


def _write_steps(path: Path, steps: range, resume_step: int = 0) -> None:
    with MetricsLog(path, resume_step=resume_step) as log:
        for step in steps:
            log.write({"step": step, "train/loss": 1 / (step + 3), "note": "\u00e9"})


@pytest.mark.parametrize("torn", [b"", b'{"step": 9, "train/lo', b"{", b'{"step": 9}', b"\xff"])
@pytest.mark.parametrize("resume_step", [0, 3, 8])
def test_resumed_file_equals_the_uninterrupted_one(
    tmp_path: Path, resume_step: int, torn: bytes
) -> None:
    whole, resumed = tmp_path / "whole" / "metrics.jsonl", tmp_path / "resumed" / "metrics.jsonl"
    _write_steps(whole, range(1, 11))
    _write_steps(resumed, range(1, 9))
    with open(resumed, "ab") as file:
        file.write(torn)
    _write_steps(resumed, range(resume_step + 1, 11), resume_step=resume_step)
    assert resumed.read_bytes() == whole.read_bytes()
    assert [path.name for path in resumed.parent.iterdir()] == ["metrics.jsonl"]


def test_line_torn_just_before_its_newline_is_kept(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    _write_steps(whole, range(1, 6))
    resumed.write_bytes(b"".join(whole.read_bytes().splitlines(keepends=True)[:4]).rstrip(b"\n"))
    _write_steps(resumed, range(5, 6), resume_step=4)
    assert resumed.read_bytes() == whole.read_bytes()


def test_every_line_is_on_disk_at_once_in_the_given_key_order(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, resume_step=0)
    log.write({"z": 1, "step": 0, "a": [True, None]})
    assert path.read_text() == '{"z": 1, "step": 0, "a": [true, null]}\n'
    log.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_values_are_refused_and_nothing_is_written(tmp_path: Path, value: float) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, resume_step=0) as log:
        with pytest.raises(ValueError, match="step 4 are not finite.*train/loss"):
            log.write({"step": 4, "train/loss": value})
    assert path.read_bytes() == b""


@pytest.mark.parametrize("record", [{}, {"step": 1.0}, {"step": True}, {"step": "1"}])
def test_a_record_needs_an_integer_step(tmp_path: Path, record: dict) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl", resume_step=0) as log:
        with pytest.raises(ValueError, match="expected an int"):
            log.write(record)


@pytest.mark.parametrize("damage", [b"\n", b"[1]\n", b'{"loss": 1}\n', b'{"step"\n', b"\0\0\n"])
def test_a_damaged_line_is_named_and_the_file_left_alone(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damage + b'{"step": 2}\n')
    before = path.read_bytes()
    with pytest.raises(DataError, match="metrics.jsonl line 2"):
        MetricsLog(path, resume_step=2)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
