"""Frames -> a NAVSIM log pickle, as OpenScene lays it out, readable by NAVSIM on numpy 1.x and 2.x.

The same frames give the same bytes. Poses are planar: height, pitch and roll, which `Frame` does not carry,
are zero.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.constants import CAMERA_NAMES, MAP_VERSIONS
from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.data.pickle_names import PROTOCOL, with_numpy_1_names
from drivefine_agent.data.types import Annotations, CameraRecord, Frame
from drivefine_agent.errors import DataError

_PLACEHOLDER_CAMERA = CameraRecord(
    data_path="",
    sensor2lidar_rotation=np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
    sensor2lidar_translation=np.zeros(3),
    intrinsics=np.array([[1545.0, 0.0, 960.0], [0.0, 1545.0, 560.0], [0.0, 0.0, 1.0]]),
    distortion=np.zeros(5),
)


def write_log(path: str | Path, frames: Sequence[Frame], vehicle_name: str = "drivefine") -> None:
    """Write one log.

    Cameras that a frame does not name get a record with the usual file name and a nominal calibration,
    because NAVSIM indexes all eight; their images need not exist unless an agent asks for them.

    Args:
      path: `<log_name>.pkl`.
      frames: chronological; `log_name` must be the file's stem, `map_name` and `scene_token` must be set.
      vehicle_name: free text.

    Raises:
      DataError: frames that `read_log` would refuse.
    """
    path = Path(path)
    _check(frames, path)
    records = _Records(vehicle_name)
    content = pickle.dumps([records.record(frames, index) for index in range(len(frames))], protocol=PROTOCOL)
    write_bytes(path, with_numpy_1_names(content))


class _Records:
    """Builds the dicts of one log. Equal texts become one object, so the pickle's references are fixed."""

    def __init__(self, vehicle_name: str) -> None:
        self._texts: dict[str, str] = {}
        self._vehicle_name = self._text(vehicle_name)

    def _text(self, value: str) -> str:
        return self._texts.setdefault(str(value), str(value))

    def record(self, frames: Sequence[Frame], index: int) -> dict[str, Any]:
        frame = frames[index]
        x, y, heading = (float(value) for value in frame.ego_pose)
        rotation = np.array([np.cos(heading / 2), 0.0, 0.0, np.sin(heading / 2)])  # w, x, y, z
        dynamics = [float(value) for value in (*frame.ego_velocity, *frame.ego_acceleration)]
        vx, vy, ax, ay = dynamics
        ego_to_global = np.eye(4)
        ego_to_global[:2, :2] = [[np.cos(heading), -np.sin(heading)], [np.sin(heading), np.cos(heading)]]
        ego_to_global[:2, 3] = x, y
        text = self._text
        record: dict[str, Any] = {
            "token": text(frame.token),
            "frame_idx": index,
            "timestamp": int(frame.timestamp_us),
            "log_name": text(frame.log_name),
            "log_token": text(frame.log_name),
            "scene_name": text(f"{frame.log_name}-{frame.scene_token}"),
            "scene_token": text(frame.scene_token),
            "map_location": text(frame.map_name),
            "roadblock_ids": [text(block) for block in frame.roadblock_ids],
            "vehicle_name": self._vehicle_name,
            "can_bus": np.array([x, y, 0.0, *rotation, ax, ay, 0.0, vx, vy, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
            "lidar_path": text(frame.lidar_path or f"{frame.log_name}/MergedPointCloud/{frame.token}.pcd"),
            "lidar2ego_translation": np.zeros(3),
            "lidar2ego_rotation": np.array([1.0, 0.0, 0.0, 0.0]),
            "ego2global_translation": np.array([x, y, 0.0]),
            "ego2global_rotation": rotation,
            "ego_dynamic_state": dynamics,
            "traffic_lights": [(int(connector), bool(is_red)) for connector, is_red in frame.traffic_lights],
            "driving_command": np.array(frame.driving_command, dtype=np.int64),
            "cams": {name: self._camera(frame, name) for name in CAMERA_NAMES},
            "sample_prev": text(frames[index - 1].token) if index > 0 else None,
            "sample_next": text(frames[index + 1].token) if index + 1 < len(frames) else None,
            "ego2global": ego_to_global,
            "lidar2ego": np.eye(4),
            "lidar2global": ego_to_global.copy(),
        }
        if frame.annotations is not None:
            record["anns"] = self._annotations(frame.annotations)
        return record

    def _camera(self, frame: Frame, name: str) -> dict[str, Any]:
        camera = frame.cameras.get(name, _PLACEHOLDER_CAMERA)
        return {
            "data_path": self._text(camera.data_path or f"{frame.log_name}/{name}/{frame.token}.jpg"),
            "sensor2lidar_rotation": _floats(camera.sensor2lidar_rotation),
            "sensor2lidar_translation": _floats(camera.sensor2lidar_translation),
            "cam_intrinsic": _floats(camera.intrinsics),
            "distortion": _floats(camera.distortion),
        }

    def _annotations(self, annotations: Annotations) -> dict[str, Any]:
        text = self._text
        width = max((len(name) for name in annotations.names), default=1)
        return {
            "gt_boxes": _floats(annotations.boxes).reshape(-1, 7),
            "gt_names": np.array(annotations.names, dtype=f"<U{width}"),
            "gt_velocity_3d": _floats(annotations.velocity_3d).reshape(-1, 3),
            "instance_tokens": [text(token) for token in annotations.instance_tokens],
            "track_tokens": [text(token) for token in annotations.track_tokens],
        }


def _floats(values: Any) -> NDArray[np.float64]:
    """A fresh, contiguous float64 copy: the caller's sharing and strides must not reach the pickle."""
    return np.array(values, dtype=np.float64, order="C", copy=True)


def _check(frames: Sequence[Frame], path: Path) -> None:
    if not frames:
        raise DataError(
            f"a log needs at least one frame, got none for {path}; give it frames, or write no log"
        )
    tokens: set[str] = set()
    for index, frame in enumerate(frames):
        where = f"frame {index} (token {frame.token!r}) for {path}"
        if frame.log_name != path.stem:
            raise DataError(
                f"'log_name' must equal the file's name without '.pkl', got {frame.log_name!r} in {where}"
                "; give both the same name"
            )
        if frame.map_name not in MAP_VERSIONS:
            raise DataError(
                f"'map_name' must be one of {sorted(MAP_VERSIONS)}, got {frame.map_name!r} in {where}"
                "; give the frames nuPlan's name of the city"
            )
        if not frame.scene_token or not frame.token:
            raise DataError(f"'token' and 'scene_token' must be set in {where}; give every frame both")
        if frame.token in tokens:
            raise DataError(
                f"frame tokens must differ, got one twice in {where}; give every frame a token of its own"
            )
        tokens.add(frame.token)
        if index and frame.timestamp_us <= frames[index - 1].timestamp_us:
            raise DataError(
                f"time stamps must increase strictly, got {frames[index - 1].timestamp_us} then "
                f"{frame.timestamp_us} us in {where}"
                "; sort the frames by time, and leave doubles out"
            )
        if (
            frame.annotations is not None
            and len({len(value) for value in vars(frame.annotations).values()}) != 1
        ):
            raise DataError(
                f"the fields of the annotations must have equal lengths in {where}"
                "; give one entry per object in each field"
            )
        numbers = np.concatenate([frame.ego_pose, frame.ego_velocity, frame.ego_acceleration])
        if numbers.shape != (7,) or not np.isfinite(numbers).all():
            raise DataError(
                f"ego pose (3,), velocity (2,) and acceleration (2,) must be finite in {where}"
                "; leave such frames out"
            )
