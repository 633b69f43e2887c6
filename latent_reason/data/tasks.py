"""Text tasks made by rule: prompts and answers in plain text, as many as wanted.

Every answer follows from its prompt by a rule that a program can check, so that a model's exact
accuracy is not a matter of opinion. `TASKS` holds the tasks by name; `tasks_rules.py` has their
rules. Neither needs torch. A prompt is a short instruction (its *wording*), ": " and the data:

    Sort these digits: 7 3 1 9 ...

Splits: `train`, `val` and `test` never share an instance, whatever the number of rows, the seed
and the wording: a hash of the instance says which of the three it belongs to. `longer` has longer
or harder instances than training. `wording` has the instances of `test` (the very same ones for
the same seed) in wordings that no other split uses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import blake2b
from random import Random

from latent_reason.config import check_request
from latent_reason.data import tasks_rules as rules
from latent_reason.errors import ConfigError, DataError

SPLITS = ("train", "val", "test", "longer", "wording")
MAX_MISSES = 20_000
"""Draws in a row without a new usable instance after which the instances count as used up."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row of text data; `task` and `split` are empty where they are not known."""

    prompt: str
    answer: str
    task: str = ""
    split: str = ""


def _one_line(data: str) -> str:
    """Return the text with every run of white space made one space."""
    return " ".join(data.split())


@dataclass(frozen=True)
class Task:
    """A rule that makes prompts and answers, and checks answers.

    `sample` and `verify` are described in `tasks_rules.py`; `canonical` maps the data of a prompt
    to a string that is equal for equal instances.
    """

    name: str
    description: str
    wordings: tuple[str, ...]
    held_out_wordings: tuple[str, ...]
    sample: Callable[[Random, bool], tuple[str, str] | None]
    verify: Callable[[str, list[str]], bool]
    canonical: Callable[[str], str] = _one_line

    def instance(self, prompt: str) -> str:
        """Return what identifies the instance of a prompt, the same for every wording."""
        return self.canonical(prompt.rpartition(": ")[2])

    def home_split(self, prompt: str) -> str:
        """Return which of train, val and test owns the instance of a prompt of training length."""
        digest = blake2b(self.instance(prompt).encode(), digest_size=8).digest()
        return {0: "val", 1: "test"}.get(int.from_bytes(digest, "big") % 10, "train")

    def generate(self, split: str, num: int, seed: int) -> list[Example]:
        """Make examples, no two with the same instance; the same arguments give the same list.

        A larger `num` appends to the list of a smaller one.

        Args:
            split: one of `SPLITS`; the module's docstring says what they hold.
            num: number of examples, 1 or more.
            seed: any integer.

        Raises:
            ConfigError: for a split or a number that is not possible.
            DataError: if the split has fewer than `num` instances.
        """
        check_request(split, num, SPLITS)
        home = "test" if split == "wording" else split
        wordings = self.held_out_wordings if split == "wording" else self.wordings
        rng = Random(f"{self.name} {home} instances {seed}")
        wording_rng = Random(f"{self.name} {split} wordings {seed}")
        seen: set[str] = set()
        examples: list[Example] = []
        misses = 0
        while len(examples) < num:
            drawn = self.sample(rng, split == "longer")
            if drawn is not None:
                data, answer = drawn
                prompt = f"{wording_rng.choice(wordings)}: {data}"
                instance = self.instance(prompt)
                if instance not in seen and (split == "longer" or self.home_split(prompt) == home):
                    seen.add(instance)
                    examples.append(Example(prompt, answer, self.name, split))
                    misses = 0
                    continue
            misses += 1
            if misses == MAX_MISSES:
                raise DataError(
                    f"{self.name}: found only {len(examples)} different instances for split "
                    f"{split!r}, not {num}; ask for fewer"
                )
        return examples

    def check(self, prompt: str, answer: str) -> bool:
        """Tell whether the answer is right for the prompt, by the rule.

        The symbols of the answer count, not the white space between them. False too for a prompt
        that is not of this task.
        """
        try:
            return self.verify(prompt.rpartition(": ")[2], answer.split())
        except ValueError:
            return False


_ALL = (
    Task(
        name="rolling_sums",
        description="running totals modulo 10 of a list of digits, added up from the right",
        wordings=(
            "Add from right to left, modulo 10",
            "Running totals from the right, modulo 10",
            "Sum from each digit to the end, modulo 10",
            "Give all totals from the right, last digit only",
        ),
        held_out_wordings=(
            "For each digit give the tail sum modulo 10",
            "Add up backwards, keep only last digits",
        ),
        sample=rules.sample_rolling_sums,
        verify=rules.verify_rolling_sums,
    ),
    Task(
        name="sorting",
        description="a list of digits in ascending order",
        wordings=(
            "Sort these digits",
            "Put the digits in order, smallest first",
            "Arrange from low to high",
            "Sort in ascending order",
        ),
        held_out_wordings=("List the numbers from smallest to largest", "Order this list upwards"),
        sample=rules.sample_sorting,
        verify=rules.verify_sorting,
    ),
    Task(
        name="permutations",
        description="where a marker stands after each of a list of moves, the last one done first",
        wordings=(
            "Follow the marker through the moves",
            "Do the moves from last to first",
            "Where is the marker after each move",
            "Track the marker, last move first",
        ),
        held_out_wordings=(
            "Give the place of the marker after every move",
            "Where does it stand if moves go right to left",
        ),
        sample=rules.sample_permutations,
        verify=rules.verify_permutations,
    ),
    Task(
        name="reachability",
        description="the cells of a grid with walls that a walk from the top left can reach",
        wordings=(
            "Mark the cells reachable from the top left",
            "Find all cells joined to the first cell",
            "Flood the open cells from the corner",
            "Which cells can be reached",
        ),
        held_out_wordings=(
            "Show where a walk from the start can go",
            "Fill this maze from its entrance",
        ),
        sample=rules.sample_reachability,
        verify=rules.verify_reachability,
    ),
    Task(
        name="khop",
        description="for each of the shuffled links of some chains, the last letter of its chain",
        wordings=(
            "Follow the links to the last letter",
            "Give the end of the chain for each pair",
            "Where does each pair end",
            "Find the final letter for each link",
        ),
        held_out_wordings=(
            "For every pair name where its chain stops",
            "Trace all arrows as far as they go",
        ),
        sample=rules.sample_khop,
        verify=rules.verify_khop,
        canonical=rules.canonical_khop,
    ),
    Task(
        name="sudoku4",
        description="a 4 x 4 Sudoku with one solution, row by row, 0 for an empty cell",
        wordings=(
            "Solve this small Sudoku",
            "Fill the empty cells",
            "Complete the 4 by 4 grid",
            "Solve the Sudoku, 0 is empty",
        ),
        held_out_wordings=(
            "Replace each 0 to finish the puzzle",
            "Find the missing digits of this square",
        ),
        sample=rules.sample_sudoku4,
        verify=rules.verify_sudoku4,
    ),
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}


def find_task(name: str) -> Task:
    """Return the task of that name.

    Raises:
        ConfigError: if there is none; the message suggests the nearest name.
    """
    if name in TASKS:
        return TASKS[name]
    near = get_close_matches(name, TASKS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"task: got {name!r}; {hint}expected one of {', '.join(TASKS)}")
