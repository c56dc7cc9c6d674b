"""Scenes of a split, as training and evaluation read them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from drivefine_agent.data.dataset_paths import DatasetPaths, navsim_split_folders
from drivefine_agent.data.scenes import load_scenes
from drivefine_agent.data.splits import load_split
from drivefine_agent.data.types import SceneWindow


@dataclass(frozen=True)
class SplitScenes:
    """The samples of one split and where their images lie."""

    name: str
    windows: tuple[SceneWindow, ...]
    sensor_root: Path
    maps_root: Path | None = None
    data_split: str = ""
    """Folder of the logs."""
    num_listed: int = 0
    """Samples of the whole split: those it lists; if it lists none, those that were found."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """Of the samples."""
        return tuple(window.token for window in self.windows)


def load_split_scenes(
    paths: DatasetPaths, split_name: str, max_scenes: int | None = None, show_progress: bool = True
) -> SplitScenes:
    """Reads the samples of a split.

    Args:
      paths: the dataset.
      split_name: name of a split of the dataset or, with NAVSIM_DEVKIT_ROOT, of NAVSIM's; or path of a YAML.
      max_scenes: keep only so many, evenly spread over the split; None keeps all.
      show_progress: draw a progress bar.

    Raises:
      DataError: the split is unknown, or its logs are missing or damaged.
    """
    split = load_split(split_name, [paths.splits, *navsim_split_folders()])
    scene_filter = replace(split.scene_filter, max_scenes=None) if max_scenes else split.scene_filter
    windows = load_scenes(paths.logs(split.data_split), scene_filter, show_progress=show_progress)
    num_listed = len(set(scene_filter.tokens or ())) or len(windows)
    if max_scenes is not None and max_scenes < len(windows):
        windows = [windows[i * len(windows) // max_scenes] for i in range(max_scenes)]
    sensors = paths.sensors(split.data_split)
    return SplitScenes(split.name, tuple(windows), sensors, paths.maps_root, split.data_split, num_listed)
