"""The page: its numbers by hand, its text escaped, its data readable."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scenes_by_hand import scores_row

from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.comparison import SHORT_NAMES
from drivefine_agent.evaluation.paths import GENERATED_STYLE, HUMAN_STYLE, REFINED_STYLE
from drivefine_agent.evaluation.report import (
    AgentEntry,
    PlanStyle,
    Report,
    SceneEntry,
    changed_most,
    render_report,
    script_json,
)
from drivefine_agent.evaluation.results_csv import METRICS_V1, result_table
from drivefine_agent.scoring.explain import Reason
from drivefine_agent.scoring.types import SubScoresV1

HOSTILE = '</script><script>alert("1")</script>&<u>'


def table(*scores: float, **columns: list[float]) -> pd.DataFrame:
    ones = {name: np.ones(len(scores)) for name in METRICS_V1}
    given = {name: np.array(values) for name, values in columns.items()}
    tokens = [f"s{index}" for index in range(len(scores))]
    values = SubScoresV1(**{**ones, **given, "score": np.array(scores)})
    return result_table(tokens, values, ~np.isnan(scores))


def scene(token: str = "s0", after: float = 0.9, before: float = 0.8, **changes: Any) -> SceneEntry:
    content: dict[str, Any] = {
        "token": token,
        "log_name": "log",
        "map_name": "us-ma-boston",
        "command": "left",
        "speed_mps": 5.0,
        "stage": 0,
        "scores": {"final": scores_row(score=after), "generated": scores_row(score=before)},
        "reasons": {"final": [Reason("comfort", 0.0, "uncomfortable: jerk", 6)]},
        "data": {"window": [0, 1, 0, 1]},
        **changes,
    }
    return SceneEntry(**content)


def report(**changes: Any) -> Report:
    content: dict[str, Any] = {
        "title": "DriveFine & friends",
        "lead": "Split test, 3 scenes.",
        "benchmark": "navsim_v1",
        "names": SHORT_NAMES,
        "agents": (
            AgentEntry("drivefine", table(0.9, 0.8, 0.7)),
            AgentEntry("cv", table(0.5, 0.4, 0.3), "straight on"),
            AgentEntry("partly", table(0.9, np.nan, 0.6)),
        ),
        "before": AgentEntry("drivefine, before refinement", table(0.8, 0.8, 0.8)),
        "scenes": (scene(),),
        "plans": (
            PlanStyle("final", "drivefine, refined", REFINED_STYLE, True, True),
            PlanStyle("generated", "drivefine, generated", GENERATED_STYLE, True, True),
            PlanStyle("human", "recorded driver", HUMAN_STYLE, False, True),
        ),
        "rule": "All of them.",
        **changes,
    }
    return Report(**content)


class Page(HTMLParser):
    """Cells of each table row, scripts, and what a page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.scripts: dict[str, str] = {}
        self.sources: list[str] = []
        self.open: list[str] = []
        self.script = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "script":
            self.script = given.get("id") or "code"
            assert self.script not in self.scripts
            self.scripts[self.script] = ""
        self.sources += [given[name] or "" for name in ("src", "href") if name in given]
        if tag not in ("meta", "img", "input", "wbr"):  # these have no end tag in HTML
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[self.script] += data
        elif any(tag in self.open for tag in ("td", "th")):
            self.rows[-1][-1] += data


def named_rows(text: str) -> dict[str, list[str]]:
    """The first row of each name."""
    rows: dict[str, list[str]] = {}
    for row in Page(text).rows:
        rows.setdefault(row[0], row)
    return rows


def test_the_page_is_one_file_that_loads_nothing() -> None:
    text = render_report(report())
    page = Page(text)
    assert page.open == []
    assert set(page.scripts) == {"index", "scene-0", "code"}
    assert all(source.startswith("#") for source in page.sources)
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "@import" not in text
    assert "url(" not in text


def test_the_table_holds_means_and_paired_intervals() -> None:
    rows = named_rows(render_report(report()))
    assert rows["drivefine"][1] == "3/3"
    assert rows["drivefine"][8] == "80.0"  # mean of 0.9, 0.8, 0.7
    assert rows["cvstraight on"][8] == "40.0"
    assert rows["cvstraight on"][9] == "-40.0 [-40.0, -40.0]"  # 0.4 lower in every scene
    assert rows["drivefine, before refinement"][8] == "80.0"


def test_a_failed_scene_is_counted_and_left_out_of_the_pair() -> None:
    """Pairs of `partly`: 0.9 - 0.9 and 0.6 - 0.7."""
    rows = named_rows(render_report(report()))
    assert rows["partly"][1] == "2/3"
    assert rows["partly"][8] == "75.0"
    assert rows["partly"][9].startswith("-5.0 [-10.0, ")


def test_failures_are_counted_by_rule() -> None:
    """One scene hits an agent, one a cone (half), one leaves the road; one is not scored."""
    main = table(
        0.0,
        0.4,
        0.0,
        np.nan,
        no_at_fault_collisions=[0.0, 0.5, 1.0, np.nan],
        drivable_area_compliance=[1.0, 1.0, 0.0, np.nan],
        comfort=[1.0, 0.0, 0.0, np.nan],
    )
    other = table(1.0, 1.0, 1.0, 1.0)
    agents = (AgentEntry("drivefine", main), AgentEntry("cv", other))
    failed = scene("s3", scores={"final": None}, errors={"final": "DataError: <no image>"}, reasons={})
    text = render_report(report(agents=agents, before=None, scenes=(failed,)))
    rows = named_rows(text)
    assert rows["not scored"][1:] == ["1 25 %", "0"]
    assert rows["no at-fault collision"][1:] == ["1 25 %", "0"]
    assert rows["no at-fault collision (half)"][1:] == ["1 25 %", "0"]
    assert rows["drivable area compliance"][1:] == ["1 25 %", "0"]
    assert rows["comfort"][1:] == ["2 50 %", "0"]
    assert "DataError: &lt;no image&gt;" in text
    assert "driving direction compliance" not in rows  # weight 0 in NAVSIM 1.1


def test_refinement_is_counted_by_scene() -> None:
    """0.8, 0.8, 0.8 -> 0.9, 0.8, 0.7."""
    text = render_report(report())
    assert "It raised the score in 1 of 3, lowered it in 1 and left it in 1." in text


def test_without_refinement_there_is_no_such_section() -> None:
    text = render_report(report(before=None))
    assert 'id="refinement"' not in text
    assert 'id="pairs"' not in text


def test_pairs_are_the_largest_gains_then_the_largest_losses() -> None:
    changes = {"a": 0.5, "b": -0.9, "c": 0.0, "d": 0.7, "e": -0.2, "f": 0.1}
    scenes = tuple(scene(token, 0.9, 0.9 - change) for token, change in changes.items())
    assert changed_most(report(scenes=scenes), 2) == ["d", "a", "b", "e"]


def test_the_index_tells_scores_and_reasons_of_every_scene() -> None:
    index = json.loads(Page(render_report(report())).scripts["index"])
    assert [metric["short"] for metric in index["metrics"]] == list(SHORT_NAMES.values())
    (row,) = index["scenes"]
    assert row["scores"]["final"][-1] == 0.9
    assert row["reasons"]["final"][0]["text"] == "uncomfortable: jerk"
    assert row["hasData"] is True


def test_nothing_in_the_data_can_leave_its_script_or_become_markup() -> None:
    """Tokens, logs, names, reasons and errors come from files: none may be read as HTML or code."""
    hostile = scene(
        HOSTILE,
        log_name=HOSTILE,
        errors={"final": HOSTILE},
        reasons={"final": [Reason("comfort", 0.0, HOSTILE)]},
        data={"image": HOSTILE},
    )
    entry = AgentEntry(HOSTILE, table(0.9, 0.8, 0.7), HOSTILE)
    before = table(0.8, 0.8, 0.8)
    entry.table["token"] = before["token"] = [HOSTILE, "s1", "s2"]
    text = render_report(
        report(
            title=HOSTILE,
            lead=HOSTILE,
            agents=(entry,),
            before=AgentEntry("before", before),
            scenes=(hostile,),
            rule=HOSTILE,
            footer=HOSTILE,
            plans=(PlanStyle("final", HOSTILE, REFINED_STYLE, True, True),),
            training={HOSTILE: [{"group": HOSTILE, "step": 1, HOSTILE: 1.0}]},
        )
    )
    page = Page(text)
    assert set(page.scripts) == {"index", "scene-0", "code"}
    assert "alert(" not in page.scripts["code"]
    assert "<u>" not in text
    assert json.loads(page.scripts["index"])["scenes"][0]["token"] == HOSTILE
    assert json.loads(page.scripts["scene-0"])["image"] == HOSTILE


def test_script_json_is_json_without_angle_brackets() -> None:
    text = script_json({"a": HOSTILE, "b": "\u2028"})
    assert "<" not in text
    assert json.loads(text) == {"a": HOSTILE, "b": "\u2028"}
    with pytest.raises(ValueError, match="Out of range float"):
        script_json(float("nan"))


def test_the_same_content_gives_the_same_page() -> None:
    assert render_report(report()) == render_report(report())


def test_agents_of_different_scenes_are_refused() -> None:
    agents = (AgentEntry("drivefine", table(0.9, 0.8)), AgentEntry("cv", table(0.9)))
    with pytest.raises(DataError, match="compared results must cover the same scenes"):
        render_report(report(agents=agents, before=None))


def test_training_curves_show_the_last_value_and_leave_gaps() -> None:
    rows = [
        {"group": "rl", "step": step, "generated/score": 0.1 * step, "generator/kl": value}
        for step, value in enumerate([0.0, 1.0, float("nan"), 2.0], start=1)
    ]
    validated = [
        {"group": "generator", "step": 1, "loss": 8.0},
        {"group": "generator", "step": 2, "loss": 4.0},
        {"group": "generator_validation", "step": 2, "loss": 5.0, "final_displacement_m": 3.25},
    ]
    text = render_report(report(training={"hybrid": rows, "supervised": validated}))
    assert "generated <b>0.4</b>" in text
    curve = text[text.index("divergence from the start") :]
    curve = curve[: curve.index("</svg>")]
    assert curve.count("<polyline") == 1  # the first two values; then a gap, then a single one
    assert curve.count("<circle") == 1
    assert "held-out <b>5</b>" in text
    assert "generated <b>3.25</b>" in text
