"""Records of the scorer: a scene ready to be scored, as flat arrays, and the result of scoring.

Shape letters: P proposals, T samples of 0.1 s (51: 0 to 5 s; NAVSIM 2: 41, 0 to 4 s), K tracks, M map
polygons, N centreline vertices. Everything is float64 in the global (UTM) frame of the map unless said
otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
_T = TypeVar("_T")


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
    """Empty if unknown: official metric caches of NAVSIM 1.1 do not name their map."""
    timestamp_us: int

    initial_state: FloatArray
    """(11,) ego at t = 0; rear axle round-tripped through the centre (pdm-scorer 2.1); see StateIndex."""
    human_poses: FloatArray
    """(8, 3) the recorded driver's poses at 0.5 ... 4.0 s in the ego frame of t = 0; NaN where unknown (see
    `convert_cache`)."""

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

    def kept(self, name: str, make: Callable[[], _T]) -> _T:
        """What is made from the scene once and kept with it, for whoever scores the scene again.

        Not a part of the scene: copies by `dataclasses.replace` and pickles are without it.
        """
        store: dict[str, _T] = self.__dict__.setdefault("_kept", {})
        if name not in store:
            store[name] = make()
        return store[name]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}


@dataclass(frozen=True)
class ReactiveTraffic:
    """What NAVSIM 2's reactive policy needs of a scene: its vehicles at t = 0, and the lanes they follow.

    V vehicles of frame 0 in the order of detection, A of them simulated. The other road users of the scene
    are those of `track_*`.
    """

    vehicle_track: NDArray[np.int64]
    """(V,) index of each vehicle among the scene's tracks."""
    vehicle_poses: FloatArray
    """(V, 3) centre x, y, heading at t = 0, as annotated."""
    vehicle_sizes: FloatArray
    """(V, 2) length, width [m]."""
    vehicle_speed: FloatArray
    """(V,) length of the velocity at t = 0 [m/s]."""
    may_freeze: NDArray[np.bool_]
    """(V,) stays where it is while it is not simulated and nothing else stands there; others vanish."""
    agent_vehicle: NDArray[np.int64]
    """(A,) index into the vehicles, in the order in which NAVSIM moves them."""
    agent_poses: FloatArray
    """(A, 3) where the agent's box blocks the others until its first move: snapped to its lane."""
    agent_progress: FloatArray
    """(A,) where the agent starts on its path [m]."""
    agent_target_speed: FloatArray
    """(A,) [m/s]."""
    path_xy: FloatArray
    """(N, 2) vertices of all paths."""
    path_heading: FloatArray
    """(N,) heading of each vertex towards the next, unwrapped along its path [rad]."""
    path_progress: FloatArray
    """(N,) way from the beginning of its path to each vertex [m]."""
    path_offsets: NDArray[np.int64]
    """(A + 1,) slices of the vertices, one per agent."""


@dataclass(frozen=True)
class ScoringSceneV2(ScoringScene):
    """One scene, ready to be scored under NAVSIM 2.2's rules.

    Of the inherited fields, tracks have T = 41 samples (0 to 4 s); `reference_multiplier` is
    NC x DAC x DDC x TLC in non-reactive traffic; `human_poses` is NaN where nobody drove on (second stage).
    """

    is_synthetic: bool = False
    """A second-stage sample: the human-penalty filter does not apply."""
    overlaps_at_start: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    """(K,) touches the ego at t = 0; non-reactive traffic leaves these out altogether."""
    exists_in_frame: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    """(K,) annotated in frame 0 itself (a track of one other frame is there at all samples, but not here)."""
    history_states: FloatArray = field(default_factory=lambda: np.zeros((0, 11)))
    """(14 or 15, 11) logged ego states before t = 0 at 0.1 s; see StateIndex."""
    red_light_xy: FloatArray = field(default_factory=lambda: np.zeros((0, 2)))
    """(V, 2) vertices of the rings of the route's lane connectors that are red at some time."""
    red_light_ring_offsets: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    red_light_part_offsets: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    red_light_on: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((41, 0), dtype=bool))
    """(41, L) which of the L connectors is red at each sample."""
    red_light_ids: tuple[str, ...] = ()
    """(L,) lane connector ids."""
    traffic: ReactiveTraffic | None = None
    """None in scenes that can be scored with non-reactive traffic only."""
    human_zeros_log_replay: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(6, dtype=bool))
    """(6,) sub-scores of HUMAN_FILTERED that are 0 for the human driver in non-reactive traffic; for the
    other kind, see `scorer_v2.reactive_human`."""


HUMAN_FILTERED = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "driving_direction_compliance",
    "traffic_light_compliance",
    "time_to_collision_within_bound",
    "lane_keeping",
)
"""The sub-scores of which the human-penalty filter can lift a 0 to 1 (pdm-scorer 4.14)."""


@dataclass(frozen=True)
class SubScoresV2:
    """Result of scoring P proposals under NAVSIM 2.2, before extended comfort; every field is (P,)."""

    no_at_fault_collisions: FloatArray
    drivable_area_compliance: FloatArray
    driving_direction_compliance: FloatArray
    traffic_light_compliance: FloatArray
    ego_progress: FloatArray
    time_to_collision_within_bound: FloatArray
    lane_keeping: FloatArray
    history_comfort: FloatArray
    multiplicative_metrics_prod: FloatArray
    """NC x DAC x DDC x TLC, lifted by the human-penalty filter under the rule `true`, not under `legacy`."""
    pdm_score: FloatArray
    """Interim score without extended comfort (divisor 14), never lifted by the filter."""
    weighted_metrics: FloatArray
    """(P, 4) EP, TTC, LK, HC as they enter the final score: lifted under `true`, not under `legacy`."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The columns (P,), in the order of `tools/score_trajectories.py`."""
        return tuple(f.name for f in fields(cls) if f.name != "weighted_metrics")


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
