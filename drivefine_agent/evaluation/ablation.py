"""Rows of an ablation over several seeds: the table, and how the reward rose in training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.bootstrap import Interval, paired_interval
from drivefine_agent.evaluation.comparison import SHORT_NAMES, check_same_scenes, format_interval

COLUMNS = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "time_to_collision_within_bound",
    "comfort",
    "ego_progress",
    "score",
)
"""Of the paper's Table 4, in its order."""


@dataclass(frozen=True)
class Row:
    """One row of an ablation."""

    title: str
    results: Sequence[pd.DataFrame]
    """Per-scene results (`results_csv.read_csv`), one table per seed, all of the same scenes."""


def seed_difference(row: Row, base: Row, metric: str = "score") -> Interval:
    """Paired bootstrap interval of a row's gain over another, over scenes, each scene's mean over the seeds.

    Scenes that failed in either row for any seed are left out, in pairs. The interval tells how sure the gain
    is on other scenes like these; how it differs between seeds is shown beside it.

    Raises:
      DataError: the rows cover other scenes or numbers of seeds, or no scene is valid in all of them.
    """
    if len(row.results) != len(base.results):
        raise DataError(
            f"rows must have as many seeds, got {len(row.results)} ({row.title}) and {len(base.results)}"
        )
    tables = [*row.results, *base.results]
    check_same_scenes({str(number): table for number, table in enumerate(tables)})
    aligned = [table.set_index("token").sort_index() for table in tables]
    valid = np.logical_and.reduce([table["valid"].to_numpy(dtype=bool) for table in aligned])
    if not valid.any():
        raise DataError(f"no scene is valid in all seeds of {row.title!r} and {base.title!r}")
    values = np.stack([table[metric].to_numpy()[valid] for table in aligned])  # (2 seeds, scenes)
    count = len(row.results)
    return paired_interval(values[:count].mean(axis=0), values[count:].mean(axis=0))


def ablation_table(rows: Sequence[Row], seeds: Sequence[int]) -> tuple[str, dict[str, Any]]:
    """The table in the paper's form, as Markdown and as data.

    Args:
      rows: the first one is the base; every other is compared with it and with the row before it.
      seeds: of the tables of each row.
    """
    header = [
        "row",
        *(SHORT_NAMES[name] for name in COLUMNS),
        "by seed",
        f"against {rows[0].title} [95 %]",
        "against the row above [95 %]",
    ]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    data = []
    for number, row in enumerate(rows):
        means = {c: float(np.mean([table[c].mean(skipna=True) for table in row.results])) for c in COLUMNS}
        by_seed = [float(table["score"].mean(skipna=True)) for table in row.results]
        first = seed_difference(row, rows[0]) if number > 0 else None
        above = seed_difference(row, rows[number - 1]) if number > 0 else None
        cells = [row.title, *(f"{100 * means[c]:.1f}" for c in COLUMNS)]
        cells += [", ".join(f"{100 * value:.1f}" for value in by_seed)]
        cells += [format_interval(first), format_interval(above)]
        lines.append("| " + " | ".join(cells) + " |")
        data.append(
            {
                "row": row.title,
                "means": means,
                "score_by_seed": dict(zip(map(str, seeds), by_seed, strict=True)),
                "num_invalid": [int((~table["valid"].astype(bool)).sum()) for table in row.results],
                "against_first": None if first is None else asdict(first),
                "against_above": None if above is None else asdict(above),
            }
        )
    scenes = len(rows[0].results[0])
    note = (
        f"{scenes} held-out scenes, seeds {', '.join(map(str, seeds))}. Intervals: paired bootstrap over "
        "scenes of the mean over seeds; * excludes zero."
    )
    return "\n".join([*lines, "", note, ""]), {"num_scenes": scenes, "seeds": list(seeds), "rows": data}


def learning_curves(runs: Mapping[str, Sequence[Path]], file: Path, window: int = 10) -> None:
    """Draws the mean reward of drafts and refinements over the steps of reinforcement runs.

    Args:
      runs: by title, the run folders of all seeds; each holds `metrics.jsonl`.
      file: PNG to write.
      window: steps of the running mean.

    Raises:
      DataError: a run has no metrics.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(runs), figsize=(4.2 * len(runs), 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (title, folders) in zip(axes[0], runs.items(), strict=True):
        for key, label, color in (
            ("generated/reward", "drafts", "tab:red"),
            ("refined/reward", "refined", "tab:green"),
        ):
            curves = [curve for folder in folders if len(curve := read_curve(folder, key)) >= window]
            for number, curve in enumerate(curves):
                smooth = np.convolve(curve, np.ones(window) / window, mode="valid")
                axis.plot(
                    np.arange(window, len(curve) + 1),
                    100 * smooth,
                    color=color,
                    alpha=0.8,
                    label=label if number == 0 else None,
                )
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel(f"mean PDMS of samples, {window}-step mean")
    axes[0, -1].legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def read_curve(folder: Path, key: str) -> list[float]:
    """Values of a scalar over the steps of a run; an entry repeated after a resume counts once."""
    file = folder / "metrics.jsonl"
    if not file.is_file():
        raise DataError(f"no metrics.jsonl in {folder}: run the training of this row first")
    values = {}
    for line in file.read_text().splitlines():
        entry = json.loads(line)
        if key in entry:
            values[entry["step"]] = float(entry[key])
    return [values[step] for step in sorted(values)]
