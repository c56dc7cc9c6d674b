"""A debug checkpoint and a few windows for the agent's tests."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from drivefine_agent.data.scenes import load_scenes
from drivefine_agent.data.splits import load_split
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.training.config import ModelChoice
from drivefine_agent.training.model_choice import build_planner


@pytest.fixture(scope="session")
def windows(navsim_mini: Path) -> list[SceneWindow]:
    """The 24 samples of the small dataset."""
    split = load_split("synth_one_stage", [navsim_mini / "splits"])
    return load_scenes(navsim_mini / "navsim_logs" / split.data_split, split.scene_filter)


@pytest.fixture(scope="session")
def front_image() -> NDArray[np.uint8]:
    """(1080, 1920, 3) a smooth random picture."""
    picture = np.random.default_rng(0).integers(0, 256, size=(9, 16, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(picture, (1920, 1080), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a debug model of random weights, refiner unlike the generator."""
    folder = tmp_path_factory.mktemp("run")
    overrides = {"spatial_step_m": 2.0, "spatial_min_m": -64.0}
    planner = build_planner(ModelChoice(preset="debug", overrides=overrides), seed=0)
    other = build_planner(ModelChoice(preset="debug", overrides=overrides), seed=1)
    planner.model.backbone.refine_layers.load_state_dict(other.model.backbone.refine_layers.state_dict())
    planner.save_pretrained(folder / "model")
    return folder
