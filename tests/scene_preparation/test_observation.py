from dataclasses import replace

import numpy as np
import pytest
import shapely
from scipy.interpolate import interp1d
from toy_road import annotated_frame

from drivefine_agent.errors import SceneError
from drivefine_agent.scoring.nuplan_boxes import geos_centroids, nuplan_box_corners
from drivefine_agent.scoring.observation import (
    FrameTracks,
    frame_tracks,
    resample_tracks,
    track_polygons,
)


def tracks_at(**objects: tuple[float, float, float]) -> FrameTracks:
    """Vehicles by token at poses, standing."""
    poses = np.array(list(objects.values()), dtype=float).reshape(-1, 3)
    num = len(objects)
    return FrameTracks(
        tuple(objects), np.zeros(num, dtype=np.int64), poses, np.full((num, 2), 2.0), np.zeros((num, 2))
    )


def test_objects_are_lifted_with_the_heading_of_the_ego() -> None:
    frame = annotated_frame([("a", "vehicle", (10.0, 2.0, 3.0), (4.0, 2.0), (5.0, 1.0))])
    tracks = frame_tracks(frame, np.array([100.0, 200.0, np.pi / 2]))
    np.testing.assert_allclose(tracks.poses[0, :2], [98.0, 210.0], atol=1e-12)  # (10, 2) -> (-2, 10)
    assert tracks.poses[0, 2] == pytest.approx(3.0 + np.pi / 2 - 2 * np.pi)
    np.testing.assert_allclose(tracks.velocities[0], [-1.0, 5.0], atol=1e-12)


def test_objects_are_sorted_by_type_and_otherwise_keep_their_order() -> None:
    names = ["barrier", "vehicle", "pedestrian", "generic_object", "vehicle", "bicycle"]
    boxes = [(f"{i}", name, (float(i), 0.0, 0.0), (1.0, 1.0), (3.0, 0.0)) for i, name in enumerate(names)]
    tracks = frame_tracks(annotated_frame(boxes), np.zeros(3))
    assert tracks.tokens == ("1", "4", "2", "5", "0", "3")
    assert list(tracks.speeds) == [3, 3, 3, 3, 0, 0]  # static objects have no velocity


def test_a_frame_without_annotations_is_refused() -> None:
    with pytest.raises(SceneError, match=r"annotations.*'frame'"):
        frame_tracks(replace(annotated_frame([]), annotations=None), np.zeros(3))


def test_a_track_that_occurs_twice_in_a_frame_is_refused() -> None:
    box = ("twin", "vehicle", (0.0, 0.0, 0.0), (1.0, 1.0), (0.0, 0.0))
    with pytest.raises(SceneError, match="'twin' occurs 2 times in frame 'frame'"):
        frame_tracks(annotated_frame([box, box]), np.zeros(3))


def test_a_track_exists_from_its_first_to_its_last_frame_and_moves_linearly() -> None:
    """Seen at 1.0 s (x = 0) and 2.0 s (x = 10): samples 10 ... 20, the missing frame at 1.5 s is bridged."""
    frames = [tracks_at() for _ in range(11)]
    frames[2], frames[4] = tracks_at(a=(0, 0, 0)), tracks_at(a=(10, 0, 0))
    sampled = resample_tracks(frames)
    assert list(np.flatnonzero(sampled.exists[:, 0])) == list(range(10, 21))
    np.testing.assert_allclose(sampled.poses[10:21, 0, 0], np.arange(11), atol=1e-12)


def test_a_track_of_a_single_frame_is_there_at_all_samples() -> None:
    frames = [tracks_at() for _ in range(11)]
    frames[7] = tracks_at(a=(3, 4, 0.5))
    sampled = resample_tracks(frames)
    assert sampled.exists.all()
    np.testing.assert_array_equal(sampled.poses[:, 0], np.tile([3, 4, 0.5], (51, 1)))


def test_stopped_is_what_a_track_was_when_first_seen() -> None:
    moving = replace(tracks_at(a=(0, 0, 0), b=(5, 0, 0)), velocities=np.array([[0.05, 0.0], [0.06, 0.0]]))
    later = replace(moving, velocities=np.array([[9.0, 0.0], [0.0, 0.0]]))
    assert list(resample_tracks([moving, *[later] * 10]).is_stopped) == [True, False]


def test_headings_turn_the_short_way() -> None:
    frames = [tracks_at(a=(0, 0, 3.1)), *[tracks_at(a=(0, 0, -3.1))] * 10]
    heading = resample_tracks(frames).poses[:6, 0, 2]
    assert np.cos(heading).max() < np.cos(3.09)


def test_resampling_is_that_of_scipy_track_by_track() -> None:
    rng = np.random.default_rng(0)
    num = 120
    seen = rng.random((11, num)) < rng.uniform(0.1, 1, num)
    seen[rng.integers(0, 11, num), np.arange(num)] = True
    poses = rng.normal(size=(11, num, 3)) * [30, 30, 3] + [5e5, 4e6, 0]
    frames = [tracks_at(**{f"t{k}": poses[f, k] for k in range(num) if seen[f, k]}) for f in range(11)]
    sampled = resample_tracks(frames)
    times = np.arange(51) * 0.1
    for column, token in enumerate(sampled.tokens):
        k = int(token[1:])
        knots = np.flatnonzero(seen[:, k])
        if len(knots) == 1:
            continue
        values = poses[knots, k].copy()
        values[:, 2] = np.unwrap(values[:, 2])
        exists = (times >= knots[0] * 0.5) & (times <= knots[-1] * 0.5)
        np.testing.assert_array_equal(sampled.exists[:, column], exists)
        expected = interp1d(knots * 0.5, values, axis=0)(times[exists])
        ours = sampled.poses[exists, column]
        np.testing.assert_array_equal(ours[:, :2], expected[:, :2])
        np.testing.assert_allclose(ours[:, 2], np.arctan2(np.sin(expected[:, 2]), np.cos(expected[:, 2])))


def test_an_empty_log_gives_no_tracks() -> None:
    sampled = resample_tracks([tracks_at() for _ in range(11)])
    assert sampled.exists.shape == (51, 0)
    corners, centers = track_polygons(sampled.poses, sampled.sizes, sampled.exists)
    assert corners.shape == (51, 0, 4, 2)
    assert centers.shape == (51, 0, 2)


def test_corners_are_front_left_first_and_counter_clockwise() -> None:
    corners = nuplan_box_corners(np.array([10.0, 20.0, 0.0]), 4.0, 2.0)
    np.testing.assert_allclose(corners, [[12, 21], [8, 21], [8, 19], [12, 19]], atol=1e-14)


def test_centroids_are_those_of_geos_to_the_last_bit() -> None:
    rng = np.random.default_rng(1)
    poses = np.stack([rng.normal(5e5, 50, 500), rng.normal(4e6, 50, 500), rng.uniform(-4, 4, 500)], axis=-1)
    corners = nuplan_box_corners(poses, rng.uniform(0.3, 8, 500), rng.uniform(0.3, 3, 500))
    expected = shapely.get_coordinates(shapely.centroid(shapely.polygons(corners)))
    np.testing.assert_array_equal(geos_centroids(corners), expected)


def test_a_box_without_area_has_its_middle_as_centroid() -> None:
    corners = nuplan_box_corners(np.array([[1.0, 2.0, 0.3]]), 0.0, 2.0)
    np.testing.assert_allclose(geos_centroids(corners), [[1.0, 2.0]])
