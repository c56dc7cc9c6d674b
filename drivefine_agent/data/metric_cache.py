"""Official metric caches (`metric_cache.pkl` of NAVSIM 1.1 and 2.2) as typed records of plain arrays.

Shape letters: T samples of 0.1 s (51 in 1.1, 41 in 2.2), K objects, M map polygons, N centreline vertices.
Everything is float64 in the global frame unless said otherwise.

Source: navsim-formats 4.1, pdm-scorer 2.7-2.9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray

from drivefine_agent.constants import (
    EGO_FRONT_LENGTH_M,
    EGO_REAR_AXLE_TO_CENTER_M,
    EGO_REAR_LENGTH_M,
    EGO_WIDTH_M,
    NUM_POSE_FIELDS,
    NUM_POSES,
)
from drivefine_agent.data.metric_cache_pickle import MAX_CACHE_BYTES, load_metric_cache_pickle
from drivefine_agent.data.nuplan_records import Record, global_objects, objects_in_order
from drivefine_agent.data.types import FloatArray, GlobalObjects
from drivefine_agent.errors import DataError, UnsafePickleError
from drivefine_agent.geometry.indices import StateIndex

NUM_SAMPLES = {"1.1": 51, "2.2": 41}
_RED_LIGHT_PREFIX = "red_light_"
# What attributes of other types can make the conversion to arrays raise.
_FOREIGN = (TypeError, ValueError, LookupError, AttributeError, OverflowError)


@dataclass(frozen=True)
class ObservedSample:
    """What stands around the ego at one time: the boxes of K objects, and red lights."""

    tokens: tuple[str, ...]
    corners: FloatArray
    """(K, 4, 2) front left, rear left, rear right, front right."""
    red_light_ids: tuple[str, ...]
    """Lane connectors that are red (2.2 only)."""
    red_light_polygons: tuple[shapely.Polygon, ...]


@dataclass(frozen=True)
class MetricCacheFile:
    """The content of one `metric_cache.pkl`."""

    version: Literal["1.1", "2.2"]
    token: str
    log_name: str
    timestamp_us: int
    ego_state: FloatArray
    """(11,) ego at t = 0, pose of the rear axle; see StateIndex."""
    trajectory_us: NDArray[np.int64]
    """(51,) stamps of the PDM-Closed trajectory."""
    trajectory_poses: FloatArray
    """(51, 3) rear-axle poses of the PDM-Closed trajectory."""
    centerline: FloatArray
    """(N, 3) x, y, heading of the centreline's vertices."""
    route_lane_ids: tuple[str, ...]
    map_ids: tuple[str, ...]
    """(M,) ids of the drivable-area map's polygons, in NAVSIM's order."""
    map_kinds: NDArray[np.int64]
    """(M,) SemanticMapLayer numbers."""
    map_polygons: NDArray[np.object_]
    """(M,) shapely polygons."""
    samples: tuple[ObservedSample, ...]
    """T of them."""
    unique_objects: GlobalObjects
    """Every object as at its first sample."""

    # Of NAVSIM 2.2 only; empty or None in 1.1.
    map_name: str = ""
    map_version: str = ""
    map_root: str = ""
    is_synthetic: bool = False
    human_poses: FloatArray | None = None
    """(8, 3) at 0.5 ... 4.0 s in the ego frame of t = 0; None for second-stage samples."""
    history_us: NDArray[np.int64] | None = None
    """(4,) stamps of the logged states up to t = 0."""
    history_states: FloatArray | None = None
    """(4, 11) those states; see StateIndex."""
    tracks: tuple[GlobalObjects, ...] = ()
    """T: the boxes of `samples` with poses and velocities."""
    past_objects: tuple[GlobalObjects, ...] = ()
    """3: detections of the frames before t = 0."""
    current_objects: GlobalObjects | None = None
    """Detections of the frame at t = 0 itself."""
    future_objects: tuple[GlobalObjects, ...] = ()
    """T - 1: samples after t = 0."""


def read_metric_cache(path: str | Path, max_bytes: int = MAX_CACHE_BYTES) -> MetricCacheFile:
    """Read a `metric_cache.pkl` that NAVSIM 1.1 or 2.2 wrote; none of its code is needed or run.

    Args:
      path: the file.
      max_bytes: of the decompressed content; more is refused.

    Raises:
      UnsafePickleError: the pickle names something that NAVSIM does not write, or misuses what it does.
      DataError: the file is missing, too large, truncated, not xz, or not of a metric cache.
    """
    path = Path(path)
    record = load_metric_cache_pickle(path, max_bytes)
    try:
        return _metric_cache(record)
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{error}: {path}") from error
    except DataError as error:
        raise DataError(f"{error}: {path}; build it again with NAVSIM 1.1 or 2.2") from error
    except _FOREIGN as error:
        raise DataError(
            f"not as NAVSIM writes a metric cache ({type(error).__name__}: {error}): {path}; build it again"
            " with NAVSIM 1.1 or 2.2"
        ) from error


def _metric_cache(record: Record) -> MetricCacheFile:
    is_v2 = "map_parameters" in record.fields
    version: Literal["1.1", "2.2"] = "2.2" if is_v2 else "1.1"
    place = PurePosixPath(_text(_field(record, "file_path"))).parts
    if len(place) < 4:
        raise DataError(f"a metric cache's own path must end in log/type/token/file, got {'/'.join(place)!r}")
    current = _field(record, "ego_state")
    observation = _of_kind(_field(record, "observation"), "PDMObservation")
    trajectory = _ego_states(_field(record, "trajectory"))
    map_ids, map_kinds, polygons, _ = _args(_field(record, "drivable_area_map"), "PDMDrivableMap")
    samples = _samples(observation, NUM_SAMPLES[version], is_v2)
    unique = _field(observation, "_unique_objects")
    if not isinstance(unique, dict):
        raise DataError(f"the unique objects of a metric cache must be a dict, got {type(unique).__name__}")
    unique_objects = objects_in_order(list(unique.values()), "a metric cache")
    if unique_objects.track_tokens != tuple(unique):
        raise DataError("the unique objects of a metric cache must be listed by their own tokens, got others")
    unknown = {token for sample in samples for token in sample.tokens} - set(unique)
    if unknown:
        raise DataError(f"every object of a sample must be a unique object, '{min(unknown)}' is none")
    map_polygons = np.empty(len(polygons), dtype=object)
    map_polygons[:] = _polygons(polygons)
    if not len(map_ids) == len(map_kinds) == len(map_polygons):
        raise DataError(
            "the drivable-area map of a metric cache must have one id and kind per polygon, got "
            f"{len(map_ids)} ids, {len(map_kinds)} kinds and {len(map_polygons)} polygons"
        )
    return MetricCacheFile(
        version=version,
        token=place[-2],
        log_name=_text(_field(record, "log_name")) if is_v2 else place[-4],
        timestamp_us=_stamp(_field(current, "_time_point")),
        ego_state=_ego_state(current),
        trajectory_us=trajectory[0],
        trajectory_poses=trajectory[1][:, : StateIndex.VX].copy(),
        centerline=np.array([_pose(p) for p in _args(_field(record, "centerline"), "PDMPath")[0]]),
        route_lane_ids=_texts(_field(record, "route_lane_ids")),
        map_ids=_texts(map_ids),
        map_kinds=np.array([_args(kind, "SemanticMapLayer")[0] for kind in map_kinds], dtype=np.int64),
        map_polygons=map_polygons,
        samples=samples,
        unique_objects=unique_objects,
        **(_only_v2(record, observation) if is_v2 else {}),
    )


def _only_v2(record: Record, observation: Record) -> dict[str, Any]:
    """The fields of MetricCacheFile that NAVSIM 1.1 does not write."""
    parameters = _of_kind(_field(record, "map_parameters"), "MapParameters")
    history_us, history_states = _ego_states(_field(record, "past_human_trajectory"))
    scene_type = _args(_field(record, "scene_type"), "SceneFrameType")[0]
    if scene_type not in (0, 1):
        raise DataError(f"the scene type must be 0 (original) or 1 (synthetic), got {scene_type}")
    (current_objects,) = _detections(_field(record, "current_tracked_objects"), 1)
    return {
        "map_name": _text(_field(parameters, "map_name")),
        "map_version": _text(_field(parameters, "map_version")),
        "map_root": _text(_field(parameters, "map_root")),
        "is_synthetic": scene_type == 1,
        "human_poses": _human_poses(_field(record, "human_trajectory")),
        "history_us": history_us,
        "history_states": history_states,
        "tracks": _detections(_field(observation, "_detections_tracks"), NUM_SAMPLES["2.2"]),
        "past_objects": _detections(_field(record, "past_detections_tracks")),
        "current_objects": current_objects,
        "future_objects": _detections(_field(record, "future_tracked_objects"), NUM_SAMPLES["2.2"] - 1),
    }


def _human_poses(value: Any) -> FloatArray | None:
    if value is None:
        return None
    poses = _field(_of_kind(value, "Trajectory"), "poses")
    shape = (NUM_POSES, NUM_POSE_FIELDS)
    if not isinstance(poses, np.ndarray) or poses.dtype.kind != "f" or poses.shape != shape:
        raise DataError(
            f"the human trajectory of a metric cache must be numbers of shape {shape}, got "
            f"{getattr(poses, 'shape', type(poses).__name__)}"
        )
    if not np.isfinite(poses).all():
        raise DataError(f"the human trajectory of a metric cache must be finite, got {poses.tolist()}")
    return np.array(poses, dtype=np.float64, subok=False)


def _samples(observation: Record, num_samples: int, is_v2: bool) -> tuple[ObservedSample, ...]:
    maps = _list(_field(observation, "_occupancy_maps"), num_samples)
    if _list(_field(observation, "_global_to_local_idcs")) != list(range(num_samples)):
        raise DataError(
            "every sample of a metric cache must have its own occupancy map, got another order of them"
        )
    samples = []
    for occupancy in maps:
        tokens, geometries, _ = _args(occupancy, "PDMOccupancyMap")
        polygons = _polygons(geometries)
        if len(tokens) != len(polygons):
            raise DataError(
                f"an occupancy map must have one token per polygon, got {len(tokens)} and {len(polygons)}"
            )
        objects: list[tuple[str, shapely.Polygon]] = []
        lights: list[tuple[str, shapely.Polygon]] = []
        for token, polygon in zip(_texts(tokens), polygons, strict=True):
            is_light = is_v2 and token.startswith(_RED_LIGHT_PREFIX)
            (lights if is_light else objects).append((token, polygon))
        samples.append(
            ObservedSample(
                tokens=tuple(token for token, _ in objects),
                corners=np.array([_box_corners(box) for _, box in objects]).reshape(-1, 4, 2),
                red_light_ids=tuple(token.removeprefix(_RED_LIGHT_PREFIX) for token, _ in lights),
                red_light_polygons=tuple(polygon for _, polygon in lights),
            )
        )
    return tuple(samples)


def _box_corners(polygon: shapely.Polygon) -> FloatArray:
    corners = shapely.get_coordinates(polygon)
    if len(corners) != 5 or len(polygon.interiors) or not np.array_equal(corners[0], corners[4]):
        raise DataError(
            f"the polygon of an object must have four corners, got {len(corners) - 1} points and "
            f"{len(polygon.interiors)} holes"
        )
    return corners[:4]


def _detections(value: Any, count: int | None = None) -> tuple[GlobalObjects, ...]:
    """Lists of detections, each as arrays."""
    return tuple(global_objects(item, "a metric cache") for item in _list(value, count))


def _ego_states(trajectory: Any) -> tuple[NDArray[np.int64], FloatArray]:
    """Stamps (S,) and states (S, 11) of an interpolated trajectory."""
    (states,) = _args(trajectory, "InterpolatedTrajectory")
    stamps = [_stamp(_field(_of_kind(state, "EgoState"), "_time_point")) for state in states]
    return np.array(stamps, dtype=np.int64), np.array([_ego_state(s) for s in states]).reshape(-1, 11)


def _ego_state(state: Any) -> FloatArray:
    """(11,) with the pose of the rear axle, which nuPlan derives from the centre it stores."""
    footprint = _of_kind(_field(_of_kind(state, "EgoState"), "_car_footprint"), "CarFootprint")
    vehicle = _args(_field(footprint, "_vehicle_parameters"), "VehicleParameters")
    if tuple(vehicle[:3]) != (EGO_WIDTH_M, EGO_FRONT_LENGTH_M, EGO_REAR_LENGTH_M):
        raise DataError(f"the ego of a metric cache must be nuPlan's Pacifica, got {vehicle[5]!r:.40}")
    dynamics = _of_kind(_field(state, "_dynamic_car_state"), "DynamicCarState")
    x, y, heading = _pose(_field(footprint, "_center"))
    out = np.zeros(len(StateIndex))
    out[StateIndex.X] = x - EGO_REAR_AXLE_TO_CENTER_M * np.cos(heading)
    out[StateIndex.Y] = y - EGO_REAR_AXLE_TO_CENTER_M * np.sin(heading)
    out[StateIndex.HEADING] = heading
    out[[StateIndex.VX, StateIndex.VY]] = _vector(_field(dynamics, "_rear_axle_velocity_2d"))
    out[[StateIndex.AX, StateIndex.AY]] = _vector(_field(dynamics, "_rear_axle_acceleration_2d"))
    out[StateIndex.STEERING_ANGLE] = _number(_field(state, "_tire_steering_angle"))
    out[StateIndex.STEERING_RATE] = _number(_field(dynamics, "_tire_steering_rate"))
    out[StateIndex.YAW_RATE] = _number(_field(dynamics, "_angular_velocity"))
    out[StateIndex.YAW_ACCEL] = _number(_field(dynamics, "_angular_acceleration"))
    return out


def _of_kind(value: Any, kind: str) -> Record:
    if not isinstance(value, Record) or value.kind != kind:
        found = value.kind if isinstance(value, Record) else type(value).__name__
        raise DataError(f"a metric cache must have a {kind} where this one has {found}")
    return value


def _field(record: Any, name: str) -> Any:
    if not isinstance(record, Record) or name not in record.fields:
        kind = record.kind if isinstance(record, Record) else type(record).__name__
        raise DataError(f"a metric cache's {kind} must have the attribute {name!r}")
    return record.fields[name]


def _args(value: Any, kind: str) -> tuple[Any, ...]:
    args: tuple[Any, ...] = _field(_of_kind(value, kind), "args")
    return args


def _list(value: Any, count: int | None = None) -> list[Any]:
    if not isinstance(value, list) or (count is not None and len(value) != count):
        found = f"{len(value)}" if isinstance(value, list) else type(value).__name__
        raise DataError(f"a metric cache must have a list of {count or 'some'} entries, got {found}")
    return value


def _polygons(values: Sequence[Any]) -> list[shapely.Polygon]:
    if not all(isinstance(value, shapely.Polygon) for value in values):
        raise DataError(
            "the geometries of a metric cache must be polygons, got "
            f"{sorted({type(value).__name__ for value in values})}"
        )
    return list(values)


def _pose(value: Any) -> tuple[float, float, float]:
    record = _of_kind(value, "StateSE2")
    return _number(_field(record, "x")), _number(_field(record, "y")), _number(_field(record, "heading"))


def _vector(value: Any) -> tuple[float, float]:
    record = _of_kind(value, "StateVector2D")
    return _number(_field(record, "_x")), _number(_field(record, "_y"))


def _stamp(value: Any) -> int:
    stamp = _field(_of_kind(value, "TimePoint"), "time_us")
    if not isinstance(stamp, int | np.integer):
        raise DataError(f"a time stamp must be a whole number of microseconds, got {stamp!r:.40}")
    return int(stamp)


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float | np.floating | np.integer) and not isinstance(value, bool)
    if not is_number or not np.isfinite(value):
        raise DataError(f"a metric cache must hold finite numbers, got {value!r:.40}")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(f"a metric cache must hold a text here, got {value!r:.40}")
    return str(value)


def _texts(values: Sequence[Any]) -> tuple[str, ...]:
    return tuple(_text(value) for value in values)
