"""The vehicles of a scene that react to the ego, and the lanes they follow.

Everything here depends on the scene alone, not on the trajectory being scored.
Source: pdm-scorer 4.13; NAVSIM v2.2, navsim/planning/simulation/observation/navsim_idm and
navsim_idm_agents.py; nuplan-devkit, observation/idm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely

from drivefine_agent.constants import EGO_LENGTH_M, EGO_REAR_AXLE_TO_CENTER_M, EGO_WIDTH_M, TRACK_TYPES
from drivefine_agent.data.maps import LaneRecord, Layer, Map
from drivefine_agent.scoring.nuplan_boxes import nuplan_box_corners
from drivefine_agent.scoring.observation import FrameTracks
from drivefine_agent.scoring.types import FloatArray, ReactiveTraffic

DEFAULT_TARGET_SPEED_MPS = 10.0
SNAP_DISTANCE_M = 3.0
PARKED_SPEED_MPS = 0.1
HEADING_STEP_M = 0.5  # a lane's direction at a place is the one to the place this far ahead
REPEATED_VERTEX_M = 1e-8

_VEHICLE = TRACK_TYPES.index("vehicle")


@dataclass(frozen=True)
class _Place:
    """Where a vehicle is on the lane it is assigned to."""

    lane: LaneRecord
    progress: float
    """Way from the beginning of the lane's baseline [m]."""
    pose: tuple[float, float, float]
    """x, y [m] and heading [rad] of the baseline there."""
    offset: float
    """Distance of the vehicle's centre from there [m]."""


def build_reactive_traffic(map_: Map, frame: FrameTracks, initial_state: FloatArray) -> ReactiveTraffic:
    """Choose the vehicles that will be simulated and lay out their paths.

    In the order of detection, a vehicle is simulated if it is on a lane (or on a connector in an
    intersection), at most 3 m from the baseline, and if its box, snapped to the baseline, touches neither the
    ego nor a box placed before. Its path is that one lane, and lacks the last vertex. Where the map has no
    speed limit, the target speed is the one used last (at first 10 m/s).

    Args:
      map_: the map of the scene.
      frame: the road users of frame 0; they are taken to be the first tracks of the scene, in this order.
      initial_state: (11,) ego state at t = 0, see StateIndex.

    Raises:
      DataError: a lane of the map is incomplete.
    """
    rows = np.flatnonzero(frame.types == _VEHICLE)
    poses, sizes, speeds = frame.poses[rows], frame.sizes[rows], frame.speeds[rows]
    lane_ids = map_.containing(Layer.LANES, poses[:, :2])
    connector_ids = map_.containing(Layer.LANE_CONNECTORS, poses[:, :2])
    intersection_ids = map_.containing(Layer.INTERSECTIONS, poses[:, :2])

    boxes = [_ego_box(initial_state)]
    agents: list[tuple[int, _Place]] = []
    target_speeds: list[float] = []
    may_freeze = np.zeros(len(rows), dtype=bool)
    target_speed = DEFAULT_TARGET_SPEED_MPS
    for vehicle, pose in enumerate(poses):
        is_on_road = bool(lane_ids[vehicle] or intersection_ids[vehicle])
        lanes = [map_.lanes[id_] for id_ in lane_ids[vehicle]]
        if is_on_road and not lanes:
            lanes = [map_.lane_connectors[id_] for id_ in connector_ids[vehicle]]
        place = _best_place(lanes, pose)
        is_far = place is not None and place.offset > SNAP_DISTANCE_M
        may_freeze[vehicle] = is_far or (bool(speeds[vehicle] < PARKED_SPEED_MPS) and not is_on_road)
        if place is None or is_far:
            continue
        box = shapely.Polygon(nuplan_box_corners(np.array(place.pose), *sizes[vehicle]))
        if shapely.intersects(box, boxes).any():
            continue
        boxes.append(box)
        target_speed = place.lane.speed_limit or target_speed
        agents.append((vehicle, place))
        target_speeds.append(target_speed)

    paths = [_path(place.lane) for _, place in agents]
    return ReactiveTraffic(
        vehicle_track=rows.astype(np.int64),
        vehicle_poses=poses,
        vehicle_sizes=sizes,
        vehicle_speed=speeds,
        may_freeze=may_freeze,
        agent_vehicle=np.array([vehicle for vehicle, _ in agents], dtype=np.int64),
        agent_poses=np.array([place.pose for _, place in agents], dtype=np.float64).reshape(-1, 3),
        agent_progress=np.array([place.progress for _, place in agents], dtype=np.float64),
        agent_target_speed=np.array(target_speeds, dtype=np.float64),
        path_xy=np.concatenate([np.zeros((0, 2)), *(xy for xy, _, _ in paths)]),
        path_heading=np.concatenate([np.zeros(0), *(heading for _, heading, _ in paths)]),
        path_progress=np.concatenate([np.zeros(0), *(progress for _, _, progress in paths)]),
        path_offsets=np.cumsum([0, *(len(path[0]) for path in paths)], dtype=np.int64),
    )


def _ego_box(state: FloatArray) -> shapely.Polygon:
    """The ego's footprint at t = 0, around its centre (not shifted, unlike in the roll-out)."""
    x, y, heading = state[:3]
    center = (
        x + EGO_REAR_AXLE_TO_CENTER_M * np.cos(heading),
        y + EGO_REAR_AXLE_TO_CENTER_M * np.sin(heading),
        heading,
    )
    return shapely.Polygon(nuplan_box_corners(np.array(center), EGO_LENGTH_M, EGO_WIDTH_M))


def _best_place(lanes: Sequence[LaneRecord], pose: FloatArray) -> _Place | None:
    """The place on the lane whose heading is nearest to the vehicle's, first on ties; None without lanes.

    The difference of headings is not wrapped (a defect of nuPlan): a vehicle that heads for -179 degrees
    prefers a lane at 0 to one at 179 degrees.
    """
    places = [_place(lane, pose) for lane in lanes]
    return min(places, key=lambda place: abs(place.pose[2] - float(pose[2])), default=None)


def _place(lane: LaneRecord, pose: FloatArray) -> _Place:
    line = lane.linestring
    progress = float(line.project(shapely.Point(pose[0], pose[1])))
    here, ahead = line.interpolate(progress), line.interpolate(progress + HEADING_STEP_M)
    start, end = here, ahead
    if here == ahead:  # at the end of the lane
        start, end = line.interpolate(progress - HEADING_STEP_M), here
    heading = math.atan2(end.y - start.y, end.x - start.x)
    offset = float(np.hypot(here.x - pose[0], here.y - pose[1]))
    return _Place(lane, progress, (here.x, here.y, heading), offset)


def _path(lane: LaneRecord) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Vertices (n, 2), unwrapped headings (n,) and progress (n,) of the path along one lane.

    NAVSIM drops vertices that repeat and, by the same comparison with the next one, always the last.
    """
    steps = np.diff(lane.baseline, axis=0)
    lengths = np.sqrt(steps[:, 0] ** 2 + steps[:, 1] ** 2)
    progress = np.concatenate([[0.0], np.cumsum(lengths)])
    kept = np.flatnonzero(lengths > REPEATED_VERTEX_M)
    return lane.baseline[kept], np.unwrap(lane.headings[kept]), progress[kept]
