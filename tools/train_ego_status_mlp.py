"""Train the blind baseline: speed, acceleration and command to a trajectory, no camera.

    python tools/train_ego_status_mlp.py dataset_root=DATASET experiment_name=ego_status_mlp

Writes config.json, model.safetensors and provenance.json (from which tokens they were made) into `output_dir`
(default: $NAVSIM_EXP_ROOT/<experiment_name>, or runs/<experiment_name> without the variable), for
agent.checkpoint_path. All keys: navsim_configs/train_ego_status_mlp.yaml.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from drivefine_agent.baselines.ego_status_mlp import (
    EgoStatusMLPConfig,
    arrays_from_windows,
    save_mlp,
    train_mlp,
)
from drivefine_agent.constants import NUM_POSES
from drivefine_agent.data.folder_lock import FolderLock
from drivefine_agent.errors import DriveFineError
from drivefine_agent.provenance import as_record, write_card
from drivefine_agent.training.config import dataset_paths
from drivefine_agent.training.from_mapping import from_mapping
from drivefine_agent.training.scenes import load_split_scenes
from drivefine_agent.training.split_guard import check_splits, log_training_data
from drivefine_agent.training.validation import displacement

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainEgoStatusMLPConfig:
    """Configuration of this script."""

    output_dir: str
    experiment_name: str
    train_test_split: str
    """Split to learn from."""
    validation_split: str
    """Split to hold out."""
    allow_test_split: bool = False
    """First consent to learning from test data, see `training/split_guard.py`."""
    i_train_on_test_tokens_of: str | None = None
    """Second consent: the test split."""
    dataset_root: str | None = None
    """None: OPENSCENE_DATA_ROOT."""
    splits_path: str | None = None
    """None: `splits` of the dataset."""
    max_scenes: int | None = None
    num_threads: int | None = None
    """Torch's threads; None: all cores."""
    mlp: EgoStatusMLPConfig = field(default_factory=EgoStatusMLPConfig)


def train(config: TrainEgoStatusMLPConfig) -> float:
    """Trains and saves; returns the mean distance [m] of held-out plans to the driver's."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    paths = dataset_paths(config.dataset_root, config.splits_path)
    scenes = load_split_scenes(paths, config.train_test_split, config.max_scenes)
    held_out = load_split_scenes(paths, config.validation_split)
    check = check_splits(scenes, held_out, paths, config)
    check.log_warnings()
    data = check.training_data("ego_status_mlp")
    log_training_data(data)
    features, targets = arrays_from_windows(scenes.windows)

    with tqdm(total=config.mlp.num_epochs, desc="Ego-status MLP", unit="epoch") as bar:

        def advance(epoch: int, loss: float) -> None:
            bar.update()
            bar.set_postfix(l1=f"{loss:.3f}")

        mlp = train_mlp(features, targets, config.mlp, advance)
    card = {"data": as_record(data), "validation": check.validation, "configuration": asdict(config)}
    with FolderLock(config.output_dir) as lock:
        write_card(lock.folder, card)
        save_mlp(mlp, config.mlp, lock.folder)

    held_out_features, truth = arrays_from_windows(held_out.windows)
    with torch.inference_mode():
        poses = mlp(torch.from_numpy(held_out_features)).reshape(-1, NUM_POSES, 3).numpy()
    error_m = float(displacement(poses.astype(float), truth.astype(float)).mean())
    LOGGER.info("held-out ADE %.3f m over %d scenes; model: %s", error_m, len(truth), config.output_dir)
    return error_m


@hydra.main(version_base="1.3", config_path="../navsim_configs", config_name="train_ego_status_mlp")
def main(config: DictConfig) -> None:
    """Convert errors made for people into one line; everything else is a bug and keeps its traceback."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        values: Any = OmegaConf.to_container(config, resolve=True)
        train(from_mapping(TrainEgoStatusMLPConfig, values))
    except (DriveFineError, FloatingPointError, ValueError, OmegaConfBaseException) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
