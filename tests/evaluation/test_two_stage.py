"""Neighbouring frames, follow-up weights and the three summaries, by hand and by the official aggregates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drivefine_agent.data.splits import StageGroup
from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.one_stage import navsim_would_say as one_stage_says
from drivefine_agent.evaluation.one_stage import one_stage_comfort
from drivefine_agent.evaluation.results_csv_v2 import (
    COMBINED_TOKEN,
    STAGE_ONE_TOKEN,
    STAGE_TWO_TOKEN,
    read_one_stage,
    read_two_stage,
    rules_of_csv,
    write_one_stage,
    write_two_stage,
)
from drivefine_agent.evaluation.scored_frames import METRICS_V2, SUB_SCORES_V2, ScoredFrame, frame_table
from drivefine_agent.evaluation.two_stage import navsim_would_say, two_stage_result
from drivefine_agent.scoring.frame_pairs import adjacent_pairs, follow_up_weights
from drivefine_agent.scoring.frame_scores import FrameScores, under_filter_rule

PERFECT = FrameScores(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
STILL = np.zeros((2, 41))
SCORE = METRICS_V2.index("score")


def frame(token: str, time_s: float = 0.0, end: float = 0.0, start: float = 0.0, **changes) -> ScoredFrame:
    values = {
        "token": token,
        "log_name": "log",
        "timestamp_us": round(time_s * 1e6),
        "is_second_stage": token.startswith("s"),
        "scores": PERFECT,
        "human_zeros": (),
        "motion": STILL,
        "start_xy": np.array([start, 0.0]),
        "endpoint_xy": np.array([end, 0.0]),
    }
    return ScoredFrame(**{**values, **changes})


# ------------------------------------------------------------------------------ pairs, weights, rules


def test_only_the_later_of_two_near_frames_of_a_log_has_a_predecessor() -> None:
    frames = [("a", "x", 0), ("c", "x", 1_050_000), ("b", "x", 500_000), ("d", "y", 600_000)]
    assert adjacent_pairs(frames) == {"b": "a", "c": "b"}
    assert adjacent_pairs([("a", "x", 0), ("b", "x", 560_000)]) == {}


def test_golden_weights() -> None:
    """Starts at 0, 0.5 and 3.0 m from the end (G7); with all far away, all count alike."""
    starts = np.array([[0.0, 0.0], [0.5, 0.0], [0.0, 3.0]])
    weights = follow_up_weights([0.0, 0.0], starts)
    assert weights == pytest.approx([0.7772999, 0.2227001, 2.2e-20], rel=1e-2)
    assert weights[:2] == pytest.approx([0.7772999, 0.2227001], abs=1e-7)
    assert follow_up_weights([10.0, 0.0], starts).tolist() == [1 / 3] * 3
    assert follow_up_weights([1.9, 0.0], [[0.0, 0.0]]).tolist() == [1.0]


def test_the_three_rules_of_the_human_filter() -> None:
    scores = replace(PERFECT, drivable_area_compliance=0.0, lane_keeping=0.0, ego_progress=0.5)
    zeros = ("drivable_area_compliance", "lane_keeping")
    fixed = under_filter_rule(scores, zeros, "true")
    assert (fixed.shown.drivable_area_compliance, fixed.shown.lane_keeping) == (1.0, 1.0)
    assert fixed.counted.final_score(1.0) == pytest.approx((2.5 + 5 + 2 + 2 + 2) / 16)
    assert fixed.counted.final_score(np.nan) == pytest.approx((2.5 + 5 + 2 + 2) / 14)
    legacy = under_filter_rule(scores, zeros, "legacy")
    assert legacy.shown.drivable_area_compliance == 1.0
    assert legacy.counted.final_score(1.0) == 0.0
    plain = under_filter_rule(scores, zeros, "false")
    assert plain.shown.drivable_area_compliance == 0.0
    with pytest.raises(ValueError, match="acts on"):
        under_filter_rule(scores, ("ego_progress",), "true")
    with pytest.raises(ValueError, match="must be one of"):
        under_filter_rule(scores, (), "yes")


# ------------------------------------------------------------------------------ one stage


def test_one_stage_leaves_a_failed_scene_out_and_says_what_navsim_would_do(tmp_path: Path) -> None:
    frames = {token: frame(token, t) for token, t in (("a", 0.0), ("b", 0.5), ("d", 1.5))}
    frames["b"] = replace(frames["b"], scores=replace(PERFECT, lane_keeping=0.0))
    comfort = one_stage_comfort(frames.values())
    assert comfort == {"b": 1.0}
    table = frame_table(["a", "b", "c", "d"], frames, comfort, "true")
    assert table["valid"].tolist() == [True, True, False, True]
    assert table["score"].tolist()[:2] == [1.0, 14 / 16]
    assert np.isnan(table["score"][2])
    (sentence,) = one_stage_says(table)
    assert "1 of 4 scenes failed (c): NAVSIM 2.2's script would have written no CSV at all" in sentence
    write_one_stage(tmp_path / "r.csv", table)
    assert rules_of_csv(tmp_path / "r.csv") == "navsim_v2"
    pd.testing.assert_frame_equal(read_one_stage(tmp_path / "r.csv"), table, check_dtype=False)
    last = (tmp_path / "r.csv").read_text().splitlines()[-1].split(",")
    assert last[1:3] == ["average_all_frames", "False"]
    assert float(last[-1]) == pytest.approx((1 + 14 / 16 + 1) / 3)


def test_one_stage_without_neighbours_is_scored_with_the_other_divisor() -> None:
    frames = {"a": frame("a", scores=replace(PERFECT, lane_keeping=0.0))}
    table = frame_table(["a"], frames, {}, "true")
    assert table["score"][0] == pytest.approx(12 / 14)
    assert "no two frames of a log" in one_stage_says(table)[0]


# ------------------------------------------------------------------------------ two stages


def two_groups() -> tuple[list[StageGroup], dict[str, ScoredFrame]]:
    """Two groups of two pairs; the first now-frame ends at the start of s1, halfway from s2."""
    groups = [
        StageGroup("n", "p", (("s1", "sq1"), ("s2", "sq2"))),
        StageGroup("m", "o", (("s3", "sq3"),)),
    ]
    frames = {
        "n": frame("n", 0.5, end=0.0),
        "p": frame("p", 0.0, end=50.0),
        "s1": frame("s1", 4.5, start=0.0),
        "sq1": frame("sq1", 4.0, start=0.0),
        "s2": frame("s2", 4.5, start=0.5, scores=replace(PERFECT, no_at_fault_collisions=0.0)),
        "sq2": frame("sq2", 4.0, start=0.5, scores=replace(PERFECT, no_at_fault_collisions=0.0)),
        "m": frame("m", 100.5, scores=replace(PERFECT, lane_keeping=0.0)),
        "o": frame("o", 100.0),
        "s3": frame("s3", 104.5, scores=replace(PERFECT, history_comfort=0.0)),
        "sq3": frame("sq3", 104.0),
    }
    return groups, frames


def result_of(groups, frames, rule="true", first=("n", "p", "m", "o"), second=None):
    second = ["s1", "sq1", "s2", "sq2", "s3", "sq3"] if second is None else second
    return two_stage_result(list(first), second, groups, frames, rule)


def test_the_combined_score_is_the_mean_of_products_not_the_product_of_means(tmp_path: Path) -> None:
    groups, frames = two_groups()
    result = result_of(groups, frames)
    near, far = 0.7772999, 0.2227001  # of s1 and s2 for n; p ends nowhere near, so 1/2 each
    assert [result.weights[t] for t in ("s1", "s2")] == pytest.approx([near, far], abs=1e-7)
    assert [result.weights[t] for t in ("sq1", "sq2")] == [0.5, 0.5]
    f = {"n": 1.0, "p": 1.0, "m": 14 / 16, "o": 1.0}
    g = {"n": near, "p": 0.5, "m": 14 / 16, "o": 1.0}
    assert result.means.stage_one[SCORE] == pytest.approx(np.mean(list(f.values())))
    assert result.means.stage_two[SCORE] == pytest.approx(np.mean(list(g.values())), abs=1e-7)
    first = (f["n"] * g["n"] + f["p"] * g["p"]) / 2
    second = (f["m"] * g["m"] + f["o"] * g["o"]) / 2
    assert result.means.combined[SCORE] == pytest.approx((first + second) / 2, abs=1e-7)
    assert result.means.combined[SCORE] != pytest.approx(
        result.means.stage_one[SCORE] * result.means.stage_two[SCORE], abs=1e-3
    )
    assert result.groups["score"].tolist() == pytest.approx([first, second], abs=1e-7)
    assert result.is_complete
    assert navsim_would_say(result, 0) == []

    write_two_stage(tmp_path / "r.csv", result)
    assert rules_of_csv(tmp_path / "r.csv") == "navhard_two_stage"
    rows, summaries = read_two_stage(tmp_path / "r.csv")
    assert rows["stage"].tolist() == [1] * 4 + [2] * 6
    assert summaries[COMBINED_TOKEN] == result.means.combined[SCORE]
    # NAVSIM's combined row repeats the sub-scores of the stages; only the score is the product's.
    cells = pd.read_csv(tmp_path / "r.csv", index_col=0).set_index("token")
    for name in SUB_SCORES_V2:
        for stage, token in (("stage_one", STAGE_ONE_TOKEN), ("stage_two", STAGE_TWO_TOKEN)):
            column = f"{name}_{stage}"
            assert cells.loc[COMBINED_TOKEN, column] == cells.loc[token, column]


def test_a_failed_follow_up_takes_its_group_out_and_is_never_a_zero(tmp_path: Path) -> None:
    groups, frames = two_groups()
    whole = result_of(groups, frames)
    del frames["s2"]
    result = result_of(groups, frames)
    assert list(result.left_out) == ["n"]
    assert "1 of its samples failed, first s2" in result.left_out["n"]
    assert result.means.combined[SCORE] == pytest.approx(whole.groups["score"][1])
    (sentence,) = navsim_would_say(result, 1)
    assert "1 samples failed, and 1 of 2 mapping groups are incomplete" in sentence
    assert "NAVSIM 2.2's script would have written no CSV at all" in sentence
    write_two_stage(tmp_path / "r.csv", result)
    rows, _ = read_two_stage(tmp_path / "r.csv")
    rows = rows.set_index("token")
    assert not rows.loc["s2", "valid"]
    assert np.isnan(rows.loc["s2", "score"])
    assert np.isnan(rows.loc["sq2", "score"])  # its partner is missing, so it has no extended comfort
    assert rows.loc["s1", "score"] == 1.0


def test_a_group_of_which_only_one_first_stage_sample_was_evaluated_is_named() -> None:
    groups, frames = two_groups()
    result = result_of(groups, frames, first=("n", "m", "o"))
    assert "1 of its samples are not in the data, first p" in result.left_out["n"]
    frames["s9"] = frame("s9")
    result = result_of(groups, frames, second=["s1", "sq1", "s2", "sq2", "s3", "sq3", "s9"])
    assert result.outside == ("s9",)
    assert "belong to no mapping group" in navsim_would_say(result, 0)[0]


def test_pairs_that_are_too_far_apart_are_an_error() -> None:
    groups, frames = two_groups()
    frames["sq1"] = replace(frames["sq1"], timestamp_us=3_800_000)
    with pytest.raises(DataError, match="check the pairs of the split"):
        result_of(groups, frames)


# ------------------------------------------------------------------------------ the official aggregates


def test_official_two_stage_rows_give_the_official_summaries(goldens: Path) -> None:
    """Sub-scores, weights, end points and aggregates of four official runs; extended comfort as given there."""
    rows = pd.read_parquet(goldens / "two_stage_v22.parquet")
    aggregates = json.loads((goldens / "aggregates_v22.json").read_text())
    groups = [
        StageGroup(now, previous, tuple((a, b) for a, b in pairs))
        for now, previous, pairs in aggregates["mapping"]
    ]
    first = {token for group in groups for token in (group.token, group.previous_token)}
    assert len(aggregates["runs"]) == 4
    for run in aggregates["runs"]:
        own = rows[rows["run"] == run["run"]].set_index("token")
        frames = {
            token: ScoredFrame(
                token=token,
                log_name="",
                timestamp_us=0,
                is_second_stage=token not in first,
                scores=FrameScores.from_mapping(row),
                human_zeros=(),
                motion=STILL,
                start_xy=np.asarray(row["start"]),
                endpoint_xy=np.asarray(row["endpoint"]),
            )
            for token, row in own.iterrows()
        }
        result = two_stage_result(
            [token for token in own.index if token in first],
            [token for token in own.index if token not in first],
            groups,
            frames,
            "true",
            comfort=own["two_frame_extended_comfort"].to_dict(),
        )
        assert result.is_complete
        scores = pd.concat([result.first, result.second]).set_index("token")["score"]
        np.testing.assert_allclose(scores[own.index], own["score"], atol=1e-9)
        for token, weight in result.weights.items():
            assert weight == pytest.approx(own.loc[token, "weight"], abs=1e-6), token
        for name, value in run["combined"].items():
            if name == "score":
                assert result.means.combined[SCORE] == pytest.approx(value, abs=1e-6)
