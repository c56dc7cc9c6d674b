"""Records of the scorer: a scene ready to be scored, as flat arrays, and the result of scoring.

Shape letters: P proposals, T = 51 samples of 0.1 s (0 to 5 s), K tracks, M map polygons, N centreline
vertices. Everything is float64 in the global (UTM) frame of the map unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class PolygonKind(IntEnum):
    """Tag of a map polygon; values are nuPlan's SemanticMapLayer numbers."""

    LANE = 0
    INTERSECTION = 1
    LANE_CONNECTOR = 11
    CARPARK_AREA = 15
    ROADBLOCK = 17


@dataclass(frozen=True)
class ScoringScene:
    """One scene, ready to be scored under NAVSIM 1.1's rules. Arrays only, so that it can be mapped."""

    token: str
    log_name: str
    map_name: str
    timestamp_us: int

    initial_state: FloatArray
    """(11,) ego at t = 0; rear axle round-tripped through the centre (pdm-scorer 2.1); see StateIndex."""
    human_poses: FloatArray
    """(8, 3) the recorded driver's poses at 0.5 ... 4.0 s in the ego frame of t = 0."""

    reference_poses: FloatArray
    """(51, 3) PDM-Closed trajectory at 0.0 ... 5.0 s, global."""
    reference_states: FloatArray
    """(41, 11) the simulated reference trajectory."""
    reference_progress: float
    """[m] raw progress of the reference along the centreline."""
    reference_multiplier: float
    """NC x DAC of the reference (NAVSIM 1.1)."""

    centerline: FloatArray
    """(N, 2) vertices of the route centreline from the start of the starting lane."""

    polygon_xy: FloatArray
    """(V, 2) vertices of all rings of all drivable-map polygons; rings are closed."""
    polygon_ring_offsets: NDArray[np.int64]
    """(R + 1,) slices of polygon_xy, one per ring (exterior first, then holes)."""
    polygon_part_offsets: NDArray[np.int64]
    """(M + 1,) slices of the rings, one per polygon."""
    polygon_kind: NDArray[np.int64]
    """(M,) PolygonKind values, in NAVSIM's order (pdm-scorer 2.3)."""
    polygon_on_route: NDArray[np.bool_]
    """(M,) LANE or LANE_CONNECTOR whose id is in the corrected route's lane ids."""

    track_corners: FloatArray
    """(T, K, 4, 2) corners of the tracks' boxes at every 0.1 s; zeros where absent."""
    track_center: FloatArray
    """(T, K, 2) centroid of the track's polygon."""
    track_exists: NDArray[np.bool_]
    """(T, K)."""
    track_is_agent: NDArray[np.bool_]
    """(K,) vehicle, pedestrian or bicycle (an at-fault contact scores 0, otherwise 0.5)."""
    track_is_stopped: NDArray[np.bool_]
    """(K,) not an agent, or at most 0.05 m/s when first seen."""
    track_type: NDArray[np.int64]
    """(K,) index into constants.TRACK_TYPES."""

    polygon_ids: tuple[str, ...] = ()
    """(M,) map ids."""
    track_tokens: tuple[str, ...] = ()
    """(K,)."""
    track_poses: FloatArray | None = None
    """(T, K, 3) centre x, y, heading of the boxes; zeros where absent. What the cache stores instead of
    corners; None in scenes made by hand, which cannot be cached."""
    track_sizes: FloatArray | None = None
    """(K, 2) length, width of the boxes [m]."""


@dataclass(frozen=True)
class SubScoresV1:
    """Result of scoring P proposals under NAVSIM 1.1; every field is (P,) float64."""

    no_at_fault_collisions: FloatArray
    drivable_area_compliance: FloatArray
    driving_direction_compliance: FloatArray
    ego_progress: FloatArray
    time_to_collision_within_bound: FloatArray
    comfort: FloatArray
    score: FloatArray

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The columns, in the order of `tools/score_trajectories.py`."""
        return tuple(f.name for f in fields(cls))
