"""The scenes of a split and the folders around them, from the keys and variables NAVSIM users know."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from drivefine_agent.data.dataset_paths import DatasetPaths, navsim_split_folders
from drivefine_agent.data.scenes import load_scenes
from drivefine_agent.data.second_stage import load_second_stage
from drivefine_agent.data.splits import Split, StageGroup, load_split
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import DataError


@dataclass(frozen=True)
class DatasetKeys:
    """Where the data lies, as a command's configuration says it; None is filled from the rest.

    Single folders win over `dataset_root`, which wins over OPENSCENE_DATA_ROOT and NUPLAN_MAPS_ROOT.
    """

    train_test_split: str
    """Name of a split, or path of its YAML file."""
    dataset_root: str | None = None
    """Folder with navsim_logs, sensor_blobs, maps and splits."""
    navsim_log_path: str | None = None
    """Folder with the split's `<log>.pkl`, as in NAVSIM's configuration."""
    original_sensor_path: str | None = None
    """Folder with the split's `<log>/CAM_F0/<token>.jpg`, as in NAVSIM's configuration."""
    maps_root: str | None = None
    """Folder with `<map name>/<version>/map.gpkg`."""
    splits_path: str | None = None
    """Folder with `train_test_split/<name>.yaml`."""
    synthetic_scenes_path: str | None = None
    """Second stage: folder with `<scene token>.pkl`, as in NAVSIM's configuration."""
    synthetic_sensor_path: str | None = None
    """Second stage: its sensor blobs, as in NAVSIM's configuration."""
    max_scenes: int | None = None
    """Only the first ones."""

    def __post_init__(self) -> None:
        if self.max_scenes is not None and self.max_scenes < 1:
            raise ValueError(f"max_scenes must be at least 1 or null, got {self.max_scenes}")


@dataclass(frozen=True)
class SplitScenes:
    """The scenes of a split."""

    name: str
    windows: tuple[SceneWindow, ...]
    sensor_path: Path
    maps_root: Path | None
    """None if no map folder is known; then every scene must be in a scene cache."""
    second_stage: tuple[SceneWindow, ...] = ()
    """Of splits with two stages."""
    synthetic_sensor_path: Path | None = None
    groups: tuple[StageGroup, ...] = ()
    """Which samples belong together, of splits with two stages."""


def load_split_of(keys: DatasetKeys, environment: Mapping[str, str] | None = None) -> Split:
    """The split alone, without its logs.

    Raises:
      DataError: unknown split (with the known ones), or its files are damaged.
    """
    environment = os.environ if environment is None else environment
    paths = _dataset_paths(keys, environment)
    return load_split(keys.train_test_split, _split_folders(keys, paths, environment))


def split_search_dirs(keys: DatasetKeys, environment: Mapping[str, str] | None = None) -> list[Path]:
    """Folders in which the names of splits are looked for."""
    environment = os.environ if environment is None else environment
    return _split_folders(keys, _dataset_paths(keys, environment), environment)


def second_stage_folders(
    keys: DatasetKeys, split_name: str, environment: Mapping[str, str] | None = None
) -> tuple[Path, Path]:
    """Where the second stage of a split should lie: its samples and its sensor blobs.

    Raises:
      DataError: no data set is named.
    """
    paths = _dataset_paths(keys, os.environ if environment is None else environment)
    return (
        _second_stage_folder(keys, paths, "synthetic_scenes_path", split_name),
        _second_stage_folder(keys, paths, "synthetic_sensor_path", split_name),
    )


def load_split_scenes(
    keys: DatasetKeys, environment: Mapping[str, str] | None = None, show_progress: bool = False
) -> SplitScenes:
    """The scenes of a split, in the order of its logs.

    Args:
      keys: what is wanted and where it lies.
      environment: in place of the process's own.
      show_progress: draw a progress bar over the log files.

    Raises:
      DataError: unknown split (with the known ones), folders or files missing or damaged.
    """
    environment = os.environ if environment is None else environment
    paths = _dataset_paths(keys, environment)
    split = load_split(keys.train_test_split, _split_folders(keys, paths, environment))
    if keys.navsim_log_path is not None:
        log_path = Path(keys.navsim_log_path)
    else:
        log_path = _required(paths, "navsim_log_path").logs(split.data_split)
    if keys.original_sensor_path is not None:
        sensor_path = Path(keys.original_sensor_path)
    else:
        sensor_path = _required(paths, "original_sensor_path").sensors(split.data_split)
    maps_root: Path | None = None
    if keys.maps_root is not None:
        maps_root = Path(keys.maps_root)
    elif paths is not None and paths.maps_root.is_dir():
        maps_root = paths.maps_root
    windows = load_scenes(log_path, split.scene_filter, show_progress=show_progress)
    windows = windows[: keys.max_scenes]
    if not split.scene_filter.include_synthetic_scenes:
        return SplitScenes(split.name, tuple(windows), sensor_path, maps_root)
    groups = split.reactive_all_mapping or ()
    tokens = None
    if keys.max_scenes is not None:  # only groups that are there as a whole
        loaded = {window.token for window in windows}
        groups = tuple(group for group in groups if {group.token, group.previous_token} <= loaded)
        if not groups:
            raise DataError(
                f"max_scenes={keys.max_scenes} leaves no whole mapping group of the split {split.name!r}: a "
                "group needs two first-stage samples, which need not be the first of the logs; raise it"
            )
        first = {token for group in groups for token in (group.token, group.previous_token)}
        windows = [window for window in windows if window.token in first]
        tokens = [token for group in groups for pair in group.pairs for token in pair]
    second_stage = load_second_stage(
        _second_stage_folder(keys, paths, "synthetic_scenes_path", split.name),
        split.scene_filter,
        windows,
        tokens=tokens,
        show_progress=show_progress,
    )
    return SplitScenes(
        split.name,
        tuple(windows),
        sensor_path,
        maps_root,
        tuple(second_stage),
        _second_stage_folder(keys, paths, "synthetic_sensor_path", split.name),
        groups,
    )


def _second_stage_folder(keys: DatasetKeys, paths: DatasetPaths | None, key: str, split_name: str) -> Path:
    """Where a key says; else in the dataset's folder of the split's name (warmup_two_stage), or navhard's."""
    given = getattr(keys, key)
    if given is not None:
        return Path(given)
    default = Path(getattr(_required(paths, key), key))
    own = default.parent.parent / split_name / default.name
    return own if own.is_dir() else default


def _dataset_paths(keys: DatasetKeys, environment: Mapping[str, str]) -> DatasetPaths | None:
    if keys.dataset_root is not None:
        return DatasetPaths.from_root(keys.dataset_root)
    if environment.get("OPENSCENE_DATA_ROOT"):
        return DatasetPaths.from_environment(environment)
    return None


def _required(paths: DatasetPaths | None, key: str) -> DatasetPaths:
    if paths is None:
        raise DataError(f"no dataset is named: set dataset_root, {key} or the variable OPENSCENE_DATA_ROOT")
    return paths


def _split_folders(
    keys: DatasetKeys, paths: DatasetPaths | None, environment: Mapping[str, str]
) -> list[Path]:
    if keys.splits_path is not None:
        return [Path(keys.splits_path)]
    own = [] if paths is None else [paths.splits]
    return [*own, *navsim_split_folders(environment)]
