r"""Writes the scenes of a split as a JSON-lines file in ReCogDrive's format.

    python tools/export_sft_jsonl.py dataset_root=DATASET train_test_split=world_train output=traj.jsonl
    python tools/export_sft_jsonl.py dataset_root=DATASET train_test_split=world_train output=qa.jsonl \
        content=questions

`content=trajectories`: one line per scene, motion and command in the question, the driver's 8 poses in the
answer. `content=questions`: one line per scene with the questions whose answers follow from the log (what the
car does next; pedestrians and cyclists ahead, where the log is annotated). Images are named by their path in
the split's sensor folder; the command prints the setting that trains on the file. Format: docs/data.md. All
keys: navsim_configs/export_sft_jsonl.yaml.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from drivefine_agent.data.recogdrive import question_record, trajectory_record, write_records
from drivefine_agent.data.scene_questions import scene_turns
from drivefine_agent.errors import DriveFineError
from drivefine_agent.navsim_inputs import FRONT_CAMERA, human_poses, observation_from_window
from drivefine_agent.training.config import dataset_paths
from drivefine_agent.training.scenes import SplitScenes, load_split_scenes

CONTENTS = {"trajectories": "recogdrive_trajectories", "questions": "recogdrive_qa"}
"""What a file can hold, and the kind of source that reads it."""
PROMPT_TYPES = ("base", "vel_and_acc")


def records(scenes: SplitScenes, content: str, prompt_type: str) -> Iterator[dict[str, Any]]:
    """One record per scene."""
    placeholder = np.zeros((1, 1, 3), dtype=np.uint8)
    for number, window in enumerate(tqdm(scenes.windows, desc="Writing", unit="scene")):
        image = window.current.cameras[FRONT_CAMERA].data_path
        if content == "questions":
            yield question_record(number, image, scene_turns(window), window.token)
            continue
        observation = observation_from_window(window, placeholder)
        has_dynamics = prompt_type == "vel_and_acc"
        yield trajectory_record(number, image, window.token, observation, human_poses(window), has_dynamics)


def export(config: DictConfig) -> None:
    """Split -> file."""
    for key, known in (("content", tuple(CONTENTS)), ("prompt_type", PROMPT_TYPES)):
        if config[key] not in known:
            raise ValueError(f"{key} must be one of {', '.join(known)}, got {config[key]!r}")
    paths = dataset_paths(config.dataset_root, config.splits_path)
    scenes = load_split_scenes(paths, config.train_test_split, config.max_scenes)
    output = Path(config.output)
    count = write_records(output, records(scenes, config.content, config.prompt_type))
    source = f"kind: {CONTENTS[config.content]}, path: {output}, image_root: {scenes.sensor_root}"
    print(f"{output}: {count} scenes. To train on it:\n  'data.sources=[{{{source}}}]'")


@hydra.main(version_base="1.3", config_path="../navsim_configs", config_name="export_sft_jsonl")
def main(config: DictConfig) -> None:
    """Convert errors made for people into one line; everything else is a bug and keeps its traceback."""
    try:
        export(config)
    except (DriveFineError, ValueError, OmegaConfBaseException, HydraException) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
