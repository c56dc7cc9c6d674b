r"""Make submission.pkl for a NAVSIM leaderboard: plan every sample of a split, or take finished predictions.

    python tools/create_submission.py agent=drivefine agent.checkpoint_path=RUN train_test_split=navtest \
        team_name=TEAM "authors='A, B'" email=a@x.org institution=UNIVERSITY country=COUNTRY \
        output=OUT/submission.pkl
    python tools/create_submission.py "predictions=[SEED1/predictions.parquet,SEED2/predictions.parquet]" ...

No submission is written unless every sample of the split has a trajectory. What was planned lies beside it
(predictions.parquet, and outcomes/, from which a stopped run goes on). The written file is checked at once;
exit code 1 if the check finds a problem. All keys: navsim_configs/create_submission.yaml.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from drivefine_agent.baselines.base import BatchPlanner
from drivefine_agent.data.folder_lock import FolderLock
from drivefine_agent.data.submission import Submission, TeamInfo, write_submission
from drivefine_agent.errors import DataError, DriveFineError
from drivefine_agent.evaluation.dataset import DatasetKeys, load_split_scenes
from drivefine_agent.evaluation.job import TWO_STAGE, EvaluationSettings
from drivefine_agent.evaluation.submission_check import (
    SubmissionCheck,
    WantedTokens,
    check_submission,
    format_check,
    tokens_of_split,
)
from drivefine_agent.evaluation.submission_job import (
    PlannedSplit,
    arrange,
    complete,
    plan_samples,
    read_prediction_files,
)


def create(config: DictConfig) -> SubmissionCheck:
    """Predictions, file, check."""
    team = TeamInfo(**{name: _text(config, name) for name in TeamInfo.__dataclass_fields__})
    keys = dataset_keys(config)
    output = Path(config.output)
    if (config.get("agent") is None) == (config.predictions is None):  # no agent chosen: no key
        raise DataError("give either agent=NAME, to plan now, or predictions=FILE, not both or none")
    if config.predictions is not None:
        names = config.predictions if isinstance(config.predictions, ListConfig) else [config.predictions]
        wanted = tokens_of_split(keys)
        seeds = read_prediction_files([Path(name) for name in names])
        submission = arrange(team, seeds, wanted)
    else:
        submission, wanted = _planned_submission(config, keys, team, output)
    write_submission(output, submission)
    return check_submission(output, wanted)


def dataset_keys(config: DictConfig) -> DatasetKeys:
    """Where the data lies."""
    return DatasetKeys(
        train_test_split=str(config.train_test_split),
        dataset_root=config.dataset_root,
        navsim_log_path=config.navsim_log_path,
        original_sensor_path=config.original_sensor_path,
        maps_root=".",  # no map is read
        splits_path=config.splits_path,
        synthetic_scenes_path=config.synthetic_scenes_path,
        synthetic_sensor_path=config.synthetic_sensor_path,
    )


def _text(config: DictConfig, name: str) -> str:
    value = config[name]
    if not isinstance(value, str):
        raise DataError(f"{name!r} must be one text, got {value!r}: quote it, as in \"{name}='A, B'\"")
    return str(value)


def _planned_submission(
    config: DictConfig, keys: DatasetKeys, team: TeamInfo, output: Path
) -> tuple[Submission, WantedTokens]:
    planner = hydra.utils.instantiate(config.agent)
    if not isinstance(planner, BatchPlanner):
        raise DataError(
            f"an agent must be a BatchPlanner (baselines/base.py), got {config.agent._target_}: choose "
            "another"
        )
    scenes = load_split_scenes(keys, show_progress=config.progress)
    settings = EvaluationSettings(
        benchmark=TWO_STAGE if scenes.second_stage else "navsim_v1",
        sensor_path=scenes.sensor_path,
        synthetic_sensor_path=scenes.synthetic_sensor_path,
        output_dir=output.parent,
        batch_size=config.batch_size,
        resume=config.resume,
        show_progress=config.progress,
    )
    agent = OmegaConf.to_container(config.agent, resolve=True)
    assert isinstance(agent, dict)  # instantiate has accepted it
    windows = (*scenes.windows, *scenes.second_stage)
    with FolderLock(output.parent):  # where the plans are kept
        plans = plan_samples(planner, windows, settings, {str(key): agent[key] for key in agent})
    planned = complete(plans, windows, config.fallback)
    _print_filled(planned)
    wanted = tokens_of_split(keys, scenes)
    return arrange(team, [planned.predictions], wanted), wanted


def _print_filled(planned: PlannedSplit) -> None:
    if planned.filled:
        print(f"{len(planned.filled)} of {len(planned.predictions)} trajectories are the fallback's:")
        for token, reason in planned.filled.items():
            print(f"  {token}: {reason}")


@hydra.main(version_base="1.3", config_path="../navsim_configs", config_name="create_submission")
def main(config: DictConfig) -> None:
    """Convert errors made for people into one line; everything else is a bug and keeps its traceback."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        check = create(config)
    except (DriveFineError, OmegaConfBaseException, HydraException) as error:
        sys.exit(f"error: {error}")
    print(f"{config.output}, split {config.train_test_split}")
    print(format_check(check))
    sys.exit(0 if check.is_good else 1)


if __name__ == "__main__":
    main()
