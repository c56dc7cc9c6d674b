"""Training curves and monitors of a run, from the rows of its metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from drivefine_agent.evaluation.paths import GENERATED_STYLE, REFINED_STYLE
from drivefine_agent.evaluation.report_charts import CURVE_COLOURS, curves_svg

Rows = Sequence[Mapping[str, Any]]

# Panels of a reinforcement-learning run that come first: title, then curve name -> metric.
_FIRST_RL = (
    ("PDM score of rollouts", {"generated": "generated/score", "refined": "refined/score"}),
    ("gain by refinement", {"mean": "refinement/gain"}),
    ("divergence from the start (KL)", {"generator": "generator/kl"}),
    ("entropy", {"generator": "generator/entropy", "refiner": "refiner/entropy"}),
    ("spread of rewards in a group", {"deviation": "group/reward_std"}),
    ("groups without any spread", {"share": "group/zero_variance_share"}),
    (
        "clipped share",
        {
            "generator": "generator/clipped_share",
            "online": "online/clipped_share",
            "offline": "offline/clipped_share",
        },
    ),
    ("gradient norm", {"generator": "generator/grad_norm", "refiner": "refiner/grad_norm"}),
)
_COLOURS = {
    "generated": GENERATED_STYLE.colour,
    "generator": GENERATED_STYLE.colour,
    "refined": REFINED_STYLE.colour,
    "refiner": REFINED_STYLE.colour,
}
"""As the trajectories are drawn."""
_VALIDATION = "_validation"
_NOT_CURVES = ("group", "step")


def training_section(name: str, rows: Rows) -> str:
    """One run: the curves that matter first, all others folded away."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(str(row["group"]), []).append(row)
    if not groups:
        return f'<h3>{escape(name)}</h3><p class="note">no rows yet</p>'
    shown: list[str] = []
    folded: list[str] = []
    for group, own in groups.items():
        if group.endswith(_VALIDATION) and group.removesuffix(_VALIDATION) in groups:
            continue
        validation = groups.get(group + _VALIDATION, [])
        metrics = sorted(
            {key for row in own for key, value in row.items() if _is_number(value)} - set(_NOT_CURVES)
        )
        panels: list[str] = []
        used: set[str] = set()
        if any("/" in metric for metric in metrics):
            for title, curves in _FIRST_RL:
                found = {label: metric for label, metric in curves.items() if metric in metrics}
                if found:
                    used |= set(found.values())
                    panels.append(_panel(title, {label: (own, metric) for label, metric in found.items()}))
        elif "loss" in metrics:
            used.add("loss")
            both = {"training": (own, "loss"), "held-out": (validation, "loss")}
            panels.append(
                _panel(f"{group}: loss", {label: source for label, source in both.items() if source[0]})
            )
            displacement = {
                label: (validation, metric)
                for label, metric in (
                    ("generated", "final_displacement_m"),
                    ("refined", "refined_final_displacement_m"),
                )
                if any(metric in row for row in validation)
            }
            if displacement:
                panels.append(_panel(f"{group}: metres from the driver after 4 s, held-out", displacement))
        rest = [_panel(f"{group}: {metric}", {"": (own, metric)}) for metric in metrics if metric not in used]
        if not panels:
            panels, rest = rest, []
        shown += panels
        folded += rest
    more = (
        f'<details><summary>{len(folded)} more curves</summary><div class="curves">{"".join(folded)}</div>'
        "</details>"
        if folded
        else ""
    )
    return f'<h3>{escape(name)}</h3><div class="curves">{"".join(shown)}</div>{more}'


def _panel(title: str, curves: Mapping[str, tuple[Rows, str]]) -> str:
    series, legend = {}, []
    for position, (label, (rows, metric)) in enumerate(curves.items()):
        colour = _COLOURS.get(label, CURVE_COLOURS[position % len(CURVE_COLOURS)])
        points = [(row["step"], row[metric]) for row in rows if _is_number(row.get(metric))]
        if points:
            steps, values = np.array(points, dtype=np.float64).T
            series[label] = (colour, steps, values)
            legend.append(f'<span style="color:{colour}">{escape(label)} <b>{values[-1]:.4g}</b></span>')
    if not series:
        return ""
    note = f"<small> {' · '.join(legend)}</small>"
    caption = f"<figcaption>{escape(title)}{note}</figcaption>"
    return f'<figure class="panel">{caption}{curves_svg(series)}</figure>'


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
