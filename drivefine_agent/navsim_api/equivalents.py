"""NAVSIM's agent interface for machines without NAVSIM: the same names, fields and meaning.

Only what an agent meets is here. Where NAVSIM 1.1 and 2.2 differ, these follow 2.2. Field meanings: NAVSIM
`navsim/common/dataclasses.py`, `navsim/agents/abstract_agent.py` and
`navsim/planning/training/abstract_feature_target_builder.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from drivefine_agent.geometry.se2 import local_from_global


@dataclass(frozen=True)
class TrajectorySampling:
    """How a trajectory is sampled in time; two of the three numbers suffice (nuPlan's class of this name)."""

    num_poses: int | None = None
    time_horizon: float | None = None
    """[s]."""
    interval_length: float | None = None
    """[s]."""

    def __post_init__(self) -> None:
        """Fills the missing one of the three, and refuses three that disagree."""
        num_poses, horizon_s, interval_s = self.num_poses, self.time_horizon, self.interval_length
        if [num_poses, horizon_s, interval_s].count(None) > 1:
            raise ValueError(
                f"TrajectorySampling needs two of num_poses, time_horizon, interval_length, got {self}"
            )
        if num_poses is None:
            assert horizon_s is not None
            assert interval_s is not None
            num_poses = round(horizon_s / interval_s)
        if interval_s is None:
            assert horizon_s is not None
            interval_s = horizon_s / num_poses
        if horizon_s is None:
            horizon_s = num_poses * interval_s
        if abs(num_poses * interval_s - horizon_s) > 1e-6:
            raise ValueError(
                "num_poses x interval_length must equal time_horizon, got "
                f"{num_poses} x {interval_s} s against {horizon_s} s"
            )
        object.__setattr__(self, "num_poses", num_poses)
        object.__setattr__(self, "time_horizon", float(horizon_s))
        object.__setattr__(self, "interval_length", float(interval_s))


@dataclass
class Camera:
    """Image and calibration of one camera; all None where the sensor was not asked for."""

    image: NDArray[np.uint8] | None = None
    """(1080, 1920, 3) RGB."""
    sensor2lidar_rotation: NDArray[Any] | None = None
    sensor2lidar_translation: NDArray[Any] | None = None
    intrinsics: NDArray[Any] | None = None
    distortion: NDArray[Any] | None = None
    camera_path: Any = None


@dataclass
class Cameras:
    """The eight cameras of one frame."""

    cam_f0: Camera
    cam_l0: Camera
    cam_l1: Camera
    cam_l2: Camera
    cam_r0: Camera
    cam_r1: Camera
    cam_r2: Camera
    cam_b0: Camera


@dataclass
class Lidar:
    """The merged point cloud of one frame."""

    lidar_pc: NDArray[np.float32] | None = None
    """(6, n) x, y, z, intensity, ring, lidar id; None where it was not asked for."""
    lidar_path: Any = None


@dataclass
class EgoStatus:
    """Pose, motion and route command of the ego vehicle in one frame."""

    ego_pose: NDArray[Any]
    """(3,) x, y [m], heading [rad]; local to the current frame in an `AgentInput`, global in a `Scene`."""
    ego_velocity: NDArray[Any]
    """(2,) [m/s] in the ego frame of that frame."""
    ego_acceleration: NDArray[Any]
    """(2,) [m/s^2] in the ego frame of that frame."""
    driving_command: NDArray[Any]
    """(4,) one-hot: left, straight, right, unknown."""
    in_global_frame: bool = False


@dataclass
class AgentInput:
    """What an agent may see: the history frames, the last one being now."""

    ego_statuses: list[EgoStatus]
    cameras: list[Cameras]
    lidars: list[Lidar]


@dataclass
class Trajectory:
    """Future poses in the ego frame of now; the first lies one interval ahead."""

    poses: NDArray[Any]
    """(num_poses, 3) x, y [m], heading [rad]."""
    trajectory_sampling: TrajectorySampling = TrajectorySampling(time_horizon=4, interval_length=0.5)

    def __post_init__(self) -> None:
        """Refuses another number of poses than the sampling says."""
        expected = (self.trajectory_sampling.num_poses, 3)
        if self.poses.shape != expected:
            raise ValueError(f"expected trajectory poses of shape {expected}, got {self.poses.shape}")


@dataclass
class SceneMetadata:
    """Identity and extent of a scene."""

    log_name: str
    scene_token: str
    map_name: str
    initial_token: str
    num_history_frames: int
    num_future_frames: int
    corresponding_original_scene: str | None = None
    corresponding_original_initial_token: str | None = None


@dataclass
class Annotations:
    """Objects of one frame, in its ego frame."""

    boxes: NDArray[Any]
    names: list[str]
    velocity_3d: NDArray[Any]
    instance_tokens: list[str]
    track_tokens: list[str]


@dataclass
class Frame:
    """One frame of a scene, privileged parts included."""

    token: str
    timestamp: int
    roadblock_ids: list[str]
    traffic_lights: list[tuple[str, bool]]
    annotations: Annotations | None
    ego_status: EgoStatus
    lidar: Lidar
    cameras: Cameras


@dataclass
class Scene:
    """A scene with its future; ego poses of `frames` are global."""

    scene_metadata: SceneMetadata
    map_api: Any
    frames: list[Frame]
    extended_traffic_light_data: Any = None
    """Second stage only."""
    extended_detections_tracks: Any = None
    """Second stage only."""

    def get_future_trajectory(self, num_trajectory_frames: int | None = None) -> Trajectory:
        """The recorded driver's future in the ego frame of now, `num_trajectory_frames` poses 0.5 s apart."""
        now = self.scene_metadata.num_history_frames - 1
        count = (
            self.scene_metadata.num_future_frames if num_trajectory_frames is None else num_trajectory_frames
        )
        return self._trajectory(now + 1, now + 1 + count)

    def get_history_trajectory(self, num_trajectory_frames: int | None = None) -> Trajectory:
        """The recorded past in the ego frame of now, the current pose included and last."""
        end = self.scene_metadata.num_history_frames
        count = end if num_trajectory_frames is None else num_trajectory_frames + 1
        return self._trajectory(end - count, end)

    def get_agent_input(self) -> AgentInput:
        """The scene without anything privileged; poses local to the current frame."""
        count = self.scene_metadata.num_history_frames
        local = self._local_poses(0, count)
        statuses = [
            EgoStatus(pose, s.ego_velocity, s.ego_acceleration, s.driving_command)
            for pose, s in zip(local, (frame.ego_status for frame in self.frames[:count]), strict=True)
        ]
        history = self.frames[:count]
        return AgentInput(statuses, [frame.cameras for frame in history], [frame.lidar for frame in history])

    def _trajectory(self, start: int, end: int) -> Trajectory:
        poses = self._local_poses(start, end)
        return Trajectory(poses, TrajectorySampling(num_poses=len(poses), interval_length=0.5))

    def _local_poses(self, start: int, end: int) -> NDArray[np.float64]:
        if not 0 <= start <= end <= len(self.frames):
            raise ValueError(
                f"num_trajectory_frames must stay within the {len(self.frames)} frames of scene "
                f"{self.scene_metadata.initial_token!r}, got frames {start} to {end}"
            )
        poses = np.array([frame.ego_status.ego_pose for frame in self.frames[start:end]], dtype=np.float64)
        origin = self.frames[self.scene_metadata.num_history_frames - 1].ego_status.ego_pose
        return local_from_global(poses, origin)


@dataclass
class SensorConfig:
    """Sensors an agent wants: for each all frames (True), none (False) or a Python list of frame indices."""

    cam_f0: bool | list[int]
    cam_l0: bool | list[int]
    cam_l1: bool | list[int]
    cam_l2: bool | list[int]
    cam_r0: bool | list[int]
    cam_r1: bool | list[int]
    cam_r2: bool | list[int]
    cam_b0: bool | list[int]
    lidar_pc: bool | list[int]

    def get_sensors_at_iteration(self, iteration: int) -> list[str]:
        """Names of the sensors wanted for frame `iteration` of the window."""
        wanted = {field.name: getattr(self, field.name) for field in fields(self)}
        return [
            name for name, when in wanted.items() if when is True or (when is not False and iteration in when)
        ]

    @classmethod
    def build_all_sensors(cls, include: bool | list[int] = True) -> SensorConfig:
        """Every sensor, in the frames `include`."""
        return cls(**{field.name: include for field in fields(cls)})

    @classmethod
    def build_no_sensors(cls) -> SensorConfig:
        """No sensor at all."""
        return cls.build_all_sensors(include=False)


class AbstractFeatureBuilder:
    """Turns an `AgentInput` into unbatched tensors. An interface, as NAVSIM has it."""

    def get_unique_name(self) -> str:
        """Name under which NAVSIM caches these features."""
        raise NotImplementedError

    def compute_features(self, agent_input: AgentInput) -> dict[str, torch.Tensor]:
        """Tensors by name; names are unique over all builders of an agent."""
        raise NotImplementedError


class AbstractTargetBuilder:
    """Turns a `Scene` into unbatched tensors to learn from."""

    def get_unique_name(self) -> str:
        """Name under which NAVSIM caches these targets."""
        raise NotImplementedError

    def compute_targets(self, scene: Scene) -> dict[str, torch.Tensor]:
        """Tensors by name; names are unique over all builders of an agent."""
        raise NotImplementedError


class AbstractAgent(torch.nn.Module, ABC):
    """A planner as NAVSIM's scripts call it."""

    def __init__(self, trajectory_sampling: TrajectorySampling, requires_scene: bool = False) -> None:
        super().__init__()
        self.requires_scene = requires_scene
        self._trajectory_sampling = trajectory_sampling

    @abstractmethod
    def name(self) -> str:
        """Name of the agent."""

    @abstractmethod
    def get_sensor_config(self) -> SensorConfig:
        """Sensors to load."""

    @abstractmethod
    def initialize(self) -> None:
        """Loads what inference needs; NAVSIM calls it before scoring, never before training."""

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Batched predictions."""
        raise NotImplementedError

    def get_feature_builders(self) -> list[AbstractFeatureBuilder]:
        """Builders of the model's inputs."""
        raise NotImplementedError(f"{self.name()} has no feature builders: it cannot be trained")

    def get_target_builders(self) -> list[AbstractTargetBuilder]:
        """Builders of the training targets."""
        raise NotImplementedError(f"{self.name()} has no target builders: it cannot be trained")

    def compute_trajectory(self, agent_input: AgentInput) -> Trajectory:
        """The agent's trajectory for one scene."""
        raise NotImplementedError

    def compute_loss(
        self,
        features: dict[str, torch.Tensor],
        targets: dict[str, torch.Tensor],
        predictions: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """Scalar training loss."""
        raise NotImplementedError(f"{self.name()} has no loss: it cannot be trained")

    def get_optimizers(self) -> Any:
        """An optimizer, or {"optimizer": ..., "lr_scheduler": ...}."""
        raise NotImplementedError(f"{self.name()} has no optimizer: it cannot be trained")

    def get_training_callbacks(self) -> list[Any]:
        """Lightning callbacks."""
        return []
