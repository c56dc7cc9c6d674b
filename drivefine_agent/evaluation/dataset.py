"""The scenes of a split and the folders around them, from the keys and variables NAVSIM users know."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from drivefine_agent.data.dataset_paths import DatasetPaths
from drivefine_agent.data.scenes import load_scenes
from drivefine_agent.data.splits import Split, load_split
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import DataError

_NAVSIM_SPLITS = "navsim/planning/script/config/common"  # in a NAVSIM checkout


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


def load_split_of(keys: DatasetKeys, environment: Mapping[str, str] | None = None) -> Split:
    """The split alone, without its logs.

    Raises:
      DataError: unknown split (with the known ones), or its files are damaged.
    """
    environment = os.environ if environment is None else environment
    paths = _dataset_paths(keys, environment)
    return load_split(keys.train_test_split, _split_folders(keys, paths, environment))


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
    return SplitScenes(split.name, tuple(windows[: keys.max_scenes]), sensor_path, maps_root)


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
    folders = [] if paths is None else [paths.splits]
    devkit = environment.get("NAVSIM_DEVKIT_ROOT")
    return [*folders, Path(devkit) / _NAVSIM_SPLITS] if devkit else folders
