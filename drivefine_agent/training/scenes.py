"""Scenes of a split, as training and evaluation read them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from drivefine_agent.data.dataset_paths import DatasetPaths
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


def load_split_scenes(
    paths: DatasetPaths, split_name: str, max_scenes: int | None = None, show_progress: bool = True
) -> SplitScenes:
    """Reads the samples of a split.

    Args:
      paths: the dataset.
      split_name: name or path of a split's YAML.
      max_scenes: keep only so many, evenly spread over the split; None keeps all.
      show_progress: draw a progress bar.

    Raises:
      DataError: the split is unknown, or its logs are missing or damaged.
    """
    split = load_split(split_name, [paths.splits])
    scene_filter = replace(split.scene_filter, max_scenes=None) if max_scenes else split.scene_filter
    windows = load_scenes(paths.logs(split.data_split), scene_filter, show_progress=show_progress)
    if max_scenes is not None and max_scenes < len(windows):
        windows = [windows[i * len(windows) // max_scenes] for i in range(max_scenes)]
    return SplitScenes(split.name, tuple(windows), paths.sensors(split.data_split), paths.maps_root)
