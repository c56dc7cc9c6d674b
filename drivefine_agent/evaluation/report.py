"""The HTML report as one file: scores, failures, refinement, training, and every scene with its reasons.

The tables and charts are plain HTML; the scenes are drawn by `report_scene.js` and `report.js` from JSON in
the page, each decoded when it comes into view. Nothing is fetched from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd

from drivefine_agent.constants import EGO_LENGTH_M, EGO_REAR_AXLE_TO_CENTER_M, EGO_WIDTH_M
from drivefine_agent.evaluation.birdseye import AREA_COLOURS, BACKGROUND, ROAD_USER_COLOURS
from drivefine_agent.evaluation.paths import LineStyle
from drivefine_agent.evaluation.report_overview import (
    failures_section,
    histograms,
    refinement_section,
    scores_section,
    tiles,
)
from drivefine_agent.evaluation.report_rules import RULE_TEXTS, WITHOUT_WEIGHT, is_multiplied
from drivefine_agent.evaluation.report_training import training_section
from drivefine_agent.evaluation.scene_json import ASPECT
from drivefine_agent.scoring.explain import Reason

HUMAN = "human"
"""Plan id of the recorded driver."""
NUM_PAIRS = 3
"""Scenes shown side by side in which refinement gained most, and as many in which it lost most."""


@dataclass(frozen=True)
class AgentEntry:
    """An agent of the report."""

    name: str
    table: pd.DataFrame
    """Per-scene (with two stages: per-sample) results."""
    note: str = ""
    """What to know about it, e.g. that it sees the recorded future."""
    groups: pd.DataFrame | None = None
    """Two stages: results by mapping group."""


@dataclass(frozen=True)
class PlanStyle:
    """A trajectory as legend, tables and drawings name it."""

    id: str
    label: str
    style: LineStyle
    is_scored: bool
    is_shown: bool
    """Without being asked for."""


@dataclass(frozen=True)
class SceneEntry:
    """A scene of the report."""

    token: str
    log_name: str
    map_name: str
    command: str
    speed_mps: float
    stage: int
    """1 or 2; 0 in evaluations of one stage."""
    scores: Mapping[str, Mapping[str, Any] | None]
    """Result row by plan id; None where there is none."""
    errors: Mapping[str, str] = field(default_factory=dict)
    """Why a plan was not scored, by plan id."""
    reasons: Mapping[str, Sequence[Reason]] = field(default_factory=dict)
    """By plan id."""
    data: Mapping[str, Any] | None = None
    """What the script draws (`scene_json`); None where the scene could not be prepared."""


@dataclass(frozen=True)
class Report:
    """Everything on the page."""

    title: str
    lead: str
    benchmark: str
    names: Mapping[str, str]
    """Short names of the metrics, in the order of tables; the last one is `score`."""
    agents: tuple[AgentEntry, ...]
    """The main agent first."""
    before: AgentEntry | None
    """The main agent before refinement."""
    scenes: tuple[SceneEntry, ...]
    plans: tuple[PlanStyle, ...]
    rule: str
    """How the scenes were chosen."""
    training: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Rows of metrics.jsonl by the name of the training run."""
    footer: str = ""
    seed: int = 0
    """Of the bootstrap."""


def render_report(report: Report) -> str:
    """The page as HTML text.

    Raises:
      DataError: if the agents were evaluated on different scenes.
    """
    sections: list[tuple[str, str, str]] = [("scores", "Scores", scores_section(report))]
    sections.append(("failures", "Failures", failures_section(report)))
    sections.append(("distributions", "Distributions", histograms(report)))
    if report.before is not None:
        pairs = '<div id="pairs"></div>' if changed_most(report) else ""
        sections.append(("refinement", "Refinement", refinement_section(report) + pairs))
    if report.training:
        training = "".join(training_section(name, rows) for name, rows in report.training.items())
        sections.append(("training", "Training", training))
    sections.append(("scenes", "Scenes", _scenes_section(report)))
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in sections)
    body = "".join(
        f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>{content}</section>\n'
        for name, title, content in sections
    )
    footer = f"<footer>{escape(report.footer)}</footer>" if report.footer else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>\n{_package_text('report.css')}</style>\n</head>\n"
        f'<body>\n<nav><ul><li><a href="#">{escape(report.title)}</a></li>{links}</ul></nav>\n<main>\n'
        f'<h1>{escape(report.title)}</h1>\n<p class="lead">{escape(report.lead)}</p>\n{tiles(report)}\n'
        f"{body}{footer}</main>\n{_data_chunks(report)}"
        f"<script>\n{_package_text('report_scene.js')}\n{_package_text('report.js')}</script>\n</body>\n</html>\n"
    )


def script_json(value: object) -> str:
    """JSON that can stand inside a script element: no `<`, so nothing in it ends the element early."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def changed_most(report: Report, count: int = NUM_PAIRS) -> list[str]:
    """Tokens of the scenes in which refinement gained most, then of those in which it lost most."""
    changes = {}
    for scene in report.scenes:
        after, before = scene.scores.get("final"), scene.scores.get("generated")
        if after and before and scene.data is not None:
            changes[scene.token] = float(after["score"]) - float(before["score"])
    ranked = sorted(changes, key=lambda token: (-changes[token], token))
    gained = [token for token in ranked if changes[token] > 1e-9][:count]
    lost = [token for token in reversed(ranked) if changes[token] < -1e-9][:count]
    return gained + lost


def _package_text(name: str) -> str:
    return resources.files("drivefine_agent.evaluation").joinpath(name).read_text(encoding="utf-8")


def _data_chunks(report: Report) -> str:
    """The list of scenes, and one chunk per scene that is decoded on demand."""
    metrics = [
        {
            "key": key,
            "short": short,
            "long": RULE_TEXTS.get(key, short),
            "isMultiplied": is_multiplied(key, report.benchmark),
            "isRule": key != "score" and not (key == WITHOUT_WEIGHT and _is_v1(report)),
        }
        for key, short in report.names.items()
    ]
    index = {
        "metrics": metrics,
        "plans": [
            {
                "id": plan.id,
                "label": plan.label,
                "colour": plan.style.colour,
                "dash": plan.style.dash_m,
                "isScored": plan.is_scored,
                "isShown": plan.is_shown,
            }
            for plan in report.plans
        ],
        "colours": {"background": BACKGROUND, "areas": AREA_COLOURS, "users": ROAD_USER_COLOURS},
        "aspect": ASPECT,
        "ego": {"length": EGO_LENGTH_M, "width": EGO_WIDTH_M, "toCenter": EGO_REAR_AXLE_TO_CENTER_M},
        "pairs": changed_most(report),
        "scenes": [_scene_row(scene, list(report.names)) for scene in report.scenes],
    }
    chunks = [f'<script type="application/json" id="index">{script_json(index)}</script>\n']
    chunks += [
        f'<script type="application/json" id="scene-{number}">{script_json(scene.data)}</script>\n'
        for number, scene in enumerate(report.scenes)
        if scene.data is not None
    ]
    return "".join(chunks)


def _is_v1(report: Report) -> bool:
    """Driving direction has weight 0 in NAVSIM 1.1: a value below 1 is no failure there."""
    return report.benchmark == "navsim_v1"


def _scene_row(scene: SceneEntry, metrics: Sequence[str]) -> dict[str, Any]:
    return {
        "token": scene.token,
        "log": scene.log_name,
        "map": scene.map_name,
        "command": scene.command,
        "speed": round(scene.speed_mps, 2),
        "stage": scene.stage,
        "scores": {
            plan: None if row is None else [_number(row[name]) for name in metrics]
            for plan, row in scene.scores.items()
        },
        "errors": dict(scene.errors),
        "reasons": {
            plan: [
                {
                    "rule": reason.rule,
                    "value": round(reason.value, 4),
                    "text": reason.text,
                    "state": reason.state,
                    "track": reason.track,
                    "isLifted": reason.is_lifted,
                }
                for reason in reasons
            ]
            for plan, reasons in scene.reasons.items()
        },
        "hasData": scene.data is not None,
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 5)


def _scenes_section(report: Report) -> str:
    rules = "".join(
        f'<option value="{key}">{escape(RULE_TEXTS[key])}</option>'
        for key in report.names
        if key not in ("score", "ego_progress") and not (_is_v1(report) and key == WITHOUT_WEIGHT)
    )
    failures = '<option value="not scored">not scored</option><option value="zero">score 0</option>'
    refined = '<option value="change">most changed by refinement</option>' if report.before else ""
    return (
        f"<p>{escape(report.rule)}</p>{_legend(report)}"
        '<form id="filter" class="panel">'
        '<label>search<input name="text" type="search" placeholder="token, log, reason …"></label>'
        f'<label>what failed<select name="rule"><option value="">any scene</option>{failures}{rules}'
        '<option value="none">nothing</option></select></label>'
        '<label>command<select name="command"><option value="">any</option></select></label>'
        '<label>stage<select name="stage"><option value="">both</option></select></label>'
        '<label>log<select name="log"><option value="">any</option></select></label>'
        '<label>sort by<select name="sort"><option value="worst">worst first</option>'
        f'<option value="best">best first</option>{refined}<option value="time">earliest trouble</option>'
        '<option value="log">log</option></select></label>'
        '<button type="reset">reset</button><output id="count"></output></form>'
        '<div id="grid"></div><p id="nothing" class="note" hidden>No scene is like that.</p>'
        '<noscript><p class="error">The scenes are drawn by a script in this page: allow it.</p></noscript>'
    )


def _legend(report: Report) -> str:
    lines = []
    for plan in report.plans:
        dash = "none" if plan.style.dash_m is None else " ".join(f"{5 * m:.1f}" for m in plan.style.dash_m)
        lines.append(
            f'<li><svg width="34" height="6"><line x2="34" y1="3" y2="3" stroke="{plan.style.colour}" '
            f'stroke-width="4" stroke-dasharray="{dash}"/></svg>{escape(plan.label)}</li>'
        )
    boxes = [
        (ROAD_USER_COLOURS["vehicle"], "vehicle"),
        (ROAD_USER_COLOURS["pedestrian"], "pedestrian"),
        (ROAD_USER_COLOURS["bicycle"], "bicycle"),
        (ROAD_USER_COLOURS["traffic_cone"], "cone, sign"),
        (ROAD_USER_COLOURS["generic_object"], "barrier, object"),
        (AREA_COLOURS["route_lane"], "lane of the route"),
        (AREA_COLOURS["lane"], "other lane, intersection"),
        (AREA_COLOURS["carpark"], "car park"),
        (AREA_COLOURS["crosswalk"], "crosswalk"),
        (AREA_COLOURS["red_light"], "red light on the route"),
    ]
    squares = [f'<li><i style="background:{colour}"></i>{label}</li>' for colour, label in boxes]
    return (
        f'<ul class="legend">{"".join(lines)}</ul><ul class="legend">{"".join(squares)}</ul>'
        '<p class="note">Open a scene to see it from above and over time: boxes are the simulated ego '
        "vehicles at that time, dots the poses of a trajectory, 0.5 s apart. Who was run into is outlined in "
        "yellow from that moment on. Click a reason to go to its moment.</p>"
    )
