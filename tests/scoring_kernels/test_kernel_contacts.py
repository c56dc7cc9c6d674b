"""Boxes that touch: against shapely, at the edge of rounding, and without extent."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from kernel_toy_world import NUM_SAMPLES, box_corners

from drivefine_agent.scoring.angles import relative_angle
from drivefine_agent.scoring.contacts import TrackBoxes, bumper_contacts, contact_table

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
    ego = random_boxes(rng, 60).reshape(3, 20, 4, 2)
    track = random_boxes(rng, 15)
    table = contact_table(ego, boxes_at(track), np.arange(20))
    expected = shapely.intersects(shapely.polygons(ego)[..., None], shapely.polygons(track))
    np.testing.assert_array_equal(table.astype(bool), expected)
    assert 0.1 < expected.mean() < 0.9


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
    ego = box_corners(0.0, 0.0, heading, 5.0, 2.0)
    track = box_corners(*((5.0 + gap) * direction), heading, 5.0, 2.0)
    table = contact_table(ego[None, None], boxes_at(track[None]), np.array([0]))
    assert bool(table[0, 0, 0]) == shapely.Polygon(ego).intersects(shapely.Polygon(track))
    assert bumper_contacts(ego[None], track[None])[0] == shapely.LineString(ego[[0, 3]]).intersects(
        shapely.Polygon(track)
    )


def test_touching_counts_as_contact():
    ego = box_corners(0.0, 0.0, 0.0, 4.0, 2.0)
    beside = box_corners(4.0, 0.0, 0.0, 4.0, 2.0)
    corner = box_corners(4.0, 2.0, 0.0, 4.0, 2.0)
    table = contact_table(ego[None, None], boxes_at(np.stack([beside, corner])), np.array([0]))
    assert table.tolist() == [[[1, 1]]]


def test_a_box_without_extent_is_left_to_geos():
    """Annotations can have zero length or width; shapely decides what touching means for them."""
    ego = box_corners(0.0, 0.0, 0.0, 4.0, 2.0)
    line = box_corners(1.0, 0.0, 0.4, 3.0, 0.0)
    point = box_corners(1.0, 0.5, 0.0, 0.0, 0.0)
    far = box_corners(9.0, 0.5, 0.0, 0.0, 0.0)
    tracks = np.stack([line, point, far])
    table = contact_table(ego[None, None], boxes_at(tracks), np.array([0]))
    expected = shapely.intersects(shapely.Polygon(ego), shapely.polygons(tracks))
    np.testing.assert_array_equal(table[0, 0].astype(bool), expected)


def test_absent_tracks_touch_nothing():
    ego = box_corners(0.0, 0.0, 0.0, 4.0, 2.0)
    tracks = boxes_at(ego[None])
    tracks.exists[3] = False
    table = contact_table(np.broadcast_to(ego, (1, 5, 4, 2)), tracks, np.arange(5))
    assert table[0, :, 0].tolist() == [1, 1, 1, 0, 1]


def test_no_tracks_and_no_proposals_are_fine():
    empty = boxes_at(np.zeros((0, 4, 2)))
    assert contact_table(np.zeros((2, 41, 4, 2)), empty, np.arange(41)).shape == (2, 41, 0)
    assert contact_table(np.zeros((0, 41, 4, 2)), empty, np.arange(41)).shape == (0, 41, 0)


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
