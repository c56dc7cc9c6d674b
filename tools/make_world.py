"""Writes a synthetic dataset: logs, maps, camera images and splits in NAVSIM's formats.

    python tools/make_world.py output=dataset num_train_logs=70 num_test_logs=12 seed=0

Every key of navsim_configs/make_world.yaml can be given as key=value. A second call with the same keys
makes only what is missing; the result does not depend on the number of processes. The splits are
world_train, world_val and world_test, and world_two_stage for the two-stage evaluation of NAVSIM 2.
"""

from __future__ import annotations

import sys
import time

import hydra
from omegaconf import DictConfig, OmegaConf

from drivefine_agent.errors import DriveFineError
from drivefine_agent.synthetic.dataset import WorldConfig, make_world


@hydra.main(version_base="1.3", config_path="../navsim_configs", config_name="make_world")
def main(config: DictConfig) -> None:
    """Makes the world of a Hydra configuration and says what is where."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    values["cameras"] = tuple(values["cameras"])
    start = time.perf_counter()
    try:
        summary = make_world(WorldConfig(**values))  # type: ignore[arg-type]
    except DriveFineError as error:
        sys.exit(f"make_world: {error}")
    took = time.perf_counter() - start
    for split, count in summary.num_scenes.items():
        print(f"world_{split}: {count} samples in {summary.num_logs[split]} logs")
    if summary.num_second_stage:
        print(f"world_two_stage: {summary.num_second_stage} second-stage samples")
    print(f"{summary.num_made} logs made in {took:.0f} s; dataset: {summary.root.resolve()}")


if __name__ == "__main__":
    main()
