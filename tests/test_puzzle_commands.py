"""The commands on files of puzzles: write, check, look for leaks."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from arc_tasks import FOLDER, official
from tiny_recipes import run_main

from latent_reason.data.__main__ import main
from latent_reason.data.kinds import find_puzzle
from latent_reason.data.order import Draws
from latent_reason.data.puzzle_commands import write_csv
from latent_reason.data.puzzle_files import read_puzzles
from latent_reason.data.puzzles import Puzzle, PuzzleDataset
from latent_reason.errors import DataError

SEVERAL = "1..............." + ",1234341221434321"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str], str]:
    """Exit code, lines on stdout, text on stderr."""
    code = run_main(main, *words)
    printed = capsys.readouterr()
    return code, printed.out.splitlines(), printed.err


def made(name: str, num: int) -> PuzzleDataset:
    puzzle = find_puzzle(name)
    return PuzzleDataset(puzzle, *puzzle.generate(num, seed=3))


KINDS = [
    *("sudoku-4x4", "sudoku-6x6", "maze-7x9", "perfect-maze-5x5", "sorting-7"),
    "state-tracking-8",  # 120 symbols: not ASCII
]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("file", ["made.csv", "made.csv.gz"])
def test_written_puzzles_are_read_back(name, file, tmp_path, capsys):
    path = tmp_path / "new" / file
    words = ["write-puzzles", name, "--split", "val", "--num", "12", "--seed", "5"]
    code, lines, _ = run(capsys, *words, "--output", str(path))
    assert (code, lines) == (0, [f"{path}: 12 rows of {name}, val, seed 5"])
    data = read_puzzles(path, find_puzzle(name))
    questions, answers = data.puzzle.generate(12, 5, "val")
    assert torch.equal(data.questions.long(), questions)
    assert torch.equal(data.answers.long(), answers)
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == (path.suffix == ".gz")
    again = path.read_bytes()
    run(capsys, *words, "--output", str(path))
    assert path.read_bytes() == again and list(path.parent.iterdir()) == [path]


def test_an_unknown_symbol_is_named_where_an_alphabet_is_not_ascii(tmp_path):
    path = tmp_path / "x.csv"
    write_csv(path, made("state-tracking-8", 2))
    lines = path.read_text(encoding="utf-8").splitlines()
    for wrong in ("-", "\u20ac"):
        path.write_text("\n".join([lines[0], wrong + lines[1][1:], lines[2]]), encoding="utf-8")
        with pytest.raises(DataError, match=r"x\.csv:2: cell 1 of the question is '[-?]'"):
            read_puzzles(path, find_puzzle("state-tracking-8"))


def test_long_mazes_are_made_on_demand(tmp_path, capsys):
    path = tmp_path / "long.csv"
    words = ["write-puzzles", "maze-30x30", "--num", "2", "--min-length", "110"]
    assert run(capsys, *words, "--output", str(path))[0] == 0
    puzzle = find_puzzle("maze-30x30")
    assert puzzle.shortest_lengths(read_puzzles(path, puzzle).questions).min() >= 110


def test_written_rows_are_plain_text(tmp_path):
    path = tmp_path / "one.csv"
    write_csv(path, made("sudoku-4x4", 1))
    header, row, end = path.read_text().split("\n")
    question, answer = row.split(",")
    assert (header, end) == ("question,answer", "") and len(question) == len(answer) == 16
    assert set(answer) == set("1234") and set(question) <= set("01234")


def test_cells_that_are_not_asked_are_not_written_as_text(tmp_path):
    data = made("sudoku-4x4", 2)
    data.answers[1, 3] = 0
    with pytest.raises(DataError, match="no sign for a cell that is not asked; use .npy arrays"):
        write_csv(tmp_path / "x.csv", data)


def test_a_seed_may_be_any_integer(tmp_path, capsys):
    for name, seed in (("maze-7x7", 10**20), ("sorting-5", -(10**20))):
        words = ["write-puzzles", name, "--num", "1", "--seed", str(seed)]
        assert run(capsys, *words, "--output", str(tmp_path / "x.csv"))[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sudoku-4x4", "--split", "exam"], "split: got 'exam'"),
        (["sudoku-5x5"], "puzzle: got 'sudoku-5x5'"),
        (["chess"], "puzzle: got 'chess'"),
        (["maze-7x7", "--num", "0"], "num: got 0"),
        (["maze-7x7", "--min-length", "49"], "min_length: got 49"),
        (["sudoku-4x4", "--min-length", "9"], "min_length: got 9, expected none but for mazes"),
        (["runes:Runes"], "symbol '\u16a0' is not Latin-1"),
    ],
)
def test_puzzles_that_cannot_be_made(words, message, tmp_path, capsys, monkeypatch):
    class Runes(Puzzle):
        name, height, width, alphabet = "runes", 1, 2, "a\u16a0"

    monkeypatch.setitem(sys.modules, "runes", SimpleNamespace(Runes=Runes))
    path = tmp_path / "x.csv"
    code, lines, error = run(capsys, "write-puzzles", *words, "--output", str(path))
    assert (code, lines) == (2, []) and message in error and not path.exists()


def test_a_path_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "x.csv"
    code, _, error = run(capsys, "write-puzzles", "sudoku-4x4", "--num", "1", "--output", str(path))
    assert code == 2 and error.count("\n") == 1 and "give a path that can be written" in error


def test_rows_with_several_solutions_are_named(tmp_path, capsys):
    path = tmp_path / "x.csv"
    write_csv(path, made("sudoku-4x4", 3))
    code, lines, _ = run(capsys, "check-puzzles", "--puzzle", "sudoku-4x4", str(path))
    assert (code, lines) == (0, [f"{path}: 3 puzzles with exactly one solution each"])
    path.write_text(path.read_text() + SEVERAL + "\n")
    code, lines, error = run(capsys, "check-puzzles", "--puzzle", "sudoku-4x4", str(path))
    assert (code, lines) == (2, [f"{path}:5: several solutions"])
    assert "1 of 4 puzzles do not have exactly one solution" in error


def test_rows_that_are_not_usable_and_puzzles_without_a_solver(tmp_path, capsys):
    path = tmp_path / "x.csv"
    path.write_text("question,answer\n12,12\n")
    code, lines, error = run(capsys, "check-puzzles", "--puzzle", "sudoku-4x4", str(path))
    assert (code, lines) == (2, []) and f"{path}:2: the question has 2 cells" in error
    write_csv(path, made("maze-7x9", 1))
    code, _, error = run(capsys, "check-puzzles", "--puzzle", "maze-7x9", str(path))
    assert code == 2 and "has no solver" in error


def test_disguised_puzzles_are_leaks(tmp_path, capsys):
    data = made("sudoku-6x6", 30)
    train, other, test = (tmp_path / f"{name}.csv" for name in ("train", "other", "test"))
    write_csv(train, data.subset(torch.arange(18)))
    write_csv(other, data.subset(torch.arange(18, 30)))
    symmetry = data.puzzle.symmetry(Draws(torch.arange(30), 1))
    grids = symmetry.apply(data.questions.long()), symmetry.apply(data.answers.long())
    write_csv(test, PuzzleDataset(data.puzzle, *grids).subset(torch.arange(17, 4, -1)))
    words = ["puzzle-leaks", "--puzzle", "sudoku-6x6"]
    code, lines, _ = run(capsys, *words, str(train), str(other))
    assert (code, lines) == (0, [f"{other}: 0 of 12 puzzles are in {train}"])
    code, lines, error = run(capsys, *words, str(train), str(test))
    assert code == 2 and len(lines) == 12
    assert lines[0] == f"{test}: 13 of 13 puzzles are in {train}"
    assert lines[1] == f"  {test}:2 is {train}:19"
    assert lines[-1] == "  ... and 3 more; --all lists them"
    assert error == f"error: {lines[0]}; remove them from one of the files\n"
    code, lines, _ = run(capsys, *words, str(train), str(test), "--all")
    assert code == 2 and len(lines) == 14 and lines[-1] == f"  {test}:14 is {train}:7"


@pytest.mark.skipif(FOLDER is None, reason="no shared/data/arc here")
def test_tasks_of_arc_1_are_in_arc_2(capsys):
    sets = [str(official(name)) for name in ("training2", "evaluation")]
    code, lines, error = run(capsys, "arc-leaks", *sets)
    assert code == 2 and len(lines) == 12 and "376 of 400 tasks" in lines[0]
    assert lines[-1] == "  ... and 366 more; --all lists them"
    assert error.startswith("error: ") and "376 tasks leak" in error


def test_arc_sets_without_a_common_task(tmp_path, capsys):
    for name, cell in (("one", 1), ("two", 0)):
        task = {
            kind: [{"input": [[size]], "output": [[cell, 1]]}]
            for kind, size in (("train", 3), ("test", 0))
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(task))
    one, two = (str(tmp_path / f"{name}.json") for name in ("one", "two"))
    code, lines, error = run(capsys, "arc-leaks", one, two)
    assert (code, lines, error) == (0, [f"{two}: none of 1 tasks is in {one}"], "")
    code, lines, error = run(capsys, "arc-leaks", one, str(Path(one).with_name("gone.json")))
    assert (code, lines) == (2, []) and "no such file" in error


def test_packed_files_hold_no_time(tmp_path):
    path = tmp_path / "x.csv.gz"
    write_csv(path, made("sudoku-4x4", 2))
    assert path.read_bytes()[4:8] == bytes(4) and gzip.decompress(path.read_bytes())
