"""Make the report of a run again, and a picture of its depth sweep.

python -m latent_reason RUN_FOLDER [--picture docs/depth.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from latent_reason.report import plot_depth_sweep, write_report
from latent_reason.results import load_results
from latent_reason.runs import run_script


def main() -> int:
    """Write report.html into the run folder and, if asked, the picture; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m latent_reason", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder with results.json")
    parser.add_argument("--picture", type=Path, help="PNG of accuracy by refinement steps")
    options = parser.parse_args()
    print(write_report(options.run))
    if options.picture is not None:
        results = load_results(options.run / "results.json")
        plot_depth_sweep(results["rows"], options.picture, results.get("halt_max_steps"))
        print(options.picture)
    return 0


if __name__ == "__main__":
    run_script(main)
