"""The score of a submission, computed here, as the leaderboard's script would: PDMS, or two-stage EPDMS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from drivefine_agent.data.maps import load_map
from drivefine_agent.data.submission import Predictions, Submission
from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.dataset import DatasetKeys, SplitScenes, load_split_scenes
from drivefine_agent.evaluation.job import EvaluationFiles, EvaluationSettings, identify, write_predictions
from drivefine_agent.evaluation.job_v2 import score_and_write
from drivefine_agent.evaluation.outcomes import FINAL, SceneOutcome
from drivefine_agent.evaluation.results_csv import METRICS_V1, result_table
from drivefine_agent.evaluation.run import planned
from drivefine_agent.evaluation.trajectory_file import score_trajectories
from drivefine_agent.scoring.batch import Scenes
from drivefine_agent.scoring.build import build_scoring_scene
from drivefine_agent.scoring.cache import SceneCache
from drivefine_agent.scoring.types import ScoringScene, SubScoresV1


def scene_lookup(keys: DatasetKeys, scene_cache_path: Path | None, show_progress: bool) -> Scenes:
    """Scoring scenes by token: from the scene cache if one is named, else built from logs and maps.

    Raises:
      DataError: the cache, the logs or the maps are missing or damaged.
    """
    if scene_cache_path is not None:
        return SceneCache(scene_cache_path).__getitem__
    scenes = load_split_scenes(keys, show_progress=show_progress)
    maps_root = scenes.maps_root
    if maps_root is None:
        raise DataError(
            "no map folder is known: set maps_root, dataset_root or the variable NUPLAN_MAPS_ROOT"
        )
    windows = {window.token: window for window in scenes.windows}

    def find(token: str) -> ScoringScene:
        if token not in windows:
            raise KeyError(f"a token must be a sample of the split {scenes.name!r}, got {token!r}")
        return build_scoring_scene(windows[token], load_map(maps_root, windows[token].map_name))

    return find


def score_one_stage(
    submission: Submission, scenes: Scenes, show_progress: bool = False
) -> list[pd.DataFrame]:
    """Results of every seed under NAVSIM 1.1's rules, as tables with NAVSIM's columns (`results_csv`).

    A trajectory that cannot be scored is a row with `valid` False, and its reason is in the table's
    `attrs["errors"]` by token.

    Raises:
      DataError: it is a two-stage submission.
    """
    if submission.is_two_stage:
        raise DataError(
            "NAVSIM 1.1's rules score submissions with 'predictions', got one with two stages: choose "
            "benchmark=navhard_two_stage"
        )
    return [_score_seed(seed, scenes, show_progress) for seed in submission.predictions]


def _score_seed(predictions: Predictions, scenes: Scenes, show_progress: bool) -> pd.DataFrame:
    rows = {
        "token": list(predictions),
        "trajectory_id": ["final"] * len(predictions),
        "poses": list(predictions.values()),
    }
    table = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in rows.items()})
    with tqdm(total=len(table), desc="Scoring", unit="trajectory", disable=not show_progress) as bar:
        scored = score_trajectories(table, scenes, on_progress=bar.update)
    is_valid = scored["error"].isna()
    scores = SubScoresV1(**{name: scored[name].to_numpy() for name in SubScoresV1.names()})
    table = result_table(list(scored["token"]), scores, list(is_valid))
    table.attrs["errors"] = dict(
        zip(scored.loc[~is_valid, "token"], scored.loc[~is_valid, "error"], strict=True)
    )
    return table


def score_two_stage(
    submission: Submission, scenes: SplitScenes, settings: EvaluationSettings
) -> EvaluationFiles:
    """Results under NAVSIM 2.2's two-stage rules, written as an evaluation writes them (`job_v2`).

    Args:
      submission: with both stages.
      scenes: the split's samples and groups.
      settings: of the evaluation, with the benchmark `navhard_two_stage`.

    Raises:
      DataError: it is a one-stage submission, or lacks a sample of the split.
    """
    if not submission.is_two_stage:
        raise DataError(
            "two-stage rules score submissions with two stages, got one with 'predictions': choose "
            "benchmark=navsim_v1"
        )
    windows = (*scenes.windows, *scenes.second_stage)
    predictions = {**submission.first_stage, **submission.second_stage}
    missing = [window.token for window in windows if window.token not in predictions]
    if missing:
        raise DataError(
            f"a submission needs all samples of its split {scenes.name!r}, got one that lacks "
            f"{len(missing)}: {missing[:5]}; write it for this split"
        )
    plans = {
        window.token: SceneOutcome(
            window.token, {FINAL: planned(predictions[window.token].astype(np.float64))}
        )
        for window in windows
    }
    write_predictions(list(plans.values()), settings)
    # What was scored before is recognised by the plan itself, so the agent needs no identity here.
    identity = identify(settings, {}, windows)
    return score_and_write(plans, submission.team.team_name, windows, settings, identity, {}, scenes.groups)


def seed_summary(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Of each metric's mean: maximum, mean and standard deviation (n - 1) over seeds, as on the board."""
    means = pd.DataFrame([table[list(METRICS_V1)].mean() for table in tables])
    deviation = means.std(ddof=1) if len(means) > 1 else means.iloc[0] * np.nan
    return pd.DataFrame({"max": means.max(), "mean": means.mean(), "std": deviation}).T
