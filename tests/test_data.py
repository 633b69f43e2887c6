"""The text tasks of `latent_reason.data`."""

from __future__ import annotations

import re
from itertools import permutations, product

import pytest

from latent_reason.data import TASKS, Example
from latent_reason.data.tasks import SPLITS, Task, find_task
from latent_reason.errors import ConfigError, DataError

# name: (prompt, answer) worked out by hand.
HAND_MADE = {
    "rolling_sums": ("Add: 9 8 7", "4 5 7"),
    "sorting": ("Sort: 3 9 0 3", "0 3 3 9"),
    "permutations": ("Moves: 2 6 1", "4 5 2"),
    "reachability": ("Reach: 0 1 0\n0 1 1\n0 0 1", "1 0 0 1 0 0 1 1 0"),
    "khop": ("End: b c, x y, a b", "c y c"),
    "sudoku4": (
        "Solve: 1 0 3 4 3 4 1 2 2 1 4 3 4 3 2 0",
        "1 2 3 4 3 4 1 2 2 1 4 3 4 3 2 1",
    ),
}


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> Task:
    return TASKS[request.param]


def corruptions(answer: str) -> list[str]:
    """Wrong answers: each symbol changed in turn, one left out, one too many, none."""
    symbols = answer.split()
    others = "abcdefghijklmnopqrstuvwxyz" if symbols[0].isalpha() else "0123456789"
    wrong = []
    for place, symbol in enumerate(symbols):
        other = others[(others.index(symbol) + 1) % len(others)]
        wrong.append(" ".join([*symbols[:place], other, *symbols[place + 1 :]]))
    return [*wrong, " ".join(symbols[1:]), f"{answer} {symbols[-1]}", "", "".join(symbols), "x y"]


@pytest.mark.parametrize("split", SPLITS)
def test_answers_pass_the_check_and_corrupted_ones_fail(task: Task, split: str) -> None:
    for example in task.generate(split, 10, seed=3):
        assert task.check(example.prompt, example.answer)
        assert not any(task.check(example.prompt, wrong) for wrong in corruptions(example.answer))


def test_check_agrees_with_a_hand_made_example(task: Task) -> None:
    prompt, answer = HAND_MADE[task.name]
    assert task.check(prompt, answer)
    assert not any(task.check(prompt, wrong) for wrong in corruptions(answer))


@pytest.mark.parametrize("data", ["", "?", "1 2 x", "10 3", "a  b", "0 1\n1", "b c, c b", "b c d"])
def test_check_is_false_for_prompts_of_no_task(task: Task, data: str) -> None:
    assert not any(task.check(f"Do: {data}", answer) for answer in ("1", "a", "c b", data))


@pytest.mark.parametrize("split", SPLITS)
def test_text_is_plain_and_labelled(task: Task, split: str) -> None:
    for example in task.generate(split, 50, seed=0):
        assert (example.task, example.split) == (task.name, split)
        assert re.fullmatch(r"[A-Za-z0-9 \n:.,]+", example.prompt)
        assert re.fullmatch(r"[a-z0-9]( [a-z0-9])*", example.answer)
        wording, _, data = example.prompt.partition(": ")
        assert len(wording.split()) <= 10 and ":" not in wording + data
        assert re.fullmatch(r"[a-z0-9]((, |[ \n])[a-z0-9])*", data)


@pytest.mark.parametrize("split", SPLITS)
def test_same_arguments_same_examples(task: Task, split: str) -> None:
    examples = task.generate(split, 40, seed=5)
    assert examples == task.generate(split, 40, seed=5)
    assert examples[:7] == task.generate(split, 7, seed=5)
    assert examples != task.generate(split, 40, seed=6)
    assert len({task.instance(example.prompt) for example in examples}) == 40


def test_generation_does_not_change_between_versions() -> None:
    (example,) = TASKS["sorting"].generate("test", 1, seed=0)
    prompt = "Put the digits in order, smallest first: 6 5 4 3 8 2 6 3 9 7 9 2 9 1 2 6"
    assert example == Example(prompt, "1 2 2 2 3 3 4 5 6 6 6 7 8 9 9 9", "sorting", "test")


def test_splits_are_disjoint_for_every_seed(task: Task) -> None:
    instances = {
        split: {
            task.instance(e.prompt) for seed in range(3) for e in task.generate(split, 60, seed)
        }
        for split in SPLITS
    }
    for split in SPLITS:
        for other in SPLITS:
            if split != other and {split, other} != {"test", "wording"}:
                assert not instances[split] & instances[other], (split, other)


def test_wording_split_has_the_test_instances_in_new_words(task: Task) -> None:
    test, wording = (task.generate(split, 30, seed=1) for split in ("test", "wording"))
    assert [task.instance(e.prompt) for e in test] == [task.instance(e.prompt) for e in wording]
    assert [e.answer for e in test] == [e.answer for e in wording]

    def words(examples: list[Example]) -> set[str]:
        return {example.prompt.partition(":")[0] for example in examples}

    trained = words([e for s in SPLITS[:-1] for e in task.generate(s, 60, seed=1)])
    assert trained == set(task.wordings) and len(trained) == 4
    assert words(wording) == set(task.held_out_wordings) and len(words(wording)) == 2
    assert not trained & words(wording)


def test_longer_is_longer_than_training(task: Task) -> None:
    def size(example: Example) -> int:
        data = example.prompt.partition(": ")[2]
        return data.count("0") if task.name == "sudoku4" else len(data.split())

    trained = max(size(e) for e in task.generate("train", 100, seed=0))
    assert min(size(e) for e in task.generate("longer", 100, seed=0)) > trained


def test_sudokus_have_one_solution() -> None:
    task = TASKS["sudoku4"]
    for split in ("train", "longer"):
        for example in task.generate(split, 2, seed=0):
            clues = example.prompt.partition(": ")[2].split()
            rows = [clues[start : start + 4] for start in range(0, 16, 4)]
            fits = [
                [
                    digits
                    for digits in permutations("1234")
                    if all(clue in ("0", digit) for clue, digit in zip(row, digits, strict=True))
                ]
                for row in rows
            ]
            solutions = [
                answer
                for grid in product(*fits)
                if task.check(example.prompt, answer := " ".join(d for row in grid for d in row))
            ]
            assert solutions == [example.answer]


def test_grids_have_walks_to_find() -> None:
    for example in TASKS["reachability"].generate("train", 50, seed=0):
        is_open = [cell == "0" for cell in example.prompt.partition(": ")[2].split()]
        assert 11 <= example.answer.split().count("1") < sum(is_open)


def test_impossible_requests_are_refused() -> None:
    pairs = Task(
        name="pairs",
        description="",
        wordings=("Say",),
        held_out_wordings=("Tell",),
        sample=lambda rng, longer: (str(rng.randrange(100)), "0"),
        verify=lambda data, answer: True,
    )
    with pytest.raises(DataError, match=r"pairs: found only \d+ .*'val', not 90; ask for fewer"):
        pairs.generate("val", 90, seed=0)
    split_sizes = [0, 0, 0]
    for index, split in enumerate(("train", "val", "test")):
        with pytest.raises(DataError) as caught:
            pairs.generate(split, 101, seed=0)
        split_sizes[index] = int(re.search(r"only (\d+)", str(caught.value))[1])
    assert sum(split_sizes) == 100 and min(split_sizes) > 0
    with pytest.raises(ConfigError, match="split: got 'dev', expected one of train, val"):
        pairs.generate("dev", 1, seed=0)
    with pytest.raises(ConfigError, match="num: got 0, expected 1 or more"):
        pairs.generate("train", 0, seed=0)


def test_unknown_task_gets_a_suggestion() -> None:
    assert find_task("khop") is TASKS["khop"]
    with pytest.raises(ConfigError, match="got 'sortin'; did you mean 'sorting'"):
        find_task("sortin")
    with pytest.raises(ConfigError, match="got 'zzz'; expected one of rolling_sums"):
        find_task("zzz")
