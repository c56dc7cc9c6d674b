import numpy as np
import pytest
import shapely
from scenes_by_hand import ORIGIN, rectangle, scoring_scene, to_global

from drivefine_agent.evaluation.birdseye import visible_window
from drivefine_agent.evaluation.paths import densify, footprint, path_line, ribbon_edges
from drivefine_agent.evaluation.scene_view import birdseye_view, polygon_rings, to_ego

HEIGHT, WIDTH = 680, 560


def path(points: list[tuple[float, float, float]]) -> np.ndarray:
    return path_line(np.array(points))


STRAIGHT = path([(4.0 * step, 0.0, 0.0) for step in range(1, 9)])


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
