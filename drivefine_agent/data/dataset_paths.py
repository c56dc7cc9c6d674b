"""Where a dataset's parts lie, from its root folder or from NAVSIM's environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from drivefine_agent.errors import DataError

SECOND_STAGE_FOLDER = "navhard_two_stage"
"""NAVSIM's default folder of the second stage; the warm-up set lies in warmup_two_stage."""
SCENES_FOLDER = "synthetic_scene_pickles"
_NAVSIM_SPLITS = "navsim/planning/script/config/common"  # in a NAVSIM checkout
_NAVSIM_LOG_LISTS = "navsim/planning/script/config/training/default_train_val_test_log_split.yaml"


@dataclass(frozen=True)
class DatasetPaths:
    """Folders of a dataset in NAVSIM's layout."""

    navsim_log_path: Path
    """Holds `<data_split>/<log_name>.pkl`."""
    original_sensor_path: Path
    """Holds `<data_split>/<log_name>/CAM_F0/<token>.jpg`."""
    maps_root: Path
    """Holds `<map name>/<version>/map.gpkg`; nuplan-devkit's NUPLAN_MAPS_ROOT."""
    splits: Path
    """Holds `train_test_split/<name>.yaml`; where a dataset brings its own splits."""
    synthetic_scenes_path: Path
    """Second stage (NAVSIM 2): holds `<scene token>.pkl`."""
    synthetic_sensor_path: Path
    """Second stage: the root of every `CameraRecord.data_path` of its samples."""

    @classmethod
    def from_root(cls, root: str | Path) -> DatasetPaths:
        """The tree of a dataset: navsim_logs, sensor_blobs, maps, splits and second stage below one folder.

        Raises:
          DataError: if there is no such folder.
        """
        root = Path(root)
        if not root.is_dir():
            raise DataError(
                f"no dataset folder at {root}: make one with tools/make_world.py, or give the right path"
            )
        return cls(
            navsim_log_path=root / "navsim_logs",
            original_sensor_path=root / "sensor_blobs",
            maps_root=root / "maps",
            splits=root / "splits",
            synthetic_scenes_path=root / SECOND_STAGE_FOLDER / SCENES_FOLDER,
            synthetic_sensor_path=root / SECOND_STAGE_FOLDER / "sensor_blobs",
        )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> DatasetPaths:
        """OPENSCENE_DATA_ROOT gives logs and sensors, NUPLAN_MAPS_ROOT the maps (default: `maps` beside).

        Raises:
          DataError: if OPENSCENE_DATA_ROOT is not set, or a folder that a variable names is missing.
        """
        environment = os.environ if environment is None else environment
        root = environment.get("OPENSCENE_DATA_ROOT")
        if not root:
            raise DataError(
                "OPENSCENE_DATA_ROOT is not set: set it to the folder that holds navsim_logs and "
                "sensor_blobs, or name the dataset's folder"
            )
        paths = cls.from_root(root)
        maps_root = environment.get("NUPLAN_MAPS_ROOT")
        if not maps_root:
            return paths
        if not Path(maps_root).is_dir():
            raise DataError(
                f"NUPLAN_MAPS_ROOT names no folder: {maps_root}"
                "; set it to the folder that holds <map name>/<version>/map.gpkg"
            )
        return replace(paths, maps_root=Path(maps_root))

    def logs(self, data_split: str) -> Path:
        """Folder of the logs of a split."""
        return self.navsim_log_path / data_split

    def sensors(self, data_split: str) -> Path:
        """Folder of the sensor blobs of a split, the root of every `CameraRecord.data_path`."""
        return self.original_sensor_path / data_split


def navsim_split_folders(environment: Mapping[str, str] | None = None) -> list[Path]:
    """Where NAVSIM's own splits lie: below NAVSIM_DEVKIT_ROOT, a checkout of NAVSIM; none if not set."""
    devkit = (os.environ if environment is None else environment).get("NAVSIM_DEVKIT_ROOT")
    return [Path(devkit) / _NAVSIM_SPLITS] if devkit else []


def navsim_log_lists(environment: Mapping[str, str] | None = None) -> Path:
    """NAVSIM's lists of logs to train and to validate on, in the checkout that NAVSIM_DEVKIT_ROOT names.

    Raises:
      DataError: the variable is not set.
    """
    devkit = (os.environ if environment is None else environment).get("NAVSIM_DEVKIT_ROOT")
    if not devkit:
        raise DataError("NAVSIM_DEVKIT_ROOT is not set: set it to a checkout of NAVSIM, or set log_lists")
    return Path(devkit) / _NAVSIM_LOG_LISTS
