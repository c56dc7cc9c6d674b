"""The samples of a split in the stages that a submission has, with where their images lie."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from drivefine_agent.data.second_stage import load_second_stage
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.dataset import DatasetKeys, SplitScenes, load_split_of, load_split_scenes
from drivefine_agent.evaluation.submission_check import WantedTokens, wanted_tokens

_SECOND_STAGE_FOLDER = "navhard_two_stage"  # NAVSIM's default, below OPENSCENE_DATA_ROOT


@dataclass(frozen=True)
class SplitStages:
    """Samples by stage."""

    first: SplitScenes
    """All samples of a one-stage split."""
    second: tuple[SceneWindow, ...] | None = None
    """None for one-stage splits."""
    synthetic_sensor_path: Path | None = None
    """Root of every `CameraRecord.data_path` of the second stage."""

    @property
    def windows(self) -> tuple[SceneWindow, ...]:
        """Both stages, the first stage first."""
        return (*self.first.windows, *(self.second or ()))

    @property
    def wanted(self) -> WantedTokens:
        """Their tokens."""
        second = None if self.second is None else tuple(window.token for window in self.second)
        return WantedTokens(self.first.name, tuple(window.token for window in self.first.windows), second)


def load_stages(
    keys: DatasetKeys,
    synthetic_scenes_path: str | None = None,
    synthetic_sensor_path: str | None = None,
    environment: Mapping[str, str] | None = None,
    show_progress: bool = False,
) -> SplitStages:
    """All samples of a split.

    Args:
      keys: the split and where its logs lie.
      synthetic_scenes_path: the folder `synthetic_scene_pickles`; None: the one in
        `navhard_two_stage` of the dataset.
      synthetic_sensor_path: sensor blobs of the second stage; None: likewise.
      environment: in place of the process's own.
      show_progress: draw progress bars.

    Raises:
      DataError: unknown split, or samples that it lists are missing or damaged.
    """
    environment = os.environ if environment is None else environment
    split = load_split_of(keys, environment)
    first = load_split_scenes(keys, environment, show_progress)
    if split.scene_filter.tokens is None:
        return SplitStages(first)
    listed = wanted_tokens(split)
    if listed.second_stage is None:
        return SplitStages(first)
    root = keys.dataset_root or environment.get("OPENSCENE_DATA_ROOT")
    if root is None and (synthetic_scenes_path is None or synthetic_sensor_path is None):
        raise DataError(
            f"{split.name!r} is a two-stage split: set dataset_root, or synthetic_scenes_path and "
            "synthetic_sensor_path"
        )
    folder = Path(root or ".") / _SECOND_STAGE_FOLDER
    windows = load_second_stage(
        synthetic_scenes_path or folder / "synthetic_scene_pickles",
        split.scene_filter,
        first.windows,
        tokens=listed.second_stage,
        show_progress=show_progress,
    )
    return SplitStages(first, tuple(windows), Path(synthetic_sensor_path or folder / "sensor_blobs"))
