"""Split the drives of a split into those to train on and those to hold out, by NAVSIM's own lists of logs.

    python tools/split_off_validation.py train_test_split=navtrain output=$NAVSIM_EXP_ROOT/splits
    python tools/train_sft.py splits_path=$NAVSIM_EXP_ROOT/splits train_test_split=navtrain_train \
        validation_split=navtrain_val

So that nobody has to validate on navtest. The lists are `train_logs` and `val_logs` of NAVSIM's
default_train_val_test_log_split.yaml (of NAVSIM_DEVKIT_ROOT, or log_lists=FILE); NAVSIM's run_training.py
divides by them too. Logs that neither names are left out, and counted. Reads the logs, to learn which token
is of which. All keys: navsim_configs/split_off_validation.yaml.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import hydra
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from drivefine_agent.data.dataset_paths import navsim_log_lists, navsim_split_folders
from drivefine_agent.data.scenes import load_scenes
from drivefine_agent.data.split_writer import write_split
from drivefine_agent.data.splits import Split, load_log_lists, load_split
from drivefine_agent.errors import DataError, DriveFineError
from drivefine_agent.provenance import describe_size
from drivefine_agent.training.config import dataset_paths

PARTS = {"train": "train_logs", "val": "val_logs"}


def split_off_validation(config: DictConfig) -> list[Split]:
    """Writes both splits; returns them.

    Raises:
      DataError: the split, its logs or the lists are missing, or a part would be empty.
    """
    paths = dataset_paths(config.dataset_root, config.splits_path)
    split = load_split(str(config.train_test_split), [paths.splits, *navsim_split_folders()])
    lists = load_log_lists(navsim_log_lists() if config.log_lists is None else Path(config.log_lists))
    windows = load_scenes(paths.logs(split.data_split), split.scene_filter, show_progress=True)
    parts = []
    for part, key in PARTS.items():
        names = frozenset(lists[key])
        chosen = [window for window in windows if window.log_name in names]
        if not chosen:
            raise DataError(
                f"a split to divide must have logs in both lists, got none of {split.name!r} in {key}: "
                "choose another split or other log_lists"
            )
        scene_filter = replace(
            split.scene_filter,
            max_scenes=None,
            log_names=tuple(sorted({window.log_name for window in chosen})),
            tokens=tuple(window.token for window in chosen),
        )
        parts.append(Split(f"{split.name}_{part}", split.data_split, scene_filter))
    for written in parts:
        path = write_split(config.output, written)
        tokens, logs = written.scene_filter.tokens or (), written.scene_filter.log_names or ()
        print(f"{written.name}: {describe_size(len(tokens))}, {len(logs):,} logs: {path}")
    rest = len(windows) - sum(len(written.scene_filter.tokens or ()) for written in parts)
    if rest:
        print(f"left out: {rest:,} tokens of logs that are in neither list")
    return parts


@hydra.main(version_base="1.3", config_path="../navsim_configs", config_name="split_off_validation")
def main(config: DictConfig) -> None:
    """Convert errors made for people into one line; everything else is a bug and keeps its traceback."""
    try:
        split_off_validation(config)
    except (DriveFineError, OmegaConfBaseException) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
