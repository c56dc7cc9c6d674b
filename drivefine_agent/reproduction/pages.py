"""A table's results as CSV, Markdown and a picture, the paper's numbers beside ours."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from drivefine_agent.evaluation.comparison import format_interval
from drivefine_agent.reproduction.results import RowResult
from drivefine_agent.reproduction.tables import Table

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
) -> str:
    """The page: ours, the paper's, how it was made, and what it does and does not show."""
    metric = table.metric
    header = ["row", *table.columns, "by seed", f"{metric} against [95 %]"]
    lines = [f"# {name}: {table.title}", "", _line(header), "|---" * len(header) + "|"]
    for result in results:
        title = f"{result.title} ({result.note})" if result.note else result.title
        against = "-" if result.difference is None else f"{result.base}: {format_interval(result.difference)}"
        one = len(set(result.by_seed)) == 1
        by_seed = "" if one else ", ".join(f"{100 * v:.1f}" for v in result.by_seed)
        lines.append(
            _line([title, *(f"{100 * result.means[c]:.1f}" for c in table.columns), by_seed, against])
        )
    if any(row.paper for row in table.rows):
        lines += ["", "The paper's numbers (8B model, NAVSIM's own scenes):", ""]
        lines += [_line(["row", *table.columns]), "|---" * (1 + len(table.columns)) + "|"]
        for row in table.rows:
            if row.paper:
                cells = [f"{row.paper[c]:.1f}" if c in row.paper else "" for c in table.columns]
                lines.append(_line([row.title, *cells]))
    failed = sum(result.num_invalid for result in results)
    lines += [
        "",
        f"{results[0].num_scenes} held-out {'groups of scenes' if 'stage 1' in table.columns else 'scenes'}, "
        f"seeds {', '.join(map(str, seeds))}, {failed} failed scorings (in no mean). Intervals: paired "
        "bootstrap over whole logs of each scene's mean over seeds; * excludes zero. They do not contain how "
        "training differs between seeds, which `by seed` shows.",
        "",
        f"![{name}]({name}.png)",
        "",
        *facts,
    ]
    if notes:
        lines += ["", notes.strip()]
    return "\n".join([*lines, ""])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def draw(table: Table, results: Sequence[RowResult], file: Path) -> None:
    """Ours with intervals and seeds; the paper's values in a panel of their own, since scales differ."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    metric = table.metric
    has_paper = any(metric in row.paper for row in table.rows)
    is_line = table.x_label is not None
    panels = 2 if has_paper else 1
    height = 3.4 if is_line else 0.9 + 0.36 * len(table.rows)
    figure, axes = pyplot.subplots(
        1,
        panels,
        figsize=(4.6 * panels if is_line else 3.4 + 3.1 * panels, height),
        squeeze=False,
        layout="constrained",
        sharey=not is_line,
    )
    places = [
        float(row.x) if is_line and row.x is not None else float(-number)
        for number, row in enumerate(table.rows)
    ]
    own = axes[0, 0]
    for place, result in zip(places, results, strict=True):
        mean = 100 * result.own.mean
        error = [[mean - 100 * result.own.low], [100 * result.own.high - mean]]
        seeds = [100 * value for value in result.by_seed]
        if is_line:
            own.errorbar(place, mean, yerr=error, fmt="o", color=OURS, capsize=3)
            own.plot([place] * len(seeds), seeds, ".", color=OURS, alpha=0.4)
        else:
            own.errorbar(mean, place, xerr=error, fmt="o", color=OURS, capsize=3)
            own.plot(seeds, [place] * len(seeds), ".", color=OURS, alpha=0.4)
    if is_line:
        own.plot(places, [100 * result.own.mean for result in results], color=OURS, alpha=0.6)
    own.set_title("ours, 95 % of logs; dots: seeds", fontsize=9)
    if has_paper:
        known = [
            (p, row.paper[metric]) for p, row in zip(places, table.rows, strict=True) if metric in row.paper
        ]
        x, y = zip(*known, strict=True)
        axes[0, 1].plot(*((x, y) if is_line else (y, x)), "s-" if is_line else "s", color=PAPER)
        axes[0, 1].set_title("the paper", fontsize=9)
    for axis in axes[0]:
        axis.grid(alpha=0.3)
        if is_line:
            axis.set_xlabel(table.x_label)
            axis.set_ylabel(metric)
        else:
            axis.set_xlabel(metric)
    if not is_line:
        own.set_yticks(places, [row.title for row in table.rows])
        own.margins(y=0.1)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
