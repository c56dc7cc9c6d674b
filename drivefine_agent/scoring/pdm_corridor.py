"""What the reference planner may have to follow: the forecast within the corridors of its paths.

Shape letters: B paths, Q egos on each, E = K + L entries of the forecast (objects, then red lights) in 26
maps, C candidates: an entry that touches the corridor of a path in a map. R pairs of an ego and a candidate.
Source: pdm-scorer 2.6; NAVSIM v1.1, PDMGenerator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numba import njit
from numpy.typing import NDArray

from drivefine_agent.constants import EGO_LENGTH_M, EGO_REAR_AXLE_TO_CENTER_M, EGO_WIDTH_M
from drivefine_agent.data.types import FloatArray
from drivefine_agent.scoring.centerline import Path
from drivefine_agent.scoring.forecast import NUM_MAPS, Forecast, geometry_array
from drivefine_agent.scoring.nuplan_boxes import nuplan_box_corners
from drivefine_agent.scoring.reactive_paths import may_touch

BUFFER_SEGMENTS = 16
_REACH_M = EGO_WIDTH_M  # of a corridor from its line: more than to the corners of its square ends


@dataclass(frozen=True)
class Candidates:
    """What the egos on some paths may have to follow, sorted by map."""

    forecast: Forecast
    corridors: NDArray[np.object_]
    """(B,) the part of each path within reach, as wide as the ego."""
    map_index: NDArray[np.int64]
    """(C,)."""
    path: NDArray[np.int64]
    """(C,) index of the path."""
    entry: NDArray[np.int64]
    """(C,) index of the entry."""
    polygon: NDArray[np.object_]
    """(C,) of the entry."""
    arc_length: FloatArray
    """(C,) where the centroid is along the path [m]."""

    @classmethod
    def find(
        cls, paths: Sequence[Path], starts: Sequence[float], reach: float, forecast: Forecast
    ) -> Candidates:
        """What touches the corridors from their starts on [m], as far as they reach [m].

        Entries that are ignored do not count.
        """
        lines = [path.substring(start, start + reach) for path, start in zip(paths, starts, strict=True)]
        corridors = shapely.buffer(lines, EGO_WIDTH_M / 2, quad_segs=BUFFER_SEGMENTS, cap_style="square")
        shapely.prepare(corridors)

        is_near = _near_objects([shapely.get_coordinates(line) for line in lines], forecast)  # (B, 26, K)
        num_objects, lights = forecast.num_objects, geometry_array(forecast.red_lights)
        polygons = np.empty((NUM_MAPS, len(forecast.tokens)), dtype=object)
        maps, objects = np.nonzero(is_near.any(axis=0))
        polygons[maps, objects] = shapely.polygons(forecast.corners[maps, objects])
        polygons[:, num_objects:] = lights

        is_inside = np.zeros((len(paths), *polygons.shape), dtype=bool)
        arc_lengths = np.zeros(is_inside.shape)
        for path, corridor, near, inside, along in zip(
            paths, corridors, is_near, is_inside, arc_lengths, strict=True
        ):
            inside[:, :num_objects][near] = shapely.intersects(corridor, polygons[:, :num_objects][near])
            inside[:, num_objects:] = shapely.intersects(corridor, lights)
            inside &= ~forecast.is_ignored
            found = inside[:, :num_objects].nonzero()
            along[found] = path.project(shapely.centroid(polygons[found]))
            along[:, num_objects:] = path.project(shapely.centroid(lights))
        map_index, path_index, entry = np.nonzero(is_inside.transpose(1, 0, 2))
        return cls(
            forecast=forecast,
            corridors=corridors,
            map_index=map_index,
            path=path_index,
            entry=entry,
            polygon=polygons[map_index, entry],
            arc_length=arc_lengths[path_index, map_index, entry],
        )

    def only(self, path: int) -> Candidates:
        """Those of one path."""
        chosen = self.path == path
        return Candidates(
            forecast=self.forecast,
            corridors=self.corridors[path : path + 1],
            map_index=self.map_index[chosen],
            path=np.zeros(np.count_nonzero(chosen), dtype=np.int64),
            entry=self.entry[chosen],
            polygon=self.polygon[chosen],
            arc_length=self.arc_length[chosen],
        )

    def nearest_ahead(
        self, map_index: int, arc_lengths: FloatArray, poses: FloatArray
    ) -> tuple[NDArray[np.int64], FloatArray]:
        """What is next ahead of each ego, by the distance of its box; centroids behind it do not count.

        Args:
          map_index: of the forecast.
          arc_lengths: (B, Q) of the egos on their paths [m].
          poses: (B, Q, 3) rear axles of the egos.

        Returns:
          (B, Q) the entries, -1 where nothing is ahead; (B, Q) the distances [m].
        """
        first, stop = np.searchsorted(self.map_index, (map_index, map_index + 1))
        path, entry = self.path[first:stop], self.entry[first:stop]
        ego, found = _pairs_ahead(path, self.arc_length[first:stop], arc_lengths)  # (R,), (R,)
        if not len(ego):
            return np.full(arc_lengths.shape, -1), np.full(arc_lengths.shape, np.inf)
        boxes = shapely.polygons(_footprints(poses.reshape(-1, 3)))
        distances = shapely.distance(boxes[ego], self.polygon[first:stop][found])
        nearest, gaps, tied_egos = _nearest(ego, entry[found], distances, arc_lengths.size)
        for index in tied_egos:
            tied = entry[found[(ego == index) & (distances == gaps[index])]]
            nearest[index] = self._first(map_index, index // arc_lengths.shape[1], tied)
        return nearest.reshape(arc_lengths.shape), gaps.reshape(arc_lengths.shape)

    def _first(self, map_index: int, path: int, tied: NDArray[np.int64]) -> int:
        """Of entries at the same distance, the one that the tree of the map finds first."""
        if tied.min() >= self.forecast.num_objects:
            return int(tied[0])  # one red light is like another
        hits = self.forecast.tree(map_index).query(self.corridors[path], predicate="intersects")
        return next(hit for hit in hits.tolist() if hit in tied)


def _near_objects(lines: Sequence[FloatArray], forecast: Forecast) -> NDArray[np.bool_]:
    """(B, 26, K) which objects may touch the corridors of lines (m, 2) at all."""
    low, high = forecast.corners.min(axis=2), forecast.corners.max(axis=2)  # (26, K, 2)
    ever = np.concatenate([low.min(axis=0), high.max(axis=0)], axis=-1)
    is_near = np.zeros((len(lines), *low.shape[:2]), dtype=bool)
    for line, near in zip(lines, is_near, strict=True):
        segments = line if len(line) > 1 else np.repeat(line, 2, axis=0)  # where there is no way to go
        objects = np.flatnonzero(may_touch(segments, _REACH_M, ever))
        bounds = np.concatenate([low[:, objects], high[:, objects]], axis=-1)
        touched = may_touch(segments, _REACH_M, bounds.reshape(-1, 4))
        near[:, objects] = touched.reshape(NUM_MAPS, len(objects))
    return is_near


def _footprints(poses: FloatArray) -> FloatArray:
    """Corners (..., 4, 2) of the ego at rear-axle poses (..., 3)."""
    centers = poses.copy()
    centers[..., 0] += EGO_REAR_AXLE_TO_CENTER_M * np.cos(poses[..., 2])
    centers[..., 1] += EGO_REAR_AXLE_TO_CENTER_M * np.sin(poses[..., 2])
    return nuplan_box_corners(centers, EGO_LENGTH_M, EGO_WIDTH_M)


@njit(cache=True, nogil=True)
def _pairs_ahead(path, candidate_arc_lengths, ego_arc_lengths):
    """Egos (R,), counted over all paths, and candidates (R,) ahead of them, by arc lengths (C,), (B, Q)."""
    num_policies = ego_arc_lengths.shape[1]
    egos = np.empty(len(path) * num_policies, dtype=np.int64)
    candidates = np.empty(len(path) * num_policies, dtype=np.int64)
    count = 0
    for c in range(len(path)):
        for q in range(num_policies):
            if candidate_arc_lengths[c] > ego_arc_lengths[path[c], q]:
                egos[count], candidates[count] = path[c] * num_policies + q, c
                count += 1
    return egos[:count], candidates[:count]


@njit(cache=True, nogil=True)
def _nearest(egos, entries, distances, num_egos):
    """Nearest entry of each ego by pairs (R,), -1 without one; the distance; the egos that have several."""
    nearest = np.full(num_egos, -1)
    gaps = np.full(num_egos, np.inf)
    is_tied = np.zeros(num_egos, dtype=np.bool_)
    for pair in range(len(egos)):
        ego = egos[pair]
        if distances[pair] < gaps[ego]:
            nearest[ego], gaps[ego], is_tied[ego] = entries[pair], distances[pair], False
        elif distances[pair] == gaps[ego]:
            is_tied[ego] = True
    return nearest, gaps, np.flatnonzero(is_tied)
