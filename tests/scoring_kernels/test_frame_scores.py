"""Checklist 39 to 41: the final score, the human-penalty filter and the weights of follow-ups, by hand."""

import numpy as np
import pytest

from drivefine_agent.scoring.frame_pairs import adjacent_pairs, follow_up_weights
from drivefine_agent.scoring.frame_scores import FrameScores, under_filter_rule

NAN = float("nan")


def scores(**values: float) -> FrameScores:
    """All sub-scores 1 but the given ones."""
    return FrameScores(**{**dict.fromkeys(FrameScores.names(), 1.0), **values})


def test_with_a_neighbour_the_divisor_is_16_and_without_14() -> None:
    given = scores(driving_direction_compliance=0.5, ego_progress=0.8, lane_keeping=0.0)
    assert given.final_score(1.0) == pytest.approx(0.5 * (4 + 5 + 0 + 2 + 2) / 16, abs=1e-15)
    assert given.final_score(0.0) == pytest.approx(0.5 * (4 + 5 + 0 + 2 + 0) / 16, abs=1e-15)
    assert given.final_score(NAN) == pytest.approx(0.5 * (4 + 5 + 0 + 2) / 14, abs=1e-15)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no_at_fault_collisions", 0.0),
        ("drivable_area_compliance", 0.0),
        ("driving_direction_compliance", 0.0),
        ("traffic_light_compliance", 0.0),
        ("ego_progress", 11 / 16),
        ("time_to_collision_within_bound", 11 / 16),
        ("lane_keeping", 14 / 16),
        ("history_comfort", 14 / 16),
    ],
)
def test_what_each_sub_score_is_worth(name: str, expected: float) -> None:
    assert scores(**{name: 0.0}).final_score(1.0) == pytest.approx(expected, abs=1e-15)


def test_the_filter_lifts_column_and_score_or_the_column_alone() -> None:
    given = scores(drivable_area_compliance=0.0, ego_progress=0.6)
    zeros = ("drivable_area_compliance",)
    lifted, legacy, off = (under_filter_rule(given, zeros, rule) for rule in ("true", "legacy", "false"))
    assert [rule.shown.drivable_area_compliance for rule in (lifted, legacy, off)] == [1.0, 1.0, 0.0]
    assert [rule.counted.final_score(1.0) for rule in (lifted, legacy, off)] == [
        pytest.approx((3 + 5 + 2 + 2 + 2) / 16),
        0.0,
        0.0,
    ]


def test_the_filter_lifts_a_half_as_well_where_the_human_has_zero() -> None:
    given = scores(no_at_fault_collisions=0.5, time_to_collision_within_bound=0.0)
    zeros = ("no_at_fault_collisions", "time_to_collision_within_bound")
    assert under_filter_rule(given, zeros, "true").counted.final_score(NAN) == 1.0
    legacy = under_filter_rule(given, zeros, "legacy")
    assert legacy.counted.final_score(NAN) == pytest.approx(0.5 * (5 + 2 + 2) / 14)
    assert legacy.shown == scores()


def test_nothing_to_lift_changes_nothing() -> None:
    given = scores(lane_keeping=0.0)
    assert under_filter_rule(given, (), "true").counted == given


def test_the_filter_cannot_act_on_progress_and_comfort() -> None:
    with pytest.raises(ValueError, match=r"human_zeros must be among .*got \['ego_progress'\]"):
        under_filter_rule(scores(), ("ego_progress",), "true")


def test_an_unknown_rule_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'true', .*'legacy'.*got 'columns'"):
        under_filter_rule(scores(), (), "columns")


def test_weights_of_follow_ups() -> None:
    """G7: starts 0, 0.5 and 3.0 m from the end: 1, exp(-1.25), exp(-45), normalised."""
    weights = follow_up_weights([10.0, 20.0], [[10.0, 20.0], [10.3, 20.4], [10.0, 23.0]])
    np.testing.assert_allclose(weights, [0.7772999, 0.2227001, 2.2e-20], rtol=0, atol=5e-8)
    np.testing.assert_allclose(weights[1] / weights[0], np.exp(-1.25), rtol=1e-12)
    assert weights.sum() == pytest.approx(1.0, abs=1e-15)


def test_weights_are_uniform_where_all_starts_are_far() -> None:
    np.testing.assert_array_equal(
        follow_up_weights([0.0, 0.0], [[3.1, 0.0], [0.0, 4.0], [5.0, 5.0], [9.0, 0.0]]), [0.25] * 4
    )


def test_a_single_far_follow_up_has_all_the_weight_either_way() -> None:
    """The switch lies where exp(-d^2 / 0.2) is 1e-8: at 1.92 m; of two, the nearer one counts before it."""
    before = follow_up_weights([0.0, 0.0], [[1.91, 0.0], [2.5, 0.0]])
    beyond = follow_up_weights([0.0, 0.0], [[1.93, 0.0], [2.5, 0.0]])
    assert before[0] > 0.999
    np.testing.assert_array_equal(beyond, [0.5, 0.5])


@pytest.mark.parametrize(
    ("end", "starts"), [([0.0], [[0.0, 0.0]]), ([0.0, 0.0], []), ([0.0, np.nan], [[0.0, 0.0]])]
)
def test_positions_must_be_there(end: list[float], starts: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"end_xy .*starts_xy .*, got"):
        follow_up_weights(end, starts)


def test_neighbours_are_at_most_55_hundredths_of_a_second_apart_in_one_log() -> None:
    second = 1_000_000
    frames = [
        ("d", "log", 2 * second),  # half a second after c: a pair
        ("a", "log", 0),
        ("b", "log", second // 2),
        ("c", "log", 3 * second // 2),  # a second after b: none
        ("e", "log", 2 * second + 550_001),  # a little too late
        ("x", "other", second // 2 + 1),  # another log
    ]
    assert adjacent_pairs(frames) == {"b": "a", "d": "c"}
