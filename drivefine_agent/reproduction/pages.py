"""A table's results as CSV, Markdown and a picture, the paper's numbers beside ours."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from drivefine_agent.evaluation.comparison import format_interval
from drivefine_agent.reproduction.results import RowResult
from drivefine_agent.reproduction.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS, PAPER = "#0072b2", "#999999"


def to_csv(table: Table, results: Sequence[RowResult], seeds: Sequence[int]) -> str:
    """One line per row; shares of 1, the paper's in points of 100 as printed there."""
    lines = []
    for row, result in zip(table.rows, results, strict=True):
        line: dict[str, object] = {"row": result.title, "note": result.note, **result.means}
        line |= {
            f"{table.metric} seed {seed}": value for seed, value in zip(seeds, result.by_seed, strict=True)
        }
        line |= {"low": result.own.low, "high": result.own.high, "base": result.base}
        gain = result.difference
        line |= {
            "difference": None if gain is None else gain.mean,
            "difference low": None if gain is None else gain.low,
            "difference high": None if gain is None else gain.high,
            "scenes": result.num_scenes,
            "failed": result.num_invalid,
        }
        line |= {f"paper {column}": row.paper.get(column) for column in table.columns}
        lines.append(line)
    buffer = io.StringIO()
    pd.DataFrame(lines).to_csv(buffer, index=False)
    return buffer.getvalue()


def to_markdown(
    name: str,
    table: Table,
    results: Sequence[RowResult],
    seeds: Sequence[int],
    facts: Sequence[str],
    notes: str,
    latency_ms: Sequence[float] = (),
) -> str:
    """The page: ours, the paper's, how it was made, and what it does and does not show.

    Args:
      name: of the table, and of the picture's file.
      table: what is shown.
      results: of its rows.
      seeds: of the results.
      facts: sentences about how it was made.
      notes: Markdown that people wrote about it.
      latency_ms: of each row, where the table is about latency.
    """
    metric = table.metric
    header = ["row", *table.columns, "by seed", f"{metric} against [95 %]"]
    lines = [f"# {name}: {table.title}", "", _line(header), "|---" * len(header) + "|"]
    for result in results:
        title = f"{result.title} ({result.note})" if result.note else result.title
        against = "-" if result.difference is None else f"{result.base}: {format_interval(result.difference)}"
        one = len(set(result.by_seed)) == 1
        by_seed = "" if one else ", ".join(f"{100 * v:.1f}" for v in result.by_seed)
        lines.append(
            _line([title, *(_points(result.means[column]) for column in table.columns), by_seed, against])
        )
    if latency_ms:
        lines += ["", _line(["row", "latency of a plan [ms]"]), "|---|---|"]
        lines += [_line([row.title, f"{ms:.1f}"]) for row, ms in zip(table.rows, latency_ms, strict=True)]
    if table.paper_rows:
        lines += ["", "The paper's numbers (8B model, NAVSIM's own scenes):", ""]
        lines += [_line(["row", *table.columns]), "|---" * (1 + len(table.columns)) + "|"]
        for row in table.paper_rows:
            cells = [f"{row.paper[c]:.1f}" if c in row.paper else "" for c in table.columns]
            lines.append(_line([row.title, *cells]))
    failed = sum(result.num_invalid for result in results)
    lines += [
        "",
        f"{results[0].num_scenes} held-out {'groups of scenes' if 'stage 1' in table.columns else 'scenes'}, "
        f"seeds {', '.join(map(str, seeds))}, {failed} failed scorings (in no mean). Intervals: paired "
        "bootstrap over whole logs of each scene's mean over seeds; * excludes zero. How training differs "
        "between seeds"
        + (" is not in them: `by seed` shows it." if len(seeds) > 1 else ", one seed cannot show."),
        "",
        f"![{name}]({name}.png)",
        "",
        *facts,
    ]
    if notes:
        lines += ["", notes.strip()]
    return "\n".join([*lines, ""])


def _points(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def draw(table: Table, results: Sequence[RowResult], file: Path, latency_ms: Sequence[float] = ()) -> None:
    """The picture of a table, of its kind.

    Args:
      table: what is shown.
      results: of its rows.
      file: PNG to write.
      latency_ms: of each row, for the kind `latency`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if table.kind == "plane":
        figure = _plane(table, results)
    elif table.kind == "latency":
        figure = _against_latency(table, results, latency_ms)
    else:
        figure = _beside_the_paper(table, results)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _beside_the_paper(table: Table, results: Sequence[RowResult]) -> Figure:
    """Ours with intervals and seeds; the paper's values in a panel of their own, since scales differ."""
    from matplotlib import pyplot

    metric = table.metric
    known = [row for row in table.paper_rows if metric in row.paper]
    is_line = table.kind == "line"
    panels = 2 if known else 1
    figure, axes = pyplot.subplots(
        1,
        panels,
        figsize=(4.6 * panels, 3.4) if is_line else (3.4 + 3.1 * panels, 0.9 + 0.36 * len(table.rows)),
        squeeze=False,
        layout="constrained",
        sharey=not is_line,
    )
    places = [float(row.x) if row.x is not None else float(-n) for n, row in enumerate(table.rows)]
    own = axes[0, 0]
    for place, result in zip(places, results, strict=True):
        mean, low, high = 100 * result.own.mean, 100 * result.own.low, 100 * result.own.high
        error, seeds = [[mean - low], [high - mean]], [100 * value for value in result.by_seed]
        if is_line:
            own.errorbar(place, mean, yerr=error, fmt="o", color=OURS, capsize=3)
            own.plot([place] * len(seeds), seeds, ".", color=OURS, alpha=0.4)
        else:
            own.errorbar(mean, place, xerr=error, fmt="o", color=OURS, capsize=3)
            own.plot(seeds, [place] * len(seeds), ".", color=OURS, alpha=0.4)
    if is_line:
        own.plot(places, [100 * result.own.mean for result in results], color=OURS, alpha=0.6)
        own.set_xticks(places)
    own.set_title("ours; bars: 95 %, dots: seeds", fontsize=9)
    if known:
        values = [row.paper[metric] for row in known]
        if is_line:
            x = [float(row.x) for row in known if row.x is not None]
            axes[0, 1].plot(x, values, "s-", color=PAPER)
            axes[0, 1].set_xticks(x)
        else:
            axes[0, 1].plot(values, [places[table.rows.index(row)] for row in known], "s", color=PAPER)
        axes[0, 1].set_title("the paper", fontsize=9)
    for axis in axes[0]:
        axis.grid(alpha=0.3)
        axis.set_xlabel(table.x_label if is_line else metric)
        if is_line:
            axis.set_ylabel(metric)
    if not is_line:
        own.set_yticks(places, [row.title for row in table.rows])
        own.margins(y=0.1)
    return figure


def _plane(table: Table, results: Sequence[RowResult]) -> Figure:
    """Two metrics against each other, an arrow from each row's base to it; small: seeds are in the table."""
    from matplotlib import pyplot

    first, second = table.columns[:2]
    figure, axis = pyplot.subplots(figsize=(5.6, 4.4), layout="constrained")
    colours = iter(["#0072b2", "#d55e00", "#009e73", "#cc79a7"])
    for row, result in zip(table.rows, results, strict=True):
        if row.base is None:
            continue
        start = results[row.base]
        xy = (100 * start.means[first], 100 * start.means[second])
        end = (100 * result.means[first], 100 * result.means[second])
        colour = next(colours)
        axis.annotate("", end, xy, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2})
        axis.plot(*xy, "o", color=colour, mfc="white")
        axis.plot(*end, "o", color=colour, label=row.title)
    axis.set(xlabel=first, ylabel=second)
    axis.grid(alpha=0.3)
    axis.margins(0.15)
    axis.legend(fontsize=8)
    return figure


def _against_latency(table: Table, results: Sequence[RowResult], latency_ms: Sequence[float]) -> Figure:
    """Quality against milliseconds; rows of one method are joined."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    methods: dict[str, list[int]] = {}
    for number, row in enumerate(table.rows):
        assert row.latency is not None
        methods.setdefault(row.latency[0], []).append(number)
    colours = dict(zip(methods, ["#0072b2", "#d55e00", "#009e73"][: len(methods)], strict=True))
    for method, numbers in methods.items():
        x = [latency_ms[number] for number in numbers]
        y = [100 * results[number].own.mean for number in numbers]
        low = [100 * (results[n].own.mean - results[n].own.low) for n in numbers]
        high = [100 * (results[n].own.high - results[n].own.mean) for n in numbers]
        label = "DriveFine" if method == "cached" else table.rows[numbers[0]].title
        axis.errorbar(x, y, yerr=[low, high], fmt="o-", color=colours[method], capsize=3, label=label)
        if len(numbers) > 1:
            for number, place in zip(numbers, zip(x, y, strict=True), strict=True):
                steps = table.rows[number].latency
                assert steps is not None
                axis.annotate(f"{steps[1]}+1", place, textcoords="offset points", xytext=(5, 5), fontsize=8)
    axis.set(xlabel="latency of a plan [ms], batch 1, one CPU core or GPU", ylabel=table.metric)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure
