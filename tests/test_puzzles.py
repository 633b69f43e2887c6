"""Random numbers by position, symmetries, and the dataset of any puzzle."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latent_reason.data.order import Draws
from latent_reason.data.puzzles import PAD, Puzzle, PuzzleDataset, Symmetry
from latent_reason.data.sudoku import Sudoku
from latent_reason.errors import DataError
from latent_reason.losses import IGNORE_INDEX

SEEDS = st.integers(-(2**63), 2**63 - 1)
POSITIONS = st.lists(st.integers(0, 2**40), min_size=1, max_size=8, unique=True)


class Mirror(Puzzle):
    """One row of letters; either as it is or mirrored."""

    name, height, width, alphabet = "mirror", 1, 5, " abc"

    def symmetry(self, draws):
        cells = torch.arange(5)
        mirrored = draws.below(2).bool()[:, None]
        symbols = torch.arange(5).expand(len(mirrored), 5)
        return Symmetry(torch.where(mirrored, cells.flip(0), cells), symbols)


class Plain(Puzzle):
    """Two rows without symmetries."""

    name, height, width, alphabet = "plain", 2, 3, "01"


def all_draws(draws):
    return torch.cat((draws.bits(3), draws.below(10)[:, None], draws.permutations(7)), dim=1)


@given(POSITIONS, SEEDS)
def test_draws_depend_on_seed_and_position_only(positions, seed):
    together = all_draws(Draws(torch.tensor(positions), seed))
    for row, position in zip(together, positions, strict=True):
        assert torch.equal(all_draws(Draws(torch.tensor([position]), seed))[0], row)
    assert len(together.unique(dim=0)) == len(positions)


def test_draws_of_other_seeds_and_calls_differ():
    draws = Draws(torch.arange(100), seed=1)
    numbers = torch.cat((draws.bits(2), draws.bits(2), Draws(torch.arange(100), seed=2).bits(2)))
    assert len(numbers.flatten().unique()) == 600


def test_draws_are_even():
    draws = Draws(torch.arange(60_000), seed=0)
    permutations, counts = draws.permutations(3).unique(dim=0, return_counts=True)
    assert len(permutations) == 6 and counts.min() > 9_500 and counts.max() < 10_500
    counts = draws.below(6).bincount()
    assert len(counts) == 6 and counts.min() > 9_500 and counts.max() < 10_500
    together = (draws.below(3) * 3 + draws.below(3)).bincount()  # two calls know nothing of another
    assert len(together) == 9 and together.min() > 6_200 and together.max() < 7_100


@given(st.sampled_from([(2, 2), (2, 3), (3, 3), (4, 4)]), POSITIONS, SEEDS)
def test_symmetries_depend_on_seed_and_position_only(box, positions, seed):
    sudoku = Sudoku(*box)
    symmetry = sudoku.symmetry(Draws(torch.tensor(positions), seed))
    for row, position in enumerate(positions):
        alone = sudoku.symmetry(Draws(torch.tensor([position]), seed))
        assert torch.equal(alone.cells[0], symmetry.cells[row])
        assert torch.equal(alone.symbols[0], symmetry.symbols[row])


@given(st.sampled_from([(2, 2), (2, 3), (3, 3), (4, 4)]), SEEDS)
def test_inverse_after_transform_is_the_identity(box, seed):
    sudoku = Sudoku(*box)
    symmetry = sudoku.symmetry(Draws(torch.arange(5), seed))
    grids = torch.randint(0, sudoku.vocab_size, (5, sudoku.num_cells))
    assert torch.equal(symmetry.inverse().apply(symmetry.apply(grids)), grids)
    assert torch.equal(symmetry.apply(symmetry.inverse().apply(grids)), grids)
    # Padding and blanks stay what they are, and digits do not become one of them.
    assert torch.equal(symmetry.symbols[:, :2], torch.tensor([[PAD, 1]]).expand(5, 2))
    assert torch.equal(
        symmetry.symbols.sort(dim=1).values, torch.arange(sudoku.vocab_size).expand(5, -1)
    )


def test_symmetries_of_different_positions_are_different():
    symmetry = Sudoku(3, 3).symmetry(Draws(torch.arange(5000), seed=0))
    whole = torch.cat((symmetry.cells, symmetry.symbols), dim=1)
    assert len(whole.unique(dim=0)) == 5000


def test_grids_are_read_and_written():
    puzzle = Plain()
    assert puzzle.parse("0 1 0\n110") == [1, 2, 1, 2, 2, 1]
    assert puzzle.format([1, 2, 1, 2, 0, 1]) == "010\n1?0"
    assert Mirror().parse("a  bc") == [2, 1, 1, 3, 4]  # spaces count where they are a symbol
    assert puzzle.num_cells == 6 and puzzle.vocab_size == 3
    with pytest.raises(DataError, match=r"5 cells, expected 6 \(2 x 3\)"):
        puzzle.parse("01010")
    with pytest.raises(DataError, match="cell 4 is 'x', expected one of '01'"):
        puzzle.parse("010x10")


def make_dataset(num=7, augment=True):
    questions = torch.randint(1, 5, (num, 5))
    answers = torch.randint(1, 5, (num, 5))
    answers[:, 2] = PAD
    return PuzzleDataset(Mirror(), questions, answers, augment)


def test_rows_come_as_they_are():
    dataset = make_dataset()
    rows = torch.tensor([4, 0, 4])
    batch = dataset.batch(rows)
    assert {key: value.dtype for key, value in batch.items()} == dict.fromkeys(batch, torch.int64)
    assert torch.equal(batch["inputs"], dataset.questions[rows].long())
    assert (batch["labels"][:, 2] == IGNORE_INDEX).all()
    others = [0, 1, 3, 4]
    assert torch.equal(batch["labels"][:, others], dataset.answers[rows][:, others].long())
    assert torch.equal(batch["puzzle_identifiers"], torch.zeros(3, dtype=torch.int64))
    part = dataset.subset(rows)
    assert len(part) == 3 and torch.equal(part.questions, dataset.questions[rows])
    assert dataset.num_tokens == 5


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=6), st.integers(0, 2**32))
def test_training_examples_depend_on_seed_and_position_only(positions, seed):
    dataset = make_dataset()
    together = dataset.at(torch.tensor(positions), seed)
    for row, position in enumerate(positions):
        alone = dataset.at(torch.tensor([position]), seed)
        for key, value in alone.items():
            assert torch.equal(value[0], together[key][row])


def test_an_epoch_has_every_row_once_in_a_new_order():
    dataset = make_dataset(num=50, augment=False)
    epochs = [dataset.at(torch.arange(50) + 50 * epoch, seed=3)["inputs"] for epoch in (0, 1)]
    expected = sorted(dataset.questions.tolist())
    assert [sorted(epoch.tolist()) for epoch in epochs] == [expected, expected]
    assert not torch.equal(*epochs)


def test_question_and_answer_are_transformed_alike_and_anew_in_each_epoch():
    dataset = make_dataset(num=1)
    question, answer = (grids[0].tolist() for grids in (dataset.questions, dataset.answers))
    assert question != question[::-1]
    batch = dataset.at(torch.arange(40), seed=0)
    mirrored = [inputs == question[::-1] for inputs in batch["inputs"].tolist()]
    assert 5 < sum(mirrored) < 35
    for flipped, inputs, labels in zip(
        mirrored, batch["inputs"].tolist(), batch["labels"].tolist(), strict=True
    ):
        expected = [token if token != PAD else IGNORE_INDEX for token in answer]
        assert inputs == (question[::-1] if flipped else question)
        assert labels == (expected[::-1] if flipped else expected)


def test_hints_are_cells_of_the_answer_up_to_a_part_of_them():
    puzzle = Sudoku(2, 2)
    dataset = PuzzleDataset(puzzle, *puzzle.generate(300, seed=0), augment=False)
    positions = torch.arange(300)
    plain = dataset.at(positions, seed=0)
    dataset.hints = 0.6
    hinted = dataset.at(positions, seed=0)
    again = dataset.at(positions, seed=0)
    assert torch.equal(hinted["inputs"], again["inputs"])
    assert torch.equal(hinted["labels"], plain["labels"])
    changed = hinted["inputs"] != plain["inputs"]
    assert torch.equal(hinted["inputs"][changed], plain["labels"][changed])
    assert (plain["inputs"][changed] == 1).all(), "a given cell was changed"
    part = changed.sum(dim=1) / (plain["inputs"] == 1).sum(dim=1)
    assert part.mean().item() == pytest.approx(0.3, abs=0.04)
    assert part.min() == 0 and 0.5 < part.max() < 0.95


def test_a_puzzle_without_symmetries_trains_as_it_is():
    grids = torch.tensor([[1, 2, 1, 2, 2, 1]])
    batch = PuzzleDataset(Plain(), grids, grids).at(torch.arange(3), seed=0)
    assert torch.equal(batch["inputs"], grids.expand(3, -1))
    assert Plain().groups().tolist() == [[True] * 6]
