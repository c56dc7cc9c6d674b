"""Writes what a real NAVSIM hands to an agent and to a target builder, scene by scene, as arrays.

    python tests/parity/dump_agent_inputs.py DATASET_ROOT OUTPUT.npz

Runs where NAVSIM lives, so it uses nothing of this package and nothing newer than Python 3.9. The scenes are
those of the sample dataset's split `synth_one_stage`. `tests/data/golden/agent_inputs.npz` is its answer for
NAVSIM 1.1; that of 2.2 is equal.
"""

import inspect
import os
import sys
import zlib
from pathlib import Path

os.environ["NUPLAN_MAPS_ROOT"] = str(Path(sys.argv[1]) / "maps")  # read when NAVSIM is imported

import numpy as np
import yaml
from navsim.common.dataclasses import SceneFilter, SensorConfig
from navsim.common.dataloader import SceneLoader


def main(root, output):
    """Loads every scene of the split with its current front camera image."""
    splits = Path(root) / "splits" / "train_test_split"
    split = yaml.safe_load((splits / "synth_one_stage.yaml").read_text())
    name = next(entry["scene_filter"] for entry in split["defaults"] if "scene_filter" in entry)
    values = yaml.safe_load((splits / "scene_filter" / f"{name}.yaml").read_text())
    known = inspect.signature(SceneFilter).parameters
    scene_filter = SceneFilter(**{key: value for key, value in values.items() if key in known})
    sensors = SensorConfig.build_no_sensors()
    sensors.cam_f0 = [3]
    logs = Path(root) / "navsim_logs" / split["data_split"]
    blobs = Path(root) / "sensor_blobs" / split["data_split"]
    takes_blobs = "sensor_blobs_path" in inspect.signature(SceneLoader).parameters  # NAVSIM 1.1
    loader = SceneLoader(
        **{"data_path": logs, "scene_filter": scene_filter, "sensor_config": sensors},
        **{"sensor_blobs_path" if takes_blobs else "original_sensor_path": blobs},
    )
    rows = {}
    for token in sorted(loader.tokens):
        agent_input = loader.get_agent_input_from_token(token)
        scene = loader.get_scene_from_token(token)
        statuses = agent_input.ego_statuses
        image = agent_input.cameras[-1].cam_f0.image
        row = {
            "token": np.array(token),
            "ego_pose": np.stack([status.ego_pose for status in statuses]),
            "ego_velocity": np.stack([status.ego_velocity for status in statuses]),
            "ego_acceleration": np.stack([status.ego_acceleration for status in statuses]),
            "driving_command": np.stack([status.driving_command for status in statuses]),
            "image_shape": np.array(image.shape),
            "image_crc": np.array(zlib.crc32(np.ascontiguousarray(image))),
            "future_poses": scene.get_future_trajectory(8).poses,
        }
        for key, value in row.items():
            rows.setdefault(key, []).append(value)
    np.savez_compressed(output, **{key: np.stack(value) for key, value in rows.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
