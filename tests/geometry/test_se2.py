import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivefine_agent.geometry.se2 import (
    global_from_local,
    local_from_global,
    polyline_headings,
    rotate,
    wrap_angle,
)


@pytest.mark.parametrize(
    ("angle", "expected"),
    [
        pytest.param(0.0, 0.0, id="zero"),
        pytest.param(1.5 * np.pi, -0.5 * np.pi, id="three quarters"),
        pytest.param(-1.5 * np.pi, 0.5 * np.pi, id="minus three quarters"),
        pytest.param(5 * np.pi + 0.25, -np.pi + 0.25, id="several turns"),
    ],
)
def test_wrap_angle_gives_the_principal_value(angle, expected):
    assert wrap_angle(angle) == pytest.approx(expected, abs=1e-12)


def test_rotate_turns_counter_clockwise():
    np.testing.assert_allclose(
        rotate([[2.0, 0.0], [0.0, 1.0]], np.pi / 2), [[0.0, 2.0], [-1.0, 0.0]], atol=1e-15
    )


def test_local_pose_of_a_point_ahead_and_to_the_left():
    # the origin looks north (+y); 3 m north and 1 m west of it is 3 m ahead and 1 m to the left
    origin = np.array([10.0, 20.0, np.pi / 2])
    local = local_from_global([9.0, 23.0, np.pi], origin)
    np.testing.assert_allclose(local, [3.0, 1.0, np.pi / 2], atol=1e-12)


def test_each_pose_may_have_its_own_origin():
    poses = np.array([[1.0, 0.0, 0.0], [0.0, 5.0, np.pi]])
    np.testing.assert_array_equal(local_from_global(poses, poses), np.zeros((2, 3)))


coordinate = st.floats(-1e6, 1e6)
pose = st.tuples(coordinate, coordinate, st.floats(-3.14, 3.14))


@given(st.lists(pose, min_size=1, max_size=5), pose)
def test_there_and_back_gives_the_same_poses(poses, origin):
    # 1e6 m has an ulp of 1e-10 m, and the way there and back rounds a few times
    there_and_back = global_from_local(local_from_global(poses, origin), origin)
    np.testing.assert_allclose(there_and_back, poses, atol=5e-9)


def test_heading_of_a_vertex_points_to_the_next_and_the_last_repeats():
    headings = polyline_headings([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]])
    np.testing.assert_allclose(headings, [0.0, np.pi / 2, np.pi / 2])


def test_a_polyline_of_one_vertex_is_refused():
    with pytest.raises(ValueError, match=r"\(N >= 2, 2\), got \(1, 2\)"):
        polyline_headings([[0.0, 0.0]])
