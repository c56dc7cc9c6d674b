from html.parser import HTMLParser

import cv2
import numpy as np
import pandas as pd
import pytest
from scenes_by_hand import scores_row

from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.report import (
    AgentEntry,
    LegendPath,
    Report,
    SceneCard,
    TrajectoryScores,
    render_report,
)
from drivefine_agent.evaluation.results_csv import METRICS_V1, result_table
from drivefine_agent.scoring.types import SubScoresV1

_, PNG = cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))
_, JPEG = cv2.imencode(".jpg", np.zeros((2, 2, 3), np.uint8))


def table(*scores: float) -> pd.DataFrame:
    columns = {name: np.ones(len(scores)) for name in METRICS_V1}
    tokens = [f"s{index}" for index in range(len(scores))]
    return result_table(tokens, SubScoresV1(**{**columns, "score": np.array(scores)}), ~np.isnan(scores))


def report(**changes: object) -> Report:
    rows = (
        TrajectoryScores("drivefine", "#0072B2", scores_row(score=0.625, ego_progress=0.5)),
        TrajectoryScores("human", None, scores_row(no_at_fault_collisions=0.5, comfort=0.0, score=0.4)),
        TrajectoryScores("broken", None, None, "DataError: <no image>"),
    )
    content = {
        "title": "DriveFine & friends",
        "lead": "Split test, 3 scenes.",
        "agents": (
            AgentEntry("drivefine", table(0.9, 0.8, 0.7)),
            AgentEntry("cv", table(0.5, 0.4, 0.3), "straight on"),
            AgentEntry("partly", table(0.9, np.nan, 0.6)),
        ),
        "before": AgentEntry("drivefine, before refinement", table(0.8, 0.8, 0.8)),
        "cards": (SceneCard("s0", "worst", "command left", JPEG.tobytes(), PNG.tobytes(), rows),),
        "legend": (LegendPath("drivefine", "#0072B2"), LegendPath("driver", "#009E73", is_dashed=True)),
        "rule": "Chosen by rule.",
        **changes,
    }
    return Report(**content)  # type: ignore[arg-type]


class Page(HTMLParser):
    """Cells of each table row, and what a page would load or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.sources: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):  # these have no end tag in HTML
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if any(tag in self.open for tag in ("td", "th")):
            self.rows[-1][-1] += data


def test_the_page_is_one_file_without_scripts() -> None:
    text = render_report(report())
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert len(page.sources) == 2
    assert all(
        source.startswith(("data:image/jpeg;base64,", "data:image/png;base64,")) for source in page.sources
    )
    assert "http" not in text.replace("http-equiv", "")


def agent_rows(text: str) -> dict[str, list[str]]:
    """Rows of the page's first table by agent."""
    rows: dict[str, list[str]] = {}
    for row in Page(text).rows:
        rows.setdefault(row[0], row)  # scene tables come later
    return rows


def test_the_table_holds_means_and_paired_intervals() -> None:
    rows = agent_rows(render_report(report()))
    drivefine = rows["drivefine"]
    assert drivefine[1] == "3/3"
    assert drivefine[7] == "80.0"  # mean of 0.9, 0.8, 0.7
    assert rows["cvstraight on"][7] == "40.0"
    assert rows["cvstraight on"][8] == "-40.0 [-40.0, -40.0]"  # 0.4 lower in every scene
    assert rows["drivefine, before refinement"][7] == "80.0"


def test_a_failed_scene_is_counted_and_left_out_of_the_pair() -> None:
    """Pairs of `partly`: 0.9 - 0.9 and 0.6 - 0.7."""
    rows = agent_rows(render_report(report()))
    assert rows["partly"][1] == "2/3"
    assert rows["partly"][7] == "75.0"
    assert rows["partly"][8].startswith("-5.0 [-10.0, ")


def test_refinement_is_counted_by_scene() -> None:
    """0.8, 0.8, 0.8 -> 0.9, 0.8, 0.7."""
    text = render_report(report())
    assert "It raised the score in 1 of 3 scenes, lowered it in 1 and left it in 1." in text


def test_without_refinement_there_is_no_such_section() -> None:
    text = render_report(report(before=None))
    assert "Before and after refinement" not in text


def test_scene_tables_show_percentages_and_reasons_of_failure() -> None:
    """Order: NC, DAC, TTC, C, EP, DDC, PDMS."""
    rows = Page(render_report(report())).rows
    assert ["drivefine", "100", "100", "100", "100", "50.0", "100", "62.5"] in rows
    assert ["human", "50", "100", "100", "0", "100.0", "100", "40.0"] in rows
    assert ["broken", "DataError: <no image>"] in rows


def test_text_is_escaped() -> None:
    text = render_report(report(title="<script>alert(1)</script>"))
    assert "<script>" not in text


def test_the_same_content_gives_the_same_page() -> None:
    assert render_report(report()) == render_report(report())


def test_agents_of_different_scenes_are_refused() -> None:
    agents = (AgentEntry("drivefine", table(0.9, 0.8)), AgentEntry("cv", table(0.9)))
    with pytest.raises(DataError, match="compared results must cover the same scenes"):
        render_report(report(agents=agents, before=None))
