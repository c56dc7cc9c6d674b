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
    drafts: Sequence[pd.DataFrame]
    """Per-scene results (`results_csv.read_csv`) before refinement: a table per seed, of the same scenes."""
    refined: Sequence[pd.DataFrame]
    """The same after refinement."""
    is_refined: bool
    """Which of them the row shows."""

    @property
    def results(self) -> Sequence[pd.DataFrame]:
        """What the row shows."""
        return self.refined if self.is_refined else self.drafts


def seed_difference(
    results: Sequence[pd.DataFrame], base: Sequence[pd.DataFrame], metric: str = "score"
) -> Interval:
    """Paired bootstrap interval of a gain over another row, over scenes, each scene's mean over the seeds.

    Scenes that failed in either row for any seed are left out, in pairs. The interval tells how sure the gain
    is on other scenes like these; how it differs between seeds is shown beside it.

    Args:
      results: one table per seed.
      base: what they are compared with.
      metric: column.

    Raises:
      DataError: the rows cover other scenes or numbers of seeds, or no scene is valid in all of them.
    """
    if len(results) != len(base):
        raise DataError(f"rows must have as many seeds, got {len(results)} and {len(base)}")
    tables = [*results, *base]
    check_same_scenes({str(number): table for number, table in enumerate(tables)})
    aligned = [table.set_index("token").sort_index() for table in tables]
    valid = np.logical_and.reduce([table["valid"].to_numpy(dtype=bool) for table in aligned])
    if not valid.any():
        raise DataError("no scene is valid for all seeds of the rows to compare")
    values = np.stack([table[metric].to_numpy()[valid] for table in aligned])  # (2 seeds, scenes)
    count = len(results)
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
        "refined - its drafts [95 %]",
        "refined - the row above refined [95 %]",
    ]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    data = []
    for number, row in enumerate(rows):
        means = {c: float(np.mean([table[c].mean(skipna=True) for table in row.results])) for c in COLUMNS}
        by_seed = [float(table["score"].mean(skipna=True)) for table in row.results]
        first = seed_difference(row.results, rows[0].results) if number > 0 else None
        above = seed_difference(row.results, rows[number - 1].results) if number > 0 else None
        refinement = seed_difference(row.refined, row.drafts)
        both_refined = seed_difference(row.refined, rows[number - 1].refined) if number > 0 else None
        cells = [row.title, *(f"{100 * means[c]:.1f}" for c in COLUMNS)]
        cells += [", ".join(f"{100 * value:.1f}" for value in by_seed)]
        cells += [format_interval(gain) for gain in (first, above, refinement, both_refined)]
        lines.append("| " + " | ".join(cells) + " |")
        data.append(
            {
                "row": row.title,
                "means": means,
                "score_by_seed": dict(zip(map(str, seeds), by_seed, strict=True)),
                "is_refined": row.is_refined,
                "num_invalid": [int((~table["valid"].astype(bool)).sum()) for table in row.results],
                "against_first": None if first is None else asdict(first),
                "against_above": None if above is None else asdict(above),
                "refined_against_drafts": asdict(refinement),
                "refined_against_above_refined": None if both_refined is None else asdict(both_refined),
            }
        )
    scenes = len(rows[0].results[0])
    drafted = ", ".join(row.title for row in rows if not row.is_refined)
    note = (
        f"{scenes} held-out scenes, seeds {', '.join(map(str, seeds))}. Before refinement: {drafted}; "
        "the others after it. Intervals: paired bootstrap over scenes of means over seeds; * excludes zero."
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
