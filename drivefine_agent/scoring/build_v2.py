"""From a log window, or a second-stage scene, and a map to a scene ready to be scored by NAVSIM 2's rules.

Source: pdm-scorer 2; NAVSIM v2.2, navsim/planning/metric_caching/metric_cache_processor.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import shapely
from numpy.typing import NDArray

from drivefine_agent.constants import NUM_POSES, SIM_INTERVAL_S, TRACK_TYPES
from drivefine_agent.data.maps import Map
from drivefine_agent.data.scenes import future_poses
from drivefine_agent.data.types import FloatArray, GlobalObjects, SceneWindow
from drivefine_agent.errors import DataError, SceneError
from drivefine_agent.geometry.indices import StateIndex
from drivefine_agent.scoring.build import (
    Roads,
    forecast_boxes,
    initial_state,
    prepare_forecast,
    prepare_roads,
    unjudged_scene,
)
from drivefine_agent.scoring.drivable_map import polygon_arrays
from drivefine_agent.scoring.forecast import NUM_MAPS, SAMPLES_PER_MAP, Forecast
from drivefine_agent.scoring.observation import (
    NUM_AGENT_TYPES,
    NUM_OBSERVATION_FRAMES_V2,
    SAMPLES_PER_FRAME,
    FrameTracks,
    frame_tracks,
    resample_tracks,
)
from drivefine_agent.scoring.pdm_closed import plan_pdm_closed
from drivefine_agent.scoring.reactive_scene import build_reactive_traffic
from drivefine_agent.scoring.route import load_route
from drivefine_agent.scoring.scorer import simulated
from drivefine_agent.scoring.scorer_v2 import (
    SurroundingsV2,
    human_zeros,
    planner_scores_v2,
    score_states_v2,
)
from drivefine_agent.scoring.simulate import simulate
from drivefine_agent.scoring.traffic_lights import RedLights
from drivefine_agent.scoring.trajectory import rear_axle_round_trip
from drivefine_agent.scoring.types import ScoringSceneV2

NUM_HISTORY_STATES = 4  # frames at -1.5, -1.0, -0.5 and 0 s
_NUM_FUTURE = NUM_OBSERVATION_FRAMES_V2 - 1
_HISTORY_STEP_US = round(SIM_INTERVAL_S * 1e6)

Lights = tuple[tuple[int, bool], ...]


def build_scoring_scene_v2(
    window: SceneWindow, map_: Map, collided_memory: set[str] | None = None
) -> ScoringSceneV2:
    """Prepare a scene for scoring under NAVSIM 2.2's rules.

    Args:
      window: three past frames, the current one, and 4 s of future: at least 8 annotated frames, or the
        detections of a second-stage scene.
      map_: the map of the window's city.
      collided_memory: for parity with a given run of NAVSIM's caching only; see `build.build_scoring_scene`.

    Raises:
      SceneError: if the scene cannot be prepared; the message names its token and what to do.
    """
    try:
        return _build(window, map_, collided_memory)
    except (SceneError, DataError) as error:
        raise SceneError(f"scene '{window.token}' of log '{window.log_name}': {error}") from error


def _build(window: SceneWindow, map_: Map, collided_memory: set[str] | None) -> ScoringSceneV2:
    frame = window.current
    state = initial_state(frame)
    roads = prepare_roads(map_, frame, state)
    tracks, lights = _observed_tracks(window), _observed_lights(window)
    forecast = prepare_forecast(tracks[0], frame, roads, collided_memory)
    reference_poses = _plan_reference(roads, forecast, state)

    is_synthetic = window.second_stage is not None
    human_poses = np.full((NUM_POSES, 3), np.nan) if is_synthetic else future_poses(window, NUM_POSES)
    common = unjudged_scene(window, roads, state, reference_poses, resample_tracks(tracks), human_poses)
    at_start = shapely.polygons(common.track_corners[0])
    light_ids, light_polygons, light_on = _red_lights_on_route(map_, frame.roadblock_ids, lights)
    light_xy, light_rings, light_parts = polygon_arrays(light_polygons)
    scene = ScoringSceneV2(
        **vars(common),
        is_synthetic=is_synthetic,
        overlaps_at_start=shapely.intersects(at_start, roads.ego_footprint) & common.track_exists[0],
        exists_in_frame=np.arange(len(common.track_tokens)) < len(tracks[0].tokens),
        history_states=history_states(window),
        red_light_xy=light_xy,
        red_light_ring_offsets=light_rings,
        red_light_part_offsets=light_parts,
        red_light_on=light_on,
        red_light_ids=light_ids,
        traffic=build_reactive_traffic(map_, tracks[0], state),
    )
    return judge_reference_and_human(scene)


def judge_reference_and_human(scene: ScoringSceneV2) -> ScoringSceneV2:
    """The scene with what depends on it alone: worth of the reference, failures of the recorded driver.

    The driver in reactive traffic is left to scoring, as in NAVSIM: see `scorer_v2.reactive_human`.
    """
    surroundings = SurroundingsV2.from_scene(scene)
    reference = score_states_v2(
        scene.reference_states[None], surroundings, scene.history_states, scene.overlaps_at_start
    )
    scene = replace(
        scene,
        reference_progress=float(reference.progress_m[0]),
        reference_multiplier=float(reference.multiplier[0]),
    )
    if scene.is_synthetic:
        return scene
    states = simulated(scene, scene.human_poses[None])
    replayed = score_states_v2(states, surroundings, None, scene.overlaps_at_start)
    return replace(scene, human_zeros_log_replay=human_zeros(replayed))


def history_states(window: SceneWindow) -> FloatArray:
    """Logged ego states of the past 1.5 s at 0.1 s, as NAVSIM puts them before the simulated ones.

    Returns:
      (H, 11) with H = 14 or 15 for 1.5 s; no steering and no turning.
    """
    if window.num_history_frames < NUM_HISTORY_STATES:
        raise SceneError(
            f"{NUM_HISTORY_STATES} frames up to now (1.5 s) are needed, got {window.num_history_frames}: set "
            f"num_history_frames={NUM_HISTORY_STATES} in the scene filter"
        )
    frames = [window.frame_at(iteration) for iteration in range(1 - NUM_HISTORY_STATES, 1)]
    knots_us = np.array([frame.timestamp_us for frame in frames], dtype=np.int64)
    return resample_history(knots_us, np.array([initial_state(frame) for frame in frames]))


def resample_history(knots_us: NDArray[np.int64], knots: FloatArray) -> FloatArray:
    """Logged ego states at 0.1 s, linearly between those of the frames.

    Their number depends on the jitter of the stamps: the grid starts at the first stamp, ends before the
    last, and then loses one more (pdm-scorer 4.10).

    Args:
      knots_us: (F,) stamps of the frames up to now [us].
      knots: (F, 11) ego states of the frames, see StateIndex.

    Returns:
      (H, 11).

    Raises:
      SceneError: if the stamps do not increase.
    """
    if (np.diff(knots_us) <= 0).any():
        raise SceneError(f"stamps of the past frames must increase, got {knots_us.tolist()} us")
    knots = knots.copy()
    knots[:, StateIndex.HEADING] = np.unwrap(knots[:, StateIndex.HEADING])
    times_us = np.arange(knots_us[0], knots_us[-1], _HISTORY_STEP_US)[:-1]
    upper = np.clip(np.searchsorted(knots_us, times_us), 1, len(knots) - 1)
    lower = upper - 1
    slope = (knots[upper] - knots[lower]) / (knots_us[upper] - knots_us[lower])[:, None]
    states = slope * (times_us - knots_us[lower])[:, None] + knots[lower]
    heading = states[:, StateIndex.HEADING]
    states[:, StateIndex.HEADING] = (heading + np.pi) % (2 * np.pi) - np.pi
    return np.asarray(states)


def _plan_reference(roads: Roads, forecast: Forecast, state: FloatArray) -> FloatArray:
    """(51, 3) the trajectory of PDM-Closed, which believes that red lights stay red."""
    surroundings = SurroundingsV2(
        roads.polygons,
        forecast_boxes(forecast),
        RedLights.always(forecast.red_lights, NUM_MAPS * SAMPLES_PER_MAP),
        roads.centerline_xy,
    )
    ignored = forecast.is_ignored[: forecast.num_objects]
    return plan_pdm_closed(
        roads.centerline,
        forecast,
        state[: StateIndex.VX],
        float(state[StateIndex.VX]),
        roads.start.speed_limit,
        lambda poses: planner_scores_v2(simulate(poses, state), surroundings, ignored),
    )


def _observed_tracks(window: SceneWindow) -> list[FrameTracks]:
    """Objects at 0, 0.5, ... 4.0 s, from the log or from the scene's simulated future."""
    current = frame_tracks(window.current, rear_axle_round_trip(window.current.ego_pose))
    if window.second_stage is not None:
        future = window.second_stage.future_objects
        if len(future) < _NUM_FUTURE:
            raise SceneError(
                f"a second-stage scene needs detections at {_NUM_FUTURE} future times (4 s), got "
                f"{len(future)}: the file is incomplete, fetch it again"
            )
        return [current, *(global_tracks(objects) for objects in future[:_NUM_FUTURE])]
    if window.num_future_frames < _NUM_FUTURE:
        raise SceneError(
            f"{_NUM_FUTURE} future frames (4 s) are needed, got {window.num_future_frames}: set "
            f"num_future_frames={_NUM_FUTURE} in the scene filter"
        )
    frames = [window.frame_at(iteration) for iteration in range(1, NUM_OBSERVATION_FRAMES_V2)]
    return [current, *(frame_tracks(frame, rear_axle_round_trip(frame.ego_pose)) for frame in frames)]


def global_tracks(objects: GlobalObjects) -> FrameTracks:
    """The ready-made objects of one time of a second-stage scene, sorted by type (stably)."""
    types = np.array([TRACK_TYPES.index(name) for name in objects.names], dtype=np.int64)
    order = np.argsort(types, kind="stable")
    tokens = tuple(objects.track_tokens[i] for i in order)
    if len(set(tokens)) < len(tokens):
        twice = next(token for token in tokens if tokens.count(token) > 1)
        raise SceneError(f"a track may occur once at a time, '{twice}' occurs more often")
    poses = np.asarray(objects.poses, dtype=np.float64).reshape(-1, 3)[order]
    velocities = np.asarray(objects.velocities, dtype=np.float64).reshape(-1, 2)[order].copy()
    velocities[types[order] >= NUM_AGENT_TYPES] = 0.0
    sizes = np.asarray(objects.sizes, dtype=np.float64).reshape(-1, 2)[order]
    return FrameTracks(tokens, types[order], poses, sizes, velocities)


def _observed_lights(window: SceneWindow) -> list[Lights]:
    """Traffic lights at 0, 0.5, ... 4.0 s; a second-stage scene may have fewer, then there are none."""
    if window.second_stage is None:
        return [window.frame_at(i).traffic_lights for i in range(NUM_OBSERVATION_FRAMES_V2)]
    future = list(window.second_stage.future_lights[:_NUM_FUTURE])
    return [window.current.traffic_lights, *future, *([()] * (_NUM_FUTURE - len(future)))]


def _red_lights_on_route(
    map_: Map, roadblock_ids: Sequence[str], lights: Sequence[Lights]
) -> tuple[tuple[str, ...], NDArray[np.object_], NDArray[np.bool_]]:
    """Ids and polygons of the L connectors that are red at some time, and (41, L) when.

    A state holds for the five samples from its frame on. NAVSIM looks along the route as it was recorded, not
    as it was corrected.
    """
    lanes = load_route(map_, roadblock_ids).lanes
    red = [
        [str(connector) for connector, is_red in states if is_red and str(connector) in lanes]
        for states in lights
    ]
    ids = tuple(dict.fromkeys(id_ for states in red for id_ in states))
    frame_of_sample = np.arange(SAMPLES_PER_FRAME * (len(lights) - 1) + 1) // SAMPLES_PER_FRAME
    is_red = np.array([[id_ in states for id_ in ids] for states in red], dtype=bool)
    polygons = np.empty(len(ids), dtype=object)
    polygons[:] = [lanes[id_].polygon for id_ in ids]
    return ids, polygons, is_red.reshape(len(lights), len(ids))[frame_of_sample]
