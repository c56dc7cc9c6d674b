"""Between NAVSIM's records and ours; apart from the agent, nothing else reads fields of NAVSIM's classes.

NAVSIM hands history poses, velocity and acceleration to an agent as float32. Every way to an `Observation`
goes through that rounding, so that training on windows, evaluation here and a run inside NAVSIM see the same
numbers to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.constants import NUM_HISTORY_FRAMES, NUM_POSES
from drivefine_agent.data.scenes import future_poses, local_poses
from drivefine_agent.data.types import Observation, SceneWindow
from drivefine_agent.errors import DataError
from drivefine_agent.navsim_api import (
    AgentInput,
    Camera,
    Cameras,
    EgoStatus,
    Frame,
    Lidar,
    Scene,
    SceneMetadata,
)

FRONT_CAMERA = "CAM_F0"
ObservationTransform = Callable[[Observation], Observation]


def observation_from_agent_input(agent_input: AgentInput, needs_image: bool = True) -> Observation:
    """What the planner may see, from what NAVSIM gives an agent.

    Args:
      agent_input: NAVSIM's input; the last entry of each list is now.
      needs_image: False gives a 1 x 1 black image: for planners that look at none.

    Raises:
      DataError: the front camera was not loaded, the history is too short or a value is not finite.
    """
    statuses = agent_input.ego_statuses
    if len(statuses) < NUM_HISTORY_FRAMES:
        raise DataError(
            f"an agent input needs {NUM_HISTORY_FRAMES} history frames, got {len(statuses)} ego_statuses: "
            "set num_history_frames"
        )
    image = np.zeros((1, 1, 3), dtype=np.uint8)
    if needs_image:
        loaded = agent_input.cameras[-1].cam_f0.image
        if loaded is None:
            raise DataError("cam_f0 of the current frame was not loaded: ask for it in get_sensor_config")
        image = np.asarray(loaded)
    now = statuses[-1]
    poses = np.stack([np.asarray(status.ego_pose) for status in statuses[-NUM_HISTORY_FRAMES:]])
    observation = Observation(
        image=image,
        history_poses=_as_navsim_float(poses),
        velocity=_as_navsim_float(now.ego_velocity),
        acceleration=_as_navsim_float(now.ego_acceleration),
        driving_command=np.asarray(now.driving_command).astype(np.int64),
    )
    _check(observation)
    return observation


def agent_input_from_window(window: SceneWindow, front_image: NDArray[np.uint8] | None) -> AgentInput:
    """The input NAVSIM would build from the same log, with the current front camera image as the only sensor.

    Args:
      window: a sample.
      front_image: (H, W, 3) uint8 RGB, or None for an agent without sensors.
    """
    history = window.frames[: window.num_history_frames]
    local = local_poses(history, window.current.ego_pose)  # (n, 3)
    statuses = [
        EgoStatus(
            ego_pose=pose.astype(np.float32),
            ego_velocity=frame.ego_velocity.astype(np.float32),
            ego_acceleration=frame.ego_acceleration.astype(np.float32),
            driving_command=frame.driving_command,
        )
        for pose, frame in zip(local, history, strict=True)
    ]
    cameras = [_no_cameras() for _ in history]
    if front_image is not None:
        record = window.current.cameras[FRONT_CAMERA]
        cameras[-1].cam_f0 = Camera(
            image=front_image,
            sensor2lidar_rotation=record.sensor2lidar_rotation,
            sensor2lidar_translation=record.sensor2lidar_translation,
            intrinsics=record.intrinsics,
            distortion=record.distortion,
        )
    return AgentInput(statuses, cameras, [Lidar() for _ in history])


def observation_from_window(window: SceneWindow, front_image: NDArray[np.uint8] | None) -> Observation:
    """What the planner may see of a window, bit for bit as in NAVSIM; None: for planners without a camera."""
    agent_input = agent_input_from_window(window, front_image)
    try:
        return observation_from_agent_input(agent_input, needs_image=front_image is not None)
    except DataError as error:
        raise DataError(f"{error}; scene {window.token} of {window.log_path or window.log_name}") from error


def scene_from_window(window: SceneWindow, front_image: NDArray[np.uint8] | None) -> Scene:
    """A `Scene` as target builders get it: poses of all frames, global; no map and no annotations."""
    agent_input = agent_input_from_window(window, front_image)
    history = window.num_history_frames
    frames = [
        Frame(
            token=frame.token,
            timestamp=frame.timestamp_us,
            roadblock_ids=list(frame.roadblock_ids),
            traffic_lights=[(str(connector), is_red) for connector, is_red in frame.traffic_lights],
            annotations=None,
            ego_status=EgoStatus(
                ego_pose=frame.ego_pose,
                ego_velocity=frame.ego_velocity.astype(np.float32),
                ego_acceleration=frame.ego_acceleration.astype(np.float32),
                driving_command=frame.driving_command,
                in_global_frame=True,
            ),
            lidar=Lidar(),
            cameras=agent_input.cameras[idx] if idx < history else _no_cameras(),
        )
        for idx, frame in enumerate(window.frames)
    ]
    metadata = SceneMetadata(
        log_name=window.log_name,
        scene_token=window.scene_token,
        map_name=window.map_name,
        initial_token=window.token,
        num_history_frames=history,
        num_future_frames=window.num_future_frames,
    )
    return Scene(metadata, None, frames)


def human_poses(window: SceneWindow) -> NDArray[np.float64]:
    """(8, 3) what the recorded driver did, in the ego frame of now; `DataError` if the window ends early."""
    return future_poses(window, NUM_POSES)


def blank_image(observation: Observation) -> Observation:
    """The observation with a uniformly grey image: what a planner does without its camera."""
    return replace(observation, image=np.full_like(observation.image, 128))


def _no_cameras() -> Cameras:
    return Cameras(*(Camera() for _ in range(8)))


def _as_navsim_float(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(values).astype(np.float32).astype(np.float64)


def _check(observation: Observation) -> None:
    image = observation.image
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise DataError(
            f"the image of CAM_F0 must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}: read it as "
            "NAVSIM does"
        )
    command = observation.driving_command
    if command.shape != (4,) or command.sum() != 1 or command.min() < 0:
        raise DataError(f"driving_command must be one-hot of length 4, got {command.tolist()}: check the log")
    for name in ("history_poses", "velocity", "acceleration"):
        values = getattr(observation, name)
        if not np.isfinite(values).all():
            raise DataError(f"{name} must be finite, got {values.tolist()}: check the log")
