"""Checklist 42 and 43: mapping groups and failures, in numbers worked out by hand."""

import numpy as np
import pytest

from drivefine_agent.data.splits import StageGroup
from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.one_stage import navsim_would_say as one_stage_says
from drivefine_agent.evaluation.one_stage import one_stage_comfort
from drivefine_agent.evaluation.scored_frames import METRICS_V2, ScoredFrame, frame_table
from drivefine_agent.evaluation.two_stage import group_comfort, two_stage_result
from drivefine_agent.evaluation.two_stage import navsim_would_say as two_stage_says
from drivefine_agent.scoring.frame_scores import FrameScores

HALF_SECOND = 500_000
SCORE = METRICS_V2.index("score")


def frame(
    token: str,
    multiplier: float,
    start: tuple[float, float] = (0.0, 0.0),
    timestamp_us: int = 0,
    is_second_stage: bool = False,
    **more: object,
) -> ScoredFrame:
    """All sub-scores 1 but one multiplicative one, so the score with full comfort is `multiplier`."""
    scores = {**dict.fromkeys(FrameScores.names(), 1.0), "no_at_fault_collisions": multiplier}
    values = {
        "log_name": "log",
        "scores": FrameScores(**scores),
        "human_zeros": (),
        "motion": np.zeros((2, 41)),
        "start_xy": np.array(start),
        "endpoint_xy": np.array([40.0, 0.0]),
        **more,
    }
    return ScoredFrame(token=token, timestamp_us=timestamp_us, is_second_stage=is_second_stage, **values)


# Now at 0.5 s, the one before at 0 s. Follow-ups of each start where it ends, and half a metre beside.
GROUPS = (
    StageGroup("n1", "p1", (("s1", "q1"), ("s2", "q2"))),
    StageGroup("n2", "p2", (("s3", "q3"),)),
)
NEAR = 1.0 / (1.0 + np.exp(-1.25))  # weight of the nearer of two follow-ups
FRAMES = {
    entry.token: entry
    for entry in (
        frame("p1", 0.5),
        frame("n1", 1.0, timestamp_us=HALF_SECOND),
        frame("p2", 0.0, timestamp_us=10 * HALF_SECOND),
        frame("n2", 0.5, timestamp_us=11 * HALF_SECOND),
        frame("q1", 1.0, (40.0, 0.0), 7 * HALF_SECOND, True),
        frame("s1", 0.5, (40.0, 0.0), 8 * HALF_SECOND, True),
        frame("q2", 0.0, (40.0, 0.5), 7 * HALF_SECOND, True),
        frame("s2", 1.0, (40.0, 0.5), 8 * HALF_SECOND, True),
        frame("q3", 1.0, (99.0, 0.0), 17 * HALF_SECOND, True),
        frame("s3", 1.0, (99.0, 0.0), 18 * HALF_SECOND, True),
    )
}
FIRST = ["p1", "n1", "p2", "n2"]
SECOND = ["q1", "s1", "q2", "s2", "q3", "s3"]


def test_the_combined_score_is_the_mean_of_products_not_the_product_of_means() -> None:
    result = two_stage_result(FIRST, SECOND, GROUPS, FRAMES, "true")
    g_n1 = 0.5 * NEAR + 1.0 * (1 - NEAR)
    g_p1 = NEAR
    first_group = (1.0 * g_n1 + 0.5 * g_p1) / 2
    second_group = (0.5 * 1.0 + 0.0 * 1.0) / 2
    combined = (first_group + second_group) / 2
    assert result.means.combined[SCORE] == pytest.approx(combined, abs=1e-15)
    stage_one, stage_two = result.means.stage_one[SCORE], result.means.stage_two[SCORE]
    assert stage_one == pytest.approx((1.0 + 0.5 + 0.5 + 0.0) / 4)
    assert stage_two == pytest.approx((g_n1 + g_p1 + 1.0 + 1.0) / 4)
    assert combined != pytest.approx(stage_one * stage_two, abs=0.04)
    assert list(result.groups["score"]) == [pytest.approx(first_group), pytest.approx(second_group)]
    assert result.is_complete
    assert two_stage_says(result, 0) == []


def test_weights_of_now_and_previous_sum_to_one_each() -> None:
    weights = two_stage_result(FIRST, SECOND, GROUPS, FRAMES, "true").weights
    assert weights["s1"] == weights["q1"] == pytest.approx(NEAR)
    assert weights["s1"] + weights["s2"] == pytest.approx(1.0)
    assert weights["s3"] == 1.0  # alone, and 59 m away


def test_both_members_of_a_pair_get_its_comfort() -> None:
    rough = np.zeros((2, 41))
    rough[0, 20:] = 3.0
    frames = {**FRAMES, "n1": frame("n1", 1.0, timestamp_us=HALF_SECOND, motion=rough)}
    comfort = group_comfort(GROUPS, frames)
    assert (comfort["n1"], comfort["p1"]) == (0.0, 0.0)
    assert {comfort[token] for token in comfort if token not in ("n1", "p1")} == {1.0}
    result = two_stage_result(FIRST, SECOND, GROUPS, frames, "true")
    rows = result.first.set_index("token")
    assert rows.loc["n1", "score"] == pytest.approx(14 / 16)
    assert rows.loc["p1", "score"] == pytest.approx(0.5 * 14 / 16)


@pytest.mark.parametrize("failed", ["s2", "q1", "n1", "p1"])
def test_a_failed_sample_takes_its_group_out_and_counts_as_nothing(failed: str) -> None:
    frames = {token: entry for token, entry in FRAMES.items() if token != failed}
    result = two_stage_result(FIRST, SECOND, GROUPS, frames, "true")
    # what is left is the second group, as if it were alone
    assert result.means.combined[SCORE] == pytest.approx(0.25)
    assert result.means.stage_one[SCORE] == pytest.approx(0.25)
    assert result.means.stage_two[SCORE] == pytest.approx(1.0)
    assert result.left_out == {"n1": f"1 of its samples failed, first {failed}"}
    assert list(result.groups["valid"]) == [False, True]
    assert np.isnan(result.groups["score"][0])
    assert not result.is_complete
    (sentence,) = two_stage_says(result, 1)
    assert "1 of 2 mapping groups are incomplete" in sentence
    assert "NAVSIM 2.2's script would have written no CSV at all" in sentence


def test_rows_of_a_group_that_is_left_out_stay_and_the_failed_one_has_no_numbers() -> None:
    frames = {token: entry for token, entry in FRAMES.items() if token != "s2"}
    rows = two_stage_result(FIRST, SECOND, GROUPS, frames, "true").second.set_index("token")
    assert not rows.loc["s2", "valid"]
    assert rows.loc["s2", list(METRICS_V2)].isna().all()
    assert rows.loc["q2", "valid"]  # scored, but its partner failed: no comfort, so no score either
    assert rows.loc["q2", "no_at_fault_collisions"] == 0.0
    assert np.isnan(rows.loc["q2", "two_frame_extended_comfort"])
    assert np.isnan(rows.loc["q2", "score"])
    assert rows.loc["s1", "score"] == pytest.approx(0.5)


def test_if_every_group_is_left_out_there_is_no_score_rather_than_zero() -> None:
    result = two_stage_result(FIRST, SECOND, GROUPS, {}, "true")
    assert np.isnan(result.means.combined).all()
    assert not result.is_complete


def test_samples_that_are_not_in_the_data_are_told_from_failed_ones() -> None:
    result = two_stage_result(FIRST, [token for token in SECOND if token != "q3"], GROUPS, FRAMES, "true")
    assert result.left_out == {"n2": "1 of its samples are not in the data, first q3"}


def test_a_sample_in_no_group_is_named() -> None:
    result = two_stage_result([*FIRST, "x"], SECOND, GROUPS, {**FRAMES, "x": frame("x", 1.0)}, "true")
    assert result.outside == ("x",)
    assert "1 samples belong to no mapping group (for example x)" in two_stage_says(result, 0)[0]
    assert (
        result.means.combined[SCORE]
        == two_stage_result(FIRST, SECOND, GROUPS, FRAMES, "true").means.combined[SCORE]
    )


def test_groups_of_which_no_first_stage_sample_is_loaded_are_not_missed() -> None:
    result = two_stage_result(["p1", "n1"], SECOND[:4], GROUPS, FRAMES, "true")
    assert result.is_complete
    assert list(result.groups["token"]) == ["n1"]


def test_a_pair_a_second_apart_is_an_error_of_the_split() -> None:
    frames = {**FRAMES, "n1": frame("n1", 1.0, timestamp_us=2 * HALF_SECOND)}
    with pytest.raises(DataError, match=r"got 1\.000000 s"):
        two_stage_result(FIRST, SECOND, GROUPS, frames, "true")


def test_the_filter_acts_on_the_first_stage_alone() -> None:
    with pytest.raises(ValueError, match=r"where no human drove, got .* for sample 's9'"):
        frame("s9", 0.0, is_second_stage=True, human_zeros=("no_at_fault_collisions",))
    frames = {**FRAMES, "p2": frame("p2", 0.0, human_zeros=("no_at_fault_collisions",))}
    frames["n2"] = frame("n2", 0.5, timestamp_us=HALF_SECOND)
    by_rule = {
        rule: two_stage_result(FIRST, SECOND, GROUPS, frames, rule) for rule in ("true", "legacy", "false")
    }
    assert {rule: result.first.iloc[2]["score"] for rule, result in by_rule.items()} == {
        "true": 1.0,
        "legacy": 0.0,
        "false": 0.0,
    }
    assert {rule: result.first.iloc[2]["no_at_fault_collisions"] for rule, result in by_rule.items()} == {
        "true": 1.0,
        "legacy": 1.0,
        "false": 0.0,
    }
    difference = by_rule["true"].means.combined[SCORE] - by_rule["legacy"].means.combined[SCORE]
    assert difference == pytest.approx((1.0 * 1.0 / 2) / 2)  # f_p of the second of two groups, g_p = 1


def one_stage(tokens: list[str]) -> tuple[list[str], dict[str, ScoredFrame]]:
    """Frames a, b, c, d, half a second apart, of which those named were scored."""
    times = {token: index * HALF_SECOND for index, token in enumerate("abcd")}
    return list("abcd"), {token: frame(token, 0.5, timestamp_us=times[token]) for token in tokens}


def test_one_stage_divides_by_16_with_a_frame_before_and_by_14_without() -> None:
    tokens, frames = one_stage(list("abcd"))
    rough = np.zeros((2, 41))
    rough[0, 20:] = 3.0
    frames["b"] = frame("b", 0.5, timestamp_us=HALF_SECOND, motion=rough)
    table = frame_table(tokens, frames, one_stage_comfort(frames.values()), "true").set_index("token")
    np.testing.assert_array_equal(table["two_frame_extended_comfort"], [np.nan, 0.0, 0.0, 1.0])
    assert list(table["score"]) == [0.5, 0.5 * 14 / 16, 0.5 * 14 / 16, 0.5]
    assert one_stage_says(table.reset_index()) == []


def test_a_failed_frame_is_no_zero_and_its_successor_has_no_predecessor() -> None:
    tokens, frames = one_stage(list("acd"))
    table = frame_table(tokens, frames, one_stage_comfort(frames.values()), "true").set_index("token")
    assert list(table["valid"]) == [True, False, True, True]
    assert table.loc["b", list(METRICS_V2)].isna().all()
    np.testing.assert_array_equal(table["two_frame_extended_comfort"], [np.nan, np.nan, np.nan, 1.0])
    assert table["score"].mean() == 0.5
    (sentence,) = one_stage_says(table.reset_index())
    assert sentence.startswith("1 of 4 scenes failed (b): NAVSIM 2.2's script would have written no CSV")


def test_frames_without_any_neighbour_are_scored_and_it_is_said_that_navsim_would_not() -> None:
    _, frames = one_stage(["a", "c"])
    table = frame_table(["a", "c"], frames, one_stage_comfort(frames.values()), "true")
    assert list(table["score"]) == [0.5, 0.5]
    (sentence,) = one_stage_says(table)
    assert "no two frames of a log" in sentence
