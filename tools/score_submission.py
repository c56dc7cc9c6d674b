r"""Score a submission.pkl here, with the numbers that the leaderboard's script would give.

    python tools/score_submission.py submission=OUT/submission.pkl train_test_split=navtest \
        metric_cache_path=CACHE output_dir=OUT
    python tools/score_submission.py submission=OUT/submission.pkl train_test_split=synth_one_stage \
        dataset_root=DATASET

The file is checked first; one with problems is scored only with score_anyway=true. Writes NAVSIM's CSV into
`output_dir`: results.csv, results_seed_<n>.csv per seed, or for two stages all files of such an
evaluation. All keys: navsim_configs/score_submission.yaml.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
import pandas as pd
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from drivefine_agent.data.folder_lock import FolderLock
from drivefine_agent.data.json_text import read_json_object
from drivefine_agent.data.submission import Submission, read_submission
from drivefine_agent.errors import DataError, DriveFineError
from drivefine_agent.evaluation.comparison import SHORT_NAMES
from drivefine_agent.evaluation.dataset import DatasetKeys, load_split_scenes
from drivefine_agent.evaluation.job import TWO_STAGE, EvaluationSettings
from drivefine_agent.evaluation.results_csv import write_csv
from drivefine_agent.evaluation.submission_check import check_submission, format_check, tokens_of_split
from drivefine_agent.evaluation.submission_score import (
    scene_lookup,
    score_one_stage,
    score_two_stage,
    seed_summary,
)


def score(config: DictConfig) -> list[Path]:
    """Check, score, write; returns the CSVs, one per seed."""
    keys = DatasetKeys(
        train_test_split=str(config.train_test_split),
        dataset_root=config.dataset_root,
        navsim_log_path=config.navsim_log_path,
        original_sensor_path=".",  # no images are read
        maps_root=config.maps_root,
        splits_path=config.splits_path,
        synthetic_scenes_path=config.synthetic_scenes_path,
        synthetic_sensor_path=".",
    )
    path, folder = Path(config.submission), Path(config.output_dir)
    check = check_submission(path, tokens_of_split(keys))
    print(format_check(check))
    if not check.is_good and not config.score_anyway:
        raise DataError(
            f"a submission must have none of the problems above, got some: {path}; mend it, or set "
            "score_anyway=true"
        )
    with FolderLock(folder):
        return score_into(folder, config, keys, read_submission(path))


def score_into(folder: Path, config: DictConfig, keys: DatasetKeys, submission: Submission) -> list[Path]:
    """Score, write."""
    if submission.is_two_stage:
        return [_score_two_stage(config, keys, submission)]
    cache = None if config.metric_cache_path is None else Path(config.metric_cache_path)
    tables = score_one_stage(submission, scene_lookup(keys, cache, config.progress), config.progress)
    paths = []
    for number, table in enumerate(tables, start=1):
        paths.append(folder / ("results.csv" if len(tables) == 1 else f"results_seed_{number}.csv"))
        write_csv(paths[-1], table)
        _print_table(paths[-1], table)
    if len(tables) > 1:
        print(f"over {len(tables)} seeds:")
        print(seed_summary(tables)["score"].mul(100).round(2).to_string())
    return paths


def _score_two_stage(config: DictConfig, keys: DatasetKeys, submission: Submission) -> Path:
    scenes = load_split_scenes(keys, show_progress=config.progress)
    settings = EvaluationSettings(
        benchmark=TWO_STAGE,
        sensor_path=scenes.sensor_path,
        output_dir=Path(config.output_dir),
        maps_root=scenes.maps_root,
        scene_cache_path=None if config.metric_cache_path is None else Path(config.metric_cache_path),
        show_progress=config.progress,
    )
    files = score_two_stage(submission, scenes, settings)
    print(f"{files.results}: {int(files.table['valid'].sum())} of {len(files.table)} samples valid")
    for name, score in read_json_object(files.summary)["scores"].items():
        print(f"  {name} {'-' if score is None else f'{100 * score:.2f}'}")
    return files.results


def _print_table(path: Path, table: pd.DataFrame) -> None:
    print(f"{path}: {int(table['valid'].sum())} of {len(table)} scenes valid")
    print(
        "  " + "  ".join(f"{short} {100 * table[metric].mean():.2f}" for metric, short in SHORT_NAMES.items())
    )
    for token, reason in list(table.attrs["errors"].items())[:5]:
        print(f"  not scored: {token}: {reason}")


@hydra.main(version_base="1.3", config_path="../navsim_configs", config_name="score_submission")
def main(config: DictConfig) -> None:
    """Convert errors made for people into one line; everything else is a bug and keeps its traceback."""
    try:
        score(config)
    except (DriveFineError, OmegaConfBaseException, HydraException) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
