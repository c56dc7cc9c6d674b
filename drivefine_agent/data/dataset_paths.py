"""Where a dataset's parts lie, from its root folder or from NAVSIM's environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from drivefine_agent.errors import DataError


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

    @classmethod
    def from_root(cls, root: str | Path) -> DatasetPaths:
        """The tree of a dataset: navsim_logs, sensor_blobs, maps and splits below one folder.

        Raises:
          DataError: if there is no such folder.
        """
        root = Path(root)
        if not root.is_dir():
            raise DataError(
                f"no dataset folder at {root}: make one with tools/make_world.py, or give the right path"
            )
        return cls(root / "navsim_logs", root / "sensor_blobs", root / "maps", root / "splits")

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
            raise DataError(f"NUPLAN_MAPS_ROOT names no folder: {maps_root}")
        return cls(paths.navsim_log_path, paths.original_sensor_path, Path(maps_root), paths.splits)

    def logs(self, data_split: str) -> Path:
        """Folder of the logs of a split."""
        return self.navsim_log_path / data_split

    def sensors(self, data_split: str) -> Path:
        """Folder of the sensor blobs of a split, the root of every `CameraRecord.data_path`."""
        return self.original_sensor_path / data_split
