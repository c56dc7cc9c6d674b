"""Writes a synthetic dataset in NAVSIM's formats: logs, maps, camera images and splits.

One log is one drive in its own neighbourhood. Everything follows from the seed of the configuration and the
number of the log, so the bytes do not depend on how many processes work or in which order they finish. A
finished log leaves a stamp; a second run with the same configuration makes only what is missing.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from tqdm import tqdm

from drivefine_agent.constants import (
    CAMERA_NAMES,
    FRAME_INTERVAL_S,
    MAP_VERSIONS,
    NUM_FUTURE_FRAMES,
    NUM_HISTORY_FRAMES,
)
from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.data.log_writer import write_log
from drivefine_agent.data.map_writer import MapLayers, map_path, write_map, write_maps_index
from drivefine_agent.data.scenes import SceneFilter
from drivefine_agent.data.sensors import write_image
from drivefine_agent.data.split_writer import write_split
from drivefine_agent.data.splits import Split
from drivefine_agent.data.types import Annotations, CameraRecord, Frame
from drivefine_agent.errors import DataError
from drivefine_agent.synthetic.camera import Camera, Renderer, make_camera
from drivefine_agent.synthetic.lanes import FloatArray, wrap
from drivefine_agent.synthetic.map_layers import global_id, merge_layers, neighbourhood_layers
from drivefine_agent.synthetic.samples import choose_samples
from drivefine_agent.synthetic.world import World, WorldFrame, build_neighbourhood, build_world, seed_of

GENERATOR_VERSION = 1
"""Raise when the same configuration gives other bytes, so that old output is not mixed with new."""
CITY_ORIGINS: dict[str, tuple[float, float]] = {
    "us-ma-boston": (331_000.0, 4_691_000.0),
    "us-nv-las-vegas-strip": (665_000.0, 3_998_000.0),
    "us-pa-pittsburgh-hazelwood": (589_000.0, 4_476_000.0),
    "sg-one-north": (365_000.0, 143_500.0),
}
"""Place of the first neighbourhood in each city's UTM zone [m]."""
TRAIN_CITIES = ("us-ma-boston", "us-nv-las-vegas-strip", "us-pa-pittsburgh-hazelwood")
TEST_CITY = "sg-one-north"
NEIGHBOURHOOD_SPACING_M = 1800.0
NEIGHBOURHOODS_PER_ROW = 24
ANNOTATION_RADIUS_M = 70.0
FIRST_TIMESTAMP_US = 1_620_000_000_000_000

SplitName = Literal["train", "val", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class WorldConfig:
    """What to make. The same values give the same bytes."""

    output: str
    """Dataset root, NAVSIM's OPENSCENE_DATA_ROOT."""
    seed: int = 0
    num_train_logs: int = 70
    num_val_logs: int = 8
    num_test_logs: int = 14
    log_duration_s: float = 50.0
    """Length of a drive; 50 s are 101 frames."""
    train_frame_interval: int = 3
    """Frames between the starts of two candidates for samples of a log (NAVSIM's frame_interval)."""
    val_frame_interval: int = 4
    test_frame_interval: int = 4
    easy_error_m: float = 2.0
    """A candidate is easy if continuing the present motion ends this close to the driver after 4 s."""
    easy_share: float = 0.25
    """Share of the easy candidates that become samples; 1 keeps all."""
    cameras: tuple[str, ...] = ("CAM_F0",)
    images: Literal["samples", "all", "none"] = "samples"
    """Which frames get images: current frames of samples, all frames, or no frame."""
    jpeg_quality: int = 90
    num_workers: int | None = None
    """Processes; None: one per core. Has no influence on the result."""

    def __post_init__(self) -> None:
        shortest = (NUM_HISTORY_FRAMES + NUM_FUTURE_FRAMES - 1) * FRAME_INTERVAL_S
        if self.log_duration_s < shortest:
            raise DataError(
                f"log_duration_s must be at least {shortest} for one sample, got {self.log_duration_s}"
            )
        unknown = [name for name in self.cameras if name not in CAMERA_NAMES]
        if unknown:
            raise DataError(f"unknown cameras {unknown}: known are {list(CAMERA_NAMES)}")
        if self.images not in ("samples", "all", "none"):
            raise DataError(f"images must be samples, all or none, got {self.images!r}")
        if min(self.num_train_logs, self.num_val_logs, self.num_test_logs) < 0:
            raise DataError("numbers of logs must not be negative")
        if min(self.train_frame_interval, self.val_frame_interval, self.test_frame_interval) < 1:
            raise DataError("frame intervals must be at least 1")
        if not 0.0 <= self.easy_share <= 1.0:
            raise DataError(f"easy_share must lie in 0 ... 1, got {self.easy_share}")

    def frame_interval(self, split: SplitName) -> int:
        """Stride of a split's samples."""
        return {
            "train": self.train_frame_interval,
            "val": self.val_frame_interval,
            "test": self.test_frame_interval,
        }[split]

    def num_logs(self, split: SplitName) -> int:
        """Number of logs of a split."""
        return {"train": self.num_train_logs, "val": self.num_val_logs, "test": self.num_test_logs}[split]


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


@dataclass(frozen=True)
class WorldSummary:
    """What a run did."""

    root: Path
    num_logs: dict[str, int] = field(default_factory=dict)
    num_scenes: dict[str, int] = field(default_factory=dict)
    num_made: int = 0
    """Logs made in this run; the others were there already."""


def make_world(config: WorldConfig, show_progress: bool = True) -> WorldSummary:
    """Writes the dataset of a configuration below `config.output`.

    Raises:
      DataError: if the folder holds a dataset of another configuration, or cannot be written.
    """
    root = Path(config.output)
    _claim(root, config)
    plans = plan_logs(config)
    todo = [plan for plan in plans if not _stamp_path(root, plan).is_file()]
    for _ in tqdm(
        _run_all(_make_log, [(config, plan) for plan in todo], config.num_workers),
        total=len(todo),
        desc="Driving and rendering",
        unit="log",
        disable=not show_progress,
    ):
        pass
    _write_maps(root, config, plans, show_progress)
    num_scenes: dict[str, int] = {}
    for split in SPLIT_NAMES:
        logs = [plan for plan in plans if plan.split == split]
        if not logs:
            continue
        tokens = tuple(token for plan in logs for token in _read_stamp(root, plan))
        scene_filter = SceneFilter(
            frame_interval=config.frame_interval(split),
            log_names=tuple(plan.name for plan in logs),
            tokens=tokens,
        )
        data_split = "test" if split == "test" else "trainval"
        write_split(root / "splits", Split(f"world_{split}", data_split, scene_filter))
        num_scenes[split] = len(tokens)
    return WorldSummary(root, {str(s): config.num_logs(s) for s in SPLIT_NAMES}, num_scenes, len(todo))


def plan_logs(config: WorldConfig) -> list[LogPlan]:
    """All logs of a configuration, in a fixed order."""
    plans: list[LogPlan] = []
    places = dict.fromkeys(MAP_VERSIONS, 0)
    for split in SPLIT_NAMES:
        for index in range(config.num_logs(split)):
            city = TEST_CITY if split == "test" else TRAIN_CITIES[index % len(TRAIN_CITIES)]
            name = f"world-{split}-s{config.seed}-{index:05d}"
            seed = seed_of("drivefine world", GENERATOR_VERSION, config.seed, split, index)
            plans.append(
                LogPlan(name, split, "test" if split == "test" else "trainval", city, places[city], seed)
            )
            places[city] += 1
    return plans


def make_token(*parts: object) -> str:
    """16 hexadecimal characters that follow from the parts."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:16]


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
                traffic_lights=_lights(world, frame, plan.place),
                annotations=_annotations(frame, plan, index),
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


def _lights(world: World, frame: WorldFrame, place: int) -> tuple[tuple[int, bool], ...]:
    """(connector, is red) for all connectors that have a light."""
    states = []
    for (junction, arm), light in sorted(frame.lights.items()):
        for connector in world.network.junctions[junction].connectors:
            if world.network.segments[connector].arm == arm:
                states.append((global_id(place, connector), light == "red"))
    return tuple(states)


def _annotations(frame: WorldFrame, plan: LogPlan, index: int) -> Annotations:
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


def _make_log(config: WorldConfig, plan: LogPlan) -> str:
    """Makes one log with its images, then its stamp."""
    cv2.setNumThreads(1)
    root = Path(config.output)
    world = build_world(plan.seed, config.log_duration_s)
    cameras = {name: make_camera(name) for name in CAMERA_NAMES}
    frames = log_frames(world, plan, cameras)
    sensor_root = root / "sensor_blobs" / plan.data_split
    samples = choose_samples(
        world.frames, plan.seed, config.frame_interval(plan.split), config.easy_error_m, config.easy_share
    )
    wanted: dict[str, Iterable[int]] = {"samples": samples, "all": range(len(frames)), "none": ()}
    renderer = Renderer(world)
    for index in wanted[config.images]:
        for name in config.cameras:
            picture = renderer.draw(world.frames[index], cameras[name])
            write_image(sensor_root, frames[index].cameras[name].data_path, picture, config.jpeg_quality)
    write_log(root / "navsim_logs" / plan.data_split / f"{plan.name}.pkl", frames)
    stamp = json.dumps([frames[index].token for index in samples])
    write_bytes(_stamp_path(root, plan), stamp.encode())
    return plan.name


def _layers(config: WorldConfig, plan: LogPlan) -> MapLayers:
    """Map layers of one log's neighbourhood."""
    network, scenery = build_neighbourhood(plan.seed, config.log_duration_s)
    return neighbourhood_layers(network, scenery, plan.place, plan.origin)


def _write_maps(root: Path, config: WorldConfig, plans: list[LogPlan], show_progress: bool) -> None:
    """Writes the maps of the four cities, unless they are there already."""
    maps_root = root / "maps"
    if all(map_path(maps_root, name).is_file() for name in MAP_VERSIONS):
        return
    for name in tqdm(sorted(MAP_VERSIONS), desc="Writing maps", unit="city", disable=not show_progress):
        parts = [_layers(config, plan) for plan in plans if plan.map_name == name]
        write_map(map_path(maps_root, name), name, merge_layers(parts))
    write_maps_index(maps_root)


def _run_all(function: Any, arguments: list[tuple[Any, ...]], num_workers: int | None) -> Iterator[Any]:
    """Results of a function in whatever order they come, from one process or several."""
    count = min(len(arguments), num_workers or os.cpu_count() or 1)
    if count <= 1:
        for item in arguments:
            yield function(*item)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        futures = [pool.submit(function, *item) for item in arguments]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def _stamp_path(root: Path, plan: LogPlan) -> Path:
    """A file that exists once a log is complete; it lists the tokens of its samples."""
    return root / ".world" / f"{plan.name}.json"


def _read_stamp(root: Path, plan: LogPlan) -> list[str]:
    """Tokens of the samples of a finished log."""
    tokens: list[str] = json.loads(_stamp_path(root, plan).read_text())
    return tokens


def _claim(root: Path, config: WorldConfig) -> None:
    """Notes the configuration in the dataset's folder; refuses a folder of another configuration."""
    content = {k: v for k, v in asdict(config).items() if k not in ("output", "num_workers")}
    content = json.loads(json.dumps({"generator_version": GENERATOR_VERSION, **content}))
    path = root / ".world" / "config.json"
    if path.is_file():
        found = json.loads(path.read_text())
        if found != content:
            changed = sorted(k for k in {*found, *content} if found.get(k) != content.get(k))
            raise DataError(
                f"a folder holds the world of one configuration, {root} has another (different: {changed}): "
                f"remove the folder or choose another output"
            )
        return
    write_bytes(path, json.dumps(content, indent=1).encode() + b"\n")
