"""Samples of logs and second-stage files, reduced to what is needed to say whether they can be used.

Reading a log checks its format in full, about 1.5 ms a frame, so many logs are read by several processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from drivefine_agent.data.logs import read_log
from drivefine_agent.data.scenes import SceneFilter, frame_gaps, iter_windows
from drivefine_agent.data.second_stage import read_second_stage
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import DataError
from drivefine_agent.worker_processes import as_they_finish

FRONT_CAMERA = "CAM_F0"
FILES_PER_PROCESS = 8
"""Fewer files are read sooner than processes start."""


@dataclass(frozen=True)
class Sample:
    """One sample."""

    token: str
    log_name: str
    map_name: str
    image: str | None
    """Path of the front camera's image now, relative to the sensor blobs; None: no such camera."""
    last_frame: str
    """Token of its last frame, by which the second stage refers to it."""
    has_gap: bool
    original: str = ""
    """Of second-stage samples: the last frame of the first-stage sample that they follow."""


@dataclass(frozen=True)
class FileSamples:
    """What one file gives."""

    path: Path
    samples: tuple[Sample, ...]
    error: str | None = None
    """Why the file cannot be used."""


def read_files(
    paths: Sequence[Path],
    scene_filter: SceneFilter | None,
    *,
    num_workers: int,
    title: str,
    show_progress: bool,
) -> Iterator[FileSamples]:
    """The samples of each file, in order.

    Args:
      paths: logs, or second-stage samples.
      scene_filter: how logs are cut; None: the files are second-stage samples.
      num_workers: processes at most.
      title: of the progress bar.
      show_progress: draw one.
    """
    count = min(num_workers, len(paths) // FILES_PER_PROCESS)
    bar = tqdm(total=len(paths), desc=title, unit="file", disable=not show_progress)
    with bar:
        if count < 2:
            for path in paths:
                yield _samples(path, scene_filter)
                bar.update()
            return
        finished: dict[Path, FileSamples] = {}
        shown = 0
        for path, result in as_they_finish(
            _samples_in_worker,
            paths,
            count,
            initializer=_start_worker,
            initargs=(scene_filter,),
            describe=lambda path: path.name,
        ):
            finished[path] = result
            bar.update()
            while shown < len(paths) and paths[shown] in finished:
                yield finished.pop(paths[shown])
                shown += 1


def _samples(path: Path, scene_filter: SceneFilter | None) -> FileSamples:
    read: Callable[[], Any] = (
        (lambda: [read_second_stage(path)])
        if scene_filter is None
        else (lambda: iter_windows(read_log(path), scene_filter, path))
    )
    try:
        return FileSamples(path, tuple(_reduced(window) for window in read()))
    except DataError as error:
        return FileSamples(path, (), str(error))


def _reduced(window: SceneWindow) -> Sample:
    camera = window.current.cameras.get(FRONT_CAMERA)
    second = window.second_stage
    return Sample(
        token=window.token,
        log_name=window.log_name,
        map_name=window.map_name,
        image=None if camera is None else camera.data_path,
        last_frame=window.frames[-1].token,
        has_gap=second is None and bool(frame_gaps(window.frames)),
        original="" if second is None else second.original_scene,
    )


# The filter of the worker processes; set when a process starts, so that its tokens travel once.
_filter: SceneFilter | None = None


def _start_worker(scene_filter: SceneFilter | None) -> None:
    global _filter
    _filter = scene_filter


def _samples_in_worker(path: Path) -> FileSamples:
    return _samples(path, _filter)
