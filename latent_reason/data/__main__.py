"""Command line for data: tasks and JSONL files of text here, puzzles in `puzzle_commands`."""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from dataclasses import replace

from latent_reason.command_line import Parser, run_script
from latent_reason.data.jsonl import find_leaks, read_jsonl, write_jsonl
from latent_reason.data.puzzle_commands import add_commands
from latent_reason.data.tasks import SPLITS, TASKS, find_task
from latent_reason.errors import DataError

_EPILOG = """examples:
  python -m latent_reason.data list
  python -m latent_reason.data write sorting --split train --num 10000 --output data/train.jsonl
  python -m latent_reason.data write sorting --split test --num 500 --output data/test.jsonl
  python -m latent_reason.data inspect data/train.jsonl
  python -m latent_reason.data validate data/test.jsonl --against data/train.jsonl
  python -m latent_reason.data write-puzzles maze-11x11 --num 1000 --output data/mazes.csv.gz
  python -m latent_reason.data write-puzzles maze-30x30 --min-length 110 --output data/hard.csv
  python -m latent_reason.data check-puzzles --puzzle sudoku-9x9 data/sudoku.csv.gz
  python -m latent_reason.data puzzle-leaks --puzzle sudoku-9x9 data/train.csv data/test.csv
  python -m latent_reason.data arc-leaks arc-agi_training_challenges.json my_tasks.json

exit codes: 0 all is well, 2 something is wrong (one line "error: ..." on stderr)
"""
_SPLIT_NOTES = {
    "train": "for training",
    "val": "like train, other instances; to choose settings",
    "test": "like train, other instances; for the final figure",
    "longer": "longer or harder instances than train has",
    "wording": "the instances of test in wordings that train never uses",
}
_MAX_SHOWN = 10
_MAX_CHARACTERS = 400


def _build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m latent_reason.data",
        description="Text tasks with a rule, JSONL files of prompts and answers, files of puzzles.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("list", help="name the tasks and the splits")
    command.set_defaults(run=_list)

    command = commands.add_parser("write", help="make examples of a task and write them to a file")
    command.add_argument("task", help=f"one of {', '.join(TASKS)}")
    command.add_argument("--split", choices=SPLITS, default="train", help="default: %(default)s")
    command.add_argument(
        "--num", type=int, default=1000, help="number of examples (default: %(default)s)"
    )
    command.add_argument(
        "--seed", type=int, default=0, help="another seed, other examples (default: %(default)s)"
    )
    command.add_argument(
        "--output", required=True, metavar="FILE.jsonl", help="replaced if it exists"
    )
    command.set_defaults(run=_write)

    command = commands.add_parser("inspect", help="count the rows of a file and show a few")
    command.add_argument("file", metavar="FILE.jsonl")
    command.add_argument("--num", type=int, default=2, help="rows to show (default: %(default)s)")
    command.set_defaults(run=_inspect)

    command = commands.add_parser("validate", help="check the rows of a file; exit code 0 or 2")
    command.add_argument("file", metavar="FILE.jsonl")
    command.add_argument(
        "--task", help="check every row by this task's rule, whatever its 'task' says"
    )
    command.add_argument(
        "--against", metavar="OTHER.jsonl", help="fail if a row occurs in this file too"
    )
    command.set_defaults(run=_validate)
    add_commands(commands)
    return parser


def _list(args: argparse.Namespace) -> None:
    print("tasks:")
    for task in TASKS.values():
        print(f"  {task.name:<13} {task.description}")
    print("splits:")
    for split in SPLITS:
        print(f"  {split:<13} {_SPLIT_NOTES[split]}")


def _write(args: argparse.Namespace) -> None:
    write_jsonl(args.output, find_task(args.task).generate(args.split, args.num, args.seed))
    print(f"{args.output}: {args.num:,} rows of {args.task}, split {args.split}, seed {args.seed}")


def _spread(name: str, sizes: list[int]) -> str:
    mean = sum(sizes) / len(sizes)
    return f"{name}: {min(sizes):,} to {max(sizes):,}, mean {mean:,.1f}"


def _shown(text: str) -> str:
    """Quote a text for the terminal, without control characters, cut if long."""
    cut = text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + " ..."
    return json.dumps(cut)


def _inspect(args: argparse.Namespace) -> None:
    examples = read_jsonl(args.file)
    print(f"{args.file}: {len(examples):,} rows")
    for (task, split), count in Counter((e.task, e.split) for e in examples).most_common(
        _MAX_SHOWN
    ):
        print(f"  task {_shown(task)}, split {_shown(split)}: {count:,} rows")
    for field in ("prompt", "answer"):
        texts = [getattr(example, field) for example in examples]
        print(f"  {_spread(f'{field} words', [len(text.split()) for text in texts])}")
        print(f"  {_spread(f'{field} characters', [len(text) for text in texts])}")
    answers = defaultdict(set)
    for example in examples:
        answers[example.prompt].add(example.answer)
    print(f"  repeated prompts: {len(examples) - len(answers):,}")
    print(f"  prompts with more than one answer: {sum(len(a) > 1 for a in answers.values()):,}")
    for number, example in enumerate(examples[: max(args.num, 0)], start=1):
        print(f"  row {number} prompt: {_shown(example.prompt)}")
        print(f"  row {number} answer: {_shown(example.answer)}")


def _report(problems: list[str]) -> None:
    for problem in problems[:_MAX_SHOWN]:
        print(problem)
    if len(problems) > _MAX_SHOWN:
        print(f"... and {len(problems) - _MAX_SHOWN:,} more")


def _validate(args: argparse.Namespace) -> None:
    named = {"task": find_task(args.task).name} if args.task else {}
    examples = [replace(example, **named) for example in read_jsonl(args.file)]
    others = read_jsonl(args.against) if args.against else []
    others = [replace(example, **named) for example in others]
    checked = [(row, example) for row, example in enumerate(examples) if example.task in TASKS]
    wrong = [
        f"{args.file}:{row + 1}: not a right answer by the rule of {example.task}"
        for row, example in checked
        if not TASKS[example.task].check(example.prompt, example.answer)
    ]
    leaks = [
        f"{args.file}:{row + 1}: the same as {args.against}:{other + 1}"
        for other, row in find_leaks(others, examples)
    ]
    _report(wrong)
    _report(leaks)
    faults = [f"{len(wrong):,} rows break the rule"] if wrong else []
    faults += [f"{len(leaks):,} rows occur in {args.against}"] if leaks else []
    if faults:
        raise DataError(f"{args.file}: {' and '.join(faults)}; mend or remove them")
    print(f"{args.file}: {len(examples):,} rows are well formed, {len(checked):,} checked by rule")
    if args.against:
        print(f"{args.file}: no row occurs in {args.against}")


def main() -> None:
    """Run one command."""
    args = _build_parser().parse_args()
    for line in args.run(args) or ():
        print(line)


if __name__ == "__main__":
    run_script(main)
