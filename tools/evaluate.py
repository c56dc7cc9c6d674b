"""Evaluate an agent on a split and write NAVSIM's CSV.

    python tools/evaluate.py agent=constant_velocity train_test_split=test dataset_root=DATASET
    python tools/evaluate.py benchmark=navsim_v2 train_test_split=navtest agent=drivefine \
        agent.checkpoint_path=RUN
    python tools/evaluate.py benchmark=navhard_two_stage train_test_split=navhard_two_stage agent=drivefine \
        agent.checkpoint_path=RUN
    python tools/evaluate.py benchmark=navsim_v2 train_test_split=navtest agent=none predictions=FILE.parquet

First all scenes are planned, then the plans are scored. Writes into `output_dir` (default:
$NAVSIM_EXP_ROOT/<experiment_name>; runs/<experiment_name> if not set): results.csv (NAVSIM's columns and
summary rows), predictions.parquet (also for tools/score_trajectories.py and create_submission.py),
summary.json, failures.jsonl if a scene failed, results_before_refinement.csv if the agent refines; under
NAVSIM 2 scores.csv with PDMS and EPDMS by the old and the new rule side by side. A stopped run goes on where
it was. All keys: navsim_configs/evaluate.yaml.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import hydra
import numpy as np
import pandas as pd
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from drivefine_agent.baselines.base import BatchPlanner
from drivefine_agent.data.folder_lock import FolderLock
from drivefine_agent.data.json_text import read_json_object
from drivefine_agent.errors import DataError, DriveFineError
from drivefine_agent.evaluation.comparison import SHORT_NAMES, SHORT_NAMES_V2
from drivefine_agent.evaluation.dataset import DatasetKeys, SplitScenes, load_split_scenes
from drivefine_agent.evaluation.job import (
    PREDICTIONS_NAME,
    TWO_STAGE,
    EvaluationFiles,
    EvaluationSettings,
    identify,
    run_evaluation,
    score_plans,
    write_evaluation,
    write_predictions,
)
from drivefine_agent.evaluation.job_v2 import run_evaluation_v2, score_and_write
from drivefine_agent.evaluation.outcomes import plans_of, privileged_of
from drivefine_agent.provenance import describe


def evaluate(config: DictConfig) -> EvaluationFiles:
    """Scenes of the split, planner, evaluation."""
    is_none = config.agent._target_.endswith(".NoPlanner")
    if is_none == (config.predictions is None):
        got = "agent=none and no predictions" if is_none else f"an agent and {config.predictions}"
        raise DataError(
            f"an evaluation needs an agent, or agent=none and predictions=FILE, got {got}: set one "
            "of the two (agent=drivefine, or another of navsim_configs/agent)"
        )
    scenes, settings = read_settings(config)
    with FolderLock(settings.output_dir):
        if config.predictions is not None:
            return evaluate_predictions(Path(config.predictions), scenes, settings)
        return evaluate_agent(config, scenes, settings)


def evaluate_agent(config: DictConfig, scenes: SplitScenes, settings: EvaluationSettings) -> EvaluationFiles:
    """Both passes: plans, then scores."""
    planner = hydra.utils.instantiate(config.agent)
    if not isinstance(planner, BatchPlanner):
        raise DataError(
            f"an agent must be a BatchPlanner (baselines/base.py), got {config.agent._target_}: choose "
            "another"
        )
    agent = OmegaConf.to_container(config.agent, resolve=True)
    assert isinstance(agent, dict)  # instantiate has accepted it
    configuration = {str(key): agent[key] for key in agent}
    if settings.benchmark == "navsim_v1":
        return run_evaluation(planner, scenes.windows, settings, configuration)
    windows = (*scenes.windows, *scenes.second_stage)
    return run_evaluation_v2(planner, windows, settings, configuration, scenes.groups)


def evaluate_predictions(path: Path, scenes: SplitScenes, settings: EvaluationSettings) -> EvaluationFiles:
    """The second pass alone, on trajectories from a file."""
    if path.resolve() == (settings.output_dir / PREDICTIONS_NAME).resolve():
        raise DataError(
            f"output_dir must be another folder than that of the predictions {path}: choose another"
        )
    windows = (*scenes.windows, *scenes.second_stage)
    plans = plans_of(path, [window.token for window in windows])
    privileged = privileged_of(path)
    write_predictions(list(plans.values()), settings, privileged)
    name, facts = f"{path.name}{' (privileged)' if privileged else ''}", {"privileged": privileged}
    identity = identify(settings, {"predictions": str(path)}, windows)
    if settings.benchmark == "navsim_v1":
        outcomes, counts = score_plans(plans, windows, settings, identity)
        return write_evaluation(outcomes, name, settings, identity, counts, facts)
    return score_and_write(plans, name, windows, settings, identity, facts, scenes.groups)


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
            synthetic_scenes_path=config.synthetic_scenes_path,
            synthetic_sensor_path=config.synthetic_sensor_path,
            max_scenes=config.max_scenes,
        )
        scenes = load_split_scenes(keys, show_progress=config.progress)
        check_stages(config.benchmark.name, scenes)
        settings = EvaluationSettings(
            benchmark=config.benchmark.name,
            sensor_path=scenes.sensor_path,
            output_dir=Path(config.output_dir),
            maps_root=scenes.maps_root,
            scene_cache_path=None if config.metric_cache_path is None else Path(config.metric_cache_path),
            synthetic_sensor_path=scenes.synthetic_sensor_path,
            traffic=config.traffic,
            with_pdms=config.pdms,
            scene_cache_path_v1=(
                None if config.metric_cache_path_v1 is None else Path(config.metric_cache_path_v1)
            ),
            human_penalty_filter=str(config.human_penalty_filter).lower(),
            batch_size=config.batch_size,
            num_workers=config.num_workers,
            blank_image=config.blank_image,
            resume=config.resume,
            show_progress=config.progress,
        )
    except DriveFineError:
        raise
    except (ValueError, TypeError) as error:  # a value that the records refuse
        raise DataError(f"{error}: see navsim_configs/evaluate.yaml") from error
    return scenes, settings


def check_stages(benchmark: str, scenes: SplitScenes) -> None:
    """Raise DataError unless the split has as many stages as the benchmark."""
    if benchmark == TWO_STAGE and not scenes.groups:
        raise DataError(
            f"benchmark={TWO_STAGE} needs a split with two stages (reactive_all_mapping), "
            f"'{scenes.name}' has one: use benchmark=navsim_v2, or a split such as navhard_two_stage"
        )
    if benchmark != TWO_STAGE and (scenes.groups or scenes.second_stage):
        raise DataError(
            f"the split '{scenes.name}' has two stages, {benchmark} has one: use benchmark={TWO_STAGE}"
        )


def print_results(name: str, files: EvaluationFiles, has_checkpoint: bool) -> None:
    """Means, what a checkpoint has learned from, and where everything is."""
    table = files.table
    print(f"\n{name}: {int(table['valid'].sum())} of {len(table)} scenes valid")
    names = SHORT_NAMES if files.means is None else SHORT_NAMES_V2
    means = table[list(names)].mean() if files.means is None else files.means
    print("  " + "  ".join(f"{short} {100 * means[metric]:.2f}" for metric, short in names.items()))
    if files.scores is not None:
        for row in pd.read_csv(files.scores).itertuples():
            value = "n/a" if np.isnan(row.score) else f"{100 * row.score:.2f}"
            print(f"  {row.name:23} {value}   ({row.num_valid} of {row.num_scenes} scenes, {row.traffic})")
    summary = read_json_object(files.summary)
    if summary["privileged"]:
        print(f"  PRIVILEGED   {summary['privileged']}: a bound, not the result of a planner")
    if has_checkpoint:
        print(f"  trained on   {describe(summary['training_data'])}")
    if "planning" in summary:
        print("  planning     {mean_ms} ms per scene, median {median_ms}".format(**summary["planning"]))
    print(f"  results      {files.results}")
    if files.scores is not None:
        print(f"  all rules    {files.scores}")
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
        files = evaluate(config)
        print_results(HydraConfig.get().runtime.choices["agent"], files, "checkpoint_path" in config.agent)
    except (DriveFineError, OmegaConfBaseException, HydraException) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
