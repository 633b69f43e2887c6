"""Commands on files of puzzles for `python -m latent_reason.data`; each returns lines to print."""

from __future__ import annotations

import argparse
import csv
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_reason.errors import ConfigError, DataError
from latent_reason.files import replacing

if TYPE_CHECKING:
    from latent_reason.data.puzzles import PuzzleDataset

# What needs torch is imported where it is used, so that commands on text start at once.
MAX_SHOWN = 10
_KIND = "kind and size, such as sudoku-9x9 or maze-11x11; or module:Name"


def add_commands(commands: Any) -> None:
    """Add the commands to the subparsers of a command line; `run` gives their lines."""
    command = commands.add_parser("write-puzzles", help="make puzzles and write them to a CSV file")
    command.add_argument("puzzle", help=_KIND)
    command.add_argument(
        "--split", default="train", help="train, val or test (default: %(default)s)"
    )
    command.add_argument("--num", type=int, default=1000, help="default: %(default)s")
    command.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    command.add_argument(
        "--min-length", type=int, metavar="N", help="mazes: the least moves from S to G"
    )
    command.add_argument("--output", required=True, metavar="FILE.csv[.gz]", help="is replaced")
    command.set_defaults(run=write_puzzles)

    command = commands.add_parser("check-puzzles", help="look for no or several solutions")
    command.add_argument("--puzzle", required=True, help=_KIND)
    command.add_argument("file", metavar="FILE.csv")
    _show_all(command)
    command.set_defaults(run=check_puzzles)

    command = commands.add_parser("puzzle-leaks", help="find test puzzles that are in training")
    command.add_argument("--puzzle", required=True, help=_KIND)
    command.add_argument("train", metavar="TRAIN.csv")
    command.add_argument("test", metavar="TEST.csv")
    _show_all(command)
    command.set_defaults(run=puzzle_leaks)

    command = commands.add_parser("arc-leaks", help="find the ARC tasks of B that A has too")
    command.add_argument("train", type=Path, metavar="A", help="JSON file or folder")
    command.add_argument("test", type=Path, metavar="B", help="JSON file or folder")
    _show_all(command)
    command.set_defaults(run=arc_leaks)


def _show_all(command: argparse.ArgumentParser) -> None:
    text = f"list all of them, not only {MAX_SHOWN}"
    command.add_argument("--all", action="store_true", help=text)


def _shortened(lines: list[str], everything: bool) -> Iterator[str]:
    shown = len(lines) if everything else MAX_SHOWN
    yield from lines[:shown]
    if len(lines) > shown:
        yield f"  ... and {len(lines) - shown:,} more; --all lists them"


def write_puzzles(args: argparse.Namespace) -> Iterator[str]:
    """Make puzzles of a split and write them.

    Raises:
        UserError: puzzle, split or number cannot be had, or the file cannot be written.
    """
    from latent_reason.data.maze import Maze
    from latent_reason.data.own_puzzle import named_puzzle
    from latent_reason.data.puzzle_check import require_sound
    from latent_reason.data.puzzle_sources import require_text
    from latent_reason.data.puzzles import PuzzleDataset

    puzzle = named_puzzle(args.puzzle)
    require_text(puzzle)
    wanted = (args.num, args.seed, args.split)
    if args.min_length is None:
        grids = puzzle.generate(*wanted)
    elif isinstance(puzzle, Maze):
        grids = puzzle.generate(*wanted, args.min_length)
    else:
        raise ConfigError(f"min_length: got {args.min_length}, expected none but for mazes")
    data = PuzzleDataset(puzzle, *grids)
    require_sound(data)
    write_csv(Path(args.output), data)
    yield f"{args.output}: {len(data):,} rows of {args.puzzle}, {args.split}, seed {args.seed}"


def write_csv(path: Path, data: PuzzleDataset) -> None:
    """Write puzzles with the columns question and answer; `read_puzzles` gives them back.

    Missing folders are made; a name ending in .gz is packed. The file appears complete or not at
    all, and the same puzzles give the same bytes.

    Raises:
        DataError: the file cannot be written, or there are cells that are not asked.
    """
    from latent_reason.data.puzzles import PAD

    if bool((data.questions == PAD).any() | (data.answers == PAD).any()):
        raise DataError(f"{path}: CSV has no sign for a cell that is not asked; use .npy arrays")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("question", "answer"))
    for grids in zip(data.questions.tolist(), data.answers.tolist(), strict=True):
        writer.writerow(data.puzzle.format(grid).replace("\n", "") for grid in grids)
    content = text.getvalue().encode()
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a path that can be written") from None


def check_puzzles(args: argparse.Namespace) -> Iterator[str]:
    """Check every row of a file, and that every question has exactly one solution.

    Raises:
        UserError: a row is not usable or has no or several solutions, or the puzzle has no solver.
    """
    from latent_reason.data.own_puzzle import named_puzzle
    from latent_reason.data.puzzle_files import check_unique, read_puzzles

    data = read_puzzles(args.file, named_puzzle(args.puzzle))
    wrong = check_unique(data)
    lines = [
        f"{data.place(row)}: {'several solutions' if count else 'no solution'}"
        for row, count in wrong
    ]
    yield from _shortened(lines, args.all)
    if wrong:
        raise DataError(
            f"{args.file}: {len(wrong):,} of {len(data):,} puzzles do not have exactly one "
            "solution; remove them"
        )
    yield f"{args.file}: {len(data):,} puzzles with exactly one solution each"


def puzzle_leaks(args: argparse.Namespace) -> Iterator[str]:
    """Look for puzzles of a test file in a training file, whatever their disguise.

    Raises:
        UserError: there are some, or a file is not usable.
    """
    from latent_reason.data.own_puzzle import named_puzzle
    from latent_reason.data.puzzle_files import read_puzzles
    from latent_reason.data.puzzle_leaks import find_puzzle_leaks

    puzzle = named_puzzle(args.puzzle)
    train = read_puzzles(args.train, puzzle, "train")
    test = read_puzzles(args.test, puzzle, "test")
    leaks = find_puzzle_leaks(train, test)
    summary = f"{args.test}: {len(leaks):,} of {len(test):,} puzzles are in {args.train}"
    yield summary
    lines = [f"  {test.place(row)} is {train.place(other)}" for other, row in leaks]
    yield from _shortened(lines, args.all)
    if leaks:
        raise DataError(f"{summary}; remove them from one of the files")


def arc_leaks(args: argparse.Namespace) -> Iterator[str]:
    """Look for tasks of one ARC set in another, whatever their disguise.

    Raises:
        UserError: there are some, or a file is not usable.
    """
    from latent_reason.data.arc_leaks import arc_leak_lines

    summary, *lines = arc_leak_lines(args.train, args.test)
    yield summary
    yield from _shortened(lines, args.all)
    if lines:
        raise DataError(f"{args.test}: {len(lines):,} tasks leak; remove them from one of the sets")
