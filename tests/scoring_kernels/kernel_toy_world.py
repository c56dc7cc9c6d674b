"""A hand-made world: a straight road along x, its lane and centreline; tracks are functions of time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import shapely

from drivefine_agent.scoring.contacts import TrackBoxes
from drivefine_agent.scoring.polygons import DrivablePolygons
from drivefine_agent.scoring.scorer import StateScoresV1, Surroundings, score_states
from drivefine_agent.scoring.simulate import simulate
from drivefine_agent.scoring.trajectory import proposals_to_reference
from drivefine_agent.scoring.types import FloatArray, PolygonKind, ScoringScene

TIMESTAMP_US = 1_600_000_000_000_000
NUM_SAMPLES = 51
CENTERLINE = np.array([[-20.0, 0.0], [150.0, 0.0]])


@dataclass(frozen=True)
class Track:
    """A road user: where it is at time t [s], its size [m], and the two flags the rules ask for."""

    position: Callable[[float], tuple[float, float]]
    length: float = 4.5
    width: float = 2.0
    is_agent: bool = True
    is_stopped: bool = False
    heading: float = 0.0
    exists: Callable[[int], bool] = lambda _sample: True


@dataclass(frozen=True)
class Area:
    """A tagged map polygon."""

    polygon: shapely.Polygon
    kind: PolygonKind
    on_route: bool = False


def parked_car(x: float, y: float = 0.0) -> Track:
    return Track(lambda _t: (x, y), is_stopped=True)


def cone(x: float, y: float = 0.0) -> Track:
    return Track(lambda _t: (x, y), length=0.5, width=0.5, is_agent=False, is_stopped=True)


def strip(y_low: float, y_high: float, x_low: float = -50.0, x_high: float = 150.0) -> shapely.Polygon:
    return shapely.box(x_low, y_low, x_high, y_high)


def road(width: float = 3.5, on_route: bool = True) -> list[Area]:
    """A roadblock and its only lane, x from -50 to 150, centred on y = 0."""
    polygon = strip(-width / 2, width / 2)
    return [Area(polygon, PolygonKind.ROADBLOCK), Area(polygon, PolygonKind.LANE, on_route)]


def box_corners(x: float, y: float, heading: float, length: float, width: float) -> FloatArray:
    """(4, 2) front left, rear left, rear right, front right."""
    along = np.array([np.cos(heading), np.sin(heading)])
    left = np.array([-np.sin(heading), np.cos(heading)])
    signs = ((1, 1), (-1, 1), (-1, -1), (1, -1))
    return np.array([np.array([x, y]) + a * length / 2 * along + b * width / 2 * left for a, b in signs])


def track_boxes(tracks: Sequence[Track]) -> TrackBoxes:
    corners = np.zeros((NUM_SAMPLES, len(tracks), 4, 2))
    center = np.zeros((NUM_SAMPLES, len(tracks), 2))
    exists = np.zeros((NUM_SAMPLES, len(tracks)), dtype=bool)
    for k, track in enumerate(tracks):
        for t in range(NUM_SAMPLES):
            x, y = track.position(t * 0.1)
            if track.exists(t):
                corners[t, k] = box_corners(x, y, track.heading, track.length, track.width)
                center[t, k] = x, y
                exists[t, k] = True
    return TrackBoxes(
        corners=corners,
        center=center,
        exists=exists,
        is_agent=np.array([track.is_agent for track in tracks], dtype=bool),
        is_stopped=np.array([track.is_stopped for track in tracks], dtype=bool),
    )


def drivable_polygons(areas: Sequence[Area]) -> DrivablePolygons:
    return DrivablePolygons.from_shapely(
        [area.polygon for area in areas],
        np.array([int(area.kind) for area in areas], dtype=np.int64),
        np.array([area.on_route for area in areas], dtype=bool),
    )


def surroundings(areas: Sequence[Area] | None = None, tracks: Sequence[Track] = ()) -> Surroundings:
    return Surroundings(
        polygons=drivable_polygons(road() if areas is None else areas),
        tracks=track_boxes(tracks),
        centerline=CENTERLINE,
    )


def ego_at_origin(speed: float = 5.0, accel: float = 0.0, lateral_accel: float = 0.0, heading: float = 0.0):
    state = np.zeros(11)
    state[2], state[3], state[5], state[6] = heading, speed, accel, lateral_accel
    return state


def straight_poses(speed: float = 5.0) -> FloatArray:
    """(8, 3) constant speed along x."""
    poses = np.zeros((8, 3))
    poses[:, 0] = speed * 0.5 * np.arange(1, 9)
    return poses


def states_of(poses: FloatArray, initial_state: FloatArray) -> FloatArray:
    """(P, 41, 11) simulated states of poses (P, 8, 3) or (8, 3)."""
    batch = np.asarray(poses).reshape(-1, *np.shape(poses)[-2:])
    return simulate(proposals_to_reference(initial_state, TIMESTAMP_US, batch), initial_state)


def moving_states(speed: float, heading: float = 0.0, x: float = 0.0, y: float = 0.0) -> FloatArray:
    """(1, 41, 11) states that move exactly straight, without the simulator."""
    states = np.zeros((1, 41, 11))
    time_s = 0.1 * np.arange(41)
    states[0, :, 0] = x + speed * time_s * np.cos(heading)
    states[0, :, 1] = y + speed * time_s * np.sin(heading)
    states[0, :, 2] = heading
    states[0, :, 3] = speed
    return states


def score_alone(areas: Sequence[Area] | None = None, tracks: Sequence[Track] = (), speed: float = 5.0):
    """Scores of the straight drive at constant speed."""
    states = states_of(straight_poses(speed), ego_at_origin(speed))
    return score_states(states, surroundings(areas, tracks))


def values(scores: StateScoresV1) -> tuple[float, float, float]:
    """NC, DAC, TTC of the first proposal."""
    return (
        float(scores.no_at_fault_collisions[0]),
        float(scores.drivable_area_compliance[0]),
        float(scores.time_to_collision_within_bound[0]),
    )


def toy_scene(
    areas: Sequence[Area] | None = None,
    tracks: Sequence[Track] = (),
    *,
    initial_state: FloatArray | None = None,
    reference_progress: float = 20.0,
    reference_multiplier: float = 1.0,
) -> ScoringScene:
    """A ScoringScene of the toy world; its reference is given by its two numbers."""
    around = surroundings(areas, tracks)
    return ScoringScene(
        token="toy",
        log_name="toy",
        map_name="sg-one-north",
        timestamp_us=TIMESTAMP_US,
        initial_state=ego_at_origin() if initial_state is None else initial_state,
        human_poses=straight_poses(),
        reference_poses=np.zeros((51, 3)),
        reference_states=np.zeros((41, 11)),
        reference_progress=reference_progress,
        reference_multiplier=reference_multiplier,
        centerline=around.centerline,
        polygon_xy=around.polygons.xy,
        polygon_ring_offsets=around.polygons.ring_offsets,
        polygon_part_offsets=around.polygons.part_offsets,
        polygon_kind=around.polygons.kind,
        polygon_on_route=around.polygons.on_route,
        track_corners=around.tracks.corners,
        track_center=around.tracks.center,
        track_exists=around.tracks.exists,
        track_is_agent=around.tracks.is_agent,
        track_is_stopped=around.tracks.is_stopped,
        track_type=np.zeros(len(around.tracks.is_agent), dtype=np.int64),
    )
