r"""Evaluate a saved puzzle model by refinement steps, by its halting head and by the rule.

    python eval/puzzle.py --model runs/x/model --data test.csv.gz --refinement-steps 1 4 16 64
    python eval/puzzle.py --model runs/x/model --data test.csv.gz --num 1000 --seed 0
    python eval/puzzle.py --model runs/x/model --num 1000 --output rows.json   # generated puzzles
    python eval/puzzle.py --model runs/arc/model --data arc-agi_evaluation_challenges.json \
        --votes 100 --submission submission.json

The code is the recipe's own; rows.json has the rows of results.json. Averaged weights and, where
the folder holds them, raw ones are evaluated. A column "valid %" is there if answers are right by
the rule of the puzzle that are not those of the data, such as another shortest way out of a maze.
ARC models vote after the most refinement steps; they are scored if all answers are known.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator

from latent_reason.command_line import Parser, check_evaluation, run_script
from latent_reason.data.arc_canvas import ArcCanvas
from latent_reason.data.arc_files import ArcTask
from latent_reason.data.arc_hub import find_arc
from latent_reason.data.puzzle_files import read_puzzles, refuse_several_solutions, subsample
from latent_reason.data.puzzles import Puzzle, PuzzleDataset
from latent_reason.environment import check_compiler, check_world, environment
from latent_reason.errors import ConfigError, DataError
from latent_reason.files import write_json
from latent_reason.puzzles.arc_solving import BATCH_SIZE as ARC_BATCH_SIZE
from latent_reason.puzzles.arc_table import known_tasks
from latent_reason.puzzles.arc_voting import collect_votes, default_votes, pass_rows
from latent_reason.puzzles.evaluation import PuzzleEvaluator
from latent_reason.puzzles.folder import SavedPuzzleModel, load_puzzle_model
from latent_reason.puzzles.model import PuzzleModel
from latent_reason.results import format_table

NUM_GENERATED = 1000
BATCH_SIZE = 256
SYSTEMS = {"averaged": "reasoner", "raw": "reasoner, raw weights"}


def read_options() -> argparse.Namespace:
    """Read and check the command line.

    Raises:
        ConfigError: on an unknown option or an impossible value.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of save_puzzle_model")
    parser.add_argument("--puzzle", metavar="NAME", help="kind and size, or module:Name")
    parser.add_argument(
        "--data", type=Path, help="CSV, arrays, ARC JSON or Hub name; default: generated"
    )
    parser.add_argument(
        "--refinement-steps", type=int, nargs="+", default=[1, 2, 4, 8, 16], metavar="N"
    )
    parser.add_argument("--num", type=int, metavar="N", help="the first N puzzles or ARC tasks")
    parser.add_argument("--seed", type=int, help="draw or generate the puzzles with this seed")
    parser.add_argument("--weights", choices=("all", "averaged", "raw"), default="all")
    parser.add_argument("--batch-size", type=int, metavar="N", help="default 256, 16 for ARC")
    parser.add_argument(
        "--bf16", action="store_true", help="compute in bf16; CPUs without AMX are slow at it"
    )
    parser.add_argument(
        "--compile", action="store_true", help="a minute at the start, then about twice as fast"
    )
    parser.add_argument("--output", type=Path, help="write the rows to this JSON file")
    parser.add_argument(
        "--votes", type=int, metavar="N", help="turns and colourings of an ARC task; default <= 10"
    )
    parser.add_argument(
        "--submission", type=Path, metavar="FILE", help="write the votes on ARC as Kaggle wants"
    )
    options = parser.parse_args()
    check_evaluation(options, ("batch_size", "num"), ("output", "submission"))
    if options.seed is not None and not 0 <= options.seed < 2**32:
        raise ConfigError(f"seed: got {options.seed}, expected 0 to 2**32 - 1")
    if options.seed is not None and options.data is not None and options.num is None:
        raise ConfigError("seed: it draws some puzzles of the data; say how many with --num")
    return options


def load_data(
    puzzle: Puzzle, name: str, source: Path | None, num: int | None, seed: int | None
) -> tuple[PuzzleDataset, dict[str, Any]]:
    """Return the puzzles to evaluate on, and what the rows say of them.

    Raises:
        ConfigError: there is no data and the puzzle has no generator.
        DataError: the data are not usable, or too few.
    """
    if source is None:
        num, seed = num or NUM_GENERATED, seed or 0
        data = PuzzleDataset(puzzle, *puzzle.generate(num, seed, "test"))
        return data, {"task": name, "split": "test", "subset": f"{num} generated with seed {seed}"}
    data = read_puzzles(source, puzzle, "test", num if seed is None else None)
    about = {"task": source.name.partition(".")[0], "split": "file"}
    if num is None:
        return data, about
    if len(data) < num:
        raise DataError(f"{source}: {len(data)} puzzles, {num} are asked for; lower --num")
    if seed is None:
        return data, about | {"subset": f"first {num}"}
    return subsample(data, num, seed), about | {"subset": f"{num} drawn with seed {seed}"}


def load_models(folder: Path, wanted: str, puzzle: str | None) -> dict[str, SavedPuzzleModel]:
    """Return the models to evaluate by kind of weights, for `puzzle` if it is named.

    Raises:
        CheckpointError: the folder is not usable, or lacks these weights.
        ConfigError: it is for a puzzle that is not known.
    """
    if wanted == "raw":
        models = {"raw": load_puzzle_model(folder, "raw", puzzle)}
    else:
        models = {"averaged": load_puzzle_model(folder, "averaged", puzzle)}
        if wanted == "all" and "raw" in models["averaged"].weights:
            models["raw"] = load_puzzle_model(folder, "raw", puzzle)
    for saved in models.values():
        if saved.puzzle is None:
            raise ConfigError(
                f"model: made for {str(saved.puzzle_name)[:80]!r}, which is not known here; "
                "name it with --puzzle"
            )
    return models


def evaluate(
    options: argparse.Namespace, models: dict[str, SavedPuzzleModel], accelerator: Accelerator
) -> list[dict[str, Any]]:
    """Return the rows of models by kind of weights; see `load_data` for what is raised."""
    for name in ("votes", "submission"):
        if getattr(options, name) is not None:
            raise ConfigError(f"{name}: expected with a model for ARC only; leave it out")
    first = next(iter(models.values()))
    data, about = load_data(
        first.puzzle, first.puzzle_name, options.data, options.num, options.seed
    )
    if options.data is not None:
        refuse_several_solutions(data)
    data.to(accelerator.device)
    size = options.batch_size or BATCH_SIZE
    evaluator = PuzzleEvaluator(data, accelerator, options.bf16, size)
    rows = []
    for weights, saved in models.items():
        model = prepare(saved.model, options, accelerator)
        sweep = evaluator.sweep(model, options.refinement_steps)
        rows += sweep.rows(SYSTEMS[weights], **about, **size_of(model))
    return rows


def prepare(
    model: PuzzleModel, options: argparse.Namespace, accelerator: Accelerator
) -> PuzzleModel:
    """Return a model on the device, compiled if asked for."""
    model = model.to(accelerator.device)
    return cast(PuzzleModel, torch.compile(model)) if options.compile else model


def size_of(model: PuzzleModel) -> dict[str, int]:
    """Return what a row says of a model."""
    return {"trainable_parameters": sum(p.numel() for p in model.parameters())}


def load_tasks(options: argparse.Namespace) -> tuple[list[ArcTask], dict[str, Any], bool]:
    """Return the ARC tasks, what the rows say of them, and whether all answers are known.

    Raises:
        ConfigError: no data, or options that ARC does not have.
        DataError: the data are not usable, too few, or there is nothing to do with them.
    """
    if options.data is None or options.seed is not None:
        raise ConfigError("data: ARC has no generator; give --data, without --seed")
    tasks = find_arc(str(options.data), "test")
    about = {"task": options.data.name.partition(".")[0], "split": "file"}
    if options.num is not None:
        if len(tasks) < options.num:
            raise DataError(
                f"{options.data}: {len(tasks)} tasks, {options.num} are asked for; lower --num"
            )
        tasks, about["subset"] = tasks[: options.num], f"first {options.num}"
    scored = all(pair.output is not None for task in tasks for pair in task.test)
    if not scored and options.submission is None:
        raise DataError(
            f"{options.data}: no answers to all of the test pairs; put the solutions beside it, or "
            "ask for a --submission"
        )
    return tasks, about, scored


def evaluate_arc(
    options: argparse.Namespace, models: dict[str, SavedPuzzleModel], accelerator: Accelerator
) -> list[dict[str, Any]]:
    """Return the rows of ARC models, none without answers; write the submission of the first.

    Raises:
        UserError: see `load_tasks`, `known_tasks` and `collect_votes`.
    """
    tasks, about, scored = load_tasks(options)
    steps, size = max(options.refinement_steps), options.batch_size or ARC_BATCH_SIZE
    config = next(iter(models.values())).model.config
    dataset = known_tasks(options.model, config, tasks).to(accelerator.device)
    num_votes = default_votes(dataset) if options.votes is None else options.votes
    evaluator = PuzzleEvaluator(dataset.plain_tests(), accelerator, options.bf16, size)
    rows, submission = [], options.submission
    for weights, saved in models.items():
        model, system = prepare(saved.model, options, accelerator), SYSTEMS[weights]
        votes = collect_votes(
            model, dataset, num_votes, steps, size, accelerator, options.bf16, accelerator.print
        )
        if submission is not None and accelerator.is_main_process:
            votes.write_submission(submission)
            print(f"submission of the {weights} weights: {submission}")
        submission = None
        if scored:
            sweep = evaluator.sweep(model, options.refinement_steps)
            found = pass_rows(votes, system, num_votes, {"refinement_steps": steps})
            rows += [row | about | size_of(model) for row in [*sweep.rows(system), *found]]
    return rows


def main() -> int:
    """Evaluate and print the table; returns the exit code."""
    options = read_options()
    accelerator = Accelerator()
    check_world(accelerator)
    if options.compile:
        check_compiler(accelerator.device)
    models = load_models(options.model, options.weights, options.puzzle)
    is_arc = any(isinstance(saved.puzzle, ArcCanvas) for saved in models.values())
    rows = (evaluate_arc if is_arc else evaluate)(options, models, accelerator)
    if accelerator.is_main_process:
        print(format_table(rows) if rows else "not scored: the data have no answers to all tests")
        if options.output is not None:
            write_json(options.output, {"schema_version": 1, "rows": rows} | environment())
    return 0


if __name__ == "__main__":
    run_script(main)
