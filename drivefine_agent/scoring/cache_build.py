"""Filling a scene cache with several processes; a build that was stopped goes on where it was.

The scenes are dealt out in portions, each of which becomes one part of the cache. A worker reads the logs of
its portion again instead of receiving frames from the parent. At the end the parts are joined; only the
manifest, written last, makes the folder a cache.
"""

from __future__ import annotations

import multiprocessing
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from drivefine_agent.data.folder_lock import FolderLock, check_locks
from drivefine_agent.data.logs import read_log
from drivefine_agent.data.maps import load_map
from drivefine_agent.data.metric_cache import read_metric_cache
from drivefine_agent.data.scenes import SceneFilter, iter_windows
from drivefine_agent.data.second_stage import read_second_stage
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import DataError, SceneError
from drivefine_agent.scoring.build import build_scoring_scene
from drivefine_agent.scoring.build_v2 import build_scoring_scene_v2
from drivefine_agent.scoring.cache import (
    MANIFEST_NAME,
    SCENES_PER_PART,
    finish_cache,
    next_part_number,
    packs_of,
    part_name,
    read_manifest,
)
from drivefine_agent.scoring.cache_layout import NUM_SAMPLES, RULES_V1
from drivefine_agent.scoring.cache_pack import DamagedPackError, Pack, PackWriter
from drivefine_agent.scoring.convert_cache import RULES_OF_VERSION, scoring_scene_from_metric_cache
from drivefine_agent.scoring.types import ScoringScene
from drivefine_agent.worker_processes import as_they_finish

PORTIONS_PER_WORKER = 4  # so that workers finish at about the same time


@dataclass(frozen=True)
class SceneRef:
    """A scene by its place in the logs, without its frames."""

    token: str
    log_path: Path
    map_name: str
    num_history_frames: int
    num_future_frames: int
    fingerprint: int
    """Of the frames and the map that the scene is prepared from."""
    is_second_stage: bool = False
    """The file is that of one second-stage sample."""
    is_metric_cache: bool = False
    """The file is an official metric cache, which is converted."""


@dataclass(frozen=True)
class Portion:
    """The scenes of one part."""

    scenes: tuple[SceneRef, ...]
    maps_root: Path | None
    part_path: Path
    rules: str


@dataclass(frozen=True)
class BuildResult:
    """What a build did."""

    num_built: int
    num_kept: int
    """Scenes that the folder already had, prepared from the same frames and map."""
    failures: Mapping[str, str]
    """Scenes that could not be prepared, with the reason."""


def scene_refs(windows: Iterable[SceneWindow], maps_root: Path) -> list[SceneRef]:
    """References to windows that were read from log files.

    Raises:
      ValueError: if a window does not say which file it was read from.
    """
    refs = []
    for window in windows:
        if window.log_path is None:
            raise ValueError(f"window '{window.token}' has no log_path: cut it with data.scenes.load_scenes")
        refs.append(
            SceneRef(
                token=window.token,
                log_path=window.log_path,
                map_name=window.map_name,
                num_history_frames=window.num_history_frames,
                num_future_frames=window.num_future_frames,
                fingerprint=zlib.crc32(_map_bytes(maps_root, window.map_name), window_checksum(window)),
                is_second_stage=window.second_stage is not None,
            )
        )
    return refs


def window_checksum(window: SceneWindow) -> int:
    """Checksum of what scoring reads of a window: poses, motion, annotations, route and lights.

    The past and future lights count for NAVSIM 2's rules only, but a scene is cheap to prepare again.
    """
    current = window.current
    parts = [
        repr((current.roadblock_ids, current.traffic_lights, window.map_name, window.log_name)).encode(),
        current.ego_velocity.tobytes(),
        current.ego_acceleration.tobytes(),
    ]
    for frame in window.frames[: window.num_history_frames - 1]:  # the past counts under NAVSIM 2's rules
        parts += [frame.timestamp_us.to_bytes(8, "little"), frame.ego_pose.tobytes()]
        parts += [frame.ego_velocity.tobytes(), frame.ego_acceleration.tobytes()]
    for frame in window.frames[window.num_history_frames - 1 :]:
        parts.append(repr(frame.traffic_lights).encode())
        parts += [frame.timestamp_us.to_bytes(8, "little"), frame.ego_pose.tobytes()]
        if frame.annotations is not None:
            parts += [frame.annotations.boxes.tobytes(), frame.annotations.velocity_3d.tobytes()]
            parts.append(repr((frame.annotations.names, frame.annotations.track_tokens)).encode())
    if window.second_stage is not None:
        for objects in window.second_stage.future_objects:
            parts += [objects.poses.tobytes(), objects.sizes.tobytes(), objects.velocities.tobytes()]
            parts.append(repr((objects.names, objects.track_tokens)).encode())
        parts.append(repr(window.second_stage.future_lights).encode())
    return zlib.crc32(b"".join(parts))


@lru_cache(maxsize=16)
def _map_bytes(maps_root: Path, map_name: str) -> bytes:
    """The checksum of a map's file (of all its versions), as bytes."""
    files = sorted((maps_root / map_name).glob("*/map.gpkg"))
    if not files:
        load_map(maps_root, map_name)  # knows other names of the map, and says what is missing
    checksum = 0
    for file in files:
        checksum = zlib.crc32(file.read_bytes(), checksum)
    return checksum.to_bytes(4, "little")


def build_scene_cache(
    scenes: Sequence[SceneRef],
    maps_root: Path | None,
    folder: Path,
    *,
    rules: str = RULES_V1,
    num_workers: int = 1,
    overwrite: bool = False,
    show_progress: bool = False,
) -> BuildResult:
    """Build a scene cache, or add to one the scenes that it lacks or that were made from other data.

    Args:
      scenes: what to build.
      maps_root: NUPLAN_MAPS_ROOT; official metric caches can do without, but then lack reactive traffic.
      folder: of the cache; made if it does not exist.
      rules: `navsim_v1` or `navsim_v2`; a folder holds scenes of one of them.
      num_workers: processes; 1 builds in this one.
      overwrite: build all scenes again; the cache's files are removed first.
      show_progress: draw a progress bar over the scenes.

    Returns:
      Counts, and the scenes that could not be prepared. They are listed in the manifest and tried again next
      time.

    Raises:
      DataError: if the folder holds something else, a log or map cannot be read, or another build is running.
    """
    if rules not in NUM_SAMPLES:
        raise ValueError(f"rules must be one of {sorted(NUM_SAMPLES)}, got {rules!r}")
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    with FolderLock(folder):
        _remove_unfinished(folder)
        if overwrite:
            _remove_cache(folder)
        kept, failures = _state(folder, rules)
        missing = [scene for scene in scenes if kept.get(scene.token) != scene.fingerprint]
        portions = _portions(missing, maps_root, folder, rules, num_workers)
        wanted = {scene.token for scene in missing}
        failed_before = {token: reason for token, reason in failures.items() if token not in wanted}
        failures = {}
        with tqdm(
            total=len(scenes),
            initial=len(scenes) - len(missing),
            desc="Preparing scenes",
            unit="scene",
            smoothing=0.05,
            disable=not show_progress,
        ) as bar:
            if num_workers == 1 or len(portions) <= 1:
                for portion in portions:
                    failures.update(build_portion(portion, bar.update))
            else:
                failures.update(_build_in_processes(portions, num_workers, bar))
        check_locks(folder)
        finish_cache(folder, {**failed_before, **failures}, rules, show_progress)
    return BuildResult(len(missing) - len(failures), len(scenes) - len(missing), failures)


def build_portion(portion: Portion, advance: Any = None) -> dict[str, str]:
    """Build the scenes of a portion and write their part; returns the reasons of those that failed."""
    failures: dict[str, str] = {}
    fingerprints = {scene.token: scene.fingerprint for scene in portion.scenes}
    with PackWriter(portion.part_path, portion.rules) as writer:
        for token, build in _jobs(portion):
            try:
                writer.add(build(), fingerprints[token])
            except SceneError as error:
                failures[token] = str(error)
            if advance is not None:
                advance()
    return failures


def _jobs(portion: Portion) -> Iterator[tuple[str, Callable[[], ScoringScene]]]:
    """For each scene of a portion its token, and the function that prepares it."""
    for scene in portion.scenes:
        if scene.is_metric_cache:
            yield scene.token, partial(_convert, scene, portion)
    logged = [scene for scene in portion.scenes if not scene.is_metric_cache]
    if not logged:
        return
    if portion.maps_root is None:
        raise ValueError("scenes cannot be prepared from logs without maps: give maps_root")
    build = build_scoring_scene if portion.rules == RULES_V1 else build_scoring_scene_v2
    for window in _windows(logged):
        yield window.token, partial(build, window, load_map(portion.maps_root, window.map_name))


def _convert(scene: SceneRef, portion: Portion) -> ScoringScene:
    try:
        cache = read_metric_cache(scene.log_path)
    except DataError as error:  # one damaged file among thousands is a scene that failed
        raise SceneError(str(error)) from error
    if RULES_OF_VERSION[cache.version] != portion.rules:
        raise SceneError(
            f"a metric cache of NAVSIM {cache.version} cannot become a scene of '{portion.rules}': "
            f"{scene.log_path}; build a cache of that version"
        )
    if cache.token != scene.token:
        raise SceneError(
            f"a metric cache must be of its folder's scene '{scene.token}', got that of '{cache.token}': "
            f"{scene.log_path}; make it again"
        )
    if portion.maps_root is None or cache.version == "1.1":
        return scoring_scene_from_metric_cache(cache)
    return scoring_scene_from_metric_cache(cache, load_map(portion.maps_root, cache.map_name))


def _windows(scenes: Sequence[SceneRef]) -> Iterator[SceneWindow]:
    """Cut the windows of scenes out of their logs, log by log."""
    by_log: dict[tuple[Path, int, int], list[str]] = {}
    for scene in scenes:
        if scene.is_second_stage:
            yield read_second_stage(scene.log_path)
            continue
        key = (scene.log_path, scene.num_history_frames, scene.num_future_frames)
        by_log.setdefault(key, []).append(scene.token)
    for (log_path, num_history, num_future), tokens in by_log.items():
        scene_filter = SceneFilter(
            num_history_frames=num_history,
            num_future_frames=num_future,
            frame_interval=1,
            has_route=False,
            tokens=tuple(tokens),
        )
        windows = list(iter_windows(read_log(log_path), scene_filter, log_path))
        if len(windows) != len(tokens):
            raise DataError(f"a log changed while its scenes were being prepared: {log_path}; start again")
        yield from windows


def _portions(
    scenes: Sequence[SceneRef], maps_root: Path | None, folder: Path, rules: str, num_workers: int
) -> list[Portion]:
    size = -(-len(scenes) // (PORTIONS_PER_WORKER * num_workers)) if num_workers > 1 else SCENES_PER_PART
    size = max(1, min(SCENES_PER_PART, size))
    first = next_part_number(folder)
    return [
        Portion(tuple(scenes[start : start + size]), maps_root, folder / part_name(first + index), rules)
        for index, start in enumerate(range(0, len(scenes), size))
    ]


# How many scenes the worker processes have finished, shared with their parent; set when a process starts.
_finished: Any = None


def _start_worker(finished: Any) -> None:
    global _finished
    _finished = finished


def _count_one() -> None:
    with _finished.get_lock():
        _finished.value += 1


def _build_in_worker(portion: Portion) -> dict[str, str]:
    return build_portion(portion, _count_one)


def _build_in_processes(portions: Sequence[Portion], num_workers: int, bar: Any) -> dict[str, str]:
    """Build portions in new processes (spawned, so that no thread or lock of this one is inherited)."""
    context = multiprocessing.get_context("spawn")
    finished = context.Value("q", 0)
    first = bar.n
    failures: dict[str, str] = {}

    def show() -> int:
        # Read without the counter's lock, which a worker may have died or stopped with.
        count = int(finished.get_obj().value)
        bar.update(count - bar.n + first)
        return count

    for _, failed in as_they_finish(
        _build_in_worker,
        portions,
        num_workers,
        initializer=_start_worker,
        initargs=(finished,),
        describe=_logs_of,
        advice="finished parts stay: start the same command again",
        on_tick=show,
    ):
        failures.update(failed)
    show()
    return failures


def _logs_of(portion: Portion) -> str:
    logs = sorted({scene.log_path.stem for scene in portion.scenes})
    return f"the scenes of {', '.join(logs[:8])}{', ...' if len(logs) > 8 else ''}"


def _state(folder: Path, rules: str) -> tuple[dict[str, int | None], dict[str, str]]:
    """Fingerprints of a folder's whole scenes, and scenes that failed before or are damaged, with the reason.

    Files of ours whose head or tables are damaged are removed.

    Raises:
      DataError: if the folder holds a foreign file under the name of a pack or manifest, another version, or
        scenes of other rules.
    """
    failures: dict[str, str] = {}
    if (folder / MANIFEST_NAME).exists():
        failures = read_manifest(folder, rules)["failures"]
    fingerprints: dict[str, int | None] = {}
    for path in packs_of(folder):
        try:
            pack = Pack(path)
            damaged = pack.damaged()
        except DamagedPackError as error:
            tqdm.write(f"building again what was in a damaged file ({error})")
            path.unlink()
            continue
        for token, fingerprint in pack.fingerprints.items():  # the newest file counts
            if token in damaged:
                tqdm.write(f"not used: {damaged[token]}")
                failures[token] = damaged[token]
                fingerprints.pop(token, None)
            else:
                failures.pop(token, None)
                fingerprints[token] = fingerprint
    return fingerprints, failures


def _remove_cache(folder: Path) -> None:
    """Remove a cache's files, of the first version too, and nothing else."""
    for path in [folder / MANIFEST_NAME, *packs_of(folder), *folder.glob("scenes-*.shard")]:
        path.unlink(missing_ok=True)


def _remove_unfinished(folder: Path) -> None:
    """Remove files that a killed build did not come to rename; builds exclude each other, on any machine."""
    for path in [*folder.glob(".*.pack.*.part"), *folder.glob(".*.pack.*.tmp")]:
        path.unlink()
