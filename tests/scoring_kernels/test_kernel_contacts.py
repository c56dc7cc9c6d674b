"""Boxes that touch: against shapely, at the edge of rounding, and without extent."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from kernel_toy_world import NUM_SAMPLES, box_corners

from drivefine_agent.scoring.angles import relative_angle
from drivefine_agent.scoring.contacts import TrackBoxes, bumper_contacts, first_contacts
from drivefine_agent.scoring.footprint import footprint_points

ORIGIN = np.array([585_000.0, 4_475_000.0])


def boxes_at(corners: np.ndarray) -> TrackBoxes:
    """Standing tracks with the corners (K, 4, 2)."""
    count = len(corners)
    return TrackBoxes(
        corners=np.broadcast_to(corners, (NUM_SAMPLES, count, 4, 2)).copy(),
        center=np.broadcast_to(corners.mean(axis=1), (NUM_SAMPLES, count, 2)).copy(),
        exists=np.ones((NUM_SAMPLES, count), dtype=bool),
        is_agent=np.ones(count, dtype=bool),
        is_stopped=np.zeros(count, dtype=bool),
    )


def ego_boxes(x, y, heading) -> tuple[np.ndarray, np.ndarray]:
    """States (P, 1, 11) and points (P, 1, 5, 2) of standing egos with their centres at x, y."""
    heading = np.broadcast_to(heading, np.shape(x))
    states = np.zeros((len(x), 1, 11))
    along = np.stack([np.cos(heading), np.sin(heading)], axis=-1)
    states[:, 0, :2] = np.stack([x, y], axis=-1) - 1.461 * along
    states[:, 0, 2] = heading
    return states, footprint_points(states)


def touches(states: np.ndarray, points: np.ndarray, tracks: TrackBoxes) -> np.ndarray:
    """(P, K) of egos (P, 1, ...)."""
    return first_contacts(states, points, tracks) == 0


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.array(
        [
            box_corners(
                *(ORIGIN + rng.uniform(-8, 8, 2)),
                rng.uniform(-4, 4),
                rng.uniform(0.2, 12),
                rng.uniform(0.2, 3),
            )
            for _ in range(count)
        ]
    )


@pytest.mark.parametrize("seed", range(5))
def test_contacts_equal_shapelys(seed):
    rng = np.random.default_rng(seed)
    place = ORIGIN[:, None] + rng.uniform(-8, 8, (2, 60))
    states, points = ego_boxes(*place, rng.uniform(-4, 4, 60))
    track = random_boxes(rng, 15)
    expected = shapely.intersects(shapely.polygons(points[:, 0, :4])[:, None], shapely.polygons(track))
    np.testing.assert_array_equal(touches(states, points, boxes_at(track)), expected)
    assert 0.1 < expected.mean() < 0.9


@pytest.mark.parametrize("looks_ahead", [(0,), (0, 3, 6, 9)])
def test_first_contacts_equal_those_of_a_search_through_all_of_shapelys_contacts(looks_ahead):
    rng = np.random.default_rng(7)
    states = np.zeros((20, 41, 11))
    states[..., 2] = rng.uniform(-3.0, 3.0, (20, 1)) + np.linspace(0.0, 0.5, 41)
    states[..., 3] = rng.uniform(-4.0, 12.0, (20, 1))
    states[rng.random((20, 41)) < 0.2, 3] = 0.004
    step = 0.1 * states[..., 3:4] * np.stack([np.cos(states[..., 2]), np.sin(states[..., 2])], axis=-1)
    states[..., :2] = ORIGIN + rng.uniform(-15, 15, (20, 1, 2)) + np.cumsum(step, axis=1)
    points = footprint_points(states)
    tracks = boxes_at(random_boxes(rng, 12))
    tracks.exists[:] = rng.random(tracks.exists.shape) < 0.7
    found = first_contacts(states, points, tracks, None, looks_ahead, 0.005)
    expected = np.full((20, 12), -1)
    polygons = shapely.polygons(tracks.corners[0])
    for p in range(20):
        for position in reversed(range(41 * len(looks_ahead))):
            t, look = position // len(looks_ahead), looks_ahead[position % len(looks_ahead)]
            speed, heading = abs(states[p, t, 3]), states[p, t, 2]
            if speed < 0.005:
                continue
            way = 0.1 * look * speed * np.array([np.cos(heading), np.sin(heading)])
            ego = shapely.Polygon(points[p, t, :4] + way)
            expected[p, shapely.intersects(ego, polygons) & tracks.exists[t + look]] = position
    np.testing.assert_array_equal(found, expected)
    assert (found > 0).sum() > 10
    ignored = np.arange(12) % 2 == 0
    some = first_contacts(states, points, tracks, ignored, looks_ahead, 0.005)
    np.testing.assert_array_equal(some, np.where(ignored, -1, expected))


def test_looks_ahead_that_do_not_fit_are_refused():
    states, points = ego_boxes(*ORIGIN[:, None], 0.0)
    with pytest.raises(ValueError, match=r"looks_ahead must be one of .*got \(0, 9\)"):
        first_contacts(states, points, boxes_at(np.zeros((1, 4, 2))), None, (0, 9))


@pytest.mark.parametrize("seed", range(5))
def test_bumper_contacts_equal_shapelys(seed):
    rng = np.random.default_rng(100 + seed)
    ego, track = random_boxes(rng, 300), random_boxes(rng, 300)
    expected = shapely.intersects(shapely.linestrings(ego[:, [0, 3]]), shapely.polygons(track))
    np.testing.assert_array_equal(bumper_contacts(ego, track), expected)
    assert expected.any()
    assert not expected.all()


@pytest.mark.parametrize("heading", [0.0, 0.3, 1.234, np.pi / 2])
@pytest.mark.parametrize("gap", [-1e-5, -2e-7, -1e-9, 0.0, 1e-9, 2e-7, 1e-5])
def test_near_ties_are_decided_by_geos(heading, gap):
    """Two boxes nose to tail with a gap of the given size [m]."""
    direction = np.array([np.cos(heading), np.sin(heading)])
    states, points = ego_boxes(np.zeros(1), np.zeros(1), heading)
    ego = points[0, 0, :4]
    track = box_corners(*((2.588 + 2.5 + gap) * direction), heading, 5.0, 2.0)
    assert touches(states, points, boxes_at(track[None]))[0, 0] == shapely.Polygon(ego).intersects(
        shapely.Polygon(track)
    )
    assert bumper_contacts(ego[None], track[None])[0] == shapely.LineString(ego[[0, 3]]).intersects(
        shapely.Polygon(track)
    )


def test_touching_counts_as_contact():
    states, points = ego_boxes(np.zeros(1), np.zeros(1), 0.0)
    x, y = points[0, 0, 0]
    beside = np.array([[x + 4, 1.0], [x, 1.0], [x, -1.0], [x + 4, -1.0]])
    corner = np.array([[x + 4, y + 2], [x, y + 2], [x, y], [x + 4, y]])
    assert touches(states, points, boxes_at(np.stack([beside, corner]))).tolist() == [[True, True]]


def test_a_box_without_extent_is_left_to_geos():
    """Annotations can have zero length or width; shapely decides what touching means for them."""
    states, points = ego_boxes(np.zeros(1), np.zeros(1), 0.0)
    line = box_corners(1.0, 0.0, 0.4, 3.0, 0.0)
    point = box_corners(1.0, 0.5, 0.0, 0.0, 0.0)
    far = box_corners(9.0, 0.5, 0.0, 0.0, 0.0)
    tracks = np.stack([line, point, far])
    expected = shapely.intersects(shapely.Polygon(points[0, 0, :4]), shapely.polygons(tracks))
    np.testing.assert_array_equal(touches(states, points, boxes_at(tracks))[0], expected)


def test_absent_tracks_touch_nothing():
    states = np.zeros((1, 5, 11))
    tracks = boxes_at(box_corners(1.0, 0.0, 0.0, 4.0, 2.0)[None])
    tracks.exists[:3] = False
    assert first_contacts(states, footprint_points(states), tracks)[0, 0] == 3


def test_no_tracks_and_no_proposals_are_fine():
    empty = boxes_at(np.zeros((0, 4, 2)))
    assert first_contacts(np.zeros((2, 41, 11)), np.zeros((2, 41, 5, 2)), empty).shape == (2, 0)
    assert first_contacts(np.zeros((0, 41, 11)), np.zeros((0, 41, 5, 2)), empty).shape == (0, 0)


def test_angle_to_a_point():
    pose = np.array([1.0, 2.0, np.pi / 2])
    assert relative_angle(pose, np.array([1.0, 5.0])) == pytest.approx(0.0, abs=1e-7)
    assert relative_angle(pose, np.array([3.0, 4.0])) == pytest.approx(np.pi / 4)
    assert relative_angle(pose, np.array([1.0, 0.0])) == pytest.approx(np.pi)


def test_angle_is_undefined_where_the_dot_product_rounds_above_one():
    """Of points exactly along random headings, a good part has no angle; the others have angle 0."""
    rng = np.random.default_rng(3)
    undefined = 0
    for heading in rng.uniform(-np.pi, np.pi, 500):
        direction = np.array([np.cos(heading), np.sin(heading)])
        angle = relative_angle(np.array([0.0, 0.0, heading]), 10.0 * direction)
        unit = 10.0 * direction / np.sqrt((10.0 * direction[0]) ** 2 + (10.0 * direction[1]) ** 2)
        assert np.isnan(angle) == (direction[0] * unit[0] + direction[1] * unit[1] > 1.0)
        undefined += np.isnan(angle)
    assert 0.05 < undefined / 500 < 0.5
    assert np.isnan(relative_angle(np.zeros(3), np.zeros(2)))
