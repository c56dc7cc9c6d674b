"""Plane curves, checked against circles, lines and hand-made boxes."""

import numpy as np
import pytest

from drivefine_agent.synthetic.lanes import (
    Path,
    box_corners,
    connect,
    gaussian_smooth,
    integrate_curvature,
    smooth_step,
)


def test_constant_curvature_gives_a_circle():
    radius = 50.0
    steps = round(radius * np.pi / 2)  # a quarter circle to within half a metre of arc
    path = integrate_curvature(np.zeros(2), 0.0, np.full(steps, 1.0 / radius))
    distance = np.hypot(path.xy[:, 0], path.xy[:, 1] - radius)
    assert distance == pytest.approx(radius, abs=0.01)
    assert path.heading[-1] == pytest.approx(steps / radius, abs=2e-3)


def test_a_symmetric_right_turn_is_nearly_circular():
    path = connect(np.array([0.0, 0.0]), 0.0, np.array([10.0, -10.0]), -np.pi / 2)
    assert np.hypot(path.xy[:, 0], path.xy[:, 1] + 10.0) == pytest.approx(10.0, abs=0.06)


def test_connecting_collinear_poses_gives_a_straight_line():
    path = connect(np.array([1.0, 2.0]), 0.0, np.array([13.0, 2.0]), 0.0)
    assert path.xy[:, 1] == pytest.approx(2.0)
    assert path.length == pytest.approx(12.0)


def test_offset_lies_to_the_left():
    line = Path(np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]]))  # northwards, so left is west
    assert line.offset(1.5).xy[:, 0] == pytest.approx(-1.5)


def test_projection_returns_arc_length_and_left_offset():
    line = Path(np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]))
    s, lateral = line.project(np.array([[1.3, 0.4], [2.0, -2.0]]))
    assert s == pytest.approx([1.3, 2.0])
    assert lateral == pytest.approx([0.4, -2.0])


def test_smoothing_keeps_a_ramp_and_its_ends():
    ramp = np.stack([np.arange(40.0), 3.0 - 2.0 * np.arange(40.0)], axis=1)
    assert gaussian_smooth(ramp, 3.0) == pytest.approx(ramp)


def test_smooth_step_runs_from_zero_to_one():
    assert smooth_step(np.array([-1.0, 0.0, 0.5, 1.0, 2.0])) == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0])


def test_box_corners_start_at_the_front_left():
    corners = box_corners(*(np.array([v]) for v in (10.0, 5.0, np.pi / 2, 4.0, 2.0)))[0]
    # heading north: front is +y, left is -x
    assert corners == pytest.approx(np.array([[9.0, 7.0], [9.0, 3.0], [11.0, 3.0], [11.0, 7.0]]))
