"""A run folder as one self-contained HTML page, and the picture of a depth sweep as a PNG.

Everything read here is untrusted: the page holds no script, loads nothing and escapes every text.
The schema of `results.json` is that of `results.py`. Its neighbours are optional: `metrics.jsonl`,
`config.json`, `environment.json` and `samples.json`, a list of

    {"prompt": str, "answer": str, "steps": [{"refinement_steps": int, "text": str,
                                              "correct": bool, "q_halt": float or null}, ...]}
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from latent_reason.config import flatten
from latent_reason.errors import DataError
from latent_reason.files import read_json
from latent_reason.results import (
    NUM_TEXT_COLUMNS,
    Row,
    clean_text,
    is_number,
    load_results,
    plain_text,
    read_metrics,
    summary_sentence,
    table_of,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Readable on a light and on a dark page.
COLORS = ("#3b82c4", "#e07b39", "#2f9e77", "#c2559d", "#8f7f22", "#7a6bd1", "#c94f4f", "#5f7f8c")
INK = "#010203"  # replaced by the text color of the page when an SVG is embedded
MAX_SAMPLES = 20
MAX_SERIES = 2 * len(COLORS)
MAX_CURVE_POINTS = 1000
MAX_LABEL_LENGTH = 48


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    Raises:
        DataError: `results.json` is missing, or a file that the report reads is malformed.
    """
    results = load_results(run_dir / "results.json")
    rows, halt_max_steps = results["rows"], results.get("halt_max_steps")
    header, table = table_of(rows)
    samples = _optional_json(run_dir / "samples.json", list)
    metrics = [record for _, record in read_metrics(run_dir / "metrics.jsonl")]
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean_text(value) if type(value) is str else value,
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
    )
    page = environment.get_template("report.html.j2").render(
        results=results,
        facts=_facts(results),
        sentence=summary_sentence(rows, halt_max_steps),
        header=header,
        table=table,
        num_text_columns=NUM_TEXT_COLUMNS,
        plots=_plots(rows, halt_max_steps, metrics),
        samples=_sample_views(samples[:MAX_SAMPLES], run_dir / "samples.json"),
        num_samples=len(samples),
        tables={
            "Configuration": _pairs(_optional_json(run_dir / "config.json", dict)),
            "Environment": _pairs(_optional_json(run_dir / "environment.json", dict)),
        },
    )
    path = run_dir / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def plot_depth_sweep(rows: Sequence[Row], path: Path, halt_max_steps: int | None = None) -> None:
    """Write a PNG of exact accuracy by refinement steps, one line per system.

    Args:
        rows: Rows of `results.json`, of which those of the first row's task and split are drawn;
            a system with a single row becomes a horizontal line. Only the first 16 systems.
        path: The PNG file to write.
        halt_max_steps: Trained number of refinement steps, marked by a vertical line.

    Raises:
        DataError: the file cannot be written.
    """
    import matplotlib

    with matplotlib.rc_context(_style("#222222")):
        figure = _depth_sweep(rows, halt_max_steps)
        try:
            figure.savefig(
                path, format="png", dpi=200, facecolor="white", metadata={"Software": None}
            )
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; choose another file") from error


def _optional_json(path: Path, kind: type) -> Any:
    return read_json(path, kind) if path.exists() else kind()


def _facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [(name, results.get(name)) for name in ("hardware", "seed", "commit")]
    seconds = results.get("wall_seconds")
    facts.append(("wall time", f"{seconds:,.0f} s" if is_number(seconds) else None))
    return [(name, str(value)) for name, value in facts if value is not None]


def _pairs(tree: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Nested JSON as (dotted name, text) pairs."""
    return [
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in flatten(tree).items()
    ]


def _sample_views(samples: Sequence[Any], path: Path) -> list[dict[str, Any]]:
    """Samples with the tokens of every step marked as right or wrong."""
    try:
        return [
            {
                "prompt": sample["prompt"],
                "answer": sample["answer"],
                "steps": [
                    {
                        "refinement_steps": int(step["refinement_steps"]),
                        "tokens": _compare(step["text"], sample["answer"]),
                        "correct": step["correct"],
                        "q_halt": "-" if step.get("q_halt") is None else f"{step['q_halt']:.2f}",
                    }
                    for step in sample["steps"]
                ],
            }
            for sample in samples
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: a sample does not follow the schema ({reason})") from error


def _compare(text: str, answer: str) -> list[tuple[str, bool]]:
    """(token, whether it is wrong) by position; a missing token is an underscore."""
    pairs = itertools.zip_longest(text.split(), answer.split())
    return [(got or "_", got != expected) for got, expected in pairs]


def _plots(
    rows: Sequence[Row], halt_max_steps: int | None, metrics: Sequence[Mapping[str, Any]]
) -> list[tuple[str, Markup]]:
    """(caption, SVG) of everything there is data for."""
    import matplotlib

    plots = []
    with matplotlib.rc_context(_style(INK)):
        if any(len(points) > 1 for points in _series(rows).values()):
            caption = (
                f"Exact accuracy on {rows[0]['task']}/{rows[0]['split']} by refinement steps; "
                "shaded: the 95 % interval."
            )
            if len(_series(rows)) > MAX_SERIES:
                caption += f" Only the first {MAX_SERIES} systems."
            plots.append((caption, _to_svg(_depth_sweep(rows, halt_max_steps), "depth")))
        for key, label, scale, caption in (
            ("val/exact_accuracy", "Exact accuracy (%)", 100, "Validation during training."),
            ("train/loss", "Loss", 1, "Training loss."),
        ):
            figure = _curve(metrics, key, label, scale)
            if figure is not None:
                plots.append((caption, _to_svg(figure, key.replace("/", "-"))))
    return plots


def _style(ink: str) -> dict[str, Any]:
    names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    return {name: ink for name in names} | {
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.constrained_layout.use": True,
        "font.size": 10,
        "grid.alpha": 0.25,
        "grid.color": ink,
        "legend.frameon": False,
        "svg.fonttype": "path",
        "svg.hashsalt": "latent_reason",
        "text.parse_math": False,
    }


def _series(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Rows by system, task and split, in the order given."""
    series: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        series.setdefault((row["system"], row["task"], row["split"]), []).append(row)
    return series


def _label(system: str) -> str:
    label = plain_text(system).lstrip("_")  # a legend leaves out labels with an underscore
    return label if len(label) <= MAX_LABEL_LENGTH else label[: MAX_LABEL_LENGTH - 3] + "..."


def _depth_sweep(rows: Sequence[Row], halt_max_steps: int | None) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    first = (rows[0]["task"], rows[0]["split"])
    shown = [row for row in rows if (row["task"], row["split"]) == first]
    series = dict(itertools.islice(_series(shown).items(), MAX_SERIES))
    figure = Figure(figsize=(7.6, 3.4 + 0.12 * len(series)))
    axes = figure.add_subplot()
    ticks = {halt_max_steps} if halt_max_steps else set()
    handles = []
    for index, (key, points) in enumerate(series.items()):
        color, again = COLORS[index % len(COLORS)], index // len(COLORS)
        sweep = [row for row in points if row.get("refinement_steps")]
        sweep.sort(key=lambda row: row["refinement_steps"])
        if len(sweep) > 1:
            steps = [row["refinement_steps"] for row in sweep]
            line = axes.plot(steps, _percent(sweep), color=color, marker="os"[again])[0]
            if all(row.get("ci95") for row in sweep):
                low, high = zip(*(row["ci95"] for row in sweep), strict=True)
                bounds = [100 * share for share in low], [100 * share for share in high]
                axes.fill_between(steps, *bounds, color=color, alpha=0.2, linewidth=0)
            ticks.update(steps)
        else:
            style = ("--", "-.")[again]
            line = [axes.axhline(y, color=color, linestyle=style) for y in _percent(points)][0]
        handles.append((line, _label(key[0])))
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="Refinement steps", ylabel="Exact accuracy (%)", ylim=(-3, 103))
    if halt_max_steps:
        axes.axvline(halt_max_steps, color="#8a8a8a", linestyle=":")
        top = axes.get_xaxis_transform()
        axes.text(halt_max_steps, 1.01, "trained", ha="center", va="bottom", transform=top)
    figure.legend(
        *zip(*handles, strict=True), loc="outside lower center", ncols=2, fontsize="small"
    )
    return figure


def _percent(rows: Sequence[Row]) -> list[float]:
    return [100 * row["exact_accuracy"] for row in rows]


def _curve(
    metrics: Sequence[Mapping[str, Any]], key: str, label: str, scale: float
) -> Figure | None:
    """One metric over optimizer steps."""
    from matplotlib.figure import Figure

    records = [record for record in metrics if is_number(record.get(key))]
    records = [record for record in records if is_number(record.get("step"))]
    if len(records) < 2:
        return None
    records = records[:: -(-len(records) // MAX_CURVE_POINTS)]
    figure = Figure(figsize=(6.4, 2.8))
    axes = figure.add_subplot()
    x = [record["step"] for record in records]
    axes.plot(x, [scale * record[key] for record in records], color=COLORS[0])
    axes.set(xlabel="Optimizer step", ylabel=label)
    return figure


def _to_svg(figure: Figure, name: str) -> Markup:
    """The figure as an inline `<svg>` that follows the text color of the page.

    Safe as markup: matplotlib draws every label as an outline, and its comments are dropped.
    """
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    svg = buffer.getvalue()
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    # Ids must differ between the pictures of a page.
    svg = svg.replace('id="', f'id="{name}-').replace('href="#', f'href="#{name}-')
    svg = svg.replace("url(#", f"url(#{name}-").replace(INK, "currentColor")
    return Markup(svg)
