"""ARC: symmetries, canvas, the dataset, leaks between sets."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from arc_tasks import FOLDER, make_task, official, random_grid
from hypothesis import given
from hypothesis import strategies as st

from latent_reason.data.arc import ArcDataset
from latent_reason.data.arc_canvas import ArcSymmetry, crop, place
from latent_reason.data.arc_files import ArcPair, ArcTask
from latent_reason.data.arc_leaks import arc_leak_lines, find_arc_leaks
from latent_reason.errors import ConfigError, DataError

sizes = st.integers(1, 30)
seeds = st.integers(0, 2**32 - 1)
symmetries = st.builds(
    ArcSymmetry, st.integers(0, 7), st.permutations(range(1, 10)).map(lambda p: (0, *p))
)


grids = st.builds(random_grid, sizes, sizes, seeds)


def canvas_of(grid: np.ndarray, row: int = 0, column: int = 0) -> np.ndarray:
    """The canvas by its definition, cell by cell."""
    height, width = grid.shape
    canvas = np.zeros((30, 30), np.int64)
    canvas[row : row + height, column : column + width] = grid + 2
    if row + height < 30:
        canvas[row + height, column : column + width] = 1
    if column + width < 30:
        canvas[row : row + height, column + width] = 1
    return canvas


def placed(grid: np.ndarray, symmetry: ArcSymmetry, row: int, column: int) -> torch.Tensor:
    cells = np.full((30, 30), 7, np.uint8)  # what is outside of the grid must not matter
    cells[: grid.shape[0], : grid.shape[1]] = grid
    return place(
        torch.from_numpy(cells).view(1, -1),
        torch.tensor([grid.shape]),
        torch.tensor([symmetry.dihedral]),
        torch.tensor([symmetry.colours]),
        torch.tensor([[row, column]]),
    )[0]


# Symmetries and canvas


@given(grids, symmetries)
def test_inverse_undoes_a_symmetry(grid, symmetry):
    there = symmetry.apply(grid)
    assert np.array_equal(symmetry.inverse().apply(there), grid)
    assert np.array_equal(symmetry.apply(symmetry.inverse().apply(torch.from_numpy(grid))), grid)


def test_the_eight_turns_and_mirrors_are_all_there():
    grid = np.arange(6, dtype=np.uint8).reshape(2, 3)
    colours = tuple(range(10))
    ours = {str(ArcSymmetry(number, colours).apply(grid).tolist()) for number in range(8)}
    turns = [np.rot90(flipped, k) for flipped in (grid, grid.T) for k in range(4)]
    assert ours == {str(turned.tolist()) for turned in turns} and len(ours) == 8


@given(grids, symmetries, seeds)
def test_place_lays_the_transformed_grid_on_the_canvas(grid, symmetry, seed):
    there = symmetry.apply(grid)
    generator = np.random.default_rng(seed)
    row, column = (int(generator.integers(0, 31 - side)) for side in there.shape)
    tokens = placed(grid, symmetry, row, column)
    assert np.array_equal(tokens.view(30, 30).numpy(), canvas_of(there, row, column))


@given(grids, symmetries)
def test_crop_gives_back_what_lies_at_the_corner(grid, symmetry):
    found = crop(placed(grid, symmetry, 0, 0))
    assert found is not None and found.dtype == np.uint8
    assert np.array_equal(symmetry.inverse().apply(found), grid)


@given(st.integers(1, 5), st.integers(1, 5), seeds)
def test_crop_takes_the_largest_rectangle_of_colours(height, width, seed):
    generator = np.random.default_rng(seed)
    canvas = np.zeros((30, 30), np.int64)
    canvas[:height, :width] = generator.choice([-100, 0, 1, 12, *range(2, 12)], (height, width))
    colour = (canvas >= 2) & (canvas <= 11)
    boxes = [
        (h, w) for h in range(1, 6) for w in range(1, 6) if colour[:h, :w].all()
    ]  # every rectangle at the corner
    found = crop(torch.from_numpy(canvas.ravel()))
    if not boxes:
        assert found is None
        return
    assert found is not None and found.size == max(h * w for h, w in boxes)
    assert np.array_equal(found + 2, canvas[: found.shape[0], : found.shape[1]])


@pytest.mark.parametrize("token", [-100, 0, 1, 12, 2**40])
def test_a_canvas_without_colours_has_no_grid(token):
    assert crop(torch.full((900,), token)) is None


# The dataset

TRAINING = [make_task("a", 2, 1), make_task("b", 4, 2)]
EVALUATION = [make_task("c", 3, 2), make_task("d", 2, 1)]
NUM_PAIRS = 3 + 6 + 3 + 2


def make_dataset(num_augmentations: int = 5, seed: int = 1) -> ArcDataset:
    return ArcDataset(TRAINING, EVALUATION, num_augmentations, seed)


def lifted(canvas: torch.Tensor) -> tuple[tuple[int, int], np.ndarray]:
    """Where a grid lies on a canvas, and the grid itself."""
    square = canvas.masked_fill(canvas == -100, 0).view(30, 30)
    row, column = (int(square.any(dim=axis).int().argmax()) for axis in (1, 0))
    grid = crop(square.roll((-row, -column), (0, 1)))
    assert grid is not None
    return (row, column), grid


def undone(dataset: ArcDataset, batch: dict[str, torch.Tensor], index: int) -> ArcPair:
    """The pair of an example, as it is in its task."""
    where, question = lifted(batch["inputs"][index])
    there, answer = lifted(batch["labels"][index])
    assert where == there
    undo = dataset.symmetry(int(batch["puzzle_identifiers"][index])).inverse()
    return ArcPair(undo.apply(question), undo.apply(answer))


def key(pair: ArcPair) -> str:
    assert pair.output is not None
    return f"{pair.input.tolist()} {pair.output.tolist()}"


def test_an_epoch_visits_each_task_once_under_one_augmentation():
    dataset = make_dataset()
    assert len(dataset) == NUM_PAIRS and dataset.num_tokens == 900
    owner = {key(p): i for i, task in enumerate(dataset.tasks) for p in (*task.train, *task.test)}
    trained = {key(p) for task in TRAINING for p in (*task.train, *task.test)}
    trained |= {key(p) for task in EVALUATION for p in task.train}
    augmentations, corners, num_visits = set(), 0, 0
    for epoch in range(20):
        batch = dataset.at(torch.arange(NUM_PAIRS) + epoch * NUM_PAIRS, seed=3)
        pairs = [key(undone(dataset, batch, index)) for index in range(NUM_PAIRS)]
        assert set(pairs) == trained  # so no test pair of an evaluation task
        identifiers = batch["puzzle_identifiers"].tolist()
        assert [(i - 1) // 6 for i in identifiers] == [owner[pair] for pair in pairs]
        visits = [i for n, i in enumerate(identifiers) if n == 0 or i != identifiers[n - 1]]
        assert len(visits) == 4
        augmentations.update(identifiers)
        corners += sum(lifted(grid)[0] == (0, 0) for grid in batch["inputs"])
        num_visits += len(visits)
    assert 20 < len(augmentations) <= 24
    assert num_visits <= corners < 1.2 * num_visits  # one pair of a visit stays at the corner


def test_examples_are_a_pure_function_of_seed_and_position():
    dataset, positions = make_dataset(), torch.arange(5, 60)
    whole = dataset.at(positions, seed=3)
    shuffle = torch.randperm(len(positions))
    for name, values in make_dataset().at(positions[shuffle], seed=3).items():
        assert torch.equal(values, whole[name][shuffle])
        assert values.dtype == torch.int64
    assert not torch.equal(dataset.at(positions, seed=4)["inputs"], whole["inputs"])


def test_pad_is_not_asked_and_the_border_is():
    batch = make_dataset().at(torch.arange(30), seed=0)
    assert set(batch["labels"].unique().tolist()) == {-100, 1, *range(2, 12)}
    assert set(batch["inputs"].unique().tolist()) == {0, 1, *range(2, 12)}


def test_rows_as_they_are():
    dataset = make_dataset()
    batch = dataset.batch(torch.tensor([0, 2, 9]))
    assert batch["puzzle_identifiers"].tolist() == [1, 1, 13]
    pairs = [TRAINING[0].train[0], TRAINING[0].test[0], EVALUATION[0].train[0]]
    for index, pair in enumerate(pairs):
        assert np.array_equal(batch["inputs"][index].view(30, 30), canvas_of(pair.input))
        assert key(undone(dataset, batch, index)) == key(pair)


def test_an_identifier_names_one_symmetry_for_good():
    few, many = make_dataset(2), make_dataset(7)
    assert (few.num_puzzle_identifiers, many.num_puzzle_identifiers) == (13, 33)
    for task in range(4):
        ours = [few.symmetry(1 + task * 3 + k) for k in range(3)]
        assert ours == [many.symmetry(1 + task * 8 + k) for k in range(3)]
        assert ours[0] == ArcSymmetry(0, tuple(range(10)))
    every = [many.symmetry(identifier) for identifier in range(1, 33)]
    assert all(symmetry.colours[0] == 0 for symmetry in every)
    assert len(set(every)) == 4 * 7 + 1 and len({s.dihedral for s in every}) == 8
    assert every[1] != make_dataset(7, seed=2).symmetry(2)


def test_a_test_pair_without_output_has_no_labels():
    pair = ArcPair(EVALUATION[1].test[0].input, None)
    dataset = ArcDataset(TRAINING, [replace(EVALUATION[1], test=(pair,))], 3, 0)
    batch = dataset.test_batch(torch.tensor([0, 0]), torch.tensor([0, 3]))
    assert (batch["labels"] == -100).all() and batch["puzzle_identifiers"].tolist() == [9, 12]
    with pytest.raises(DataError, match="task 'd', test pair 1: no output"):
        ArcDataset([replace(EVALUATION[1], test=(pair,))], [], 3, 0)


def test_sets_that_cannot_be_trained_on():
    with pytest.raises(DataError, match="task 'a' is there twice"):
        ArcDataset(TRAINING, [TRAINING[0]], 3, 0)
    with pytest.raises(DataError, match="no ARC tasks"):
        ArcDataset([], [], 3, 0)
    with pytest.raises(ConfigError, match="num_augmentations: got -1"):
        make_dataset(-1)


# Leaks


@given(symmetries, seeds)
def test_a_leak_is_seen_through_name_order_role_and_symmetry(symmetry, seed):
    def changed(pair: ArcPair) -> ArcPair:
        return ArcPair(symmetry.apply(pair.input), symmetry.apply(pair.output))

    task = make_task("task", 3, 1, seed)
    pairs = [changed(pair) for pair in (*task.train, *task.test)]
    copy = ArcTask("copy", (pairs[3], pairs[1]), (pairs[0],))
    (leak,) = find_arc_leaks([make_task("other", 3, 1, seed), copy], [task])
    assert (leak.task, leak.found_as) == ("task", "copy")
    assert (leak.num_shared, leak.num_pairs, leak.test_shared) == (3, 4, True)


def test_a_test_answer_in_any_task_is_told():
    task = make_task("task", 2, 1)
    shown = ArcTask("shown", task.train, make_task("one").test)
    asked = ArcTask("asked", make_task("two").train, task.test)
    (leak,) = find_arc_leaks([shown, asked], [task])
    assert (leak.found_as, leak.num_shared, leak.test_shared) == ("shown", 2, True)


def test_other_tasks_are_no_leak():
    task = make_task("task")
    swapped = tuple(ArcPair(p.output, p.input) for p in task.train if p.output is not None)
    renamed = ArcTask("task", swapped, make_task("other").test)  # only the name is the same
    assert find_arc_leaks([renamed], [task]) == []
    black = tuple(ArcPair(p.input, (p.output + 1) % 10) for p in task.train)  # type: ignore
    assert find_arc_leaks([replace(task, train=black, test=black[:1])], [task]) == []


@pytest.mark.skipif(FOLDER is None, reason="no shared/data/arc here")
def test_official_sets_are_inside_each_other():
    lines = arc_leak_lines(official("training2"), official("evaluation"))
    assert len(lines) == 377
    assert "376 of 400 tasks" in lines[0] and "376 with a test answer" in lines[0]
    assert "0 renamed" in lines[0]
    lines = arc_leak_lines(official("training"), official("evaluation"))
    assert "2 of 400 tasks" in lines[0] and "070dd51e: 3 of 3 pairs" in lines[1]
    assert lines[1].endswith("as 40853293")


def test_sets_without_a_common_task(tmp_path):
    for name in ("one", "two"):
        pair = {"input": [[3, 1]], "output": [[0, 1] if name == "one" else [1, 0]]}
        test = {"input": [[2]], "output": [[2 if name == "one" else 3]]}
        (tmp_path / f"{name}.json").write_text(json.dumps({"train": [pair], "test": [test]}))
    (line,) = arc_leak_lines(tmp_path / "one.json", tmp_path / "two.json")
    assert line == f"{tmp_path / 'two.json'}: none of 1 tasks is in {tmp_path / 'one.json'}"
