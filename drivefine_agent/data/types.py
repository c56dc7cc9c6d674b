"""Frozen records passed between the parts: what a log frame, a scene window and an observation are.

Frames of reference: *global* is the metric UTM frame of the map; *ego* has its origin at the rear axle, x
forward, y left, z up. Headings are counter-clockwise radians.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class CameraRecord:
    """Calibration and file of one camera in one frame."""

    data_path: str
    """Relative to the sensor-blob root of the split, e.g. `<log>/CAM_F0/<token>.jpg`."""
    sensor2lidar_rotation: FloatArray
    """(3, 3) camera (x right, y down, z forward) to ego."""
    sensor2lidar_translation: FloatArray
    """(3,) camera centre in the ego frame [m]."""
    intrinsics: FloatArray
    """(3, 3) pinhole matrix [px] at 1920x1080."""
    distortion: FloatArray
    """(5,) k1, k2, p1, p2, k3."""


@dataclass(frozen=True)
class Annotations:
    """Road users and static objects of one frame, in the ego frame of that frame."""

    boxes: FloatArray
    """(K, 7) x, y, z, length, width, height, heading; see geometry.indices.BoxIndex."""
    names: tuple[str, ...]
    """K type names, from constants.TRACK_TYPES."""
    velocity_3d: FloatArray
    """(K, 3) absolute velocity [m/s], expressed in the ego frame."""
    instance_tokens: tuple[str, ...]
    track_tokens: tuple[str, ...]
    """Identity of each object over time."""


@dataclass(frozen=True)
class Frame:
    """One 2 Hz frame of a log."""

    token: str
    timestamp_us: int
    ego_pose: FloatArray
    """(3,) rear axle x, y [m], heading [rad], global. Heading by NAVSIM's formula (`logs.navsim_heading`)."""
    ego_velocity: FloatArray
    """(2,) [m/s] in the ego frame; float32-rounded values held as float64, as NAVSIM has them."""
    ego_acceleration: FloatArray
    """(2,) [m/s^2] in the ego frame; float32-rounded values held as float64."""
    driving_command: NDArray[np.int64]
    """(4,) one-hot: left, straight, right, unknown."""
    roadblock_ids: tuple[str, ...]
    traffic_lights: tuple[tuple[int, bool], ...]
    """(lane connector id, is_red)."""
    annotations: Annotations | None
    """None where the log has none (private test logs)."""
    cameras: dict[str, CameraRecord] = field(default_factory=dict)
    """By upper-case camera name (constants.CAMERA_NAMES)."""
    lidar_path: str | None = None
    log_name: str = ""
    """Stem of the log's file."""
    map_name: str = ""
    """One of constants.MAP_VERSIONS."""
    scene_token: str = ""
    """The nuPlan scene (a chunk of the log of at most 20 s) that the frame belongs to."""


@dataclass(frozen=True)
class GlobalObjects:
    """The K road users and static objects of one time, ready-made in the global frame."""

    names: tuple[str, ...]
    """K type names, from constants.TRACK_TYPES, sorted by type as NAVSIM sorts them."""
    track_tokens: tuple[str, ...]
    poses: FloatArray
    """(K, 3) box centre x, y [m], heading [rad]."""
    sizes: FloatArray
    """(K, 2) length, width [m]."""
    velocities: FloatArray
    """(K, 2) [m/s], global."""


@dataclass(frozen=True)
class SecondStage:
    """What a second-stage (synthetic) sample has besides its frames; its future is simulated, not logged."""

    scene_token: str
    """Stem of the sample's file (`synthetic_scene_pickles/<scene_token>.pkl`)."""
    original_scene: str
    """`corresponding_original_scene`: token of the last frame (t0 + 4 s) of the first-stage sample."""
    original_token: str
    """`corresponding_original_initial_token`: token of the first-stage sample."""
    future_objects: tuple[GlobalObjects, ...]
    """Detections at 0.5, 1.0, ... s after the last frame; at least 8 are needed for scoring."""
    future_lights: tuple[tuple[tuple[int, bool], ...], ...]
    """Traffic lights (lane connector id, is_red) at the same times; may be shorter, then no lights."""


@dataclass(frozen=True)
class SceneWindow:
    """A sample: `num_history_frames` frames up to now, then `num_future_frames` future ones."""

    log_name: str
    map_name: str
    scene_token: str
    frames: tuple[Frame, ...]
    num_history_frames: int
    num_future_frames: int
    log_path: Path | None = None
    """The file the window was read from, for messages."""
    second_stage: SecondStage | None = None
    """Of second-stage (NAVSIM 2) samples; None for samples cut from logs."""

    @property
    def current(self) -> Frame:
        """The current frame (t = 0)."""
        return self.frames[self.num_history_frames - 1]

    @property
    def token(self) -> str:
        """The sample's identity: the token of the current frame."""
        return self.current.token

    def frame_at(self, iteration: int) -> Frame:
        """The frame `iteration` half seconds after the current one; negative is the past."""
        return self.frames[self.num_history_frames - 1 + iteration]


@dataclass(frozen=True)
class Observation:
    """Everything the planner may see: nothing privileged."""

    image: NDArray[np.uint8]
    """(H, W, 3) RGB front camera image."""
    history_poses: FloatArray
    """(4, 3) poses at -1.5, -1.0, -0.5, 0 s in the current ego frame; the last is (0, 0, 0)."""
    velocity: FloatArray
    """(2,) [m/s], ego frame, now."""
    acceleration: FloatArray
    """(2,) [m/s^2], ego frame, now."""
    driving_command: NDArray[np.int64]
    """(4,) one-hot: left, straight, right, unknown."""
