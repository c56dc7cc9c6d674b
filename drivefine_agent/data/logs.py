"""NAVSIM log pickles -> frames. The log format's key names appear here and in `log_writer`, nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from drivefine_agent.constants import CAMERA_NAMES, MAP_VERSIONS
from drivefine_agent.data.record_fields import (
    AnnotationKeys,
    annotations_of,
    camera,
    driving_command,
    floats,
    integer,
    text,
    texts,
    traffic_lights,
)
from drivefine_agent.data.safe_pickle import load_pickle
from drivefine_agent.data.types import CameraRecord, FloatArray, Frame
from drivefine_agent.errors import DataError

_AGAIN = "fetch or write the log again"

_REQUIRED_KEYS = (
    "token",
    "timestamp",
    "log_name",
    "scene_token",
    "map_location",
    "roadblock_ids",
    "ego2global_translation",
    "ego2global_rotation",
    "ego_dynamic_state",
    "driving_command",
    "traffic_lights",
    "cams",
)
_ANNOTATION_KEYS = AnnotationKeys(
    "anns", ("gt_boxes", "gt_names", "gt_velocity_3d", "instance_tokens", "track_tokens")
)

# pyquaternion takes a quaternion as it is when its squared norm is this close to 1.
_UNIT_TOLERANCE = 1e-14


def read_log(path: str | Path) -> list[Frame]:
    """The frames of one log, in order.

    Args:
      path: `<log_name>.pkl`, a pickle of a list with one dict per frame.

    Raises:
      DataError: the file is missing, damaged, foreign, or breaks a rule of the format; the message names
        file, frame and key. Frames must have strictly increasing time stamps and tokens of their own; gaps
        are allowed here and reported where windows are cut (`scenes.load_scenes`).
      UnsafePickleError: the pickle names something other than builtins and numpy.

    Source: navsim/common/dataclasses.py (Scene, AgentInput); OpenScene's create_openscene_metadata.py.
    """
    path = Path(path)
    records = load_pickle(path)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DataError(
            f"a log is a list of dicts, one per frame, got {type(records).__name__}: {path}; "
            "is this a NAVSIM log?"
        )
    calibrations: dict[bytes, FloatArray] = {}
    frames = [_frame_from_record(record, path, index, calibrations) for index, record in enumerate(records)]
    _check_order(frames, path)
    return frames


def navsim_heading(rotation: ArrayLike) -> float:
    """Heading of a quaternion by NAVSIM's formula.

    `atan2(2 (w z - x y), 1 - 2 (y^2 + z^2))`. Note the minus: the textbook yaw has a plus there. They agree
    on level ground.

    Args:
      rotation: (4,) w, x, y, z.

    Returns:
      Heading [rad].

    Source: pyquaternion's yaw_pitch_roll, which NAVSIM uses; it first normalises what is not of unit length.
    """
    q = np.asarray(rotation, dtype=np.float64)
    squared_norm = float(np.dot(q, q))
    if abs(1.0 - squared_norm) >= _UNIT_TOLERANCE and squared_norm > 0.0:
        q = q / np.sqrt(squared_norm)
    w, x, y, z = q
    return float(np.arctan2(2 * (w * z - x * y), 1 - 2 * (y**2 + z**2)))


def _frame_from_record(
    record: Mapping[str, Any], path: Path, index: int, calibrations: dict[bytes, FloatArray]
) -> Frame:
    where = f"frame {index} of {path}"
    missing = [key for key in _REQUIRED_KEYS if key not in record]
    if missing:
        raise DataError(
            f"a log frame needs the keys {missing}, which are missing in {where}; is this a NAVSIM log?"
        )

    log_name = text(record, "log_name", where)
    if log_name != path.stem:
        raise DataError(
            f"'log_name' must equal the file's name without '.pkl', got {log_name!r} in {where}: "
            "rename the file"
        )
    map_name = text(record, "map_location", where)
    if map_name not in MAP_VERSIONS:
        raise DataError(
            f"'map_location' must be one of {sorted(MAP_VERSIONS)}, got {map_name!r} in {where}; {_AGAIN}"
        )

    translation = floats(record, "ego2global_translation", (3,), where)
    rotation = floats(record, "ego2global_rotation", (4,), where)
    if not 0.5 < float(np.linalg.norm(rotation)) < 2.0:
        raise DataError(
            f"'ego2global_rotation' must be a unit quaternion, got {rotation.tolist()} in {where}; {_AGAIN}"
        )
    # NAVSIM keeps the dynamic state as float32; the scorer then computes with these values in float64.
    dynamics = floats(record, "ego_dynamic_state", (4,), where).astype(np.float32).astype(np.float64)
    lidar_path = record.get("lidar_path")

    return Frame(
        token=text(record, "token", where),
        timestamp_us=integer(record["timestamp"], "timestamp", where),
        ego_pose=np.array([translation[0], translation[1], navsim_heading(rotation)]),
        ego_velocity=dynamics[:2],
        ego_acceleration=dynamics[2:],
        driving_command=driving_command(record, where),
        roadblock_ids=texts(record["roadblock_ids"], "roadblock_ids", where),
        traffic_lights=traffic_lights(record, where),
        annotations=annotations_of(record["anns"], _ANNOTATION_KEYS, where)
        if record.get("anns") is not None
        else None,
        cameras=_cameras(record, where, calibrations),
        lidar_path=None if lidar_path is None else str(lidar_path),
        log_name=log_name,
        map_name=map_name,
        scene_token=text(record, "scene_token", where),
    )


def _cameras(
    record: Mapping[str, Any], where: str, calibrations: dict[bytes, FloatArray]
) -> dict[str, CameraRecord]:
    cams = record["cams"]
    if not isinstance(cams, dict):
        raise DataError(f"'cams' must be a dict of cameras, got {type(cams).__name__} in {where}; {_AGAIN}")
    missing = [name for name in CAMERA_NAMES if name not in cams]
    if missing:
        raise DataError(f"'cams' must hold all eight cameras, {missing} are missing in {where}; {_AGAIN}")
    return {name: camera(cams[name], f"camera {name} of {where}", calibrations) for name in CAMERA_NAMES}


def _check_order(frames: Sequence[Frame], path: Path) -> None:
    seen: dict[str, int] = {}
    for index, frame in enumerate(frames):
        if frame.token in seen:
            raise DataError(
                f"frame tokens must differ, got {frame.token!r} in the frames {seen[frame.token]} and "
                f"{index} of {path}"
                f"; {_AGAIN}"
            )
        seen[frame.token] = index
        if index and frame.timestamp_us <= frames[index - 1].timestamp_us:
            raise DataError(
                f"time stamps must increase strictly, got {frames[index - 1].timestamp_us} then "
                f"{frame.timestamp_us} us in the frames {index - 1} and {index} of {path}"
                f"; {_AGAIN}"
            )
