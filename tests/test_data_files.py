"""JSONL files of prompts and answers, and the command line of `latent_reason.data`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_recipes import run_main

from latent_reason.data import TASKS, Example, find_leaks, jsonl, read_jsonl, write_jsonl
from latent_reason.data.__main__ import main
from latent_reason.data.tasks import SPLITS
from latent_reason.errors import DataError

GOOD_LINE = b'{"prompt": "p", "answer": "a"}\n'
BAD_LINES = {
    "not JSON at character 1": b"prompt,answer\n",
    "Expecting value); mend the line": b'{"prompt": \n',
    "NaN is no JSON value": b'{"prompt": "p", "answer": "a", "score": NaN}\n',
    "-Infinity is no JSON value": b'{"prompt": "p", "answer": -Infinity}\n',
    "a list, not an object": b'["p", "a"]\n',
    "a string, not an object": b'"p"\n',
    "null, not an object": b"null\n",
    "no field 'answer'": b'{"prompt": "p"}\n',
    "no field 'prompt'": b'{"question": "p", "answer": "a"}\n',
    "'answer' is a number, not a string": b'{"prompt": "p", "answer": 7}\n',
    "'prompt' is a number, not a string": b'{"prompt": 0.5, "answer": "a"}\n',
    "'answer' is a truth value, not": b'{"prompt": "p", "answer": true}\n',
    "'answer' is null, not": b'{"prompt": "p", "answer": null}\n',
    "'prompt' is a list, not": b'{"prompt": [1, 2], "answer": "a"}\n',
    "'prompt' is an object, not": b'{"prompt": {"text": "p"}, "answer": "a"}\n',
    "'task' is null, not": b'{"prompt": "p", "answer": "a", "task": null}\n',
    "'split' is a number, not": b'{"prompt": "p", "answer": "a", "split": 1}\n',
    "'prompt' is empty": b'{"prompt": "", "answer": "a"}\n',
    "'answer' is empty": b'{"prompt": "p", "answer": " \\n"}\n',
    "lone surrogate": b'{"prompt": "\\ud800", "answer": "a"}\n',
    "not UTF-8 at byte 13": '{"prompt": "\u00e9", "answer": "a"}\n'.encode("latin-1"),
    "not UTF-8 at byte 1;": GOOD_LINE.decode().encode("utf-16"),
    "empty line; remove it": b"\n",
    "nested too deeply": b'{"prompt": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n",
    "longer than 1,000,000 bytes": b'{"prompt": "' + b"p" * 1_000_000 + b'", "answer": "a"}\n',
    "not JSON (Exceeds the limit": b'{"prompt": "p", "answer": ' + b"9" * 5000 + b"}\n",
}


@pytest.mark.parametrize("reason", BAD_LINES)
def test_bad_rows_are_named_by_file_and_line(tmp_path: Path, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD_LINE * 2 + BAD_LINES[reason] + GOOD_LINE)
    with pytest.raises(DataError) as caught:
        read_jsonl(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:3: ") and reason in message
    assert "; " in message and "\n" not in message and len(message) < 400


def test_unusable_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="gone.jsonl: no such file; check the path"):
        read_jsonl(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match="Is a directory; give a file"):
        read_jsonl(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="empty.jsonl:1: the file is empty; write one"):
        read_jsonl(tmp_path / "empty.jsonl")
    (tmp_path / "large.jsonl").write_bytes(GOOD_LINE * 4)
    monkeypatch.setattr(jsonl, "MAX_FILE_BYTES", 100)
    with pytest.raises(DataError, match="large.jsonl: larger than 100 bytes; split the file"):
        read_jsonl(tmp_path / "large.jsonl")


def test_files_of_other_tools_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = b'\xef\xbb\xbf{"prompt": "p", "answer": "a"}\r\n{"id": 3, "answer": "b", "prompt": "q"}'
    path.write_bytes(rows)
    assert read_jsonl(path) == [Example("p", "a"), Example("q", "b")]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
FILLED = TEXT.filter(str.strip)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.builds(Example, FILLED, FILLED, TEXT, TEXT), min_size=1, max_size=5))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, examples: list[Example]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "new" / "rows.jsonl"
    write_jsonl(path, examples)
    assert read_jsonl(path) == examples


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [Example("old", "row")])
    bad = {
        "2: 'answer' is empty": [Example("p", "a"), Example("p", " ")],
        "1: 'prompt' has a lone surrogate": [Example("\udc00", "a")],
        "1: row longer than": [Example("p" * 1_000_000, "a")],
        "no examples to write": [],
    }
    for reason, examples in bad.items():
        with pytest.raises(DataError, match=reason):
            write_jsonl(path, examples)
    assert read_jsonl(path) == [Example("old", "row")]
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(DataError, match="give a path that can be written"):
        write_jsonl(path / "below.jsonl", [Example("p", "a")])
    with pytest.raises(DataError, match="not a regular file; give another name"):
        write_jsonl(tmp_path, [Example("p", "a")])


def test_leaks_by_prompt_and_by_instance() -> None:
    known = [Example("Sort: 2 1", "1 2", task="sorting"), Example("End: a b, b c", "c c", "khop")]
    a = [Example("What is  one?", "1"), Example("Other", "x"), *known, Example("other", "y")]
    b = [
        Example("new", "1"),
        Example("OTHER ", "z"),
        Example("Order these: 2 1", "1 2", task="sorting"),
        Example("Order these: 2 1", "1 2"),
        Example("Trace: b c, a b", "c c", task="khop"),
        Example("what is one?\n", "1"),
        Example("Moves: 2 1", "1 2", task="permutations"),
    ]
    assert find_leaks(a, b) == [(1, 1), (2, 2), (3, 4), (0, 5)]
    assert find_leaks(b, []) == []


def run(*args: object) -> int:
    return run_main(main, *map(str, args))


def test_command_line_round_trip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test, wording = (tmp_path / f"{split}.jsonl" for split in ("train", "test", "wording"))
    for path in (train, test, wording):
        assert run("write", "khop", "--split", path.stem, "--num", 40, "--output", path) == 0
    assert read_jsonl(train) == TASKS["khop"].generate("train", 40, seed=0)
    assert run("validate", test, "--against", train) == 0
    assert "40 rows are well formed, 40 checked by rule" in capsys.readouterr().out

    assert run("inspect", test) == 0
    out = capsys.readouterr().out
    assert 'task "khop", split "test": 40 rows' in out
    assert "prompt words: 2" in out and "answer words: 10 to 12, mean" in out
    assert "repeated prompts: 0" in out and "row 1 prompt: " in out

    assert run("validate", wording, "--against", test) == 2
    captured = capsys.readouterr()
    assert f"{wording}:1: the same as {test}:1\n" in captured.out
    assert captured.err == (f"error: {wording}: 40 rows occur in {test}; mend or remove them\n")


def test_validate_names_the_wrong_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [Example("Sort: 2 1", "1 2"), Example("Sort: 2 1", "2 1", task="own")])
    assert run("validate", path) == 0
    assert "2 rows are well formed, 0 checked by rule" in capsys.readouterr().out
    assert run("validate", path, "--task", "sorting") == 2
    captured = capsys.readouterr()
    assert captured.out == f"{path}:2: not a right answer by the rule of sorting\n"
    assert captured.err == f"error: {path}: 1 rows break the rule; mend or remove them\n"
    assert run("inspect", path) == 0
    out = capsys.readouterr().out
    assert "repeated prompts: 1" in out and "prompts with more than one answer: 1" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["write", "sortin", "--output", "x"], "did you mean 'sorting'"),
        (["write", "sorting"], "required: --output; see python -m latent_reason.data write --help"),
        (["write", "sorting", "--output", "x", "--split", "dev"], "invalid choice: 'dev'"),
        (["write", "sorting", "--output", "x", "--num", "0"], "num: got 0, expected 1 or more"),
        (["inspect", "gone.jsonl"], "gone.jsonl: no such file"),
        (["validate", "gone.jsonl"], "gone.jsonl: no such file"),
        (["validate", "gone.jsonl", "--task", "hop"], "did you mean 'khop'"),
        ([], "required: COMMAND"),
        (["wrte"], "invalid choice: 'wrte'"),
    ],
)
def test_command_line_mistakes_are_one_line(
    args: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*args) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("error: ") and message in captured.err
    assert list(tmp_path.iterdir()) == []


def test_command_line_lists_tasks_and_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in [*TASKS, *SPLITS])
    assert run("--help") == 0 and "examples:" in capsys.readouterr().out


def test_python_dash_m_starts_without_torch() -> None:
    code = (
        "import json, runpy, sys\n"
        "sys.argv = ['data', 'list']\n"
        "try:\n    runpy.run_module('latent_reason.data', run_name='__main__')\n"
        "except SystemExit as stop:\n    code = stop.code\n"
        "print(json.dumps([code, sorted({'torch', 'transformers'} & set(sys.modules))]))\n"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]
