import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_reason.errors import DataError
from latent_reason.results import (
    format_table,
    load_results,
    plain_text,
    read_metrics,
    summary_sentence,
)

ROW = {"system": "TRM", "task": "sums", "split": "test", "n": 1000, "exact_accuracy": 0.97}
FULL_ROW = ROW | {
    "refinement_steps": 8,
    "ci95": [0.957, 0.979],
    "accuracy": 0.991,
    "trainable_parameters": 190000,
    "train_seconds": 240.4,
}


def write_results(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


def test_load_results_keeps_what_was_written(tmp_path):
    results = {"schema_version": 1, "preset": "demo", "rows": [FULL_ROW, ROW | {"extra": [1]}]}
    assert load_results(write_results(tmp_path, results)) == results


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"schema_version": 1, "rows": [NaN]}', "NaN is no JSON value"),
        ([], "holds a list, expected a dict"),
        ({"rows": [ROW]}, "schema_version is None, expected 1"),
        ({"schema_version": 1}, "at least one row"),
        ({"schema_version": 1, "rows": []}, "at least one row"),
        ({"schema_version": 1, "rows": [ROW], "halt_max_steps": "8"}, "halt_max_steps is '8'"),
        ({"schema_version": 1, "rows": [ROW, 3]}, "row 2: got int"),
    ],
)
def test_load_results_names_file_and_reason(tmp_path, content, reason):
    path = write_results(tmp_path, content)
    with pytest.raises(DataError) as caught:
        load_results(path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"system": None},
        {"task": 3},
        {"n": None},
        {"n": 2.5},
        {"n": True},
        {"exact_accuracy": None},
        {"exact_accuracy": 97.0},
        {"valid_accuracy": 97.0},
        {"accuracy": "0.9"},
        {"ci95": [0.5]},
        {"ci95": [0.5, "1"]},
        {"refinement_steps": -1},
        {"trainable_parameters": 0.5},
        {"train_seconds": -1},
        {"mean_refinement_steps": "8"},
    ],
)
def test_load_results_names_row_and_field(tmp_path, change):
    path = write_results(tmp_path, {"schema_version": 1, "rows": [FULL_ROW, FULL_ROW | change]})
    (field,) = change
    with pytest.raises(DataError, match=f"row 2: {field} is"):
        load_results(path)


def test_missing_results_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match="no such file; run a recipe"):
        load_results(tmp_path / "results.json")


def test_table_shows_percent_with_interval_and_dashes():
    lines = format_table([FULL_ROW, ROW]).splitlines()
    assert len(lines) == 5
    expected = ["TRM", "sums/test", "8", "1,000", "97.0", "[95.7,", "97.9]", "99.1", "190,000"]
    assert lines[3].split() == [*expected, "240"]
    assert lines[4].split() == ["TRM", "sums/test", "-", "1,000", "97.0", "-", "-", "-"]
    halting = FULL_ROW | {"mean_refinement_steps": 4.56}
    assert format_table([halting]).splitlines()[3].split()[2:5] == ["mean", "4.6", "1,000"]


def test_valid_answers_have_a_column_where_they_are_not_the_exact_ones():
    same = FULL_ROW | {"valid_accuracy": 0.97}
    assert format_table([same, ROW]) == format_table([FULL_ROW, ROW])
    lines = format_table([same, FULL_ROW | {"valid_accuracy": 0.982}, ROW]).splitlines()
    assert "[95 % interval]  valid %" in lines[1]
    assert [line.split()[7] for line in lines[3:5]] == ["97.0", "98.2"]
    assert lines[5].split()[4:] == ["97.0", "-", "-", "-", "-"]


def test_table_columns_are_aligned():
    rows = [FULL_ROW, FULL_ROW | {"system": "a much longer name", "n": 1_000_000}]
    header, names, rule, *lines = format_table(rows).splitlines()
    assert {len(line) for line in (header, names, rule, *lines)} == {len(rule)}
    ends = [end for end in range(len(rule)) if rule[end : end + 2] == "- "]
    for line in (names, *lines):
        numbers = ends[1:]  # the first column is text and stands left
        assert all(line[end + 1] == " " for end in ends)
        assert all(line[end] != " " for end in numbers[1:])


def test_table_drops_terminal_escapes_from_names():
    hostile = "\x1b[2J\x1b]0;title\x07TRM\r\n\x08\u202e\ud800 x"
    table = format_table([ROW | {"system": hostile}])
    assert table.splitlines()[3].startswith("TRM x ")
    assert "\x1b" not in table


@given(st.text())
def test_plain_text_is_one_printable_line(text):
    plain = plain_text(text)
    assert plain.isprintable()
    plain.encode("utf-8")


def test_sentence_quotes_the_trained_depth_and_the_best_rival():
    sweep = [
        ROW | {"refinement_steps": steps, "exact_accuracy": share}
        for steps, share in ((1, 0.1), (8, 0.8), (16, 0.9))
    ]
    others = [
        ROW | {"system": "LoRA", "exact_accuracy": 0.5},
        ROW | {"system": "one pass", "exact_accuracy": 0.6},
        ROW | {"system": "elsewhere", "exact_accuracy": 1.0, "split": "train"},
    ]
    assert summary_sentence([*sweep, *others], 8) == (
        "TRM answers 80.0 % of 1,000 questions of sums (test) exactly with 8 refinement steps; "
        "the best other system, one pass, 60.0 %."
    )
    assert "90.0 % of 1,000" in summary_sentence(sweep, None)


def test_metrics_without_a_torn_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert list(read_metrics(path)) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    lines = [(b'{"step": 1}\n', {"step": 1}), (b'{"step": 2}\n', {"step": 2})]
    assert list(read_metrics(path)) == lines


@pytest.mark.parametrize("line", ["{", "[]"])
def test_metrics_name_the_damaged_line(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(DataError, match="metrics.jsonl line 2"):
        list(read_metrics(path))
