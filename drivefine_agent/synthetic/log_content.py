"""What a drive's frames look like in a log: places in the city, tokens, boxes in the ego frame, lights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from drivefine_agent.constants import FRAME_INTERVAL_S
from drivefine_agent.data.types import Annotations, CameraRecord, Frame
from drivefine_agent.synthetic.camera import Camera
from drivefine_agent.synthetic.lanes import FloatArray, wrap
from drivefine_agent.synthetic.map_layers import global_id
from drivefine_agent.synthetic.world import World, WorldFrame

CITY_ORIGINS: dict[str, tuple[float, float]] = {
    "us-ma-boston": (331_000.0, 4_691_000.0),
    "us-nv-las-vegas-strip": (665_000.0, 3_998_000.0),
    "us-pa-pittsburgh-hazelwood": (589_000.0, 4_476_000.0),
    "sg-one-north": (365_000.0, 143_500.0),
}
"""Place of the first neighbourhood in each city's UTM zone [m]."""
NEIGHBOURHOOD_SPACING_M = 1800.0
NEIGHBOURHOODS_PER_ROW = 24
ANNOTATION_RADIUS_M = 70.0
FIRST_TIMESTAMP_US = 1_620_000_000_000_000


SplitName = Literal["train", "val", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class LogPlan:
    """One log to be made."""

    name: str
    split: SplitName
    data_split: str
    """Folder below navsim_logs and sensor_blobs."""
    map_name: str
    place: int
    """Number of the neighbourhood within its city."""
    seed: int

    @property
    def origin(self) -> FloatArray:
        """(2,) city coordinates of the neighbourhood's local origin [m]."""
        row, column = divmod(self.place, NEIGHBOURHOODS_PER_ROW)
        return np.array(CITY_ORIGINS[self.map_name]) + NEIGHBOURHOOD_SPACING_M * np.array([column, row])


def make_token(*parts: object, length: int = 16) -> str:
    """Hexadecimal characters that follow from the parts."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:length]


def log_frames(world: World, plan: LogPlan, cameras: dict[str, Camera]) -> list[Frame]:
    """The frames of a log, at the neighbourhood's place in its city."""
    route = tuple(str(global_id(plan.place, block)) for block in world.route_blocks)
    start = FIRST_TIMESTAMP_US + (plan.seed % 10_000_000) * 1_000_000
    frames = []
    for index, frame in enumerate(world.frames):
        pose = frame.ego_pose.copy()
        pose[:2] += plan.origin
        frames.append(
            Frame(
                token=make_token(plan.name, plan.seed, "frame", index),
                timestamp_us=start + index * round(FRAME_INTERVAL_S * 1e6),
                ego_pose=pose,
                ego_velocity=frame.ego_velocity,
                ego_acceleration=frame.ego_acceleration,
                driving_command=np.eye(4, dtype=np.int64)[frame.command],
                roadblock_ids=route,
                traffic_lights=lights_of(world, frame, plan.place),
                annotations=annotations_of(frame, plan, index),
                cameras={
                    name: CameraRecord(
                        f"{plan.name}/{name}/{make_token(plan.name, plan.seed, 'frame', index)}.jpg",
                        camera.rotation,
                        camera.translation,
                        camera.intrinsics,
                        np.zeros(5),
                    )
                    for name, camera in cameras.items()
                },
                log_name=plan.name,
                map_name=plan.map_name,
                scene_token=make_token(plan.name, plan.seed, "scene"),
            )
        )
    return frames


def lights_of(world: World, frame: WorldFrame, place: int) -> tuple[tuple[int, bool], ...]:
    """(connector, is red) for all connectors that have a light."""
    states = []
    for (junction, arm), light in sorted(frame.lights.items()):
        for connector in world.network.junctions[junction].connectors:
            if world.network.segments[connector].arm == arm:
                states.append((global_id(place, connector), light == "red"))
    return tuple(states)


def annotations_of(frame: WorldFrame, plan: LogPlan, index: int) -> Annotations:
    """Boxes in the ego frame of what is near."""
    x, y, heading = frame.ego_pose
    near = [t for t in frame.tracks if np.hypot(t.x - x, t.y - y) < ANNOTATION_RADIUS_M]
    cos, sin = np.cos(heading), np.sin(heading)
    boxes, velocities = np.zeros((len(near), 7)), np.zeros((len(near), 3))
    for row, track in enumerate(near):
        dx, dy = track.x - x, track.y - y
        boxes[row] = (
            cos * dx + sin * dy,
            -sin * dx + cos * dy,
            0.5 * track.height,
            track.length,
            track.width,
            track.height,
            float(wrap(track.heading - heading)),
        )
        velocities[row, :2] = cos * track.vx + sin * track.vy, -sin * track.vx + cos * track.vy
    tracks = tuple(make_token(plan.name, plan.seed, "track", t.id) for t in near)
    instances = tuple(make_token(plan.name, plan.seed, "box", t.id, index) for t in near)
    return Annotations(boxes, tuple(t.kind for t in near), velocities, instances, tracks)
