"""The report's overview: score table with intervals, failures by rule, distributions, refinement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from drivefine_agent.evaluation.bootstrap import Interval, paired_interval
from drivefine_agent.evaluation.comparison import (
    SHORT_NAMES_GROUPS,
    AgentSummary,
    compare,
    format_interval,
    paired_values,
)
from drivefine_agent.evaluation.report_charts import histogram_svg, interval_svg, scatter_svg
from drivefine_agent.evaluation.report_rules import RULE_TEXTS, WITHOUT_WEIGHT, is_multiplied, score_formula

if TYPE_CHECKING:
    from drivefine_agent.evaluation.report import AgentEntry, Report


def listed(report: Report) -> list[AgentEntry]:
    """All agents in the order of tables: the main one, itself before refinement, the others."""
    return [report.agents[0], *([report.before] if report.before else []), *report.agents[1:]]


def _metric(report: Report) -> str:
    return report.names["score"]


def tiles(report: Report) -> str:
    """The numbers a reader wants first."""
    main = report.agents[0]
    table = main.table if main.groups is None else main.groups
    valid = main.table[main.table["valid"]]
    zeros = int((valid["score"] == 0.0).sum())
    facts = [
        (_points(float(table["score"].mean())), f"{_metric(report)} of {main.name}"),
        (str(len(main.table)), "scenes" if main.groups is None else f"samples in {len(main.groups)} groups"),
        (f"{zeros}", f"scenes score 0 ({100 * zeros / max(len(valid), 1):.0f} %)"),
        (str(len(main.table) - len(valid)), "scenes could not be scored"),
    ]
    if report.before is not None:
        before = report.before.table if report.before.groups is None else report.before.groups
        change = float(table["score"].mean() - before["score"].mean())
        facts.insert(1, (f"{100 * change:+.1f}", "points by refinement"))
    items = "".join(f"<li><b>{escape(value)}</b><span>{escape(label)}</span></li>" for value, label in facts)
    return f'<ul class="tiles">{items}</ul>'


def scores_section(report: Report) -> str:
    """The table of agents, with paired intervals against the main one."""
    entries = listed(report)
    base = entries[0].name
    is_grouped = all(entry.groups is not None for entry in entries)
    names: Mapping[str, str] = SHORT_NAMES_GROUPS if is_grouped else report.names
    tables = {entry.name: entry.groups if is_grouped else entry.table for entry in entries}
    summaries = compare(tables, base=base, seed=report.seed, names=names)
    parts = [_agents_table(summaries, entries, names)]
    if is_grouped:
        parts.append(_samples_table(report, entries))
    unit = "mapping groups, which alone have a combined score" if is_grouped else "scenes"
    meanings = ", ".join(
        f"{short}: {RULE_TEXTS[name]}" for name, short in report.names.items() if name != "score"
    )
    parts.append(
        f'<p class="note">All numbers are percentages. {escape(meanings)}. {_metric(report)} = '
        f"{score_formula(report.benchmark)}, averaged. Failed scenes are left out of an agent's means; "
        f"“valid” counts the others. The interval is a paired bootstrap over {unit}: the agent's score minus "
        f"that of {escape(base)}; bold and coloured where it excludes zero.</p>"
    )
    return "".join(parts)


def _agents_table(
    summaries: Sequence[AgentSummary], entries: Sequence[AgentEntry], names: Mapping[str, str]
) -> str:
    base = summaries[0].name
    reach = max(
        [max(abs(s.difference.low), abs(s.difference.high)) for s in summaries if s.difference] + [0.01]
    )
    head = "".join(f'<th scope="col">{short}</th>' for short in names.values())
    rows = []
    for summary, entry in zip(summaries, entries, strict=True):
        cells = "".join(
            f"<td{' class=score' if name == 'score' else ''}>{_points(summary.means[name])}</td>"
            for name in names
        )
        note = f"<small>{escape(entry.note)}</small>" if entry.note else ""
        marker = ' class="main"' if summary.name == base else ""
        rows.append(
            f'<tr{marker}><th scope="row">{escape(summary.name)}{note}</th>'
            f"<td>{summary.num_valid}/{summary.num_scenes}</td>{cells}"
            f'<td class="interval">{_interval_cell(summary.difference, reach)}</td></tr>'
        )
    difference = (
        f'<th scope="col" style="text-align:left">{names["score"]} − {escape(base)}, 95 % interval</th>'
    )
    return (
        f'<div class="panel"><table><thead><tr><th scope="col">agent</th><th scope="col">valid</th>{head}'
        f"{difference}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _samples_table(report: Report, entries: Sequence[AgentEntry]) -> str:
    """Means of the sub-scores over the samples of each stage."""
    head = "".join(f'<th scope="col">{short}</th>' for short in report.names.values())
    rows = []
    for stage in (1, 2):
        rows.append(
            f'<tr class="kind"><th colspan="{len(report.names) + 1}">samples of stage {stage}, '
            "each with the same weight</th></tr>"
        )
        for entry in entries:
            own = entry.table[entry.table["stage"] == stage]
            cells = "".join(f"<td>{_points(float(own[name].mean()))}</td>" for name in report.names)
            rows.append(f'<tr><th scope="row">{escape(entry.name)}</th>{cells}</tr>')
    return (
        f'<div class="panel" style="margin-top:12px"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _points(value: float) -> str:
    return "–" if np.isnan(value) else f"{100 * value:.1f}"


def _interval_cell(interval: Interval | None, reach: float) -> str:
    """A drawn interval around a zero line, and the numbers."""
    if interval is None:
        return '<span class="note">reference of the comparison</span>'
    numbers = format_interval(interval).removesuffix(" *")
    return (
        interval_svg(interval, reach)
        + f'<span class="{"sure" if interval.excludes_zero else ""}">{numbers}</span>'
    )


def failures_section(report: Report) -> str:
    """How many scenes each rule cost something, by agent; then what could not be scored at all."""
    entries = listed(report)
    main = entries[0]
    rules = [name for name in report.names if name not in ("score", "ego_progress")]
    if report.benchmark == "navsim_v1":
        rules.remove(WITHOUT_WEIGHT)
    multiplied = [rule for rule in rules if is_multiplied(rule, report.benchmark)]
    rest = [rule for rule in rules if rule not in multiplied]
    largest = max([1, *(int((main.table[rule] < 1.0).sum()) for rule in rules)])
    heads = (escape(entry.name).replace("_", "_<wbr>") for entry in entries[1:])
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    width = len(entries) + 1
    rows = [f'<tr class="kind"><th colspan="{width}">scenes that could not be scored</th></tr>']
    failed = [~entry.table["valid"] for entry in entries]
    rows.append(_count_row("not scored", "not scored", failed, "#5b6570", largest))
    rows.append(f'<tr class="kind"><th colspan="{width}">rules that made the score 0</th></tr>')
    rows += [
        _count_row(
            rule, RULE_TEXTS[rule], [entry.table[rule] == 0.0 for entry in entries], "#a02b12", largest
        )
        for rule in multiplied
    ]
    rows.append(f'<tr class="kind"><th colspan="{width}">rules that cost points</th></tr>')
    for rule in multiplied:
        lowered = [(entry.table[rule] > 0.0) & (entry.table[rule] < 1.0) for entry in entries]
        if any(count.any() for count in lowered):
            rows.append(_count_row(rule, f"{RULE_TEXTS[rule]} (half)", lowered, "#d9a520", largest))
    rows += [
        _count_row(rule, RULE_TEXTS[rule], [entry.table[rule] < 1.0 for entry in entries], "#d9a520", largest)
        for rule in rest
    ]
    return (
        "<p>In how many scenes each rule failed. Click a bar to see them.</p>"
        f'<div class="panel"><table class="failures"><thead><tr><th></th><th scope="col">'
        f"{escape(main.name)}</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f"{_error_list(report)}"
    )


def _count_row(rule: str, text: str, failed: Sequence[pd.Series], colour: str, largest: int) -> str:
    """One rule: a bar for the main agent, numbers for the others; `largest` fills the bar's place."""
    count, total = int(failed[0].sum()), max(len(failed[0]), 1)
    share = min(1.0, count / largest)
    bar = (
        f'<button type="button" data-rule="{rule}">'
        f'<i style="width:{60 * share:.1f}%;background:{colour}"></i>'
        f"<span>{count} <small>{100 * count / total:.0f} %</small></span></button>"
        if count
        else "0"
    )
    others = "".join(f"<td>{int(other.sum())}</td>" for other in failed[1:])
    return f'<tr><th scope="row">{escape(text)}</th><td class="bar">{bar}</td>{others}</tr>'


def _error_list(report: Report, limit: int = 20) -> str:
    """Why scenes of the main agent could not be scored."""
    errors = [(scene.token, scene.errors["final"]) for scene in report.scenes if "final" in scene.errors]
    if not errors:
        return ""
    items = "".join(
        f'<li><code>{escape(token)}</code> <span class="error">{escape(error)}</span></li>'
        for token, error in errors[:limit]
    )
    more = f"<li>and {len(errors) - limit} more</li>" if len(errors) > limit else ""
    return f"<p>Scenes that could not be scored, and why:</p><ul>{items}{more}</ul>"


def histograms(report: Report) -> str:
    """Distribution of the scores of every agent, on one scale."""
    scores = {
        entry.name: entry.table.loc[entry.table["valid"], "score"].dropna().to_numpy(dtype=np.float64)
        for entry in listed(report)
    }
    largest = max((_largest_share(values) for values in scores.values()), default=1.0)
    figures = "".join(
        f'<figure class="panel"><figcaption>{escape(name)} <small>mean {_points(float(values.mean()))}, '
        f"{np.sum(values == 0.0)} of {len(values)} at 0</small></figcaption>"
        f"{histogram_svg(values, largest)}</figure>"
        for name, values in scores.items()
        if len(values)
    )
    unit = "sample" if report.agents[0].groups is not None else "scene"
    return f'<p>Score of each {unit}; the red bar is exactly 0.</p><div class="histograms">{figures}</div>'


def _largest_share(values: np.ndarray) -> float:
    """The tallest bar of a histogram, as a share of its scenes."""
    if len(values) == 0:
        return 0.0
    counts, _ = np.histogram(values[values > 0.0], bins=20, range=(0.0, 1.0))
    return max(float(counts.max()), float(np.sum(values == 0.0))) / len(values)


def refinement_section(report: Report) -> str:
    """What refinement changed: means, a scatter of all scenes, and where the largest changes follow."""
    after, before = report.agents[0], report.before
    assert before is not None
    pairs = after.table.merge(before.table, on="token", suffixes=("", "_before"), validate="one_to_one")
    pairs = pairs[pairs["valid"] & pairs["valid_before"]].dropna(subset=["score", "score_before"])
    score_after, score_before = pairs["score"].to_numpy(float), pairs["score_before"].to_numpy(float)
    interval = paired_interval(score_after, score_before, seed=report.seed)
    change = score_after - score_before
    gained, lost = int(np.sum(change > 1e-9)), int(np.sum(change < -1e-9))
    same = len(change) - gained - lost
    numbers = format_interval(interval).removesuffix(" *")
    verdict = f"an interval that {'excludes' if interval.excludes_zero else 'includes'} zero"
    rows = []
    for name, short in report.names.items():
        if pairs[[name, f"{name}_before"]].isna().all().any():
            continue  # extended comfort where no frame has a predecessor
        second, first = paired_values(after.table, before.table, name)
        rows.append(
            f'<tr><th scope="row">{short}</th><td>{_points(float(first.mean()))}</td>'
            f"<td>{_points(float(second.mean()))}</td>"
            f"<td>{100 * (second.mean() - first.mean()):+.1f}</td></tr>"
        )
    unit = "samples, each with the same weight" if after.groups is not None else "scenes"
    scatter = scatter_svg(list(pairs["token"]), score_before, score_after, report.names["score"])
    return (
        '<div class="panel columns"><div>'
        f"<p>Refinement changes the mean {report.names['score']} by <b>{numbers}</b> points over {unit}, "
        f"{verdict}. It raised the score in {gained} of {len(change)}, lowered it in {lost} and left it in "
        f"{same}.</p>"
        '<table><thead><tr><th scope="col"></th><th scope="col">before</th><th scope="col">after</th>'
        f'<th scope="col">change</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f"<div>{scatter}</div></div>"
        "<h3 style='margin:24px 0 10px'>Where it changed most</h3>"
    )
