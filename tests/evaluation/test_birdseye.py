import cv2
import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from scenes_by_hand import ORIGIN, rectangle, scoring_scene, to_global

from drivefine_agent.evaluation import birdseye
from drivefine_agent.evaluation.birdseye import Area, BirdsEyeView, draw_birdseye, visible_window
from drivefine_agent.evaluation.paths import DrawnPath, densify, footprint, ribbon_edges
from drivefine_agent.evaluation.scene_view import birdseye_view, polygon_rings, to_ego

HEIGHT, WIDTH = 680, 560


def path(points: list[tuple[float, float, float]]) -> DrawnPath:
    return DrawnPath("path", "#0072B2", np.array(points), is_main=True)


STRAIGHT = path([(4.0 * step, 0.0, 0.0) for step in range(1, 9)])


def decode(png: bytes) -> NDArray[np.uint8]:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def pixel(x: float, y: float, paths: list[DrawnPath]) -> tuple[int, int]:
    """Row and column of an ego point, from the window alone."""
    x_low, x_high, y_low, y_high = visible_window(paths, HEIGHT / WIDTH)
    return int((x_high - x) / (x_high - x_low) * HEIGHT), int((y_high - y) / (y_high - y_low) * WIDTH)


def colour(name: str) -> tuple[int, int, int]:
    return tuple(int(name[start : start + 2], 16) for start in (1, 3, 5))


def test_points_are_drawn_where_the_window_says_with_forward_up_and_left_left() -> None:
    area = Area("carpark", (rectangle(10.0, 14.0, 5.0, 9.0),))
    image = decode(draw_birdseye(BirdsEyeView(areas=(area,)), [STRAIGHT], WIDTH, HEIGHT))
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert tuple(image[pixel(12.0, 7.0, [STRAIGHT])]) == colour(birdseye.AREA_COLOURS["carpark"])
    assert tuple(image[pixel(12.0, -7.0, [STRAIGHT])]) == colour(birdseye.BACKGROUND)
    row_ahead, column = pixel(30.0, 0.0, [STRAIGHT])
    row_here, _ = pixel(0.0, 0.0, [STRAIGHT])
    assert row_ahead < row_here
    assert pixel(0.0, 5.0, [STRAIGHT])[1] < column


@pytest.mark.parametrize("is_reversed", [False, True], ids=["hole runs against", "hole runs along"])
def test_holes_stay_empty_whichever_way_their_ring_runs(is_reversed: bool) -> None:
    hole = rectangle(11.0, 17.0, 6.0, 12.0)
    area = Area("carpark", (rectangle(8.0, 20.0, 3.0, 15.0), hole[::-1] if is_reversed else hole))
    image = decode(draw_birdseye(BirdsEyeView(areas=(area,)), [STRAIGHT], WIDTH, HEIGHT))
    assert tuple(image[pixel(14.0, 9.0, [STRAIGHT])]) == colour(birdseye.BACKGROUND)
    assert tuple(image[pixel(9.5, 9.0, [STRAIGHT])]) == colour(birdseye.AREA_COLOURS["carpark"])


def test_the_picture_is_the_same_every_time() -> None:
    view = birdseye_view(scoring_scene())
    assert draw_birdseye(view, [STRAIGHT]) == draw_birdseye(view, [STRAIGHT])


def test_the_window_holds_every_path_and_the_vehicle() -> None:
    far_left = path([(6.0 * step, 4.0 * step, 0.5) for step in range(1, 9)])
    x_low, x_high, y_low, y_high = visible_window([STRAIGHT, far_left], HEIGHT / WIDTH)
    assert x_low < -6.0
    assert x_high > 48.0
    assert y_low < 0.0
    assert y_high > 32.0
    assert (x_high - x_low) / (y_high - y_low) == pytest.approx(HEIGHT / WIDTH)  # metres are square


def test_a_standing_path_still_shows_the_street() -> None:
    standing = path([(0.0, 0.0, 0.0)] * 8)
    x_low, x_high, _, _ = visible_window([standing], HEIGHT / WIDTH)
    assert x_high - x_low >= 45.0
    assert len(draw_birdseye(BirdsEyeView(), [standing])) > 1000


def test_a_wild_path_does_not_shrink_the_scene_to_nothing() -> None:
    wild = path([(100.0 * step, -90.0 * step, 0.0) for step in range(1, 9)])
    x_low, x_high, _, _ = visible_window([wild], HEIGHT / WIDTH)
    assert x_high - x_low < 150.0


def test_scene_is_turned_into_the_ego_frame() -> None:
    """By hand: see the rectangles of `scoring_scene`, which are given in the ego frame."""
    view = birdseye_view(scoring_scene())
    assert [area.kind for area in view.areas] == ["route_lane", "lane", "route_connector", "roadblock"]
    np.testing.assert_allclose(view.areas[0].rings[0], rectangle(-20, 40, -2, 2), atol=1e-9)
    np.testing.assert_allclose(view.route_line, [[-20.0, 0.0], [60.0, 0.0]], atol=1e-9)
    car, cone = view.road_users
    assert (car.kind, cone.kind) == ("vehicle", "traffic_cone")
    np.testing.assert_allclose(car.corners.mean(axis=0), [20.0, 0.0], atol=1e-9)
    # 5 m/s: at 1, 2 and 3 s; at 4 s the car is no longer there.
    np.testing.assert_allclose(
        [box.mean(axis=0)[0] for box in car.later_corners], [25.0, 30.0, 35.0], atol=1e-9
    )
    assert cone.later_corners == ()


def test_a_red_light_colours_its_connector() -> None:
    view = birdseye_view(scoring_scene(), red_connectors={"3", "2"})  # 2 is a lane: it has no light
    assert [area.kind for area in view.areas] == ["route_lane", "lane", "red_light", "roadblock"]


def test_polygons_with_parts_and_holes_become_rings() -> None:
    hole = shapely.Polygon(to_global(rectangle(0, 10, 0, 10)), [to_global(rectangle(4, 6, 4, 6))])
    two = shapely.MultiPolygon([hole, shapely.Polygon(to_global(rectangle(20, 30, 0, 10)))])
    rings = list(polygon_rings(two, ORIGIN))
    assert [len(part) for part in rings] == [2, 1]
    np.testing.assert_allclose(rings[1][0].min(axis=0), [20.0, 0.0], atol=1e-9)


def test_to_ego_undoes_to_global() -> None:
    points = np.array([[3.0, -2.0], [0.0, 0.0]])
    np.testing.assert_allclose(to_ego(to_global(points), ORIGIN), points, atol=1e-9)


def test_footprint_is_measured_from_the_rear_axle() -> None:
    """Heading to the left: the front bumper is 4.049 m up the y axis, the rear one 1.127 m down."""
    corners = footprint(np.array([10.0, 0.0, np.pi / 2]))
    np.testing.assert_allclose(corners.max(axis=0), [10.0 + 2.297 / 2, 4.049], atol=1e-9)
    np.testing.assert_allclose(corners.min(axis=0), [10.0 - 2.297 / 2, -1.127], atol=1e-9)


def test_densify_keeps_vertices_and_spacing() -> None:
    line = densify(np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.5]]), 0.3)
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    assert steps.max() <= 0.3
    for vertex in ([0.0, 0.0], [1.0, 0.0], [1.0, 0.5]):
        assert (line == vertex).all(axis=1).any()
    assert len(line) == 1 + 4 + 2


def test_ribbon_has_the_width_asked_for_on_both_sides() -> None:
    line = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [2.0, 0.0]])  # the last point repeats
    left, right = ribbon_edges(line, 0.5)
    np.testing.assert_allclose(left[:, 1], 0.5)
    np.testing.assert_allclose(right[:, 1], -0.5)
