"""Evaluate an agent on a split and write NAVSIM's CSV.

    python tools/evaluate.py agent=constant_velocity train_test_split=test dataset_root=DATASET
    python tools/evaluate.py agent=drivefine agent.checkpoint_path=RUN train_test_split=navtest

Writes into `output_dir` (default: $NAVSIM_EXP_ROOT/<experiment_name>; runs/<experiment_name> if not set):
results.csv (NAVSIM's columns and row `average`), predictions.parquet (for tools/score_trajectories.py),
summary.json, failures.jsonl if a scene failed, results_before_refinement.csv if the agent refines. A stopped
run goes on where it was. All keys: navsim_configs/evaluate.yaml.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from drivefine_agent.baselines.base import BatchPlanner
from drivefine_agent.errors import DataError, DriveFineError
from drivefine_agent.evaluation.comparison import SHORT_NAMES
from drivefine_agent.evaluation.dataset import DatasetKeys, SplitScenes, load_split_scenes
from drivefine_agent.evaluation.job import EvaluationFiles, EvaluationSettings, run_evaluation


def evaluate(config: DictConfig) -> EvaluationFiles:
    """Scenes of the split, planner, evaluation."""
    scenes, settings = read_settings(config)
    planner = hydra.utils.instantiate(config.agent)
    if not isinstance(planner, BatchPlanner):
        raise DataError(
            f"an agent for evaluation must be a BatchPlanner (baselines/base.py), got {config.agent._target_}"
        )
    agent = OmegaConf.to_container(config.agent, resolve=True)
    assert isinstance(agent, dict)  # instantiate has accepted it
    return run_evaluation(planner, scenes.windows, settings, {str(key): agent[key] for key in agent})


def read_settings(config: DictConfig) -> tuple[SplitScenes, EvaluationSettings]:
    """Scenes of the split, and the settings of the evaluation.

    Raises:
      DataError: a value is out of its range, the split is unknown, or files are missing or damaged.
    """
    try:
        keys = DatasetKeys(
            train_test_split=str(config.train_test_split),
            dataset_root=config.dataset_root,
            navsim_log_path=config.navsim_log_path,
            original_sensor_path=config.original_sensor_path,
            maps_root=config.maps_root,
            splits_path=config.splits_path,
            max_scenes=config.max_scenes,
        )
        scenes = load_split_scenes(keys, show_progress=config.progress)
        settings = EvaluationSettings(
            benchmark=config.benchmark.name,
            sensor_path=scenes.sensor_path,
            output_dir=Path(config.output_dir),
            maps_root=scenes.maps_root,
            scene_cache_path=None if config.metric_cache_path is None else Path(config.metric_cache_path),
            batch_size=config.batch_size,
            blank_image=config.blank_image,
            resume=config.resume,
            show_progress=config.progress,
        )
    except DriveFineError:
        raise
    except (ValueError, TypeError) as error:  # a value that the records refuse
        raise DataError(f"{error}: see navsim_configs/evaluate.yaml") from error
    return scenes, settings


def print_results(name: str, files: EvaluationFiles) -> None:
    """Means and where everything is."""
    table = files.table
    print(f"\n{name}: {int(table['valid'].sum())} of {len(table)} scenes valid")
    print(
        "  " + "  ".join(f"{short} {100 * table[metric].mean():.2f}" for metric, short in SHORT_NAMES.items())
    )
    print(f"  results      {files.results}")
    if files.before_refinement is not None:
        print(f"  unrefined    {files.before_refinement}")
    print(f"  trajectories {files.predictions}")
    print(f"  summary      {files.summary}")
    if files.failures is not None:
        print(f"  failures     {files.failures}")


@hydra.main(version_base="1.3", config_path="../navsim_configs", config_name="evaluate")
def main(config: DictConfig) -> None:
    """Convert errors made for people into one line; everything else is a bug and keeps its traceback."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        print_results(HydraConfig.get().runtime.choices["agent"], evaluate(config))
    except (DriveFineError, OmegaConfBaseException, HydraException) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
