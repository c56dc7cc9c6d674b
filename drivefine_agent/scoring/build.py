"""From a log window and a map to a scene ready to be scored: the counterpart of NAVSIM's metric caching.

Source: pdm-scorer 2; NAVSIM v1.1, navsim/planning/metric_caching/metric_cache_processor.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import shapely

from drivefine_agent.constants import (
    EGO_LENGTH_M,
    EGO_REAR_AXLE_TO_CENTER_M,
    EGO_WIDTH_M,
    NUM_POSES,
)
from drivefine_agent.data.maps import LaneRecord, Map
from drivefine_agent.data.scenes import future_poses
from drivefine_agent.data.types import FloatArray, Frame, SceneWindow
from drivefine_agent.errors import DataError, SceneError
from drivefine_agent.geometry.indices import StateIndex
from drivefine_agent.scoring.centerline import Path, route_centerline, starting_lane
from drivefine_agent.scoring.contacts import TrackBoxes
from drivefine_agent.scoring.drivable_map import DrivableMap, crop_drivable_map, polygon_arrays
from drivefine_agent.scoring.forecast import SAMPLES_PER_MAP, Forecast, forecast_tracks
from drivefine_agent.scoring.nuplan_boxes import nuplan_box_corners
from drivefine_agent.scoring.observation import (
    NUM_OBSERVATION_FRAMES,
    STOPPED_SPEED_MPS,
    FrameTracks,
    SampledTracks,
    frame_tracks,
    resample_tracks,
    track_polygons,
)
from drivefine_agent.scoring.pdm_closed import plan_pdm_closed
from drivefine_agent.scoring.polygons import DrivablePolygons
from drivefine_agent.scoring.route import Route, correct_route, load_route
from drivefine_agent.scoring.scorer import Surroundings, score_states, score_states_v1
from drivefine_agent.scoring.simulate import simulate
from drivefine_agent.scoring.trajectory import rear_axle_round_trip, resample_reference
from drivefine_agent.scoring.types import ScoringScene


def build_scoring_scene(
    window: SceneWindow, map_: Map, collided_memory: set[str] | None = None
) -> ScoringScene:
    """Prepare a scene for scoring under NAVSIM 1.1's rules.

    Args:
      window: a log window with the current frame and at least 10 future frames, all annotated.
      map_: the map of the window's city.
      collided_memory: for parity with a given run of NAVSIM's caching only. NAVSIM never clears the list of
        objects that its planner has overlapped, so a scene's reference depends on the scenes cached before it
        by the same worker. Pass one set through all scenes in that order; it is read and extended. None, the
        default, prepares every scene on its own.

    Raises:
      SceneError: if the scene cannot be prepared; the message names its token and what to do.
    """
    try:
        return _build(window, map_, collided_memory)
    except (SceneError, DataError) as error:
        raise SceneError(f"scene '{window.token}' of log '{window.log_name}': {error}") from error


def _build(window: SceneWindow, map_: Map, collided_memory: set[str] | None) -> ScoringScene:
    if window.num_future_frames < NUM_OBSERVATION_FRAMES - 1:
        raise SceneError(
            f"{NUM_OBSERVATION_FRAMES - 1} future frames (5 s) are needed, got {window.num_future_frames}:"
            f" set num_future_frames={NUM_OBSERVATION_FRAMES - 1} in the scene filter"
        )
    frame = window.current
    state = initial_state(frame)
    roads = prepare_roads(map_, frame, state)
    observed = [window.frame_at(iteration) for iteration in range(NUM_OBSERVATION_FRAMES)]
    tracks = [frame_tracks(seen, rear_axle_round_trip(seen.ego_pose)) for seen in observed]
    forecast = prepare_forecast(tracks[0], frame, roads, collided_memory)
    surroundings = Surroundings(roads.polygons, forecast_boxes(forecast), roads.centerline_xy)

    def score_proposals(poses: FloatArray) -> FloatArray:
        return score_states_v1(
            simulate(poses, state),
            surroundings,
            normalise="batch",
            ignored_tracks=forecast.is_ignored[: forecast.num_objects],
        ).score

    reference_poses = plan_pdm_closed(
        roads.centerline,
        forecast,
        state[: StateIndex.VX],
        float(state[StateIndex.VX]),
        roads.start.speed_limit,
        score_proposals,
    )

    return judge_reference(
        unjudged_scene(
            window, roads, state, reference_poses, resample_tracks(tracks), future_poses(window, NUM_POSES)
        )
    )


def unjudged_scene(
    window: SceneWindow,
    roads: Roads,
    state: FloatArray,
    reference_poses: FloatArray,
    tracks: SampledTracks,
    human_poses: FloatArray,
) -> ScoringScene:
    """What scenes of all rules have in common, with NaN for the worth of the reference."""
    timestamp_us = window.current.timestamp_us
    corners, centers = track_polygons(tracks.poses, tracks.sizes, tracks.exists)
    return ScoringScene(
        token=window.token,
        log_name=window.log_name,
        map_name=window.map_name,
        timestamp_us=timestamp_us,
        initial_state=state,
        human_poses=human_poses,
        reference_poses=reference_poses,
        reference_states=simulate(resample_reference(reference_poses, timestamp_us)[None], state)[0],
        reference_progress=np.nan,
        reference_multiplier=np.nan,
        centerline=roads.centerline_xy,
        polygon_xy=roads.polygons.xy,
        polygon_ring_offsets=roads.polygons.ring_offsets,
        polygon_part_offsets=roads.polygons.part_offsets,
        polygon_kind=roads.polygons.kind,
        polygon_on_route=roads.polygons.on_route,
        track_corners=corners,
        track_center=centers,
        track_exists=tracks.exists,
        track_is_agent=tracks.is_agent,
        track_is_stopped=tracks.is_stopped,
        track_type=tracks.types,
        polygon_ids=roads.drivable_map.ids,
        track_tokens=tracks.tokens,
        track_poses=tracks.poses,
        track_sizes=tracks.sizes,
    )


def judge_reference(scene: ScoringScene) -> ScoringScene:
    """The scene with the worth of its reference under NAVSIM 1.1's rules."""
    reference = score_states(scene.reference_states[None], Surroundings.from_scene(scene))
    return replace(
        scene,
        reference_progress=float(reference.progress_m[0]),
        reference_multiplier=float(reference.multiplier[0]),
    )


def initial_state(frame: Frame) -> FloatArray:
    """(11,) ego state of a frame, as the simulation starts from it.

    Pose, velocity and acceleration are logged ones; there is no steering and no turning. NAVSIM stores the
    pose by the centre of the vehicle, and the way there and back costs about 1e-9 m.
    """
    state = np.zeros(len(StateIndex))
    state[: StateIndex.VX] = rear_axle_round_trip(frame.ego_pose)
    state[[StateIndex.VX, StateIndex.VY]] = frame.ego_velocity
    state[[StateIndex.AX, StateIndex.AY]] = frame.ego_acceleration
    return state


def ego_center(rear_axle: FloatArray) -> FloatArray:
    """(2,) centre of the ego box at a rear-axle pose (3,)."""
    direction = np.array([np.cos(rear_axle[2]), np.sin(rear_axle[2])])
    return rear_axle[:2] + EGO_REAR_AXLE_TO_CENTER_M * direction


@dataclass(frozen=True)
class Roads:
    """The map around the ego, and its way through it."""

    route: Route
    """Corrected."""
    drivable_map: DrivableMap
    polygons: DrivablePolygons
    start: LaneRecord
    """The lane that the ego starts on."""
    centerline: Path
    centerline_xy: FloatArray
    """(N, 2) vertices [m]."""
    ego_center: FloatArray
    """(2,) [m]."""
    ego_footprint: shapely.Polygon
    """At t = 0."""


def prepare_roads(map_: Map, frame: Frame, state: FloatArray) -> Roads:
    """Route, map crop and centreline of a frame with the ego state (11,)."""
    pose = state[: StateIndex.VX]
    center = ego_center(pose)
    footprint = shapely.Polygon(nuplan_box_corners(np.array([*center, pose[2]]), EGO_LENGTH_M, EGO_WIDTH_M))
    route = correct_route(map_, load_route(map_, frame.roadblock_ids), pose)
    drivable_map = crop_drivable_map(map_, center)
    start = starting_lane(route, drivable_map, pose, footprint)
    centerline = route_centerline(map_, route, start)
    xy, ring_offsets, part_offsets = polygon_arrays(drivable_map.polygons)
    polygons = DrivablePolygons(
        xy, ring_offsets, part_offsets, drivable_map.kinds, drivable_map.on_route(set(route.lanes))
    )
    return Roads(
        route, drivable_map, polygons, start, centerline, centerline.poses[:, :2].copy(), center, footprint
    )


def prepare_forecast(
    tracks: FrameTracks, frame: Frame, roads: Roads, collided_memory: set[str] | None
) -> Forecast:
    """What the reference planner believes the others will do; see `build_scoring_scene` on the memory."""
    forecast = forecast_tracks(
        tracks, _red_lights(frame, roads.route), roads.ego_center, roads.ego_footprint, collided_memory or ()
    )
    if collided_memory is not None:
        collided_memory.update(
            token for token, ignored in zip(forecast.tokens, forecast.is_ignored, strict=True) if ignored
        )
    return forecast


def _red_lights(frame: Frame, route: Route) -> dict[str, shapely.Polygon]:
    """Polygons of the route's lane connectors that are red in a frame."""
    return {
        str(connector_id): route.lanes[str(connector_id)].polygon
        for connector_id, is_red in frame.traffic_lights
        if is_red and str(connector_id) in route.lanes
    }


def forecast_boxes(forecast: Forecast) -> TrackBoxes:
    """The forecast on the 10 Hz grid, without its red lights, which never count as collisions."""
    corners = np.repeat(forecast.corners, SAMPLES_PER_MAP, axis=0)
    return TrackBoxes(
        corners=corners,
        center=np.repeat(forecast.centroids, SAMPLES_PER_MAP, axis=0),
        exists=np.ones(corners.shape[:2], dtype=bool),
        is_agent=forecast.is_agent,
        is_stopped=~forecast.is_agent | (forecast.speeds <= STOPPED_SPEED_MPS),
    )
