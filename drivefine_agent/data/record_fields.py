"""Fields that log frames and second-stage frames have in common, read and checked.

Every function raises DataError with the field's key and the place (`where`: file and frame) if it does not
hold what the format says.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.constants import DRIVING_COMMANDS
from drivefine_agent.data.types import Annotations, CameraRecord, FloatArray
from drivefine_agent.errors import DataError

_AGAIN = "fetch or write the file again"

_CAMERA_KEYS = (
    "data_path",
    "sensor2lidar_rotation",
    "sensor2lidar_translation",
    "cam_intrinsic",
    "distortion",
)


@dataclass(frozen=True)
class AnnotationKeys:
    """How a format calls the annotations and their entries."""

    whole: str
    entries: tuple[str, str, str, str, str]
    """Boxes, names, 3-D velocities, instance tokens, track tokens."""


def annotations_of(record: Any, keys: AnnotationKeys, where: str) -> Annotations:
    """The boxes of one frame, for the key names of its format."""
    if not isinstance(record, dict):
        raise DataError(f"{keys.whole!r} must be a dict, got {type(record).__name__} in {where}; {_AGAIN}")
    missing = [key for key in keys.entries if key not in record]
    if missing:
        raise DataError(f"{keys.whole!r} needs the keys {missing}, which are missing in {where}; {_AGAIN}")
    try:
        lengths = {key: len(record[key]) for key in keys.entries}
    except TypeError as error:
        raise DataError(
            f"the entries of {keys.whole!r} must be lists or arrays, got {error} in {where}; {_AGAIN}"
        ) from error
    if len(set(lengths.values())) != 1:
        raise DataError(
            f"the entries of {keys.whole!r} must have equal lengths, got {lengths} in {where}; {_AGAIN}"
        )
    boxes, names, velocity, instances, tracks = keys.entries
    count = lengths[names]
    return Annotations(
        boxes=floats(record, boxes, (count, 7), where),
        names=tuple(sys.intern(name) for name in texts(record[names], names, where)),  # a few, in all frames
        velocity_3d=floats(record, velocity, (count, 3), where, finite=False),
        instance_tokens=texts(record[instances], instances, where),
        track_tokens=texts(record[tracks], tracks, where),
    )


def camera(record: Any, where: str, calibrations: dict[bytes, FloatArray]) -> CameraRecord:
    """One camera. Calibrations repeat from frame to frame; equal arrays are kept once, read-only."""
    if not isinstance(record, dict):
        raise DataError(f"a camera must be a dict, got {type(record).__name__}: {where}; {_AGAIN}; {_AGAIN}")
    missing = [key for key in _CAMERA_KEYS if key not in record]
    if missing:
        raise DataError(f"a camera needs the keys {missing}, which are missing: {where}; {_AGAIN}")

    def calibration(key: str, shape: tuple[int, ...]) -> FloatArray:
        array = floats(record, key, shape, where)
        array.setflags(write=False)
        return calibrations.setdefault(array.tobytes() + bytes(shape), array)

    return CameraRecord(
        data_path=text(record, "data_path", where),
        sensor2lidar_rotation=calibration("sensor2lidar_rotation", (3, 3)),
        sensor2lidar_translation=calibration("sensor2lidar_translation", (3,)),
        intrinsics=calibration("cam_intrinsic", (3, 3)),
        distortion=calibration("distortion", (5,)),
    )


def driving_command(record: Mapping[str, Any], where: str) -> NDArray[np.int64]:
    """(4,) one-hot."""
    command = floats(record, "driving_command", (len(DRIVING_COMMANDS),), where).astype(np.int64)
    if sorted(command.tolist()) != [0, 0, 0, 1]:
        raise DataError(
            f"'driving_command' must be one-hot over {DRIVING_COMMANDS}, got {command.tolist()} in {where}"
            f"; {_AGAIN}"
        )
    return command


def traffic_lights(record: Mapping[str, Any], where: str) -> tuple[tuple[int, bool], ...]:
    """(lane connector id, is red)."""
    lights = record["traffic_lights"]
    if not isinstance(lights, list | tuple):
        raise DataError(
            f"'traffic_lights' must be a list of (id, is_red), got {type(lights).__name__} in {where}"
            f"; {_AGAIN}"
        )
    pairs = []
    for light in lights:
        if (
            not isinstance(light, list | tuple)
            or len(light) != 2
            or not isinstance(light[1], bool | np.bool_ | int)
        ):
            raise DataError(
                f"an entry of 'traffic_lights' must be (id, is_red), got {light!r} in {where}; {_AGAIN}"
            )
        pairs.append(_light(integer(light[0], "traffic_lights", where), bool(light[1])))
    return tuple(pairs)


@lru_cache(maxsize=16384)
def _light(connector_id: int, is_red: bool) -> tuple[int, bool]:
    """One object for equal lights: each frame repeats them, and they were a third of a log's memory."""
    return connector_id, is_red


def text(record: Mapping[str, Any], key: str, where: str) -> str:
    """A text that is not empty."""
    value = record[key]
    if not isinstance(value, str) or not value:
        raise DataError(f"{key!r} must be a text, got {value!r} in {where}; {_AGAIN}")
    return str(value)


def texts(values: Any, key: str, where: str) -> tuple[str, ...]:
    """A list or array of texts."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise DataError(f"{key!r} must be a list of texts, got {values!r:.80} in {where}; {_AGAIN}")
    return tuple(str(value) for value in values)


def integer(value: Any, key: str, where: str) -> int:
    """A whole number, which may be written as a text."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer | str):
        raise DataError(f"{key!r} must be an integer, got {value!r} in {where}; {_AGAIN}")
    try:
        return int(value)
    except ValueError as error:
        raise DataError(f"{key!r} must be an integer, got {value!r} in {where}; {_AGAIN}") from error


def floats(
    record: Mapping[str, Any], key: str, shape: tuple[int, ...], where: str, finite: bool = True
) -> FloatArray:
    """A float64 copy of `record[key]`, checked for its shape."""
    try:
        array = np.array(record[key], dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{key!r} must be numbers of shape {shape}, got {record[key]!r:.80} in {where}; {_AGAIN}"
        ) from error
    if array.size == 0 and 0 in shape:
        array = array.reshape(shape)
    if array.shape != shape:
        raise DataError(f"{key!r} must have shape {shape}, got {array.shape} in {where}; {_AGAIN}")
    if finite and not np.isfinite(array).all():
        raise DataError(f"{key!r} must be finite, got {array.ravel()[:8].tolist()} in {where}; {_AGAIN}")
    return array
