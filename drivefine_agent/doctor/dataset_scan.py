"""What of a split is there: logs, samples, front camera images, second stage. Nothing is decoded.

Unlike `data.scenes.load_scenes`, which stops at the first damaged file, everything is looked at and counted.
Folders of images are listed once each; no file is asked for by itself.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from drivefine_agent.data.scenes import SceneFilter
from drivefine_agent.data.sensors import check_image_header, image_path
from drivefine_agent.data.splits import Split, StageGroup
from drivefine_agent.doctor.dataset_samples import FRONT_CAMERA, FileSamples, Sample, read_files
from drivefine_agent.errors import DataError

MISSING = "missing"


@dataclass(frozen=True)
class SplitFolders:
    """Where the parts of one split lie."""

    logs: Path
    sensors: Path
    second_stage: Path | None = None
    second_stage_sensors: Path | None = None


@dataclass
class StageScan:
    """What was found of one stage of a split."""

    wanted: int | None
    """Samples that the split lists; None if it takes all that the logs give."""
    found: int = 0
    usable: dict[str, str] = field(default_factory=dict)
    """Token -> log, of the samples that have everything."""
    missing: list[str] = field(default_factory=list)
    """Files that are not there."""
    damaged: list[str] = field(default_factory=list)
    """Files that cannot be used, with the reason."""
    absent_tokens: list[str] = field(default_factory=list)
    """Listed samples that no file gives."""
    no_map: Counter[str] = field(default_factory=Counter)
    """Samples by the map that they lack."""
    num_with_gaps: int = 0
    last_frames: set[str] = field(default_factory=set)
    """Tokens by which the second stage refers to usable samples."""


class ImageFolders:
    """Whether image files exist, by listing each folder once."""

    def __init__(self, *, is_deep: bool) -> None:
        self._names: dict[Path, frozenset[str]] = {}
        self._is_deep = is_deep

    def fault(self, root: Path, data_path: str) -> str | None:
        """None if the image is there; `missing`, or what is wrong with it (`deep` reads its header)."""
        path = image_path(root, data_path)
        if path.parent not in self._names:
            self._names[path.parent] = _names(path.parent)
        if path.name not in self._names[path.parent]:
            return MISSING
        return _header_fault(path) if self._is_deep else None


def scan_first_stage(
    split: Split,
    folders: SplitFolders,
    maps: Collection[str],
    images: ImageFolders,
    *,
    num_workers: int = 1,
    show_progress: bool = False,
) -> StageScan:
    """The samples of a split that are cut from logs.

    Args:
      split: as its files say.
      folders: where its data lies.
      maps: names of the maps that are there.
      images: looks for the front camera's image of the current frame.
      num_workers: processes that read.
      show_progress: draw a progress bar over the logs.
    """
    tokens = split.scene_filter.tokens
    scan = StageScan(None if tokens is None else len(dict.fromkeys(tokens)))
    files = read_files(
        _logs(folders.logs, split.scene_filter, scan),
        split.scene_filter,
        num_workers=num_workers,
        title=split.name,
        show_progress=show_progress,
    )
    seen = _judge_all(files, lambda sample: True, folders.sensors, maps, images, scan)
    scan.absent_tokens = [token for token in dict.fromkeys(tokens or ()) if token not in seen]
    return scan


def scan_second_stage(
    split: Split,
    folders: SplitFolders,
    first: StageScan,
    maps: Collection[str],
    images: ImageFolders,
    *,
    num_workers: int = 1,
    show_progress: bool = False,
) -> StageScan:
    """The second-stage samples that NAVSIM would score with the usable ones of the first stage.

    Raises:
      ValueError: the split has no second stage.
    """
    if folders.second_stage is None or folders.second_stage_sensors is None:
        raise ValueError(
            f"the split {split.name!r} has no folder of a second stage: set synthetic_scenes_path"
        )
    scene_filter = split.scene_filter
    wanted, explicit = scene_filter.reactive_synthetic_initial_tokens, scene_filter.synthetic_scene_tokens
    wanted_tokens = None if wanted is None else frozenset(wanted)
    scan = StageScan(None if wanted_tokens is None else len(wanted_tokens))

    def is_chosen(sample: Sample) -> bool:
        if wanted_tokens is not None and sample.token not in wanted_tokens:
            return False
        return sample.original in first.last_frames if explicit is None else sample.token in explicit

    paths = sorted(folders.second_stage.glob("*.pkl")) if folders.second_stage.is_dir() else []
    if not paths:
        scan.missing.append(f"{folders.second_stage}/*.pkl")
    files = read_files(
        paths, None, num_workers=num_workers, title=f"{split.name}, stage two", show_progress=show_progress
    )
    seen = _judge_all(files, is_chosen, folders.second_stage_sensors, maps, images, scan)
    scan.absent_tokens = sorted((wanted_tokens or frozenset()) - seen)
    return scan


def usable_split(split: Split, first: StageScan, second: StageScan | None = None) -> Split:
    """The same split with nothing but usable samples, under the name `<name>_usable`.

    Of splits with a mapping between the stages, only groups that are there as a whole.
    """
    name = f"{split.name}_usable"
    if second is None:
        return replace(split, name=name, scene_filter=_only(split.scene_filter, first, first.usable))
    groups = usable_groups(split, first, second)
    first_tokens = {token for group in groups for token in (group.token, group.previous_token)}
    second_tokens = tuple(dict.fromkeys(token for group in groups for pair in group.pairs for token in pair))
    scene_filter = _only(split.scene_filter, first, [t for t in first.usable if t in first_tokens])
    scene_filter = replace(scene_filter, reactive_synthetic_initial_tokens=second_tokens)
    return replace(split, name=name, scene_filter=scene_filter, reactive_all_mapping=groups)


def usable_groups(split: Split, first: StageScan, second: StageScan) -> tuple[StageGroup, ...]:
    """The groups of the mapping of which every sample is usable."""
    return tuple(
        group
        for group in split.reactive_all_mapping or ()
        if {group.token, group.previous_token} <= first.usable.keys()
        and {token for pair in group.pairs for token in pair} <= second.usable.keys()
    )


def _only(scene_filter: SceneFilter, scan: StageScan, tokens: Iterable[str]) -> SceneFilter:
    chosen = tuple(tokens)
    logs = tuple(dict.fromkeys(scan.usable[token] for token in chosen))
    return replace(scene_filter, tokens=chosen, log_names=logs, max_scenes=None)


def _logs(folder: Path, scene_filter: SceneFilter, scan: StageScan) -> list[Path]:
    """The log files to read; those that the filter names and that are absent go to the list of missing."""
    there = {Path(name).stem for name in _names(folder) if name.endswith(".pkl")}
    if not there:
        scan.missing.append(f"{folder}/*.pkl")
        return []
    names = dict.fromkeys(sorted(there) if scene_filter.log_names is None else scene_filter.log_names)
    scan.missing += [str(folder / f"{name}.pkl") for name in names if name not in there]
    return [folder / f"{name}.pkl" for name in names if name in there]


def _judge_all(
    files: Iterable[FileSamples],
    is_chosen: Callable[[Sample], bool],
    sensors: Path,
    maps: Collection[str],
    images: ImageFolders,
    scan: StageScan,
) -> set[str]:
    """Judge the chosen samples of all files; the tokens of all samples, chosen or not."""
    sources: dict[str, Path] = {}
    for file in files:
        if file.error is not None:
            scan.damaged.append(file.error)
        for sample in file.samples:
            if sample.token in sources:
                scan.damaged.append(
                    f"{sample.token} is in both {sources[sample.token]} and {file.path}: remove one of "
                    "the two"
                )
                continue
            sources[sample.token] = file.path
            if is_chosen(sample):
                _judge(sample, sensors, maps, images, scan)
    return set(sources)


def _judge(
    sample: Sample, sensors: Path, maps: Collection[str], images: ImageFolders, scan: StageScan
) -> None:
    """Count a sample, and keep it if map and image are there."""
    scan.found += 1
    scan.num_with_gaps += sample.has_gap
    has_map = sample.map_name in maps
    if not has_map:
        scan.no_map[sample.map_name] += 1
    if sample.image is None:
        scan.damaged.append(f"sample {sample.token} of log {sample.log_name} has no {FRONT_CAMERA}")
        return
    try:
        fault = images.fault(sensors, sample.image)
    except DataError as error:
        fault = str(error)
    if fault == MISSING:
        scan.missing.append(str(sensors / sample.image))
    elif fault is not None:
        scan.damaged.append(fault)
    if has_map and fault is None:
        scan.usable[sample.token] = sample.log_name
        scan.last_frames.add(sample.last_frame)


def _names(folder: Path) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


def _header_fault(path: Path) -> str | None:
    """What the header of an image says against it; its pixels are not decoded."""
    try:
        with path.open("rb") as file:
            check_image_header(file, path)
    except (OSError, DataError) as error:
        return str(error)
    return None
