"""Solve puzzles with a trained model, exchange weights with the originals, remake reports."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from latent_reason.command_line import Parser, run_script
from latent_reason.errors import ConfigError

_EPILOG = """examples:
  python -m latent_reason solve ..4.3...2......1      (4x4 Sudoku; - reads stdin, or name a file)
  python -m latent_reason solve maze.txt --model runs/maze/model
  python -m latent_reason solve 007bbfb7.json --model runs/arc/model    (ARC task, by votes)
  python -m latent_reason import step_60000 --puzzle sudoku-9x9 --output sudoku
  python -m latent_reason import step_9 --puzzle arc --identifiers identifiers.json --output arc
  python -m latent_reason export sudoku --output step_0
  python -m latent_reason report runs/demo --picture docs/depth.png

exit codes: 0 all is well, 1 not solved, 2 something is wrong (one line "error: ..." on stderr)
"""


def _build_parser() -> Parser:
    parser = Parser(
        prog="python -m latent_reason",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("solve", help="answer a puzzle and check the answer by the rule")
    command.add_argument(
        "puzzle",
        help="a line of digits, a drawing, a file of either, an ARC task (.json), or - for stdin",
    )
    command.add_argument("--model", type=Path, help="model folder; default: by kind and size")
    command.add_argument(
        "--puzzle", dest="kind", metavar="NAME", help="kind and size, or module:Name of your own"
    )
    command.add_argument(
        "--refinement-steps",
        type=int,
        metavar="N",
        help="at most, default 64; for an ARC task exactly, default 16",
    )
    command.add_argument("--task", metavar="NAME", help="one of an ARC file of many")
    command.add_argument(
        "--votes", type=int, metavar="N", help="turns and colourings of an ARC task; default <= 10"
    )
    command.set_defaults(run=_solve)

    command = commands.add_parser("import", help="turn a checkpoint of HRM or TRM into a model")
    command.add_argument("file", type=Path, help="their step_N, or safetensors with the same names")
    command.add_argument("--config", type=Path, help="default: all_config.yaml beside the file")
    command.add_argument("--output", type=Path, required=True, help="model folder to write")
    command.add_argument("--puzzle", help="kind and size, such as sudoku-9x9, or module:Name")
    command.add_argument("--num-cells", type=int, metavar="N", help="if no puzzle tells it")
    command.add_argument("--num-puzzles", type=int, metavar="N", help="rows of the puzzle table")
    command.add_argument(
        "--puzzles",
        choices=("keep", "mean", "zero"),
        help="rows if their number differs: those there are and their mean, only the mean, zeros",
    )
    command.add_argument(
        "--identifiers", type=Path, help="of an ARC checkpoint: identifiers.json beside their data"
    )
    command.set_defaults(run=_import)

    command = commands.add_parser("export", help="write a model under the names of HRM and TRM")
    command.add_argument("model", type=Path, help="model folder")
    command.add_argument(
        "--output", type=Path, required=True, help="FILE.safetensors, else as torch.save writes"
    )
    command.add_argument("--weights", choices=("averaged", "raw"), default="averaged")
    command.set_defaults(run=_export)

    command = commands.add_parser("report", help="make the report of a run again")
    command.add_argument("folder", type=Path, help="run folder with results.json")
    command.add_argument("--picture", type=Path, help="PNG of accuracy by refinement steps")
    command.set_defaults(run=_report)
    return parser


def _solve(options: argparse.Namespace) -> int:
    if options.puzzle.endswith((".json", ".json.gz")):
        return _solve_arc(options)
    if options.votes is not None or options.task is not None:
        raise ConfigError("--votes and --task: expected with an ARC task only, a .json file")
    from latent_reason.puzzles.folder import load_puzzle_model
    from latent_reason.puzzles.solving import REFINEMENT_STEPS, load_shipped, read_puzzle, solve

    model, kind = options.model, options.kind
    if kind is not None:
        model = load_puzzle_model(model, puzzle_name=kind) if model else load_shipped(kind)
    start = time.perf_counter()
    steps = REFINEMENT_STEPS if options.refinement_steps is None else options.refinement_steps
    solution = solve(read_puzzle(options.puzzle), model, steps)
    seconds = time.perf_counter() - start
    print(solution.answer)
    print(solution.verdict)
    if solution.note:
        print(f"note: {solution.note}")
    plural = "s" if solution.refinement_steps > 1 else ""
    print(
        f"confidence {solution.confidence:.3f}, {solution.refinement_steps} refinement "
        f"step{plural}, {seconds:.2f} s"
    )
    return 0 if solution.solved else 1


def _solve_arc(options: argparse.Namespace) -> int:
    from latent_reason.puzzles.arc_solving import REFINEMENT_STEPS, solve_arc

    if options.kind is not None:
        raise ConfigError(f"--puzzle: {options.puzzle} is read as an ARC task; leave --puzzle out")
    if options.model is None:
        raise ConfigError(
            "no ARC model comes with this package; name the folder of one with --model "
            "(recipes/train_puzzle.py arc-agi-1 trains one)"
        )
    steps = REFINEMENT_STEPS if options.refinement_steps is None else options.refinement_steps
    solutions = solve_arc(options.puzzle, options.model, steps, options.votes, options.task)
    for number, solution in enumerate(solutions, start=1):
        print(solution.answer or "-")
        print(f"test {number}: {solution.verdict}")
    return 1 if any(s.answer is None or s.right is False for s in solutions) else 0


def _import(options: argparse.Namespace) -> int:
    from latent_reason.puzzles.published_weights import import_published

    if options.identifiers is not None and options.puzzle != "arc":
        raise ConfigError("identifiers: expected with --puzzle arc only")
    import_published(
        options.file,
        options.output,
        config_file=options.config,
        puzzle_name=options.puzzle,
        num_cells=options.num_cells,
        num_puzzles=options.num_puzzles,
        puzzles=options.puzzles,
        identifiers=options.identifiers,
    )
    print(options.output)
    return 0


def _export(options: argparse.Namespace) -> int:
    from latent_reason.puzzles.published_weights import export_published

    export_published(options.model, options.output, options.weights)
    print(options.output)
    return 0


def _report(options: argparse.Namespace) -> int:
    from latent_reason.report import plot_depth_sweep, write_report
    from latent_reason.results import load_results

    print(write_report(options.folder))
    if options.picture is not None:
        results = load_results(options.folder / "results.json")
        plot_depth_sweep(results["rows"], options.picture, results.get("halt_max_steps"))
        print(options.picture)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code."""
    options = _build_parser().parse_args(sys.argv[1:] if argv is None else argv)
    return options.run(options)


if __name__ == "__main__":
    run_script(main)
