"""From an official metric cache to a scene ready to be scored: what NAVSIM prepared, in our arrays.

The counterpart of `build` and `build_v2`, which prepare scenes from logs and maps. Here route, centreline,
polygons, tracks and reference trajectory are NAVSIM's own; only what follows from them is computed.

Shape letters: T samples of 0.1 s, K tracks. Source: pdm-scorer 2.7-2.9.
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

from drivefine_agent.constants import EGO_LENGTH_M, EGO_WIDTH_M, NUM_POSES, TRACK_TYPES
from drivefine_agent.data.maps import Map
from drivefine_agent.data.metric_cache import MetricCacheFile
from drivefine_agent.data.types import FloatArray
from drivefine_agent.errors import DataError, SceneError
from drivefine_agent.geometry.indices import StateIndex
from drivefine_agent.scoring.build import ego_center, judge_reference
from drivefine_agent.scoring.build_v2 import (
    NUM_HISTORY_STATES,
    global_tracks,
    judge_reference_and_human,
    resample_history,
)
from drivefine_agent.scoring.cache_layout import RULES_V1, RULES_V2
from drivefine_agent.scoring.drivable_map import DrivableMap, polygon_arrays
from drivefine_agent.scoring.nuplan_boxes import nuplan_box_corners
from drivefine_agent.scoring.observation import (
    NUM_AGENT_TYPES,
    STOPPED_SPEED_MPS,
    SampledTracks,
    track_polygons,
)
from drivefine_agent.scoring.reactive_scene import build_reactive_traffic
from drivefine_agent.scoring.simulate import simulate
from drivefine_agent.scoring.trajectory import resample_reference
from drivefine_agent.scoring.types import PolygonKind, ScoringScene, ScoringSceneV2

RULES_OF_VERSION = {"1.1": RULES_V1, "2.2": RULES_V2}
"""NAVSIM version -> rules that its metric caches are for."""
NUM_REFERENCE_POSES = 51
_REFERENCE_STEP_US = 100_000
_BOX_TOLERANCE_M = 1e-6  # corners lie some 1e-9 m from those of the pose found for them


def scoring_scene_from_metric_cache(cache: MetricCacheFile, map_: Map | None = None) -> ScoringScene:
    """The scene of an official metric cache, under the rules of the version that wrote it.

    Args:
      cache: of NAVSIM 1.1 or 2.2 (`data.metric_cache.read_metric_cache`).
      map_: the map of the scene's city, for reactive traffic, which a cache does not hold; of use for 2.2
        only. Without it the scene can be scored in non-reactive traffic.

    Returns:
      For 1.1 a ScoringScene whose map name is empty and whose human poses are NaN: its caches hold neither.
      For 2.2 a ScoringSceneV2.

    Raises:
      SceneError: if the cache does not fit together; the message names its token.
    """
    try:
        return judge_reference(_common_scene(cache)) if cache.version == "1.1" else _scene_v2(cache, map_)
    except (SceneError, DataError) as error:
        raise SceneError(f"scene '{cache.token}' of log '{cache.log_name}': {error}") from error


def _scene_v2(cache: MetricCacheFile, map_: Map | None) -> ScoringSceneV2:
    if cache.current_objects is None or cache.history_us is None or cache.history_states is None:
        raise SceneError("a metric cache of NAVSIM 2.2 needs detections and ego states up to now, got none")
    if len(cache.history_us) != NUM_HISTORY_STATES:
        raise SceneError(f"{NUM_HISTORY_STATES} past ego states are needed, got {len(cache.history_us)}")
    if not cache.is_synthetic and (cache.human_poses is None or not np.isfinite(cache.human_poses).all()):
        raise SceneError("a metric cache of a first-stage scene needs the recorded driver's poses, got none")
    common = _common_scene(cache)
    pose = cache.ego_state[: StateIndex.VX]
    box = np.array([*ego_center(pose), pose[2]])
    footprint = shapely.Polygon(nuplan_box_corners(box, EGO_LENGTH_M, EGO_WIDTH_M))
    start = shapely.polygons(common.track_corners[0])
    light_ids, light_polygons, light_on = _red_lights(cache)
    light_xy, light_rings, light_parts = polygon_arrays(light_polygons)
    in_frame = set(cache.current_objects.track_tokens)
    traffic = None
    if map_ is not None:
        traffic = build_reactive_traffic(map_, global_tracks(cache.current_objects), cache.ego_state)
    scene = ScoringSceneV2(
        **vars(common),
        is_synthetic=cache.is_synthetic,
        overlaps_at_start=shapely.intersects(start, footprint) & common.track_exists[0],
        exists_in_frame=np.array([token in in_frame for token in common.track_tokens], dtype=bool),
        history_states=resample_history(cache.history_us, cache.history_states),
        red_light_xy=light_xy,
        red_light_ring_offsets=light_rings,
        red_light_part_offsets=light_parts,
        red_light_on=light_on,
        red_light_ids=light_ids,
        traffic=traffic,
    )
    return judge_reference_and_human(scene)


def _common_scene(cache: MetricCacheFile) -> ScoringScene:
    """What both versions' caches say alike; the reference is not judged yet."""
    expected_us = cache.timestamp_us + np.arange(NUM_REFERENCE_POSES) * _REFERENCE_STEP_US
    if not np.array_equal(cache.trajectory_us, expected_us):
        raise SceneError(
            f"the reference trajectory needs {NUM_REFERENCE_POSES} poses exactly 0.1 s apart from"
            f" {cache.timestamp_us} us on, got other stamps"
        )
    if len(cache.centerline) < 2:
        raise SceneError(f"a centreline has two vertices at least, got {len(cache.centerline)}")
    known = [kind.value for kind in PolygonKind]
    if not np.isin(cache.map_kinds, known).all():
        raise SceneError(f"map polygons must be of the kinds {known}, got {sorted(set(cache.map_kinds))}")
    human = np.full((NUM_POSES, 3), np.nan) if cache.human_poses is None else cache.human_poses
    drivable_map = DrivableMap(cache.map_ids, cache.map_kinds, cache.map_polygons)
    xy, ring_offsets, part_offsets = polygon_arrays(cache.map_polygons)
    tracks = sampled_tracks(cache)
    corners, centers = track_polygons(tracks.poses, tracks.sizes, tracks.exists)
    reference = resample_reference(cache.trajectory_poses, cache.timestamp_us)
    return ScoringScene(
        token=cache.token,
        log_name=cache.log_name,
        map_name=cache.map_name,
        timestamp_us=cache.timestamp_us,
        initial_state=cache.ego_state,
        human_poses=human,
        reference_poses=cache.trajectory_poses,
        reference_states=simulate(reference[None], cache.ego_state)[0],
        reference_progress=np.nan,
        reference_multiplier=np.nan,
        centerline=cache.centerline[:, :2].copy(),
        polygon_xy=xy,
        polygon_ring_offsets=ring_offsets,
        polygon_part_offsets=part_offsets,
        polygon_kind=cache.map_kinds,
        polygon_on_route=drivable_map.on_route(set(cache.route_lane_ids)),
        track_corners=corners,
        track_center=centers,
        track_exists=tracks.exists,
        track_is_agent=tracks.is_agent,
        track_is_stopped=tracks.is_stopped,
        track_type=tracks.types,
        polygon_ids=cache.map_ids,
        track_tokens=tracks.tokens,
        track_poses=tracks.poses,
        track_sizes=tracks.sizes,
    )


def sampled_tracks(cache: MetricCacheFile) -> SampledTracks:
    """The K tracks of a cache at its T samples, those of frame 0 first where the cache tells them.

    The caches of 2.2 hold the pose of every box; those of 1.1 its corners, from which the pose is found.

    Raises:
      SceneError: if a box is not that of its object.
    """
    current = cache.current_objects.track_tokens if cache.current_objects is not None else ()
    if not set(current) <= set(cache.samples[0].tokens):
        raise SceneError("the detections of frame 0 must be among the objects of sample 0, got others")
    order = tuple(dict.fromkeys([*current, *(token for s in cache.samples for token in s.tokens)]))
    column = {token: index for index, token in enumerate(order)}
    row_of = {token: row for row, token in enumerate(cache.unique_objects.track_tokens)}
    rows = np.array([row_of[token] for token in order], dtype=np.int64)
    types = np.array([TRACK_TYPES.index(cache.unique_objects.names[row]) for row in rows], dtype=np.int64)
    speeds = np.hypot(*cache.unique_objects.velocities[rows].T)
    sizes = cache.unique_objects.sizes[rows]

    shape = (len(cache.samples), len(order))
    exists, poses, corners = np.zeros(shape, dtype=bool), np.zeros((*shape, 3)), np.zeros((*shape, 4, 2))
    for index, sample in enumerate(cache.samples):
        columns = [column[token] for token in sample.tokens]
        exists[index, columns] = True
        corners[index, columns] = sample.corners
        poses[index, columns] = box_poses(sample.corners)
    for index, objects in enumerate(cache.tracks):
        if set(objects.track_tokens) != set(cache.samples[index].tokens):
            raise SceneError(
                f"detections and occupancy map of sample {index} must name the same objects, got others"
            )
        poses[index, [column[token] for token in objects.track_tokens]] = objects.poses
    first = np.argmax(exists, axis=0)
    poses[first, np.arange(len(order))] = cache.unique_objects.poses[rows]

    expected, _ = track_polygons(poses, sizes, exists)
    differs = (np.abs(corners - expected) > _BOX_TOLERANCE_M).any(axis=(2, 3))
    if differs.any():
        index, track = np.argwhere(differs)[0]
        raise SceneError(f"the box of object '{order[track]}' has another size or place at sample {index}")
    is_agent = types < NUM_AGENT_TYPES
    return SampledTracks(
        tokens=order,
        types=types,
        poses=poses,
        sizes=sizes,
        exists=exists,
        is_agent=is_agent,
        is_stopped=~is_agent | (speeds <= STOPPED_SPEED_MPS),
    )


def box_poses(corners: FloatArray) -> FloatArray:
    """Poses (..., 3) of boxes with the corners (..., 4, 2), in the order of CornerIndex."""
    front = corners[..., 0, :] + corners[..., 3, :]
    rear = corners[..., 1, :] + corners[..., 2, :]
    ahead = front - rear
    return np.concatenate(
        [(front + rear) / 4.0, np.arctan2(ahead[..., 1], ahead[..., 0])[..., None]], axis=-1
    )


def _red_lights(
    cache: MetricCacheFile,
) -> tuple[tuple[str, ...], NDArray[np.object_], NDArray[np.bool_]]:
    """Ids and polygons of the L connectors that are red at some time, and (T, L) when."""
    found: dict[str, shapely.Polygon] = {}
    for sample in cache.samples:
        found.update(zip(sample.red_light_ids, sample.red_light_polygons, strict=True))
    polygons = np.empty(len(found), dtype=object)
    polygons[:] = list(found.values())
    is_red = [[id_ in sample.red_light_ids for id_ in found] for sample in cache.samples]
    return tuple(found), polygons, np.array(is_red, dtype=bool).reshape(len(cache.samples), len(found))
