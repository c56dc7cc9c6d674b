r"""Say everything that is wrong with a submission.pkl, without executing any of it.

    python tools/check_submission.py submission=OUT/submission.pkl train_test_split=navtest
    python tools/check_submission.py submission=OUT/submission.pkl train_test_split=synth_two_stage \
        dataset_root=DATASET

Prints the counts, and one line per problem; exit code 1 if there is any. Splits without a list of tokens need
their logs. All keys: navsim_configs/check_submission.yaml.
"""

from __future__ import annotations

import sys

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from drivefine_agent.errors import DriveFineError
from drivefine_agent.evaluation.dataset import DatasetKeys
from drivefine_agent.evaluation.submission_check import (
    SubmissionCheck,
    check_submission,
    format_check,
    tokens_of_split,
)


def check(config: DictConfig) -> SubmissionCheck:
    """The file against the split."""
    keys = DatasetKeys(
        train_test_split=str(config.train_test_split),
        dataset_root=config.dataset_root,
        navsim_log_path=config.navsim_log_path,
        original_sensor_path=".",  # no images are read
        splits_path=config.splits_path,
        synthetic_scenes_path=config.synthetic_scenes_path,
        synthetic_sensor_path=".",
    )
    return check_submission(config.submission, tokens_of_split(keys))


@hydra.main(version_base="1.3", config_path="../navsim_configs", config_name="check_submission")
def main(config: DictConfig) -> None:
    """Convert errors made for people into one line; everything else is a bug and keeps its traceback."""
    try:
        result = check(config)
    except (DriveFineError, OmegaConfBaseException, HydraException) as error:
        sys.exit(f"error: {error}")
    print(f"{config.submission}, split {config.train_test_split}")
    print(format_check(result))
    sys.exit(0 if result.is_good else 1)


if __name__ == "__main__":
    main()
