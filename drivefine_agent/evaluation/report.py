"""The one-page HTML report: who scored what, what refinement changed, and a dozen scenes to look at.

The page is a single file: pictures are embedded, there is no script, and nothing is fetched from elsewhere.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import pandas as pd

from drivefine_agent.evaluation.birdseye import AREA_COLOURS, EGO_COLOUR, ROAD_USER_COLOURS
from drivefine_agent.evaluation.bootstrap import Interval, paired_interval
from drivefine_agent.evaluation.comparison import (
    SHORT_NAMES,
    AgentSummary,
    compare,
    format_interval,
    paired_values,
)
from drivefine_agent.evaluation.report_style import CSS

TABLE_COLUMNS = {name: short for name, short in SHORT_NAMES.items() if name != "driving_direction_compliance"}
"""NC, DAC, TTC, C, EP, PDMS. Driving direction has weight 0 in NAVSIM 1.1's score; scene tables show it."""


@dataclass(frozen=True)
class AgentEntry:
    """An agent of the report."""

    name: str
    table: pd.DataFrame
    """Per-scene results (`results_csv`)."""
    note: str = ""
    """What to know about it, e.g. that it sees the recorded future."""


@dataclass(frozen=True)
class TrajectoryScores:
    """One line of a scene's table."""

    label: str
    colour: str | None
    """Of its path in the pictures; None if it is not drawn."""
    scores: dict[str, float] | None
    """By metric name; None where scoring failed."""
    error: str | None = None


@dataclass(frozen=True)
class SceneCard:
    """A scene of the report."""

    token: str
    reason: str
    facts: str
    """Where it was recorded, the driving command, the speed."""
    camera_jpeg: bytes
    birdseye_png: bytes
    rows: tuple[TrajectoryScores, ...]


@dataclass(frozen=True)
class LegendPath:
    """A drawn trajectory as the legend names it."""

    label: str
    colour: str
    is_dashed: bool = False


@dataclass(frozen=True)
class Report:
    """Everything on the page."""

    title: str
    lead: str
    agents: tuple[AgentEntry, ...]
    """The main agent first."""
    before: AgentEntry | None
    """The main agent before refinement."""
    cards: tuple[SceneCard, ...]
    legend: tuple[LegendPath, ...]
    rule: str
    """How the scenes were chosen."""
    footer: str = ""
    seed: int = 0
    """Of the bootstrap."""


def render_report(report: Report) -> str:
    """The page as HTML text.

    Raises:
      DataError: if the agents were evaluated on different scenes.
    """
    main = report.agents[0]
    listed = (main, *((report.before,) if report.before else ()), *report.agents[1:])
    summaries = compare({agent.name: agent.table for agent in listed}, base=main.name, seed=report.seed)
    body = [
        f"<h1>{escape(report.title)}</h1>",
        f'<p class="lead">{escape(report.lead)}</p>',
        _facts(summaries[0], report),
        "<h2>Scores</h2>",
        _agents_table(summaries, listed, main.name),
        _score_notes(main.name),
    ]
    if report.before is not None:
        body += ["<h2>Before and after refinement</h2>", _refinement(main, report.before, report.seed)]
    body += [
        "<h2>Scenes</h2>",
        f"<p>{escape(report.rule)}</p>",
        _legend(report.legend),
        *(_card(card) for card in report.cards),
        f"<footer>{escape(report.footer)}</footer>" if report.footer else "",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _facts(summary: AgentSummary, report: Report) -> str:
    facts = [
        (f"{100 * summary.means['score']:.1f}", f"PDMS of {summary.name}"),
        (str(summary.num_scenes), "scenes"),
    ]
    if report.before is not None:
        before = float(report.before.table["score"].mean(skipna=True))
        facts.append((f"{100 * (summary.means['score'] - before):+.1f}", "PDMS by refinement"))
    failed = summary.num_scenes - summary.num_valid
    facts.append((str(failed), "failed scenes"))
    items = "".join(f"<li><b>{escape(value)}</b><span>{escape(label)}</span></li>" for value, label in facts)
    return f'<ul class="facts">{items}</ul>'


def _agents_table(summaries: Sequence[AgentSummary], entries: Sequence[AgentEntry], base: str) -> str:
    reach = max(
        [max(abs(s.difference.low), abs(s.difference.high)) for s in summaries if s.difference] + [0.01]
    )
    head = "".join(f'<th scope="col">{short}</th>' for short in TABLE_COLUMNS.values())
    rows = []
    for summary, entry in zip(summaries, entries, strict=True):
        cells = "".join(
            f"<td{' class=score' if name == 'score' else ''}>{_points(summary.means[name])}</td>"
            for name in TABLE_COLUMNS
        )
        note = f"<small>{escape(entry.note)}</small>" if entry.note else ""
        marker = ' class="main"' if summary.name == base else ""
        rows.append(
            f'<tr{marker}><th scope="row">{escape(summary.name)}{note}</th>'
            f"<td>{summary.num_valid}/{summary.num_scenes}</td>{cells}"
            f'<td class="interval">{_interval_cell(summary.difference, reach)}</td></tr>'
        )
    return (
        f'<div class="panel"><table><thead><tr><th scope="col">Agent</th><th scope="col">valid</th>{head}'
        f'<th scope="col" style="text-align:left">PDMS − {escape(base)}, 95 % interval</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _points(value: float) -> str:
    return "–" if np.isnan(value) else f"{100 * value:.1f}"


def _interval_cell(interval: Interval | None, reach: float) -> str:
    """A drawn interval around a zero line, and the numbers."""
    if interval is None:
        return '<span class="note">reference of the comparison</span>'
    width, height, middle = 120, 18, 60

    def place(value: float) -> float:
        return middle + 53 * value / reach

    low, mean, high = place(interval.low), place(interval.mean), place(interval.high)
    colour = "#5d6773"
    if interval.excludes_zero:
        colour = "#07694a" if interval.mean > 0 else "#a4391c"
    drawing = (
        f'<svg width="{width}" height="{height}" role="img" aria-label="interval">'
        f'<line x1="{middle}" x2="{middle}" y1="0" y2="{height}" stroke="#b9c0c8"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="9" y2="9" stroke="{colour}" stroke-width="3" '
        'stroke-linecap="round"/>'
        f'<circle cx="{mean:.1f}" cy="9" r="5" fill="{colour}" stroke="#fff" stroke-width="1.5"/></svg>'
    )
    numbers = format_interval(interval).removesuffix(" *")
    return drawing + f'<span class="{"sure" if interval.excludes_zero else ""}">{numbers}</span>'


def _score_notes(base: str) -> str:
    return (
        '<p class="note">All numbers are percentages. NC: no at-fault collision. DAC: drivable area '
        "compliance. "
        "TTC: time to collision within bound. C: comfort. EP: ego progress. PDMS: NAVSIM 1.1's score, "
        "NC · DAC · (5 EP + 5 TTC + 2 C) / 12, averaged over scenes. Failed scenes are left out of an "
        "agent's means, as in NAVSIM; “valid” counts the others. The interval is a paired bootstrap over "
        "scenes: the agent's "
        f"score minus that of {escape(base)} in the same scene; bold and coloured where it excludes zero.</p>"
    )


def _refinement(after: AgentEntry, before: AgentEntry, seed: int) -> str:
    score_after, score_before = paired_values(after.table, before.table, "score")
    interval = paired_interval(score_after, score_before, seed=seed)
    change = score_after - score_before
    gained, lost = int(np.sum(change > 1e-9)), int(np.sum(change < -1e-9))
    same = len(change) - gained - lost
    numbers = format_interval(interval).removesuffix(" *")
    verdict = f"an interval that {'excludes' if interval.excludes_zero else 'includes'} zero"
    rows = "".join(
        f'<tr><th scope="row">{short}</th><td>{_points(float(first.mean()))}</td>'
        f"<td>{_points(float(second.mean()))}</td><td>{100 * (second.mean() - first.mean()):+.1f}</td></tr>"
        for name, short in SHORT_NAMES.items()
        for second, first in [paired_values(after.table, before.table, name)]
    )
    return (
        '<div class="panel columns"><div>'
        f"<p>Refinement changes the mean PDMS by <b>{numbers}</b> points, {verdict}. It raised the score in "
        f"{gained} of {len(change)} scenes, lowered it in {lost} and left it in {same}.</p>"
        '<table><thead><tr><th scope="col"></th><th scope="col">before</th><th scope="col">after</th>'
        f'<th scope="col">change</th></tr></thead><tbody>{rows}</tbody></table></div>'
        f"<div>{_scatter(score_before, score_after)}</div></div>"
    )


def _scatter(before: np.ndarray, after: np.ndarray) -> str:
    """Scores before (right) and after (up), one dot per scene; on the diagonal nothing changed."""
    size, margin = 360, 44
    span = size - 2 * margin
    x, y = margin + span * before, size - margin - span * after
    colours = np.select([after > before + 1e-9, after < before - 1e-9], ["#07694a", "#a4391c"], "#5d6773")
    dots = "".join(
        f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4.5" fill="{colour}" fill-opacity="0.45"/>'
        for px, py, colour in zip(x, y, colours, strict=True)
    )
    ticks = "".join(
        f'<text x="{margin + span * t}" y="{size - margin + 17}" text-anchor="middle">{100 * t:.0f}</text>'
        f'<text x="{margin - 8}" y="{size - margin - span * t + 4}" text-anchor="end">{100 * t:.0f}</text>'
        for t in (0.0, 0.5, 1.0)
    )
    low, high = margin, size - margin
    return (
        f'<svg viewBox="0 0 {size} {size}" width="100%" style="max-width:{size}px" role="img" '
        'aria-label="PDMS before and after refinement" font-size="12" fill="#5d6773">'
        f'<rect x="{low}" y="{low}" width="{span}" height="{span}" fill="#fafbf9" stroke="#e1e4e8"/>'
        f'<line x1="{low}" y1="{high}" x2="{high}" y2="{low}" stroke="#b9c0c8" stroke-dasharray="4 4"/>'
        f'{dots}{ticks}<text x="{size / 2}" y="{size - 6}" text-anchor="middle">PDMS before refinement</text>'
        f'<text transform="translate(12 {size / 2}) rotate(-90)" text-anchor="middle">after</text>'
        f'<text x="{low + 8}" y="{low + 18}" fill="#07694a">gained</text>'
        f'<text x="{high - 8}" y="{high - 10}" text-anchor="end" fill="#a4391c">lost</text></svg>'
    )


def _legend(paths: Sequence[LegendPath]) -> str:
    lines = [
        f'<li><svg width="34" height="6"><line x2="34" y1="3" y2="3" stroke="{path.colour}" stroke-width="4" '
        f'stroke-dasharray="{"8 5" if path.is_dashed else "none"}"/></svg>{escape(path.label)}</li>'
        for path in paths
    ]
    boxes = [
        (EGO_COLOUR, "ego vehicle now"),
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
        '<p class="note">From above, the ego vehicle drives upwards; a dot is a pose (every 0.5 s), the '
        "outline at the end is the vehicle after 4 s. Thin outlines show where the other road users will be "
        "after 1, 2, 3 and 4 s. "
        "DDC: driving direction compliance, which NAVSIM 1.1 reports with weight 0.</p>"
    )


def _card(card: SceneCard) -> str:
    kind = card.reason.split()[-1]
    head = "".join(f'<th scope="col">{short}</th>' for short in SHORT_NAMES.values())
    return (
        f'<article id="scene-{escape(card.token)}">'
        f'<header><span class="tag {escape(kind)}">{escape(card.reason)}</span>'
        f"<h3>Scene <code>{escape(card.token)}</code></h3>"
        f'<span class="note">{escape(card.facts)}</span></header><div class="pictures">'
        f'<figure><img alt="front camera with trajectories" src="{_embed(card.camera_jpeg, "jpeg")}">'
        f'<div class="scores"><table><thead><tr><th scope="col">Trajectory</th>{head}</tr></thead>'
        f"<tbody>{''.join(_score_row(row) for row in card.rows)}</tbody></table></div></figure>"
        f'<figure class="birdseye"><img alt="from above" src="{_embed(card.birdseye_png, "png")}"></figure>'
        "</div></article>"
    )


def _score_row(row: TrajectoryScores) -> str:
    colour = f'<i style="background:{row.colour}"></i>' if row.colour else ""
    head = f'<tr><th scope="row">{colour}{escape(row.label)}</th>'
    if row.scores is None:
        return (
            head
            + f'<td class="error" colspan="{len(SHORT_NAMES)}">{escape(row.error or "not scored")}</td></tr>'
        )
    cells = "".join(_score_cell(name, row.scores[name]) for name in SHORT_NAMES)
    return head + cells + "</tr>"


def _score_cell(name: str, value: float) -> str:
    if name == "score":
        return f'<td class="score">{100 * value:.1f}</td>'
    if name == "ego_progress":
        return f"<td{' class=zero' if value == 0.0 else ''}>{100 * value:.1f}</td>"
    kind = {0.0: "zero", 0.5: "half", 1.0: "one"}[value]
    return f'<td class="{kind}">{100 * value:.0f}</td>'


def _embed(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode("ascii")
