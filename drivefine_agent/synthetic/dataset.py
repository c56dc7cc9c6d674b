"""Writes a synthetic dataset in NAVSIM's formats: logs, maps, camera images and splits.

One log is one drive in its own neighbourhood. Everything follows from the seed of the configuration and the
number of the log, so the bytes do not depend on how many processes work or in which order they finish. A
finished log leaves a stamp; a second run with the same configuration makes only what is missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
from tqdm import tqdm

from drivefine_agent.constants import (
    CAMERA_NAMES,
    FRAME_INTERVAL_S,
    MAP_VERSIONS,
    NUM_FUTURE_FRAMES,
    NUM_HISTORY_FRAMES,
    NUM_POSES,
)
from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.data.dataset_paths import SCENES_FOLDER, SECOND_STAGE_FOLDER
from drivefine_agent.data.folder_lock import FolderLock, check_locks
from drivefine_agent.data.json_text import read_json, read_json_object
from drivefine_agent.data.log_writer import write_log
from drivefine_agent.data.map_writer import MapLayers, map_path, write_map, write_maps_index
from drivefine_agent.data.maps import MAPS_INDEX_NAME
from drivefine_agent.data.scenes import SceneFilter
from drivefine_agent.data.second_stage import read_second_stage
from drivefine_agent.data.second_stage_writer import SceneAttributes, write_attributes
from drivefine_agent.data.sensors import write_image
from drivefine_agent.data.split_writer import write_split
from drivefine_agent.data.splits import Split, StageGroup
from drivefine_agent.errors import DataError
from drivefine_agent.synthetic.camera import Renderer, make_camera
from drivefine_agent.synthetic.log_content import SPLIT_NAMES, LogPlan, SplitName, log_frames
from drivefine_agent.synthetic.map_layers import merge_layers, neighbourhood_layers
from drivefine_agent.synthetic.samples import choose_samples
from drivefine_agent.synthetic.second_stage import SecondStageOptions, choose_starts, write_groups
from drivefine_agent.synthetic.world import build_neighbourhood, build_world, seed_of
from drivefine_agent.worker_processes import as_they_finish

GENERATOR_VERSION = 1
"""Raise when the same configuration gives other bytes, so that old output is not mixed with new."""
SECOND_STAGE_VERSION = 1
"""The same for the second stage alone."""
_SECOND_STAGE_KEYS = ("num_two_stage_groups", "followups_per_group")
TRAIN_CITIES = ("us-ma-boston", "us-nv-las-vegas-strip", "us-pa-pittsburgh-hazelwood")
TEST_CITY = "sg-one-north"


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
    num_two_stage_groups: int = 0
    """Moments of the test drives that get a second stage (NAVSIM 2). Without test drives there are none."""
    followups_per_group: int = 5
    """Pairs of second-stage samples for each of them."""
    is_dense: bool = False
    """As many lanes and road users around the ego as in a city centre: 200 to 400 map polygons and about 60
    tracks a scene. For measuring the scorer; images show the streets that lead nowhere."""
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
            raise DataError(f"cameras must be among {list(CAMERA_NAMES)}, got {unknown}: choose some of them")
        if self.images not in ("samples", "all", "none"):
            raise DataError(f"images must be samples, all or none, got {self.images!r}: choose one of them")
        for name in ("num_train_logs", "num_val_logs", "num_test_logs"):
            if getattr(self, name) < 0:
                raise DataError(
                    f"{name} must not be negative, got {getattr(self, name)}: set it to 0 or more"
                )
        for name in ("train_frame_interval", "val_frame_interval", "test_frame_interval"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} must be at least 1, got {getattr(self, name)}: set it to 1 or more")
        if self.num_two_stage_groups < 0 or self.followups_per_group < 1:
            raise DataError(
                "num_two_stage_groups must not be negative and followups_per_group must be at least 1, got "
                f"{self.num_two_stage_groups} and {self.followups_per_group}"
            )
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
class WorldSummary:
    """What a run did."""

    root: Path
    num_logs: dict[str, int] = field(default_factory=dict)
    num_scenes: dict[str, int] = field(default_factory=dict)
    num_made: int = 0
    """Logs made in this run; the others were there already."""
    num_second_stage: int = 0
    """Second-stage samples of the split world_two_stage."""


def make_world(config: WorldConfig, show_progress: bool = True) -> WorldSummary:
    """Writes the dataset of a configuration below `config.output`.

    Raises:
      DataError: if the folder holds a dataset of another configuration, another process is writing it, or
        it cannot be written.
    """
    with FolderLock(config.output):
        return _make_world(Path(config.output), config, show_progress)


def _make_world(root: Path, config: WorldConfig, show_progress: bool) -> WorldSummary:
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
        check_locks(root)
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
    num_second_stage = _make_second_stage(root, config, plans, show_progress)
    num_logs = {str(split): config.num_logs(split) for split in SPLIT_NAMES}
    return WorldSummary(root, num_logs, num_scenes, len(todo), num_second_stage)


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


def _make_log(config: WorldConfig, plan: LogPlan) -> str:
    """Makes one log with its images, then its stamp."""
    cv2.setNumThreads(1)
    root = Path(config.output)
    world = build_world(plan.seed, config.log_duration_s, config.is_dense)
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


def _make_second_stage(root: Path, config: WorldConfig, plans: list[LogPlan], show_progress: bool) -> int:
    """Writes the second stage and its split; returns the number of samples."""
    logs = [plan for plan in plans if plan.split == "test"]
    if not config.num_two_stage_groups or not logs:
        return 0
    _claim_second_stage(root, config)
    counts = {plan.name: 0 for plan in logs}
    for index in range(config.num_two_stage_groups):
        counts[logs[index % len(logs)].name] += 1
    logs = [plan for plan in logs if counts[plan.name]]
    todo = [plan for plan in logs if not _groups_path(root, plan).is_file()]
    arguments = [(config, plan, counts[plan.name]) for plan in todo]
    for _ in tqdm(
        _run_all(_make_groups, arguments, config.num_workers),
        total=len(todo),
        desc="Departing from the drives",
        unit="log",
        disable=not show_progress,
    ):
        pass
    groups = [group for plan in logs for group in _read_groups(root, plan)]
    first = tuple(token for group in groups for token in (group.token, group.previous_token))
    second = tuple(token for group in groups for pair in group.pairs for token in pair)
    scene_filter = SceneFilter(
        num_future_frames=NUM_POSES,  # NAVSIM finds the second stage by the frame at exactly 4 s
        frame_interval=1,
        log_names=tuple(plan.name for plan in logs),
        tokens=first,
        include_synthetic_scenes=True,
        reactive_synthetic_initial_tokens=second,
    )
    write_split(root / "splits", Split("world_two_stage", "test", scene_filter, tuple(groups)))
    folder = root / SECOND_STAGE_FOLDER
    write_attributes(
        folder,
        (
            SceneAttributes(read_second_stage(folder / SCENES_FOLDER / f"{token}.pkl"), f"{group.token}-{i}")
            for group in groups
            for i, pair in enumerate(group.pairs)
            for token in pair
        ),
    )
    return len(second)


def _make_groups(config: WorldConfig, plan: LogPlan, count: int) -> str:
    """Makes the two-stage groups of one log, then their stamp."""
    cv2.setNumThreads(1)
    root = Path(config.output)
    world = build_world(plan.seed, config.log_duration_s, config.is_dense)
    samples = choose_samples(
        world.frames, plan.seed, config.test_frame_interval, config.easy_error_m, config.easy_share
    )
    starts = choose_starts(len(world.frames), samples, count, plan.seed)
    options = SecondStageOptions(
        config.followups_per_group, config.cameras, config.images, config.jpeg_quality
    )
    groups = write_groups(root, root / SECOND_STAGE_FOLDER, world, plan, starts, options)
    write_bytes(_groups_path(root, plan), json.dumps([astuple(group) for group in groups]).encode())
    return plan.name


def _groups_path(root: Path, plan: LogPlan) -> Path:
    """A file that exists once the second stage of a log is complete; it lists its groups."""
    return root / ".world" / f"{plan.name}.two_stage.json"


def _read_groups(root: Path, plan: LogPlan) -> list[StageGroup]:
    """The groups of a finished log."""
    path = _groups_path(root, plan)
    try:
        return [
            StageGroup(token, previous, tuple((now, before) for now, before in pairs))
            for token, previous, pairs in read_json(path)
        ]
    except (TypeError, ValueError) as error:
        raise DataError(
            f"a finished second stage's file lists its groups, got something else ({error}): {path}; "
            "delete it"
        ) from error


def _layers(config: WorldConfig, plan: LogPlan) -> MapLayers:
    """Map layers of one log's neighbourhood."""
    network, scenery = build_neighbourhood(plan.seed, config.log_duration_s, config.is_dense)
    return neighbourhood_layers(network, scenery, plan.place, plan.origin)


def _write_maps(root: Path, config: WorldConfig, plans: list[LogPlan], show_progress: bool) -> None:
    """Writes the maps of the four cities, unless they are there already."""
    maps_root = root / "maps"
    files = [maps_root / MAPS_INDEX_NAME, *(map_path(maps_root, name) for name in MAP_VERSIONS)]
    if all(file.is_file() for file in files):
        return
    for name in tqdm(sorted(MAP_VERSIONS), desc="Writing maps", unit="city", disable=not show_progress):
        parts = [_layers(config, plan) for plan in plans if plan.map_name == name]
        write_map(map_path(maps_root, name), name, merge_layers(parts))
    write_maps_index(maps_root)


def _run_all(
    function: Callable[..., Any], arguments: list[tuple[Any, ...]], num_workers: int | None
) -> Iterator[Any]:
    """Results of a function in whatever order they come, from one process or several."""
    count = min(len(arguments), num_workers or os.cpu_count() or 1)
    if count <= 1:
        for item in arguments:
            yield function(*item)
        return
    finished = as_they_finish(
        partial(_call, function),
        arguments,
        count,
        describe=lambda item: item[1].name,
        advice="finished drives stay: start the same command again",
    )
    for _, result in finished:
        yield result


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return function(*arguments)


def _stamp_path(root: Path, plan: LogPlan) -> Path:
    """A file that exists once a log is complete; it lists the tokens of its samples."""
    return root / ".world" / f"{plan.name}.json"


def _read_stamp(root: Path, plan: LogPlan) -> list[str]:
    """Tokens of the samples of a finished log."""
    path = _stamp_path(root, plan)
    tokens = read_json(path)
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise DataError(f"a finished log's file lists its tokens, got something else: {path}; delete it")
    return tokens


def _claim(root: Path, config: WorldConfig) -> None:
    """Notes the configuration in the dataset's folder; refuses a folder of another configuration."""
    values = {
        k: v for k, v in asdict(config).items() if k not in ("output", "num_workers", *_SECOND_STAGE_KEYS)
    }
    if not config.is_dense:
        del values["is_dense"]  # worlds made before there was this key are still the same worlds
    _note(root / ".world" / "config.json", {"generator_version": GENERATOR_VERSION, **values}, root)


def _claim_second_stage(root: Path, config: WorldConfig) -> None:
    """The same for the second stage, which can be added to a finished dataset."""
    values = {key: getattr(config, key) for key in _SECOND_STAGE_KEYS}
    _note(root / ".world" / "two_stage.json", {"generator_version": SECOND_STAGE_VERSION, **values}, root)


def _note(path: Path, values: dict[str, Any], root: Path) -> None:
    """Writes what a folder was made with, or compares it with what stands there."""
    content = json.loads(json.dumps(values))
    if path.is_file():
        found = read_json_object(path)
        if found != content:
            changed = sorted(k for k in {*found, *content} if found.get(k) != content.get(k))
            raise DataError(
                f"a folder holds the world of one configuration, {root} has another (different: {changed}): "
                f"remove the folder or choose another output"
            )
        return
    write_bytes(path, json.dumps(content, indent=1).encode() + b"\n")
