"""A dataset and settings small enough to run the whole training in seconds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from drivefine_agent.data.scenes import load_scenes
from drivefine_agent.data.sensors import write_image
from drivefine_agent.data.splits import load_split
from drivefine_agent.training.config import TrainSFTConfig
from drivefine_agent.training.from_mapping import from_mapping

SPLIT = "synth_one_stage"


@pytest.fixture(scope="session")
def image_dataset(navsim_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small dataset with front camera images of the full size (its own are thumbnails)."""
    folder = tmp_path_factory.mktemp("image_dataset")
    for part in ("navsim_logs", "maps", "splits"):
        shutil.copytree(navsim_mini / part, folder / part)
    split = load_split(SPLIT, [folder / "splits"])
    root = folder / "sensor_blobs" / split.data_split
    for number, window in enumerate(
        load_scenes(folder / "navsim_logs" / split.data_split, split.scene_filter)
    ):
        picture = np.random.default_rng(number).integers(0, 256, size=(9, 16, 3), dtype=np.uint8)
        picture = cv2.resize(picture, (1920, 1080), interpolation=cv2.INTER_CUBIC)
        write_image(root, window.current.cameras["CAM_F0"].data_path, picture, quality=60)
    return folder


@pytest.fixture
def debug_settings(image_dataset: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of a run of seconds: debug model, 24 scenes, 2 epochs of 3 steps, 1 each of the others."""
    batches = {
        "batch_size": 8,
        "average_decay": 0.9,
        "augmentation": {"mirror_probability": 0.5, "light_jitter": 0.2},
    }
    # 2 m bins reach as far as the scenes do; numbers as text: contexts differ in length and are padded.
    overrides = {
        "spatial_step_m": 2.0,
        "spatial_min_m": -64.0,
        "prompt_wording": "short",
        "pose_format": "text",
        "perception_rows": 4,
        "perception_cols": 6,
    }
    return {
        "output_dir": str(tmp_path / "run"),
        "dataset_root": str(image_dataset),
        "train_test_split": SPLIT,
        "validation_split": SPLIT,
        "allow_test_split": True,  # its logs lie in the folder of test logs
        "i_train_on_test_tokens_of": SPLIT,
        "max_validation_scenes": 6,
        "tile_cache_path": str(tmp_path.parent / "tiles"),
        "model": {"preset": "debug", "overrides": overrides},
        "perception": {"num_epochs": 1, "batch_size": 8, "optimizer": {"learning_rate": 1e-3}},
        "generator": {
            **batches,
            "num_epochs": 2,
            "pairs_per_scene": 2,
            "optimizer": {"learning_rate": 1e-3, "muon_learning_rate": 1e-2},
        },
        "refiner": {
            **batches,
            "num_epochs": 1,
            "num_denoising_steps": 3,
            "optimizer": {"learning_rate": 1e-3},
        },
        "run": {"num_threads": 1, "checkpoint_every": 2, "log_every": 1, "num_denoising_steps": 4},
    }


@pytest.fixture
def debug_config(debug_settings: dict[str, Any]) -> TrainSFTConfig:
    """The same as a configuration."""
    return from_mapping(TrainSFTConfig, debug_settings)
