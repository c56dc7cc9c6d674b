from dataclasses import replace

import cv2
import numpy as np
import pytest
from scenes_by_hand import camera

from drivefine_agent.data.types import Annotations
from drivefine_agent.evaluation.camera_view import (
    encode_jpeg,
    ground_height,
    project_to_image,
    ribbon_outlines,
    widest_square_slope,
)


def straight(length_m: float) -> np.ndarray:
    return np.column_stack([np.linspace(0.0, length_m, 9), np.zeros(9)])


def test_projection_agrees_with_opencv() -> None:
    record = camera()
    angle = 0.1  # turned to the left, so that rotation and its transpose differ
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0.0], [np.sin(angle), np.cos(angle), 0.0], [0.0, 0.0, 1.0]]
    )
    record = replace(record, sensor2lidar_rotation=turn @ record.sensor2lidar_rotation)
    points = np.random.default_rng(0).uniform([8.0, -4.0, -1.0], [60.0, 4.0, 2.0], size=(50, 3))
    rotation = record.sensor2lidar_rotation.T
    vector, _ = cv2.Rodrigues(rotation)
    translation = -rotation @ record.sensor2lidar_translation
    expected, _ = cv2.projectPoints(points, vector, translation, record.intrinsics, record.distortion)
    pixels, is_seen = project_to_image(points, record)
    assert is_seen.all()
    np.testing.assert_allclose(pixels, expected[:, 0], atol=1e-6)


def test_a_point_on_the_optical_axis_meets_the_principal_point() -> None:
    pixels, _ = project_to_image(np.array([[30.0, 0.0, 1.5]]), camera())
    np.testing.assert_allclose(pixels, [[960.0, 560.0]])


def test_left_is_left_and_down_is_down() -> None:
    pixels, _ = project_to_image(np.array([[30.0, 1.0, 1.5], [30.0, 0.0, 0.0]]), camera())
    assert pixels[0, 0] < 960.0
    assert pixels[1, 1] > 560.0


def test_points_behind_the_lens_are_not_seen() -> None:
    pixels, is_seen = project_to_image(np.array([[-5.0, 0.0, 0.0], [2.5, 0.0, 1.5]]), camera())
    assert not is_seen.any()
    assert np.isnan(pixels).all()


def test_the_distortion_polynomial_folds_where_its_derivative_vanishes() -> None:
    """r (1 - r^2 / 3): derivative 1 - r^2, so it grows up to r^2 = 1."""
    assert widest_square_slope(-1.0 / 3.0, 0.0, 0.0) == pytest.approx(1.0)
    assert widest_square_slope(0.0, 0.0, 0.0) == 9.0
    # Beyond the fold a point is not seen: r = 1.5 at 10 m of depth.
    record = replace(camera(), distortion=np.array([-1.0 / 3.0, 0.0, 0.0, 0.0, 0.0]))
    _, is_seen = project_to_image(np.array([[11.9, 15.0, 1.5], [11.9, 5.0, 1.5]]), record)
    assert is_seen.tolist() == [False, True]


def test_road_height_is_where_vehicles_stand() -> None:
    """Boxes 1.6 m high, centred at 0.5 m, stand at -0.3 m; far ones and pedestrians do not count."""
    boxes = np.zeros((4, 7))
    boxes[:, [0, 2, 5]] = [[10.0, 0.5, 1.6], [20.0, 0.5, 1.6], [5.0, 3.0, 1.0], [90.0, 9.0, 1.0]]
    names = ("vehicle", "vehicle", "pedestrian", "vehicle")
    annotations = Annotations(boxes, names, np.zeros((4, 3)), names, names)
    assert ground_height(annotations) == pytest.approx(-0.3)
    assert ground_height(None) == 0.0
    assert ground_height(Annotations(boxes[2:3], names[2:3], boxes[2:3, :3], names[2:3], names[2:3])) == 0.0


def test_a_ribbon_is_as_wide_as_asked_for_where_it_lies() -> None:
    """Its two rims 1 m left and right of the line, projected by themselves."""
    (outline,) = ribbon_outlines(straight(30.0), 1.0, camera())
    rims, _ = project_to_image(np.array([[30.0, 1.0, 0.0], [30.0, -1.0, 0.0]]), camera())
    middle = len(outline) // 2  # the left rim forwards, the right one back
    np.testing.assert_allclose(outline[[middle - 1, middle]], rims, atol=1e-6)
    assert outline[:, 1].min() > 540  # nothing above the horizon
    assert np.isfinite(outline).all()


def test_dashes_and_gaps_alternate_along_the_road() -> None:
    """A dash of 2 m and a gap of 3 m, seen from 2.9 m on (1 m before the lens at 1.9 m): of the dashes that
    start at 0, 5 ... 25 m all but the first."""
    dashes = ribbon_outlines(straight(30.0), 0.2, camera(), dash_m=(2.0, 3.0))
    assert len(dashes) == 5
    (start,), _ = project_to_image(np.array([[5.0, 0.2, 0.0]]), camera())
    assert abs(dashes[0][0, 1] - start[1]) < 40  # the points along a line are 0.35 m apart at most


def test_a_standing_path_and_one_behind_have_no_outline() -> None:
    assert ribbon_outlines(np.zeros((9, 2)), 1.0, camera()) == []
    assert ribbon_outlines(straight(-20.0), 1.0, camera()) == []


def test_jpeg_is_a_jpeg_of_the_width_asked_for() -> None:
    image = np.full((32, 64, 3), (250, 10, 10), dtype=np.uint8)
    decoded = cv2.imdecode(np.frombuffer(encode_jpeg(image, 32), np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (16, 32, 3)
    np.testing.assert_allclose(decoded[8, 16], (10, 10, 250), atol=8)  # OpenCV's order is BGR
