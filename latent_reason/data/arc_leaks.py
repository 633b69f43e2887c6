"""Which ARC tasks of one set are inside another, whatever their names, order and symmetry."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from latent_reason.data.arc_files import ArcPair, ArcTask, Grid, read_arc


@dataclass(frozen=True)
class ArcLeak:
    """A task that another set holds too.

    Attributes:
        task: name of the task.
        found_as: name of the task of the other set that shares the most pairs with it.
        num_shared: pairs of the task that the task `found_as` has, as train or test pair.
        num_pairs: pairs of the task with known output.
        test_shared: whether an answer to a test pair is in any task of the other set.
    """

    task: str
    found_as: str
    num_shared: int
    num_pairs: int
    test_shared: bool


def canonical_pair(input: Grid, output: Grid) -> bytes:
    """Return what all 8 turns and mirrors and all colourings of a pair have in common.

    Input and output change together; black (0) stays black, as in the augmentations. Two pairs
    give the same bytes if and only if such a symmetry turns one into the other.
    """
    colours = {0, *np.unique(input).tolist(), *np.unique(output).tolist()}
    forms = []
    for transposed, up, left in product((False, True), (1, -1), (1, -1)):
        grids = [(g.T if transposed else g)[::up, ::left] for g in (input, output)]
        cells = b"\0" + b"".join(grid.tobytes() for grid in grids)
        in_order = bytes(sorted(colours, key=cells.index))  # of appearance, black first
        renamed = cells.translate(bytes.maketrans(in_order, bytes(range(len(colours)))))
        forms.append(bytes(side for grid in grids for side in grid.shape) + renamed)
    return min(forms)


def _canonical(pairs: Sequence[ArcPair]) -> list[bytes]:
    return [canonical_pair(p.input, p.output) for p in pairs if p.output is not None]


def find_arc_leaks(tasks_a: Sequence[ArcTask], tasks_b: Sequence[ArcTask]) -> list[ArcLeak]:
    """Find the tasks of b that a has too: those with which a task of a shares a pair.

    Pairs are compared by `canonical_pair`, so names, the order of pairs, their role as train or
    test pair, turns, mirrors and colours make no difference. One shared pair is enough: revised
    copies of a task often differ in a pair. Pairs without output are not compared.
    """
    owners: dict[bytes, set[int]] = defaultdict(set)
    for index, task in enumerate(tasks_a):
        for pair in _canonical([*task.train, *task.test]):
            owners[pair].add(index)
    leaks = []
    for task in tasks_b:
        test = _canonical(task.test)
        pairs = _canonical(task.train) + test
        shared = Counter(index for pair in pairs for index in owners.get(pair, ()))
        if shared:
            found, num_shared = min(shared.items(), key=lambda item: (-item[1], item[0]))
            test_shared = any(pair in owners for pair in test)
            leaks.append(
                ArcLeak(task.name, tasks_a[found].name, num_shared, len(pairs), test_shared)
            )
    return leaks


def arc_leak_lines(path_a: Path, path_b: Path) -> list[str]:
    """Return what a command line prints: a summary, then a line for each task of b found in a.

    Raises:
        DataError: if a file cannot be used.
    """
    tasks_a, tasks_b = read_arc(path_a), read_arc(path_b)
    leaks = find_arc_leaks(tasks_a, tasks_b)
    if not leaks:
        return [f"{path_b}: none of {len(tasks_b):,} tasks is in {path_a}"]
    renamed = sum(leak.task != leak.found_as for leak in leaks)
    whole = sum(leak.num_shared == leak.num_pairs for leak in leaks)
    answers = sum(leak.test_shared for leak in leaks)
    summary = (
        f"{path_b}: {len(leaks):,} of {len(tasks_b):,} tasks are in {path_a} "
        f"({answers:,} with a test answer, {whole:,} with every pair, {renamed:,} renamed)"
    )
    return [summary] + [
        f"  {leak.task}: {leak.num_shared} of {leak.num_pairs} pairs"
        + (", with a test answer" if leak.test_shared else "")
        + (f", as {leak.found_as}" if leak.found_as != leak.task else "")
        for leak in leaks
    ]
