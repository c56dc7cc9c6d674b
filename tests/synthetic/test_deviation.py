"""Departures from a recorded drive, against what they must be on a straight road at constant speed."""

import numpy as np
import pytest

from drivefine_agent.synthetic.deviation import Deviation, deviated_frames, draw_deviation
from drivefine_agent.synthetic.world import TrackState, WorldFrame

SPEED_MPS = 10.0
START = 4


def _drive(tracks=()):
    """20 frames eastwards at 10 m/s; in the frame `START` the ego is at the origin."""
    return [
        WorldFrame(
            np.array([0.5 * SPEED_MPS * (index - START), 0.0, 0.0]),
            np.array([SPEED_MPS, 0.0]),
            np.zeros(2),
            1,
            tuple(tracks),
            {},
        )
        for index in range(21)
    ]


def test_no_departure_is_the_recorded_drive_itself():
    frames = _drive()
    assert deviated_frames(frames, START, Deviation(), [7, 12]) == [frames[7], frames[12]]


def test_to_the_side():
    middle, end = deviated_frames(_drive(), START, Deviation(0.0, 1.0, 4.0), [START + 4, START + 8])
    # after half the time half the way; the slope of the quintic there is 15/8 of the mean
    sideways = 15.0 / 8.0 / 4.0
    np.testing.assert_allclose(middle.ego_pose, [20.0, 0.5, np.arctan2(sideways, SPEED_MPS)], atol=1e-6)
    np.testing.assert_allclose(middle.ego_velocity, [np.hypot(sideways, SPEED_MPS), 0.0], atol=1e-6)
    np.testing.assert_allclose(end.ego_pose, [40.0, 1.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(end.ego_velocity, [SPEED_MPS, 0.0], atol=1e-6)


def test_ahead_along_the_path():
    middle, end = deviated_frames(_drive(), START, Deviation(0.5, 0.0, 4.0), [START + 4, START + 8])
    np.testing.assert_allclose(middle.ego_pose, [22.5, 0.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(middle.ego_velocity, [SPEED_MPS * (1.0 + 0.5 * 15.0 / 32.0), 0.0], atol=1e-5)
    np.testing.assert_allclose(middle.ego_acceleration, [0.0, 0.0], atol=1e-3)  # the quintic turns here
    np.testing.assert_allclose(end.ego_pose, [45.0, 0.0, 0.0], atol=1e-6)


def test_a_departure_that_goes_on_reaches_its_size_after_four_seconds():
    (end,) = deviated_frames(_drive(), START, Deviation(0.0, -1.0, 6.0), [START + 8])
    assert end.ego_pose[:2] == pytest.approx([40.0, -1.0])
    assert end.ego_pose[2] < -0.01  # still on its way to the right


def test_the_first_follow_up_does_not_depart_and_the_second_hardly():
    frames = _drive()
    assert draw_deviation(frames, START, 0, np.random.default_rng(0)).is_none
    for seed in range(20):
        small = draw_deviation(frames, START, 1, np.random.default_rng(seed))
        assert 0.0 < np.hypot(small.ahead_s * SPEED_MPS, small.left_m) < 0.6
        large = draw_deviation(frames, START, 2, np.random.default_rng(seed))
        assert np.hypot(large.ahead_s * SPEED_MPS, large.left_m) > 1.0
        assert large == draw_deviation(frames, START, 2, np.random.default_rng(seed))


def test_departures_keep_clear_of_what_stands_beside_the_road():
    # 0.4 m between the ego's left side (1.1485 m) and a wall along the whole way
    wall = TrackState(1, "barrier", 20.0, 1.1485 + 0.4 + 0.5, 0.0, 100.0, 1.0, 1.0, 0.0, 0.0, 0.0)
    frames = _drive([wall])
    offsets = [draw_deviation(frames, START, 3, np.random.default_rng(seed)).left_m for seed in range(20)]
    assert max(offsets) < 0.1
    assert min(offsets) < -0.4


def test_a_standing_car_does_not_move_to_the_side():
    frames = [
        WorldFrame(np.zeros(3), np.zeros(2), np.zeros(2), 1, (), {})
        for _ in range(21)
    ]  # fmt: skip
    deviation = draw_deviation(frames, START, 2, np.random.default_rng(0))
    assert deviation.left_m == 0.0
    for frame in deviated_frames(frames, START, deviation, range(START, START + 9)):
        np.testing.assert_array_equal(frame.ego_pose, np.zeros(3))
