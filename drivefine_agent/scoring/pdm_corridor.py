"""What the reference planner may have to follow: the forecast within the corridor of a path.

Shape letters: E = K + L entries of the forecast (objects, then red lights) in 26 maps.
Source: pdm-scorer 2.6; NAVSIM v1.1, PDMGenerator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from drivefine_agent.constants import EGO_WIDTH_M
from drivefine_agent.data.types import FloatArray
from drivefine_agent.scoring.centerline import Path
from drivefine_agent.scoring.forecast import NUM_MAPS, Forecast, geometry_array
from drivefine_agent.scoring.reactive_paths import may_touch

BUFFER_SEGMENTS = 16
_REACH_M = EGO_WIDTH_M  # more than from the line to the corners of its square ends


@dataclass(frozen=True)
class Corridor:
    """The part of a path within reach, as wide as the ego, and what the forecast puts into it."""

    polygon: shapely.Polygon
    forecast: Forecast
    is_inside: NDArray[np.bool_]
    """(26, E) touches the corridor; entries that are ignored do not count."""
    polygons: NDArray[np.object_]
    """(26, E) shapely polygons, where inside."""
    arc_lengths: FloatArray
    """(26, E) where the centroid is along the path [m], where inside."""

    @classmethod
    def along(cls, path: Path, start_m: float, end_m: float, forecast: Forecast) -> Corridor:
        """The corridor between two places of a path."""
        ahead = path.substring(start_m, end_m)
        polygon = ahead.buffer(EGO_WIDTH_M / 2, quad_segs=BUFFER_SEGMENTS, cap_style="square")
        shapely.prepare(polygon)

        num_objects, lights = forecast.num_objects, geometry_array(forecast.red_lights)
        polygons = np.empty((NUM_MAPS, len(forecast.tokens)), dtype=object)
        maps, objects = _objects_near(shapely.get_coordinates(ahead), forecast)
        polygons[maps, objects] = shapely.polygons(forecast.corners[maps, objects])
        polygons[:, num_objects:] = lights

        is_inside = np.zeros(polygons.shape, dtype=bool)
        is_inside[maps, objects] = shapely.intersects(polygon, polygons[maps, objects])
        is_inside[:, num_objects:] = shapely.intersects(polygon, lights)
        is_inside &= ~forecast.is_ignored

        arc_lengths = np.full(polygons.shape, np.nan)
        maps, objects = np.nonzero(is_inside[:, :num_objects])
        arc_lengths[maps, objects] = path.project(shapely.centroid(polygons[maps, objects]))
        arc_lengths[:, num_objects:] = path.project(shapely.centroid(lights))
        return cls(polygon, forecast, is_inside, polygons, arc_lengths)

    def nearest_ahead(
        self, map_index: int, arc_lengths: FloatArray, footprints: NDArray[np.object_]
    ) -> tuple[NDArray[np.int64], FloatArray]:
        """What is next ahead of each of Q egos, by the distance of the polygons.

        Args:
          map_index: of the forecast.
          arc_lengths: (Q,) of the egos on the path [m]; what has its centroid behind is not ahead.
          footprints: (Q,) polygons of the egos.

        Returns:
          (Q,) the entries, -1 where nothing is ahead; (Q,) the distances [m].
        """
        entries = np.flatnonzero(self.is_inside[map_index])
        is_ahead = self.arc_lengths[map_index, entries] > arc_lengths[:, None]  # (Q, n)
        if not is_ahead.any():
            return np.full(len(arc_lengths), -1), np.full(len(arc_lengths), np.inf)
        distances = shapely.distance(footprints[:, None], self.polygons[map_index, entries])
        distances[~is_ahead] = np.inf
        gaps = distances.min(axis=1)
        is_nearest = is_ahead & (distances == gaps[:, None])
        return np.array([self._first(map_index, entries[tied]) for tied in is_nearest]), gaps

    def _first(self, map_index: int, tied: NDArray[np.int64]) -> int:
        """Of entries at the same distance, the one that the tree of the map finds first; -1 of none."""
        if len(tied) == 0:
            return -1
        if len(tied) == 1 or tied[0] >= self.forecast.num_objects:  # one red light is like another
            return int(tied[0])
        hits = self.forecast.tree(map_index).query(self.polygon, predicate="intersects")
        return next(hit for hit in hits.tolist() if hit in tied)


def _objects_near(line: FloatArray, forecast: Forecast) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Maps (n,) and indices (n,) of the objects that may touch the corridor of a line (m, 2)."""
    if len(line) == 1:  # no way to go
        line = np.repeat(line, 2, axis=0)
    low, high = forecast.corners.min(axis=2), forecast.corners.max(axis=2)  # (26, K, 2)
    ever = np.concatenate([low.min(axis=0), high.max(axis=0)], axis=-1)
    candidates = np.flatnonzero(may_touch(line, _REACH_M, ever))
    bounds = np.concatenate([low[:, candidates], high[:, candidates]], axis=-1)
    is_near = may_touch(line, _REACH_M, bounds.reshape(-1, 4)).reshape(NUM_MAPS, len(candidates))
    maps, columns = np.nonzero(is_near)
    return maps, candidates[columns]
