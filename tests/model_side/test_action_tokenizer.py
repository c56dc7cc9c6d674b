"""Trajectory <-> action ids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from drivefine_agent.actions import MASKED, ActionSpec, ValueGrid
from drivefine_agent.errors import TrajectoryError
from drivefine_agent.tokenizer import ActionTokenizer, ClipCounts

TOKENIZER = ActionTokenizer()

poses_inside_the_tables = st.builds(
    lambda xy, heading: np.concatenate([xy, heading], axis=-1),
    arrays(np.float64, (8, 2), elements=st.floats(-100.0, 99.97)),
    arrays(np.float64, (8, 1), elements=st.floats(np.deg2rad(-90.0), np.deg2rad(89.94))),
)


@given(poses_inside_the_tables)
def test_round_trip_stays_within_half_a_step(poses: np.ndarray) -> None:
    decoded = TOKENIZER.decode(TOKENIZER.encode(poses))
    assert np.abs(decoded[:, :2] - poses[:, :2]).max() <= 0.025 + 1e-9
    assert np.rad2deg(np.abs(decoded[:, 2] - poses[:, 2])).max() <= 0.05 + 1e-9


@given(poses_inside_the_tables)
def test_encoding_a_decoded_answer_gives_the_same_ids(poses: np.ndarray) -> None:
    ids = TOKENIZER.encode(poses)
    assert (TOKENIZER.encode(TOKENIZER.decode(ids)) == ids).all()


@given(arrays(np.float64, (8, 3), elements=st.floats(-1e4, 1e4)))
def test_every_finite_trajectory_gets_legal_ids(poses: np.ndarray) -> None:
    ids = TOKENIZER.encode(poses).reshape(8, 3)
    assert ((ids[:, :2] >= 0) & (ids[:, :2] < 4000)).all()
    assert ((ids[:, 2] >= 4000) & (ids[:, 2] < 5800)).all()


def test_zero_is_exact_and_has_the_expected_ids() -> None:
    ids = TOKENIZER.encode(np.zeros((8, 3)))
    assert ids.tolist() == [2000, 2000, 4000 + 900] * 8  # (0 + 100) / 0.05, (0 + 90) / 0.1
    assert (TOKENIZER.decode(ids) == 0.0).all()


def test_slots_are_pose_major() -> None:
    poses = np.zeros((8, 3))
    poses[1] = (10.0, -2.0, np.deg2rad(3.0))
    ids = TOKENIZER.encode(poses)
    # (10 + 100) / 0.05 = 2200; (-2 + 100) / 0.05 = 1960; 4000 + (3 + 90) / 0.1 = 4930
    assert ids[3:6].tolist() == [2200, 1960, 4930]


def test_values_outside_are_moved_to_the_edge_and_counted() -> None:
    poses = np.zeros((3, 8, 3))
    poses[0, 7] = (120.0, -100.04, 0.0)  # x, y both outside by more than half a step
    poses[1, 7] = (99.95, -100.02, np.deg2rad(107.0))  # only the heading is outside
    decoded = TOKENIZER.decode(TOKENIZER.encode(poses))
    assert decoded[0, 7, :2] == pytest.approx([99.95, -100.0])
    assert np.rad2deg(decoded[1, 7, 2]) == pytest.approx(89.9)
    assert TOKENIZER.count_clipped(poses) == ClipCounts(3, 2, 2, 1)
    assert TOKENIZER.count_clipped(poses[:1]) + TOKENIZER.count_clipped(poses[1:]) == ClipCounts(3, 2, 2, 1)


@pytest.mark.parametrize("turns", [-2, 1, 3])
def test_heading_is_taken_modulo_a_full_turn(turns: int) -> None:
    poses = np.full((8, 3), 0.2)
    wound = poses + np.array([0.0, 0.0, 2.0 * np.pi * turns])
    assert (TOKENIZER.encode(wound) == TOKENIZER.encode(poses)).all()


def test_a_full_circle_table_clips_no_heading() -> None:
    tokenizer = ActionTokenizer(ActionSpec.full_circle())
    assert tokenizer.spec.num_actions == 7600
    poses = np.zeros((8, 3))
    poses[:, 2] = np.deg2rad([-179.99, 179.99, 180.0, -180.0, 107.0, -96.0, 90.0, 0.0])
    decoded = np.rad2deg(tokenizer.decode(tokenizer.encode(poses))[:, 2])
    distance = np.abs((decoded - np.rad2deg(poses[:, 2]) + 180.0) % 360.0 - 180.0)
    assert distance.max() <= 0.05 + 1e-9
    assert tokenizer.count_clipped(poses).num_clipped_headings == 0


def test_leading_axes_are_kept() -> None:
    poses = np.random.default_rng(0).normal(size=(2, 5, 8, 3))
    assert TOKENIZER.encode(poses).shape == (2, 5, 24)
    assert TOKENIZER.decode(TOKENIZER.encode(poses)).shape == (2, 5, 8, 3)


def test_wrong_shapes_and_values_are_refused() -> None:
    with pytest.raises(TrajectoryError, match=r"\(\.\.\., 8, 3\), got \(10, 3\)"):
        TOKENIZER.encode(np.zeros((10, 3)))
    poses = np.zeros((2, 8, 3))
    poses[1, 4, 0] = np.nan
    with pytest.raises(TrajectoryError, match=r"finite, got nan at index \(1, 4, 0\)"):
        TOKENIZER.encode(poses)


def test_incomplete_or_misplaced_ids_are_refused() -> None:
    ids = TOKENIZER.encode(np.zeros((8, 3)))
    ids[4] = MASKED
    with pytest.raises(ValueError, match="still masked"):
        TOKENIZER.decode(ids)
    ids[4] = 4100  # a heading in a y slot
    with pytest.raises(ValueError, match="id 4100 of the wrong table"):
        TOKENIZER.decode(ids)
    with pytest.raises(ValueError, match=r"\(\.\.\., 24\), got \(23,\)"):
        TOKENIZER.decode(ids[:23])


def test_a_grid_without_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="exactly zero"):
        ValueGrid(-0.03, 0.05, 10)
