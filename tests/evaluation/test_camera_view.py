from dataclasses import replace

import cv2
import numpy as np
import pytest
from scenes_by_hand import camera

from drivefine_agent.data.types import Annotations
from drivefine_agent.evaluation.camera_view import (
    draw_paths,
    encode_jpeg,
    ground_height,
    project_to_image,
    widest_square_slope,
)
from drivefine_agent.evaluation.paths import DrawnPath


def straight(length_m: float, **keys: bool) -> DrawnPath:
    poses = np.column_stack([np.linspace(length_m / 8, length_m, 8), np.zeros(8), np.zeros(8)])
    return DrawnPath("straight", "#0072B2", poses, **keys)


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


def test_the_path_is_painted_on_the_road_in_its_colour() -> None:
    image = np.full((1080, 1920, 3), 200, dtype=np.uint8)
    drawn = draw_paths(image, camera(), [straight(30.0, is_main=True)])
    assert drawn.shape == (540, 960, 3)
    (ahead,), _ = project_to_image(np.array([[15.0, 0.0, 0.0]]), camera())
    column, row = np.round(ahead / 2).astype(int)
    red, green, blue = (int(value) for value in drawn[row, column])
    assert blue > green > red  # #0072B2
    assert (drawn[:270] == 200).all()  # nothing above the horizon
    assert (image == 200).all()


def test_a_standing_path_changes_nothing_and_raises_nothing() -> None:
    image = np.full((1080, 1920, 3), 200, dtype=np.uint8)
    poses = np.zeros((8, 3))
    drawn = draw_paths(image, camera(), [DrawnPath("standing", "#0072B2", poses, is_main=True)])
    assert (drawn == 200).all()


def test_a_path_that_leaves_the_picture_raises_nothing() -> None:
    image = np.zeros((1080, 1920, 3), dtype=np.uint8)
    poses = np.column_stack([np.linspace(2, 5, 8), np.linspace(5, 40, 8), np.full(8, 1.5)])
    draw_paths(image, camera(), [DrawnPath("left", "#0072B2", poses), straight(-20.0, is_dashed=True)])


def test_jpeg_is_a_jpeg() -> None:
    image = np.full((32, 32, 3), (250, 10, 10), dtype=np.uint8)
    decoded = cv2.imdecode(np.frombuffer(encode_jpeg(image), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_allclose(decoded[16, 16], (10, 10, 250), atol=8)  # OpenCV's order is BGR
