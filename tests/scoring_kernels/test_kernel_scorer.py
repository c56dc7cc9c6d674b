"""The entry points: what they refuse, what they return, and what must not change a score."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_toy_world import (
    Area,
    Track,
    cone,
    ego_at_origin,
    moving_states,
    parked_car,
    road,
    straight_poses,
    strip,
    surroundings,
    toy_scene,
)

from drivefine_agent.errors import TrajectoryError
from drivefine_agent.scoring.scorer import (
    Surroundings,
    score_states,
    score_states_v1,
    score_v1,
    score_v1_rows,
)
from drivefine_agent.scoring.types import PolygonKind, ScoringScene, SubScoresV1

BUSY_AREAS = [
    Area(strip(-6.0, 6.0), PolygonKind.ROADBLOCK),
    # The lane border lies beside the line on which the ego starts: on which side a point of an edge falls
    # would be a matter of rounding once the world is turned.
    Area(strip(-6.0, 0.1), PolygonKind.LANE, True),
    Area(strip(0.1, 6.0), PolygonKind.LANE, False),
    Area(strip(-8.0, 8.0, 25.0, 35.0), PolygonKind.INTERSECTION),
]
BUSY_TRACKS = [
    parked_car(28.0, 2.0),
    cone(22.0, -2.5),
    Track(lambda t: (-9.0 + 7.0 * t, 0.3)),
    Track(lambda t: (14.0, -9.0 + 3.0 * t), heading=np.pi / 2),
]
BUSY = toy_scene(BUSY_AREAS, BUSY_TRACKS, reference_progress=24.0)


def random_poses(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    poses = np.zeros((count, 8, 3))
    poses[..., 0] = rng.uniform(0.0, 9.0, (count, 1)) * 0.5 * np.arange(1, 9)
    poses[..., 1] = rng.normal(0.0, 0.4, (count, 1)) * np.arange(1, 9)
    poses[..., 2] = rng.normal(0.0, 0.08, (count, 1)) * np.arange(1, 9)
    return poses


def as_matrix(scores: SubScoresV1) -> np.ndarray:
    return np.stack([getattr(scores, name) for name in SubScoresV1.names()], axis=-1)


def test_the_straight_drive_scores_one():
    scores = score_v1(toy_scene(), straight_poses()[None])
    assert as_matrix(scores)[0].tolist() == [1.0] * 7


def test_the_parked_car_costs_everything():
    scores = score_v1(toy_scene(tracks=[parked_car(15.0)]), straight_poses()[None])
    assert as_matrix(scores)[0].tolist() == [0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0]


def test_the_cone_halves_the_multiplier_and_the_progress():
    """NC 0.5, EP 0.5 * 20 / 20, TTC 0, C 1: 0.5 * (2.5 + 0 + 2) / 12."""
    scores = score_v1(toy_scene(tracks=[cone(15.0)]), straight_poses()[None])
    np.testing.assert_allclose(
        as_matrix(scores)[0], [0.5, 1.0, 1.0, 0.5, 0.0, 1.0, 0.5 * 4.5 / 12], atol=1e-12
    )


def test_float32_poses_are_widened_after_their_rounding():
    poses = random_poses(0, 5).astype(np.float32)
    np.testing.assert_array_equal(
        as_matrix(score_v1(BUSY, poses)), as_matrix(score_v1(BUSY, poses.astype(np.float64)))
    )


def test_lists_are_accepted():
    assert score_v1(toy_scene(), straight_poses()[None].tolist()).score.tolist() == [1.0]


@pytest.mark.parametrize(
    ("poses", "message"),
    [
        (
            np.zeros((8, 3)),
            r"expected numeric poses of shape \(P, 8, 3\), got float64 of shape \(8, 3\) .*'toy'",
        ),
        (np.zeros((2, 6, 3)), r"got float64 of shape \(2, 6, 3\)"),
        (np.full((1, 8, 3), "a"), r"expected numeric poses .*shape \(1, 8, 3\)"),
        (np.zeros((1, 8, 3), dtype=complex), "got complex128"),
        ([[[1.0, 2.0, 3.0]], [[4.0]]], "got nested lists of unequal lengths"),
    ],
)
def test_wrong_shapes_are_refused(poses, message):
    with pytest.raises(TrajectoryError, match=message):
        score_v1(toy_scene(), poses)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_row(value):
    poses = random_poses(1, 4)
    poses[2, 3, 1] = value
    with pytest.raises(TrajectoryError, match=f"got {value} for y of pose 3 in row 2 for scene 'toy'"):
        score_v1(BUSY, poses)


def test_finite_poses_that_overflow_are_refused():
    poses = random_poses(1, 3)
    poses[1, :, 0] = 1e308
    with pytest.raises(TrajectoryError, match=r"row 1 .* not finite"):
        score_v1(BUSY, poses)


def test_a_bad_row_costs_no_other_row_its_score():
    poses = random_poses(2, 6)
    expected = as_matrix(score_v1(BUSY, poses))
    rows: list = list(poses)
    rows[1] = np.full((8, 3), np.nan)
    rows[3] = np.zeros((7, 3))
    rows[4] = np.full((8, 3), 1e308)
    scores, errors = score_v1_rows(BUSY, rows)
    matrix = as_matrix(scores)
    good = [0, 2, 5]
    np.testing.assert_array_equal(matrix[good], expected[good])
    assert np.isnan(matrix[[1, 3, 4]]).all()
    assert [error is None for error in errors] == [True, False, True, False, False, True]
    assert "got nan for x of pose 0 in row 1" in errors[1]
    assert "got float64 of shape (7, 3) in row 3" in errors[3]
    assert "following row 4" in errors[4]


def test_rows_of_other_things_than_arrays_are_named():
    scores, errors = score_v1_rows(BUSY, [None, "poses", straight_poses(), [[1.0, 2.0], [3.0]]])
    assert np.isnan(scores.score).tolist() == [True, True, False, True]
    assert all("expected numeric poses" in errors[row] for row in (0, 1, 3))


def test_no_rows_give_no_scores():
    scores, errors = score_v1_rows(BUSY, [])
    assert errors == []
    assert as_matrix(scores).shape == (0, 7)
    assert as_matrix(score_v1(BUSY, np.zeros((0, 8, 3)))).shape == (0, 7)


def test_a_scene_without_tracks_can_be_scored():
    assert score_v1(toy_scene(tracks=[]), random_poses(0, 3)).no_at_fault_collisions.tolist() == [
        1.0,
        1.0,
        1.0,
    ]


def test_read_only_scenes_are_scored_alike():
    """Scenes from the cache are memory-mapped: their arrays cannot be written."""
    frozen = {}
    for field in fields(ScoringScene):
        value = getattr(BUSY, field.name)
        if isinstance(value, np.ndarray):
            value = value.copy()
            value.flags.writeable = False
            frozen[field.name] = value
    poses = random_poses(3, 4)
    np.testing.assert_array_equal(
        as_matrix(score_v1(replace(BUSY, **frozen), poses)), as_matrix(score_v1(BUSY, poses))
    )


def test_inputs_are_left_as_they_are():
    poses = random_poses(4, 4)
    before = poses.copy()
    arrays = {
        f.name: getattr(BUSY, f.name).copy()
        for f in fields(BUSY)
        if isinstance(getattr(BUSY, f.name), np.ndarray)
    }
    score_v1(BUSY, poses)
    np.testing.assert_array_equal(poses, before)
    for name, value in arrays.items():
        np.testing.assert_array_equal(getattr(BUSY, name), value)


def test_states_are_normalised_within_their_batch_or_beside_a_reference():
    states = np.concatenate([moving_states(4.0), moving_states(8.0)])
    around = surroundings(road(), [])
    batch = score_states_v1(states, around, normalise="batch")
    np.testing.assert_allclose(batch.ego_progress, [0.5, 1.0])
    beside = score_states_v1(
        states, around, normalise="reference", reference_progress_m=40.0, reference_multiplier=1.0
    )
    np.testing.assert_allclose(beside.ego_progress, [0.4, 0.8])
    with pytest.raises(ValueError, match="give no reference"):
        score_states_v1(states, around, normalise="batch", reference_progress_m=1.0)
    with pytest.raises(ValueError, match="needs reference_progress_m"):
        score_states_v1(states, around, normalise="reference")
    with pytest.raises(ValueError, match="must be 'batch' or 'reference', got 'best'"):
        score_states_v1(states, around, normalise="best")


# Properties.
seeds = st.integers(0, 2**16)


def moved(scene: ScoringScene, angle: float, shift: np.ndarray) -> ScoringScene:
    """The same world, rotated about the origin and then shifted."""
    c, s = np.cos(angle), np.sin(angle)
    rotation = np.array([[c, -s], [s, c]])

    def move(points):
        return points @ rotation.T + shift

    state = scene.initial_state.copy()
    state[:2] = move(state[:2])
    state[2] = (state[2] + angle + np.pi) % (2 * np.pi) - np.pi
    return replace(
        scene,
        initial_state=state,
        centerline=move(scene.centerline),
        polygon_xy=move(scene.polygon_xy),
        track_corners=move(scene.track_corners),
        track_center=move(scene.track_center),
    )


@settings(max_examples=25, deadline=None)
@given(seed=seeds, angle=st.floats(-np.pi, np.pi), x=st.floats(-1e5, 1e5), y=st.floats(-1e5, 1e5))
def test_moving_the_world_does_not_change_scores(seed, angle, x, y):
    poses = random_poses(seed, 6)
    before = as_matrix(score_v1(BUSY, poses))
    after = as_matrix(score_v1(moved(BUSY, angle, np.array([x, y])), poses))
    np.testing.assert_allclose(after, before, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, order=st.permutations(range(7)))
def test_permuting_proposals_permutes_their_scores(seed, order):
    poses = random_poses(seed, 7)
    np.testing.assert_array_equal(
        as_matrix(score_v1(BUSY, poses[order])), as_matrix(score_v1(BUSY, poses))[order]
    )


@settings(max_examples=25, deadline=None)
@given(seed=seeds, others=st.integers(1, 40))
def test_more_proposals_never_change_a_score(seed, others):
    poses = random_poses(seed, others + 1)
    alone = as_matrix(score_v1(BUSY, poses[:1]))[0]
    np.testing.assert_array_equal(as_matrix(score_v1(BUSY, poses))[0], alone)


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_scores_lie_between_zero_and_one(seed):
    matrix = as_matrix(score_v1(BUSY, random_poses(seed, 10)))
    assert ((matrix >= 0.0) & (matrix <= 1.0)).all()


@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_taking_a_track_away_never_lowers_a_score(seed):
    poses = random_poses(seed, 6)
    with_all = score_v1(BUSY, poses)
    fewer = score_v1(toy_scene(BUSY_AREAS, BUSY_TRACKS[1:], reference_progress=24.0), poses)
    assert (fewer.no_at_fault_collisions >= with_all.no_at_fault_collisions).all()
    assert (fewer.time_to_collision_within_bound >= with_all.time_to_collision_within_bound).all()


def test_the_busy_world_separates_proposals():
    """The properties above would be empty if all proposals scored alike."""
    matrix = as_matrix(score_v1(BUSY, random_poses(0, 200)))
    for column, name in enumerate(SubScoresV1.names()):
        assert len(np.unique(matrix[:, column])) > 1, name


def test_a_scene_splits_into_its_surroundings():
    around = Surroundings.from_scene(BUSY)
    states = moving_states(5.0)
    np.testing.assert_array_equal(
        score_states(states, around).no_at_fault_collisions,
        score_states(states, surroundings(BUSY_AREAS, BUSY_TRACKS)).no_at_fault_collisions,
    )
    assert ego_at_origin()[3] == 5.0
