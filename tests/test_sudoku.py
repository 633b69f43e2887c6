"""Sudoku: rule, solver, symmetries and generated puzzles."""

import csv
import gzip
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_reason.data.order import Draws
from latent_reason.data.puzzle_splits import home_splits
from latent_reason.data.sudoku import Sudoku
from latent_reason.data.sudoku_search import SudokuSearch
from latent_reason.errors import ConfigError, DataError

REPOSITORY = Path(__file__).parents[1]
HARD = [
    path
    for top in (REPOSITORY, REPOSITORY.parent)
    for path in top.glob("shared/data/sudoku/sudoku_hard_test.csv.gz")
]
SMALL, MIDDLE, FULL = Sudoku(2, 2), Sudoku(2, 3), Sudoku(3, 3)
PUZZLES = {
    sudoku: sudoku.generate(num, seed=5) for sudoku, num in ((SMALL, 24), (MIDDLE, 24), (FULL, 8))
}
EASY = "530070000600195000098000060800060003400803001700020006060000280000419005000080079"
SOLVED = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
kinds = st.sampled_from(list(PUZZLES))


def transformed(sudoku, grids, seed):
    """Return a symmetry per grid and the grids under it."""
    symmetry = sudoku.symmetry(Draws(torch.arange(len(grids)), seed))
    return symmetry, symmetry.apply(grids)


def test_every_row_column_and_box_is_a_group():
    for sudoku in (*PUZZLES, Sudoku(3, 2), Sudoku(4, 4)):
        n = sudoku.width
        groups = sudoku.groups()
        assert groups.shape == (3 * n, n * n)
        assert (groups.sum(1) == n).all() and (groups.sum(0) == 3).all()
        assert len({tuple(group) for group in groups.tolist()}) == 3 * n
    box = MIDDLE.groups()[12 + 1].view(6, 6)
    assert box[:2, 3:].all() and box.sum() == 6


def test_grids_are_read_in_all_usual_forms():
    tokens = FULL.parse(EASY)
    assert FULL.parse(EASY.replace("0", ".")) == tokens
    assert FULL.parse(FULL.format(tokens)) == tokens
    large = Sudoku(4, 4)
    assert large.parse("aBcDeFg." + "0" * 248)[:8] == [11, 12, 13, 14, 15, 16, 17, 1]


@pytest.mark.parametrize("text", [EASY[1:], EASY + "1", EASY.replace("5", "a"), "", "x" * 81])
def test_other_text_is_refused(text):
    with pytest.raises(DataError, match="expected"):
        FULL.parse(text)


@pytest.mark.parametrize("box", [(0, 3), (-2, -2), (1, 1), (5, 5), (1, 17)])
def test_impossible_boxes_are_refused(box):
    with pytest.raises(ConfigError, match="boxes: got"):
        Sudoku(*box)


def test_conflicts_say_what_is_wrong():
    question, answer = FULL.parse(EASY), FULL.parse(SOLVED)
    assert FULL.conflicts(question, answer) == []
    wrong = list(answer)
    wrong[0] = 8  # 7 where the clue is 5; row 1 has its 7 at r1c5
    found = FULL.conflicts(question, wrong)
    assert found[0] == "cell r1c1 changes the clue 5 to 7"
    assert "row 1 holds 7 twice" in found and "box 1 holds 7 twice" in found
    assert "column 1 holds 7 twice" in found and len(found) == 4
    wrong[0], wrong[80] = 1, 0
    assert FULL.conflicts(question, wrong) == ["cell r1c1 is empty", "cell r9c9 is empty"]
    assert "row 2 holds 3 9 times" in FULL.conflicts([1] * 81, [4] * 81)


@given(kinds, st.integers(0, 2**32), st.integers(0, 3))
def test_valid_and_conflicts_agree(sudoku, seed, num_changes):
    questions, answers = (grids.clone() for grids in PUZZLES[sudoku])
    rng = Random(seed)
    for row in answers:
        for _ in range(rng.randint(0, num_changes)):
            row[rng.randrange(len(row))] = rng.randrange(sudoku.vocab_size)
    valid = sudoku.valid(questions, answers.to(torch.uint8)).tolist()
    pairs = zip(questions.tolist(), answers.tolist(), strict=True)
    assert valid == [not sudoku.conflicts(question, answer) for question, answer in pairs]
    if not num_changes:
        assert all(valid)


def test_exchanged_digits_are_not_valid():
    """Every row still holds every digit once."""
    questions, answers = PUZZLES[MIDDLE]
    exchanged = answers.view(-1, 6, 6).clone()
    exchanged[:, 0] = exchanged[:, 0].roll(1, dims=1)
    assert not MIDDLE.valid(torch.ones_like(questions), exchanged.flatten(1)).any()


def test_solver_finds_all_solutions():
    assert FULL.solve(FULL.parse(EASY)) == [FULL.parse(SOLVED)]
    grids = SMALL.solve([1] * 16, limit=1000)
    assert len({tuple(grid) for grid in grids}) == len(grids) == 288
    assert SMALL.valid(torch.ones(288, 16), torch.tensor(grids)).all()
    assert len(FULL.solve([1] * 81, limit=5)) == 5
    assert len(FULL.solve([1] * 81)) == 2
    assert FULL.solve(FULL.parse("55" + "." * 79)) == []
    # No clue contradicts another, but nothing fits in r1c9.
    assert FULL.solve(FULL.parse("12345678." + "." * 8 + "9" + "." * 63)) == []


@pytest.mark.skipif(not HARD, reason="no shared/data in or beside the repository")
def test_solver_agrees_with_the_answers_of_hard_puzzles():
    with gzip.open(HARD[0], "rt") as file:
        rows = list(csv.DictReader(file))[:60]
    for row in rows:
        assert FULL.solve(FULL.parse(row["question"])) == [FULL.parse(row["answer"])]
    questions = torch.tensor([FULL.parse(row["question"]) for row in rows])
    assert len(FULL.fingerprints(questions).unique()) == len(rows)


@settings(max_examples=20)
@given(kinds, st.integers(-(2**63), 2**63 - 1))
def test_the_solution_of_a_transformed_puzzle_is_the_transformed_solution(sudoku, seed):
    questions, answers = PUZZLES[sudoku]
    symmetry, new_questions = transformed(sudoku, questions, seed)
    new_answers = symmetry.apply(answers)
    for question, answer in zip(new_questions.tolist(), new_answers.tolist(), strict=True):
        assert sudoku.solve(question) == [answer]
    assert sudoku.valid(new_questions, new_answers).all()
    assert torch.equal(symmetry.inverse().apply(new_questions), questions)
    assert torch.equal(symmetry.inverse().apply(new_answers), answers)


@pytest.mark.parametrize(
    ("box", "num_arrangements"), [((2, 2), 128), ((2, 3), 3456), ((3, 2), 3456)], ids=str
)
def test_all_symmetries_come(box, num_arrangements):
    """Bands, rows in bands, stacks, columns in stacks, and two transposes if boxes are square."""
    symmetry = Sudoku(*box).symmetry(Draws(torch.arange(60_000), seed=1))
    assert len(symmetry.cells.unique(dim=0)) == num_arrangements
    counts = symmetry.cells[:, 0].bincount()
    assert len(counts) == Sudoku(*box).num_cells and counts.max() < 1.2 * counts.min()
    digits = 24 if box == (2, 2) else 720
    assert len(symmetry.symbols.unique(dim=0)) == digits


@settings(max_examples=20)
@given(kinds, st.integers(0, 2**32))
def test_fingerprints_see_through_symmetries(sudoku, seed):
    questions, _ = PUZZLES[sudoku]
    fingerprints = sudoku.fingerprints(questions)
    assert torch.equal(sudoku.fingerprints(transformed(sudoku, questions, seed)[1]), fingerprints)
    if sudoku is not SMALL:
        assert len(fingerprints.unique()) == len(questions)


def test_fingerprints_tell_apart_what_no_symmetry_joins():
    """Two clues: same row and box, same row, same column, another digit, nothing in common."""
    places = ["11", "1001", "1" + "0" * 17 + "1", "12", "1" + "0" * 21 + "1"]
    grids = torch.tensor([MIDDLE.parse(text.ljust(36, "0")) for text in places])
    assert len(MIDDLE.fingerprints(grids).unique()) == len(grids)


@pytest.mark.parametrize("sudoku", PUZZLES, ids=lambda sudoku: sudoku.name)
def test_generated_puzzles_are_different_and_have_one_solution(sudoku):
    questions, answers = PUZZLES[sudoku]
    assert questions.dtype == answers.dtype == torch.int64
    assert sudoku.valid(questions, answers).all()
    assert len(questions.unique(dim=0)) == len(questions)
    for question, answer in zip(questions.tolist(), answers.tolist(), strict=True):
        assert sudoku.solve(question) == [answer]
    assert len((questions > 1).sum(1).unique()) > 2  # of different difficulty


def test_generation_is_repeatable_and_more_puzzles_append():
    first, again = MIDDLE.generate(10, seed=3), MIDDLE.generate(70, seed=3)
    assert torch.equal(first[0], again[0][:10]) and torch.equal(first[1], again[1][:10])
    assert not torch.equal(first[0], MIDDLE.generate(10, seed=4)[0])


def test_clues_decide_how_many_stay():
    questions, _ = MIDDLE.generate(20, seed=0, clues=(20, 22))
    numbers = (questions > 1).sum(1)
    assert numbers.min() == 20 and numbers.max() == 22
    questions, _ = MIDDLE.generate(3, seed=0, clues=(0, 0))
    for question in questions.tolist():
        for cell in range(36):
            fewer = question[:cell] + [1] + question[cell + 1 :]
            assert question[cell] == 1 or len(MIDDLE.solve(fewer)) == 2


def test_large_puzzles_can_be_made():
    large = Sudoku(4, 4)
    questions, answers = large.generate(1, seed=0)
    assert large.valid(questions, answers).all() and large.solve(questions[0].tolist())


@pytest.mark.parametrize(("sudoku", "num"), [(SMALL, 50), (MIDDLE, 12)], ids=["4x4", "6x6"])
def test_splits_share_nothing_even_up_to_symmetry(sudoku, num):
    owned = {}
    for split in ("train", "val", "test"):
        questions = torch.cat([sudoku.generate(num, seed, split)[0] for seed in (0, 1)])
        fingerprints = sudoku.fingerprints(transformed(sudoku, questions, seed=9)[1])
        assert set(home_splits(fingerprints)) == {split}
        owned[split] = set(fingerprints.tolist())
    assert not owned["train"] & owned["val"] and not owned["train"] & owned["test"]
    assert not owned["val"] & owned["test"]


def test_all_small_grids_are_drawn():
    search, rng = SudokuSearch(2, 2), Random(0)
    assert len({tuple(search.random_grid(rng)) for _ in range(6000)}) == 288


def test_used_up_splits_and_bad_arguments_are_named(monkeypatch):
    monkeypatch.setattr("latent_reason.data.sudoku.MAX_MISSES", 500)
    with pytest.raises(DataError, match="found only .* different puzzles for split 'train'"):
        SMALL.generate(289, seed=0, clues=(16, 16))
    with pytest.raises(ConfigError, match="split: got 'dev'"):
        SMALL.generate(1, 0, "dev")
    with pytest.raises(ConfigError, match="num: got 0"):
        SMALL.generate(0, 0)
    for clues in ((5, 4), (-1, 4), (0, 17)):
        with pytest.raises(ConfigError, match="clues: got"):
            SMALL.generate(1, 0, clues=clues)
