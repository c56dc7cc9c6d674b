"""Windows -> second-stage pickles that the official NAVSIM 2.2 loads, without nuplan-devkit.

The objects of the future are written as nuPlan's classes by reference: empty classes with the same slots and
fields stand in for them while pickling, and their names are exchanged afterwards. Arrays go under the names
of numpy 1.x. The same window gives the same bytes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.constants import (
    AGENT_TYPES,
    CAMERA_NAMES,
    FRAME_INTERVAL_S,
    MAP_VERSIONS,
    NUM_POSES,
    TRACK_TYPES,
)
from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.data.dataset_paths import SCENES_FOLDER
from drivefine_agent.data.nuplan_records import CLASS_MODULES, ENUM_MODULES, LIGHT_STATES
from drivefine_agent.data.pickle_names import PROTOCOL, numpy_1_name, rename_globals
from drivefine_agent.data.second_stage import SECOND_STAGE_TOKEN_LENGTH
from drivefine_agent.data.types import CameraRecord, Frame, GlobalObjects, SceneWindow
from drivefine_agent.errors import DataError

DEFAULT_HEIGHT_M = 1.6
"""Height of an object that is not among the annotations of the current frame."""
ATTRIBUTE_COLUMNS = (
    "log_name",
    "synthetic_scene_token",
    "corresponding_original_scene_token",
    "previous_original_scene_initial_token",
    "map_name",
    "pair_identifier",
    "viewpoint",
    "global_trajectory",
)
"""Of `synthetic_scenes_attributes.csv`, which NAVSIM itself does not read."""


def write_second_stage(folder: str | Path, window: SceneWindow) -> Path:
    """Write `<folder>/synthetic_scene_pickles/<scene_token>.pkl`.

    Args:
      folder: of the second stage, e.g. `navhard_two_stage`.
      window: with `second_stage`; `Frame.cameras` names the rendered cameras only, their `data_path` is
        relative to `<folder>/sensor_blobs`. Velocities and accelerations are rounded to float32.

    Returns:
      The file's path.

    Raises:
      DataError: a window that the reader or NAVSIM's metric caching would refuse.
    """
    _check(window)
    content = pickle.dumps(_Scene(window).record(), protocol=PROTOCOL)
    path = Path(folder) / SCENES_FOLDER / f"{window.scene_token}.pkl"
    write_bytes(path, rename_globals(content, _official_name))
    return path


@dataclass(frozen=True)
class SceneAttributes:
    """One line of `synthetic_scenes_attributes.csv`."""

    window: SceneWindow
    pair: str
    """The same for a sample and its predecessor."""


def write_attributes(folder: str | Path, scenes: Iterable[SceneAttributes]) -> Path:
    """Write `<folder>/synthetic_scenes_attributes.csv`, one line per sample."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(ATTRIBUTE_COLUMNS)
    for scene in scenes:
        window = scene.window
        if window.second_stage is None:
            raise DataError(
                f"the window of token {window.token!r} is no second-stage sample"
                ": set second_stage, or leave it out"
            )
        poses = [frame.ego_pose.tolist() for frame in window.frames]
        writer.writerow(
            (
                window.log_name,
                window.token,
                window.second_stage.original_scene,
                window.second_stage.original_token,
                window.map_name,
                scene.pair,
                tuple(window.current.ego_pose.tolist()),
                poses,
            )
        )
    path = Path(folder) / "synthetic_scenes_attributes.csv"
    write_bytes(path, text.getvalue().encode())
    return path


class _Fields:
    """Takes its fields by name, as the attributes or slots of nuPlan's class."""

    __slots__ = ()

    def __init__(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self, name, value)


def _stub(name: str, slots: tuple[str, ...] | None = None) -> type[Any]:
    content: dict[str, Any] = {"__module__": __name__}
    if slots is not None:
        content["__slots__"] = slots
    return type(name, (_Fields,), content)


# Pickle looks these up by their names in this module; they are called as nuPlan's classes.
DetectionsTracks = _stub("DetectionsTracks")
TrackedObjects = _stub("TrackedObjects")
Agent = _stub("Agent")
StaticObject = _stub("StaticObject")
SceneObjectMetadata = _stub("SceneObjectMetadata")
OrientedBox = _stub("OrientedBox")
StateSE2 = _stub("StateSE2", ("x", "y", "heading"))
StateVector2D = _stub("StateVector2D", ("_x", "_y", "_array"))
TimePoint = _stub("TimePoint", ("time_us",))
TrafficLightStatuses = _stub("TrafficLightStatuses")
TrafficLightStatusData = _stub("TrafficLightStatusData")


class TrackedObjectType:
    """A member of nuPlan's enum, by its value."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> tuple[type[Any], tuple[int]]:
        return type(self), (self.value,)


class TrafficLightStatusType(TrackedObjectType):
    """A member of nuPlan's enum, by its value."""


def _official_name(module: str, name: str) -> tuple[str, str]:
    if module == __name__:
        return {**CLASS_MODULES, **ENUM_MODULES}[name], name
    return numpy_1_name(module, name)


class _Scene:
    """Builds the dict of one sample. Equal texts become one object, so the pickle's references are fixed."""

    def __init__(self, window: SceneWindow) -> None:
        self._window = window
        self._texts: dict[str, str] = {}
        self._types = {name: TrackedObjectType(value) for value, name in enumerate(TRACK_TYPES)}
        self._lights = {name: TrafficLightStatusType(value) for value, name in enumerate(LIGHT_STATES)}
        known = window.current.annotations
        self._heights = (
            {} if known is None else dict(zip(known.track_tokens, known.boxes[:, 5].tolist(), strict=True))
        )

    def record(self) -> dict[str, Any]:
        window, text = self._window, self._text
        stage = window.second_stage
        assert stage is not None
        step = round(FRAME_INTERVAL_S * 1e6)
        last = int(window.frames[-1].timestamp_us)
        return {
            "scene_metadata": {
                "log_name": text(window.log_name),
                "scene_token": text(window.scene_token),
                "map_name": text(window.map_name),
                "initial_token": text(window.token),
                "num_history_frames": int(window.num_history_frames),
                "num_future_frames": int(window.num_future_frames),
                "corresponding_original_scene": text(stage.original_scene),
                "corresponding_original_initial_token": text(stage.original_token),
            },
            "frames": [self._frame(frame) for frame in window.frames],
            "extended_traffic_light_data": [
                self._light_statuses(lights, last + (index + 1) * step)
                for index, lights in enumerate(stage.future_lights)
            ],
            "extended_detections_tracks": [
                self._detections(objects, last + (index + 1) * step)
                for index, objects in enumerate(stage.future_objects)
            ],
        }

    def _text(self, value: str) -> str:
        return self._texts.setdefault(str(value), str(value))

    def _frame(self, frame: Frame) -> dict[str, Any]:
        text, found = self._text, frame.annotations
        assert found is not None
        return {
            "token": text(frame.token),
            "timestamp": int(frame.timestamp_us),
            "roadblock_ids": [text(block) for block in frame.roadblock_ids],
            "traffic_lights": [(int(connector), bool(is_red)) for connector, is_red in frame.traffic_lights],
            "annotations": {
                "boxes": _array(found.boxes).reshape(-1, 7),
                "names": [text(name) for name in found.names],
                "velocity_3d": _array(found.velocity_3d).reshape(-1, 3),
                "instance_tokens": [text(token) for token in found.instance_tokens],
                "track_tokens": [text(token) for token in found.track_tokens],
            },
            "ego_status": {
                "ego_pose": _array(frame.ego_pose),
                "ego_velocity": np.array(frame.ego_velocity, dtype=np.float32),
                "ego_acceleration": np.array(frame.ego_acceleration, dtype=np.float32),
                "driving_command": np.array(frame.driving_command, dtype=np.int64),
                "in_global_frame": True,
            },
            "lidar_path": None,
            "camera_dict": {
                text(name.lower()): self._camera(frame.cameras[name]) if name in frame.cameras else {}
                for name in CAMERA_NAMES
            },
        }

    def _camera(self, camera: CameraRecord) -> dict[str, Any]:
        return {
            "data_path": self._text(camera.data_path),
            "sensor2lidar_rotation": _array(camera.sensor2lidar_rotation),
            "sensor2lidar_translation": _array(camera.sensor2lidar_translation),
            "cam_intrinsic": _array(camera.intrinsics),
            "distortion": _array(camera.distortion),
        }

    def _light_statuses(self, lights: Iterable[tuple[int, bool]], time_us: int) -> Any:
        return TrafficLightStatuses(
            traffic_lights=[
                TrafficLightStatusData(
                    status=self._lights["red" if is_red else "green"],
                    lane_connector_id=int(connector),
                    timestamp=TimePoint(time_us=time_us),
                )
                for connector, is_red in lights
            ]
        )

    def _detections(self, objects: GlobalObjects, time_us: int) -> Any:
        tracked = [self._object(objects, index, time_us) for index in range(len(objects.names))]
        return DetectionsTracks(tracked_objects=TrackedObjects(tracked_objects=tracked))

    def _object(self, objects: GlobalObjects, index: int, time_us: int) -> Any:
        name, track = objects.names[index], objects.track_tokens[index]
        x, y, heading = objects.poses[index].tolist()
        length, width = objects.sizes[index].tolist()
        token = hashlib.sha256(f"{self._window.token}/{track}/{time_us}".encode()).hexdigest()[:16]
        common = {
            "_metadata": SceneObjectMetadata(
                timestamp_us=time_us,
                token=token,
                track_id=None,
                track_token=self._text(track),
                category_name=None,
            ),
            "instance_token": None,
            "_tracked_object_type": self._types[name],
            "_box": OrientedBox(
                _center=StateSE2(x=x, y=y, heading=heading),
                _length=length,
                _width=width,
                _height=float(self._heights.get(track, DEFAULT_HEIGHT_M)),
            ),
        }
        if name in AGENT_TYPES:
            return Agent(
                _initial_time_stamp=TimePoint(time_us=time_us),
                _predictions=[],
                _past_trajectory=None,
                **common,
                _velocity=_vector(objects.velocities[index]),
                _angular_velocity=None,
            )
        return StaticObject(**common, predictions=None, past_trajectory=None, velocity=_vector(np.zeros(2)))


def _vector(values: NDArray[np.float64]) -> Any:
    x, y = values.tolist()
    return StateVector2D(_x=x, _y=y, _array=np.array([x, y]))


def _array(values: Any) -> NDArray[np.float64]:
    """A fresh, contiguous float64 copy: the caller's sharing and strides must not reach the pickle."""
    return np.array(values, dtype=np.float64, order="C", copy=True)


def _check(window: SceneWindow) -> None:
    stage, where = window.second_stage, f"the second-stage sample {window.token!r}"
    if stage is None:
        raise DataError(f"the window of token {window.token!r} is no second-stage sample: set second_stage")
    for key, value in (("token", window.token), ("scene_token", window.scene_token)):
        if len(value) != SECOND_STAGE_TOKEN_LENGTH:
            raise DataError(
                f"a second-stage {key} must have {SECOND_STAGE_TOKEN_LENGTH} characters, got {value!r}"
                "; give it such a name, or NAVSIM fails"
            )
    if window.map_name not in MAP_VERSIONS:
        raise DataError(
            f"'map_name' must be one of {sorted(MAP_VERSIONS)}, got {window.map_name!r} in {where}"
            "; give it nuPlan's name of the city"
        )
    if len(stage.future_objects) < NUM_POSES:
        raise DataError(
            f"NAVSIM needs the objects of at least {NUM_POSES} future times, got "
            f"{len(stage.future_objects)} in {where}"
            "; give the sample a longer future"
        )
    for objects in stage.future_objects:
        kinds = [TRACK_TYPES.index(name) for name in objects.names]
        if kinds != sorted(kinds):
            raise DataError(f"future objects must be sorted by type, they are not in {where}; sort them")
        values = np.concatenate([objects.poses, objects.sizes, objects.velocities], axis=1)
        if values.shape != (len(kinds), 7) or not np.isfinite(values).all():
            raise DataError(
                f"future objects must have finite poses (K, 3), sizes (K, 2), velocities (K, 2) in {where}"
                "; leave others out"
            )
    stamps = np.array([frame.timestamp_us for frame in window.frames])
    if (np.diff(stamps) <= 0).any():
        raise DataError(
            f"time stamps must increase strictly, got {stamps.tolist()} in {where}"
            "; sort the frames by time, and leave doubles out"
        )
    for frame in window.frames:
        if frame.annotations is None:
            raise DataError(
                f"second-stage frames need annotations, {frame.token!r} has none in {where}; give every "
                "frame its own"
            )
        numbers = np.concatenate([frame.ego_pose, frame.ego_velocity, frame.ego_acceleration])
        if numbers.shape != (7,) or not np.isfinite(numbers).all():
            raise DataError(
                f"ego pose (3,), velocity (2,) and acceleration (2,) must be finite in {where}"
                "; leave such samples out"
            )
