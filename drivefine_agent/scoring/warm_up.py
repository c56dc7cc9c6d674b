"""Loads every compiled kernel of the scorer before it is needed: before timing, before starting workers."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import shapely

from drivefine_agent.constants import NUM_POSE_FIELDS, NUM_POSES, NUM_SIM_STATES
from drivefine_agent.scoring.centerline import Path
from drivefine_agent.scoring.forecast import forecast_tracks
from drivefine_agent.scoring.observation import FrameTracks
from drivefine_agent.scoring.pdm_closed import plan_pdm_closed
from drivefine_agent.scoring.polygons import DrivablePolygons
from drivefine_agent.scoring.scorer import score_v1
from drivefine_agent.scoring.scorer_v2 import score_v2
from drivefine_agent.scoring.trajectory import resample_reference
from drivefine_agent.scoring.types import PolygonKind, ReactiveTraffic, ScoringScene, ScoringSceneV2

_Scene = TypeVar("_Scene", bound=ScoringScene)


def warm_up() -> None:
    """Plans and scores in a made-up scene, so that all kernels are compiled, or loaded from numba's cache.

    Takes about a minute where nothing has been compiled yet, and a second or two otherwise. Processes started
    afterwards find the cache on disk; forked ones have the kernels in memory.
    """
    poses = np.zeros((1, NUM_POSES, NUM_POSE_FIELDS))
    poses[0, :, 0] = np.arange(1.0, NUM_POSES + 1.0)
    resample_reference(np.zeros((51, NUM_POSE_FIELDS)), 0)
    score_v1(made_up_scene(ScoringScene, 51), poses)
    scene = made_up_scene(ScoringSceneV2, NUM_SIM_STATES)
    score_v2(scene, poses)
    score_v2(scene, poses, traffic="reactive")
    _plan()


def _plan() -> None:
    """The reference planner behind a car."""
    car = FrameTracks(
        tokens=("car",),
        types=np.zeros(1, dtype=np.int64),
        poses=np.array([[20.0, 0.0, 0.0]]),
        sizes=np.array([[4.0, 2.0]]),
        velocities=np.array([[3.0, 0.0]]),
    )
    forecast = forecast_tracks(car, {}, np.zeros(2), shapely.box(-2.0, -1.0, 2.0, 1.0))
    line = Path.from_poses(np.array([[-50.0, 0.0, 0.0], [100.0, 0.0, 0.0]]))
    plan_pdm_closed(line, forecast, np.zeros(3), 2.0, None, lambda proposals: np.zeros(len(proposals)))


def made_up_scene(kind: type[_Scene], num_samples: int) -> _Scene:
    """A straight road, two cars ahead in the ego's lane."""
    road = shapely.box(-50.0, -5.0, 100.0, 5.0)
    polygons = DrivablePolygons.from_shapely(
        [road, road], np.array([PolygonKind.ROADBLOCK, PolygonKind.LANE]), np.array([False, True])
    )
    cars = np.array([[10.0, 0.0, 0.0], [18.0, 0.0, 0.0]])
    corners = cars[:, None, :2] + np.array([[2.0, 1.0], [-2.0, 1.0], [-2.0, -1.0], [2.0, -1.0]])
    initial_state = np.zeros(11)
    initial_state[3] = 2.0
    extra: dict[str, Any] = {}
    if issubclass(kind, ScoringSceneV2):
        extra = {
            "overlaps_at_start": np.zeros(2, dtype=bool),
            "exists_in_frame": np.ones(2, dtype=bool),
            "history_states": np.zeros((14, 11)),
            "red_light_xy": shapely.get_coordinates(shapely.box(5.0, -5.0, 100.0, 5.0)),
            "red_light_ring_offsets": np.array([0, 5]),
            "red_light_part_offsets": np.array([0, 1]),
            "red_light_on": np.ones((num_samples, 1), dtype=bool),
            "red_light_ids": ("red",),
            "traffic": ReactiveTraffic(
                vehicle_track=np.arange(2),
                vehicle_poses=cars,
                vehicle_sizes=np.full((2, 2), (4.0, 2.0)),
                vehicle_speed=np.ones(2),
                may_freeze=np.zeros(2, dtype=bool),
                agent_vehicle=np.arange(2),
                agent_poses=cars,
                agent_progress=np.array([60.0, 68.0]),
                agent_target_speed=np.full(2, 10.0),
                path_xy=np.array([[-50.0, 0.0], [20.0, 0.0], [90.0, 0.0]] * 2),
                path_heading=np.zeros(6),
                path_progress=np.array([0.0, 70.0, 140.0] * 2),
                path_offsets=np.array([0, 3, 6]),
            ),
        }
    return kind(
        token="warm_up",
        log_name="",
        map_name="",
        timestamp_us=1_600_000_000_000_000,
        initial_state=initial_state,
        human_poses=np.zeros((NUM_POSES, NUM_POSE_FIELDS)),
        reference_poses=np.zeros((51, 3)),
        reference_states=np.zeros((NUM_SIM_STATES, 11)),
        reference_progress=10.0,
        reference_multiplier=1.0,
        centerline=np.array([[-50.0, 0.0], [100.0, 0.0]]),
        polygon_xy=polygons.xy,
        polygon_ring_offsets=polygons.ring_offsets,
        polygon_part_offsets=polygons.part_offsets,
        polygon_kind=polygons.kind,
        polygon_on_route=polygons.on_route,
        track_corners=np.broadcast_to(corners, (num_samples, 2, 4, 2)).copy(),
        track_center=np.broadcast_to(cars[:, :2], (num_samples, 2, 2)).copy(),
        track_exists=np.ones((num_samples, 2), dtype=bool),
        track_is_agent=np.ones(2, dtype=bool),
        track_is_stopped=np.zeros(2, dtype=bool),
        track_type=np.zeros(2, dtype=np.int64),
        track_tokens=("first", "second"),
        **extra,
    )
