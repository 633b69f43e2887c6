"""Puzzles from files: every form is read, every kind of bad file is refused in one line."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from latent_reason.data.maze import Maze
from latent_reason.data.puzzle_files import (
    check_unique,
    read_puzzles,
    refuse_several_solutions,
    subsample,
)
from latent_reason.data.puzzles import Puzzle, PuzzleDataset
from latent_reason.data.sudoku import Sudoku
from latent_reason.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("dataset_cache")
REPOSITORY = Path(__file__).parents[1]
SHARED = [
    path
    for top in (REPOSITORY, REPOSITORY.parent)
    for path in sorted(top.glob("shared/data/sudoku/*.csv.gz"))
]
SMALL = Sudoku(2, 2)
QUESTION, ANSWER = "1.....3..4......", "1324423124133142"
SECOND = ".3....3.........", ANSWER


@pytest.fixture(scope="module")
def puzzles():
    return SMALL.generate(30, seed=0)


def digits(grid):
    return "".join(SMALL.alphabet[token - 1] for token in grid)


def as_csv(questions, answers):
    pairs = zip(questions.tolist(), answers.tolist(), strict=True)
    lines = [f"made,{digits(q)},{digits(a)},0" for q, a in pairs]
    return "\n".join(["source,question,answer,rating", *lines, ""])


def write(path, *rows, header="question,answer"):
    path.write_text("\n".join([header, *rows, ""]))
    return path


def error_of(source, puzzle=SMALL, **options):
    with pytest.raises(DataError) as info:
        read_puzzles(source, puzzle, **options)
    message = str(info.value)
    assert "\n" not in message and str(source) in message
    return message.replace(str(source), "FILE")


def same(dataset, puzzles):
    assert dataset.questions.dtype == dataset.answers.dtype == torch.uint8
    return torch.equal(dataset.questions.long(), puzzles[0]) and torch.equal(
        dataset.answers.long(), puzzles[1]
    )


def test_csv_is_read_plain_and_packed_by_file_and_by_folder(tmp_path, puzzles):
    text = as_csv(*puzzles)
    (tmp_path / "train.csv").write_text(text)
    (tmp_path / "test.csv.gz").write_bytes(gzip.compress(text.replace("0", ".").encode()))
    (tmp_path / "windows.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    (tmp_path / "quoted.csv").write_text(text.replace("made", '"made, by ""hand"""'))
    half = len(text) // 2
    parts = gzip.compress(text[:half].encode()) + gzip.compress(text[half:].encode())
    (tmp_path / "parts.csv.gz").write_bytes(parts)
    for name in ("train.csv", "test.csv.gz", "windows.csv", "quoted.csv", "parts.csv.gz"):
        assert same(read_puzzles(tmp_path / name, SMALL), puzzles)
    assert same(read_puzzles(str(tmp_path), SMALL, "train"), puzzles)
    assert same(read_puzzles(tmp_path, SMALL, "test"), puzzles)


def test_many_chunks_are_one_dataset(tmp_path, monkeypatch, puzzles):
    monkeypatch.setattr("latent_reason.data.puzzle_sources.MAX_LINE_BYTES", 100)
    path = tmp_path / "train.csv"
    path.write_text(as_csv(*puzzles))
    assert same(read_puzzles(path, SMALL), puzzles)
    wrong = as_csv(*puzzles).splitlines()
    wrong[25] = "made,x,y,0"
    path.write_text("\n".join(wrong))
    assert "FILE:26: the question has 1 cells" in error_of(path)


def test_limit_stops_before_the_rest(tmp_path, puzzles):
    path = tmp_path / "train.csv"
    path.write_text(as_csv(*puzzles))
    assert same(read_puzzles(path, SMALL, limit=7), [grids[:7] for grids in puzzles])
    assert len(read_puzzles(path, SMALL, limit=99)) == 30
    for limit in (0, -1):
        with pytest.raises(ConfigError, match="limit: got"):
            read_puzzles(path, SMALL, limit=limit)


def test_small_letters_and_spaces_are_symbols_where_the_alphabet_says_so(tmp_path):
    large = Sudoku(4, 4)
    questions, answers = large.generate(1, seed=0, clues=(200, 200))
    q, a = (large.format(grids[0].tolist()).replace("\n", "") for grids in (questions, answers))
    path = write(tmp_path / "large.csv", f"{q.lower()},{a}")
    assert torch.equal(read_puzzles(path, large).questions.long(), questions)
    maze = Maze(3, 3)
    path = write(tmp_path / "maze.csv", "S #   # G,So# oo# G")
    assert maze.format(read_puzzles(path, maze).answers[0].tolist()) == "So#\n oo\n# G"
    path = write(tmp_path / "maze.csv", "S #   # G,S # oo# G")
    assert "wrong answer: the path does not join S and G" in error_of(path, maze)


def test_arrays_are_read(tmp_path, puzzles):
    questions, answers = (grids.numpy() - 1 for grids in puzzles)
    for folder in (tmp_path / "a", tmp_path / "b" / "train", tmp_path / "c"):
        folder.mkdir(parents=True)
    np.save(tmp_path / "a/questions.npy", questions.astype(np.uint8))
    np.save(tmp_path / "a/answers.npy", answers.astype(np.int16).reshape(-1, 4, 4))
    np.save(tmp_path / "b/train/questions.npy", questions)
    np.save(tmp_path / "b/train/answers.npy", answers)
    np.save(tmp_path / "c/pairs.npy", np.stack([questions, answers], axis=1))
    for source in ("a", "b", "b/train", "c/pairs.npy"):
        assert same(read_puzzles(tmp_path / source, SMALL), puzzles)
    assert len(read_puzzles(tmp_path / "a", SMALL, limit=3)) == 3


def test_cells_that_are_not_asked_are_padding(tmp_path, puzzles):
    class Lines(Puzzle):
        name, height, width, alphabet = "lines", 1, 3, "ab"

    np.save(tmp_path / "pairs.npy", np.array([[[0, 1, -1], [1, -1, -1]]]))
    dataset = read_puzzles(tmp_path / "pairs.npy", Lines())
    assert dataset.questions.tolist() == [[1, 2, 0]]
    assert dataset.batch(torch.tensor([0]))["labels"].tolist() == [[2, -100, -100]]
    np.save(tmp_path / "pairs.npy", np.array([[[0, 1, 0], [1, -1, -1]], [[0] * 3, [-1] * 3]]))
    reason = "FILE:2: no cell of the answer is asked; give a symbol for at least one"
    assert error_of(tmp_path / "pairs.npy", Lines()) == reason


def test_hub_data_sets_are_read_by_name(tmp_path, monkeypatch, puzzles):
    path = tmp_path / "cached"
    path.write_text(as_csv(*puzzles))
    asked = []

    def download(*arguments, **options):
        asked.append((*arguments, options))
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert same(read_puzzles("owner/sudoku", SMALL, "test"), puzzles)
    assert asked == [("owner/sudoku", "test.csv", {"repo_type": "dataset"})]


def test_other_folders_are_read_by_split(tmp_path, puzzles):
    pairs = list(zip(*(map(digits, grids.tolist()) for grids in puzzles), strict=True))
    rows = [f'{{"question": "{q}", "answer": "{a}"}}' for q, a in pairs]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(rows))
    assert same(read_puzzles(folder, SMALL), puzzles)
    assert "no data set with split 'test'" in error_of(folder, split="test")
    (folder / "train.jsonl").write_text("\n".join([*rows, '{"question": null, "answer": "1"}']))
    assert "FILE (train):31: the question has 0 cells" in error_of(folder)
    (folder / "train.jsonl").write_text('{"question": 12, "answer": "1"}')
    assert "column 'question' is int64, expected text" in error_of(folder)
    (folder / "train.jsonl").write_text('{"question": "12"}')
    assert "column 'answer' is missing" in error_of(folder)


@pytest.mark.parametrize("name", ["train-00000.csv", "mine.csv", "data/train.csv"])
def test_digits_of_csv_files_of_other_names_are_text(name, tmp_path, puzzles):
    path = tmp_path / "set" / name
    path.parent.mkdir(parents=True)
    path.write_text(as_csv(*puzzles))
    assert same(read_puzzles(tmp_path / "set", SMALL), puzzles)
    write(path, f"{QUESTION},{ANSWER}".replace(".", "0"), f",{ANSWER}")
    assert "FILE (train):2: the question has 0 cells" in error_of(tmp_path / "set")
    write(path, QUESTION, header="question")
    assert "column 'answer' is missing" in error_of(tmp_path / "set")


@pytest.mark.parametrize("name", ["no/such-data-set", "nowhere.csv", "nowhere.npy", "a b/c?"])
def test_missing_sources_are_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "give a .csv" in error_of(name)


@pytest.mark.parametrize("name", ["nothing", "./nothing", "data.d/puzzles/x", "/nothing", "~/a"])
def test_what_is_no_name_is_not_looked_for_on_the_hub(name, tmp_path, monkeypatch):
    def refuse(*_, **options):
        raise AssertionError("the Hub was asked")

    for function in ("huggingface_hub.hf_hub_download", "datasets.load_dataset"):
        monkeypatch.setattr(function, refuse)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="(nothing|/x|~/a): no such file or folder, and no Hub"):
        read_puzzles(name, SMALL)
    with pytest.raises(DataError, match="^the name of a source is empty; give a .csv"):
        read_puzzles("", SMALL)


def test_a_folder_needs_no_owner(tmp_path, monkeypatch, puzzles):
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/rows.csv").write_text(as_csv(*puzzles))
    assert same(read_puzzles("mine", SMALL), puzzles)


def test_a_name_that_is_too_long_is_no_file():
    assert "File name too long" in error_of("9" * 300 + ".csv")


# Each stands in line 4 of a file, after two good rows.
BAD_ROWS = {
    "short question": (
        f"{QUESTION[1:]},{ANSWER}",
        "the question has 15 cells, expected 16 (4 x 4)",
    ),
    "long answer": (f"{QUESTION},{ANSWER}1", "the answer has 17 cells, expected 16 (4 x 4)"),
    "empty line": ("", "the question has 0 cells"),
    "symbol": (f"{QUESTION[:-1]}5,{ANSWER}", "cell 16 of the question is '5', expected one of"),
    "not ASCII": (f"\u00e9{QUESTION[2:]},{ANSWER}", "cell 1 of the question is '\u00c3'"),
    "NUL": (f"\0{QUESTION[1:]},{ANSWER}", r"cell 1 of the question is '\x00'"),
    "blank": (f"{QUESTION},{ANSWER[:3]}0{ANSWER[4:]}", "cell 4 of the answer is blank"),
    "clue": (f"3{QUESTION[1:]},{ANSWER}", "cell 1 of the answer changes the clue"),
    "rule": (f"{QUESTION},{ANSWER[:15]}3", "wrong answer: row 4 holds 3 twice"),
    "too few": (QUESTION, "1 columns, expected 2"),
    "too many": (f"{QUESTION},{ANSWER},", "3 columns, expected 2"),
    "twice": (f"{QUESTION},{ANSWER}", "the same question as in FILE:2, with the same answer"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_bad_rows_are_named(kind, tmp_path):
    row, reason = BAD_ROWS[kind]
    path = write(tmp_path / "bad.csv", f"{QUESTION},{ANSWER}", ",".join(SECOND), row)
    assert error_of(path).startswith(f"FILE:4: {reason}")


def test_a_question_with_two_answers_is_refused(tmp_path):
    other = "1234341221434321"
    path = write(tmp_path / "bad.csv", *(f"{'.' * 16},{answer}" for answer in (ANSWER, other)))
    assert error_of(path).startswith("FILE:3: the same question as in FILE:2, with another answer")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Empty CSV file"),
        (b"question,answer\n", "no rows"),
        (b"puzzle,answer\n1,2\n", ":1: the header lacks 'question' or 'answer'"),
        (b"question,solution\n1,2\n", ":1: the header lacks 'question' or 'answer'"),
        (b"question,answer,question\n1,2,3\n", ":1: 2 columns 'question'; keep one"),
        (b'\xef\xbb\xbfanswer,question,"answer"\r1,2,3\r', ":1: 2 columns 'answer'; keep one"),
        (gzip.compress(b"question,question,answer\n1,2,3\n", mtime=0), ":1: 2 columns 'question'"),
        (b"\x89PNG\r\n\x1a\n\0\0", ":1: the header lacks"),
        (b"question,answer\n" + b"1" * 3_000_000, "a line of 1,048,576 bytes or more"),
        (b"1" * 3_000_000, "a line of 1,048,576 bytes or more"),
        (gzip.compress(b"question,answer\n" + b"1" * 30_000_000), "a line of 1,048,576 bytes"),
        (b"\x1f\x8bno gzip", "damaged gzip file"),
    ],
)
def test_bad_files_are_named(data, reason, tmp_path):
    path = tmp_path / "bad.csv"
    path.write_bytes(data)
    assert reason in error_of(path)


def test_columns_that_are_not_read_may_be_repeated(tmp_path):
    row = f"{QUESTION},,{ANSWER},"
    path = write(tmp_path / "some.csv", row, header="question,note,answer,note")
    assert len(read_puzzles(path, SMALL)) == 1


def test_damaged_gzip_is_named(tmp_path, puzzles):
    data = bytearray(gzip.compress(as_csv(*puzzles).encode()))
    damaged = [data[: len(data) // 2], data[:-6], data + b"more", b"\x1f\x8b" + data[9:]]
    for place in (40, len(data) - 7):
        damaged.append(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
    for number, content in enumerate(damaged):
        path = tmp_path / f"{number}.csv.gz"
        path.write_bytes(bytes(content))
        assert "damaged gzip file" in error_of(path)


def test_huge_files_are_refused_while_reading(tmp_path, monkeypatch, puzzles):
    path = tmp_path / "huge.csv.gz"
    path.write_bytes(gzip.compress(as_csv(*puzzles).encode() * 2))
    monkeypatch.setattr("latent_reason.data.puzzle_sources.MAX_BYTES", 1000)
    assert "larger than 1,000 bytes" in error_of(path)
    questions, answers = (grids.numpy() - 1 for grids in puzzles)
    np.save(tmp_path / "pairs.npy", np.stack([questions, answers] * 2, axis=1)[:, :2].repeat(4, 0))
    assert "more than 1,000 cells" in error_of(tmp_path / "pairs.npy")


def test_too_many_rows_are_refused(tmp_path, monkeypatch, puzzles):
    monkeypatch.setattr("latent_reason.data.puzzle_files.MAX_ROWS", 29)
    path = tmp_path / "train.csv"
    path.write_text(as_csv(*puzzles))
    assert "more than 29 rows" in error_of(path)
    assert len(read_puzzles(path, SMALL, limit=29)) == 29


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


PAIR = np.array([[[1, 0, 0, 0, 0, 0, 3, 0, 0, 4] + [0] * 6, [int(cell) for cell in ANSWER]]])


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (PAIR.astype(float), "holds float64, expected whole numbers"),
        (np.full((1, 2, 16), np.nan), "holds float64, expected whole numbers"),
        (PAIR.astype(bool), "holds bool, expected whole numbers"),
        (PAIR.astype(str), "holds <U21, expected whole numbers"),
        (PAIR[:, :, :15], "questions of shape (1, 15), expected (1, 16) or (1, 4, 4)"),
        (PAIR[:, 0], "shape (1, 16), expected (rows, 2, cells)"),
        (np.array(3), "shape (), expected (rows, 2, cells)"),
        (PAIR[:0], "no rows"),
        (PAIR + 1, ":1: the question holds 1 to 5, expected 0 to 4, or -1 for no cell"),
        (PAIR - 2, ":1: the question holds -2 to 2"),
        ((PAIR - 1).astype(np.uint64), ":1: the question holds 0 to 18446744073709551615"),
        (np.concatenate([PAIR, PAIR]), ":2: the same question as in FILE:1"),
    ],
)
def test_bad_arrays_are_named(array, reason, tmp_path):
    np.save(tmp_path / "bad.npy", array)
    assert reason in error_of(tmp_path / "bad.npy")


def test_arrays_are_never_unpickled(tmp_path):
    canary = tmp_path / "canary"
    np.save(tmp_path / "bad.npy", np.array([Canary(canary)], dtype=object), allow_pickle=True)
    assert "not a .npy file of numbers" in error_of(tmp_path / "bad.npy")
    (tmp_path / "short.npy").write_bytes((tmp_path / "bad.npy").read_bytes()[:50])
    assert "not a .npy file of numbers" in error_of(tmp_path / "short.npy")
    assert not canary.exists()


@pytest.mark.parametrize("text", ["{'descr': (3, 2", "'''abc", "-" * 9000 + "1", " 1\n0"])
def test_arrays_with_a_damaged_header_are_named(text, tmp_path):
    size = len(text).to_bytes(2, "little")
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY\x01\x00" + size + text.encode())
    assert "not a .npy file of numbers" in error_of(tmp_path / "bad.npy")


@pytest.mark.parametrize("shape", [(10**30, 2, 16), (-3, 2, 16), (10**18, 2, 16), (2**62, 2, 16)])
def test_arrays_of_a_shape_that_cannot_be_are_named(shape, tmp_path):
    np.save(tmp_path / "bad.npy", np.zeros((10**3, 2, 16), np.int64))  # a header with some room
    data = (tmp_path / "bad.npy").read_bytes()
    text = str(shape).encode()
    start, end = data.index(b"(1000"), data.index(b"(1000") + len(text)
    (tmp_path / "bad.npy").write_bytes(data[:start] + text + b"}".ljust(127 - end) + data[127:])
    assert "not a .npy file of numbers" in error_of(tmp_path / "bad.npy")


def test_arrays_of_different_length_or_alone_are_named(tmp_path):
    np.save(tmp_path / "questions.npy", PAIR[:, 0])
    with pytest.raises(DataError, match=r"answers\.npy: no such file"):
        read_puzzles(tmp_path, SMALL)
    np.save(tmp_path / "answers.npy", PAIR[:, 1].repeat(2, axis=0))
    assert "answers of shape (2, 16), expected (1, 16)" in error_of(tmp_path)


def test_subsample_draws_different_rows_by_seed(puzzles):
    dataset = PuzzleDataset(SMALL, *puzzles)
    part = subsample(dataset, 10, seed=1)
    assert len(part.questions.unique(dim=0)) == 10
    assert torch.equal(part.questions, subsample(dataset, 10, seed=1).questions)
    assert not torch.equal(part.questions, subsample(dataset, 10, seed=2).questions)
    assert SMALL.valid(part.questions, part.answers).all()
    for num in (0, 31):
        with pytest.raises(DataError, match=f"cannot draw {num} of 30"):
            subsample(dataset, num, seed=0)


def test_questions_without_exactly_one_solution_are_found(puzzles):
    questions, answers = (grids.clone() for grids in puzzles)
    questions[3] = 1  # all blank
    questions[8] = torch.tensor(SMALL.parse("11" + "." * 14))
    assert check_unique(PuzzleDataset(SMALL, questions, answers)) == [(3, 2), (8, 0)]
    with pytest.raises(ConfigError, match="maze: has no solver"):
        check_unique(PuzzleDataset(Maze(4, 4), questions, answers))


def test_the_first_rows_are_searched_for_several_solutions_however_long(monkeypatch, puzzles):
    class Slow(Sudoku):
        """A second for each search, by the clock that the test replaces."""

        def solve(self, question, limit=2):
            clock.append(clock[-1] + 1)
            return super().solve(question, limit)

    clock = [0]
    monkeypatch.setattr("time.monotonic", lambda: clock[-1])
    monkeypatch.setattr("latent_reason.data.puzzle_files.MAX_CHECKED", 20)
    questions, answers = (grids.clone() for grids in puzzles)
    questions[20] = 1  # all blank
    assert refuse_several_solutions(PuzzleDataset(Slow(2, 2), questions, answers)) == 20
    assert len(clock) == 21
    assert refuse_several_solutions(PuzzleDataset(SMALL, questions[:7], answers[:7])) == 7
    assert refuse_several_solutions(PuzzleDataset(Maze(4, 4), questions, answers)) == 0
    questions[19] = 1
    with pytest.raises(DataError, match="^puzzle 20: the question has several solutions; remove"):
        refuse_several_solutions(PuzzleDataset(SMALL, questions, answers))


@pytest.mark.skipif(not SHARED, reason="no shared/data in or beside the repository")
def test_shared_files_are_sound():
    for path in SHARED:
        dataset = read_puzzles(path, Sudoku(), limit=20_000)
        assert len(dataset) == (2_000 if "test" in path.name else 20_000)
        assert check_unique(subsample(dataset, 10, seed=0)) == []
