"""A scene small enough to check by eye: a straight road, one moving car, one cone."""

from __future__ import annotations

import numpy as np

from drivefine_agent.data.types import Annotations, CameraRecord, Frame, SceneWindow
from drivefine_agent.evaluation.results_csv import METRICS_V1
from drivefine_agent.scoring.types import PolygonKind, ScoringScene

ORIGIN = np.array([1000.0, 2000.0, np.pi / 2])
"""The ego vehicle looks along the global y axis: ego (x, y) lies at global (1000 - y, 2000 + x)."""


def to_global(points: np.ndarray) -> np.ndarray:
    return np.stack([ORIGIN[0] - points[..., 1], ORIGIN[1] + points[..., 0]], axis=-1)


def rectangle(x_low: float, x_high: float, y_low: float, y_high: float) -> np.ndarray:
    """(5, 2) closed ring in the ego frame."""
    corners = [[x_high, y_high], [x_low, y_high], [x_low, y_low], [x_high, y_low], [x_high, y_high]]
    return np.array(corners, dtype=np.float64)


def scoring_scene(token: str = "scene", timestamp_us: int = 0) -> ScoringScene:
    """A lane on the route, one off it, a connector beyond, a roadblock under all; a moving car, a cone."""
    rings = [
        rectangle(-20, 40, -2, 2),
        rectangle(-20, 40, 2, 6),
        rectangle(40, 60, -2, 2),
        rectangle(-20, 60, -2, 6),
    ]
    car = to_global(rectangle(18, 22, -1, 1)[:4])
    cone = to_global(rectangle(10.0, 10.3, 3.0, 3.3)[:4])
    corners = np.zeros((51, 2, 4, 2))
    corners[:, 0] = car + np.arange(51)[:, None, None] * np.array([0.0, 0.5])  # 5 m/s along the road
    corners[:, 1] = cone
    exists = np.ones((51, 2), dtype=bool)
    exists[35:, 0] = False  # the car leaves the picture after 3.4 s
    state = np.zeros(11)
    state[:3] = ORIGIN
    human = np.column_stack([4.0 * np.arange(1, 9), np.zeros(8), np.zeros(8)])
    return ScoringScene(
        token=token,
        log_name="log",
        map_name="us-ma-boston",
        timestamp_us=timestamp_us,
        initial_state=state,
        human_poses=human,
        reference_poses=np.zeros((51, 3)),
        reference_states=np.zeros((41, 11)),
        reference_progress=30.0,
        reference_multiplier=1.0,
        centerline=to_global(np.array([[-20.0, 0.0], [60.0, 0.0]])),
        polygon_xy=to_global(np.vstack(rings)),
        polygon_ring_offsets=np.array([0, 5, 10, 15, 20]),
        polygon_part_offsets=np.array([0, 1, 2, 3, 4]),
        polygon_kind=np.array(
            [PolygonKind.LANE, PolygonKind.LANE, PolygonKind.LANE_CONNECTOR, PolygonKind.ROADBLOCK]
        ),
        polygon_on_route=np.array([True, False, True, False]),
        track_corners=corners,
        track_center=corners.mean(axis=2),
        track_exists=exists,
        track_is_agent=np.array([True, False]),
        track_is_stopped=np.array([False, True]),
        track_type=np.array([0, 3]),
        polygon_ids=("1", "2", "3", "4"),
        track_tokens=("car", "cone"),
    )


def camera() -> CameraRecord:
    """A camera 1.5 m above the ego frame's origin, looking forward, with a real lens' distortion."""
    return CameraRecord(
        data_path="log/CAM_F0/scene.jpg",
        sensor2lidar_rotation=np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
        sensor2lidar_translation=np.array([1.9, 0.0, 1.5]),
        intrinsics=np.array([[1545.0, 0.0, 960.0], [0.0, 1545.0, 560.0], [0.0, 0.0, 1.0]]),
        distortion=np.array([-0.356123, 0.172545, -0.00213, 0.000464, -0.05231]),
    )


def window(token: str, timestamp_us: int = 0, speed: float = 5.0) -> SceneWindow:
    """Four past and eight future frames of a straight drive."""
    frames = tuple(
        Frame(
            token=token if step == 0 else f"{token}{step:+d}",
            timestamp_us=timestamp_us + 500_000 * step,
            ego_pose=np.array([ORIGIN[0], ORIGIN[1] + 0.5 * speed * step, ORIGIN[2]]),
            ego_velocity=np.array([speed, 0.0]),
            ego_acceleration=np.zeros(2),
            driving_command=np.array([0, 1, 0, 0]),
            roadblock_ids=("1",),
            traffic_lights=((3, True),),
            annotations=Annotations(np.zeros((0, 7)), (), np.zeros((0, 3)), (), ()),
            cameras={"CAM_F0": camera()},
        )
        for step in range(-3, 9)
    )
    return SceneWindow(
        "log", "us-ma-boston", "nuplan-scene", frames, num_history_frames=4, num_future_frames=8
    )


def scores_row(**values: float) -> dict[str, float]:
    """All metrics 1 but the given ones."""
    return {**dict.fromkeys(METRICS_V1, 1.0), **values}
