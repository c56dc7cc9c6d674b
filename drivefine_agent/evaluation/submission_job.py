"""Trajectories for every sample of a split, for a submission: planned now, or taken from finished files.

A submission must be complete, so a sample that failed is never left out: either the caller asks for a
fallback, which is counted and named, or there is no submission.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drivefine_agent.baselines.base import BatchPlanner, PlanningCase
from drivefine_agent.baselines.constant_velocity import ConstantVelocity
from drivefine_agent.baselines.human import Human
from drivefine_agent.constants import NUM_POSE_FIELDS, NUM_POSES
from drivefine_agent.data.submission import Predictions, Submission, TeamInfo, read_submission
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.job import EvaluationSettings, make_plans
from drivefine_agent.evaluation.outcomes import FINAL, SceneOutcome, privileged_of, read_predictions
from drivefine_agent.evaluation.submission_check import WantedTokens

FALLBACKS = ("constant_velocity",)
_NUM_LISTED = 20


@dataclass(frozen=True)
class PlannedSplit:
    """Trajectories of all samples of a split."""

    predictions: Predictions
    """In the order of the samples."""
    filled: Mapping[str, str]
    """Why the fallback had to drive, by token."""


def plan_samples(
    planner: BatchPlanner,
    windows: Sequence[SceneWindow],
    settings: EvaluationSettings,
    agent: Mapping[str, Any],
) -> dict[str, SceneOutcome]:
    """Plan samples as an evaluation does (`job.make_plans`), resuming and keeping plans as it does.

    Raises:
      DataError: the planner knows more than an agent may, or see `job.make_plans`.
    """
    if planner.needs_scoring_scene or isinstance(planner, Human):
        raise DataError(
            f"a submission must come from a planner that sees the past only, got {planner.name()!r}: "
            "NAVSIM refuses agents that require the scene; choose another agent"
        )
    return make_plans(planner, windows, settings, agent)


def complete(
    plans: Mapping[str, SceneOutcome], windows: Sequence[SceneWindow], fallback: str | None
) -> PlannedSplit:
    """Trajectories of all samples, with the fallback's where planning failed.

    Args:
      plans: of `plan_samples`, by token.
      windows: the samples.
      fallback: `constant_velocity`, or None to refuse.

    Raises:
      DataError: samples failed and there is no fallback; lists them with their reasons.
    """
    if fallback is not None and fallback not in FALLBACKS:
        raise DataError(f"fallback must be one of {list(FALLBACKS)} or null, got {fallback!r}: choose one")
    predictions, failed = {}, {}
    for window in windows:
        plan = plans[window.token].stages[FINAL]
        if plan.error is None and plan.poses is not None:
            predictions[window.token] = np.array(plan.poses).reshape(NUM_POSES, NUM_POSE_FIELDS)
        else:
            predictions[window.token] = ConstantVelocity().plan([PlanningCase(window)])[0]
            failed[window.token] = str(plan.error)
    if failed and fallback is None:
        shown = [f"{token}: {reason}" for token, reason in list(failed.items())[:_NUM_LISTED]]
        more = f"\n  and {len(failed) - _NUM_LISTED} more" if len(failed) > _NUM_LISTED else ""
        raise DataError(
            f"a submission must be complete, but {len(failed)} of {len(windows)} samples could not be "
            "planned; nothing was written. Run the command again to try them again, or set "
            "fallback=constant_velocity:\n  " + "\n  ".join(shown) + more
        )
    return PlannedSplit(predictions, failed)


def read_prediction_files(paths: Sequence[Path]) -> list[Predictions]:
    """Finished predictions, one per training seed.

    Args:
      paths: Parquet files of tools/evaluate.py (the trajectory `final` counts), or submissions (`.pkl`) whose
        seeds are appended; of a two-stage submission both stages together.

    Raises:
      DataError: a file is missing or damaged, holds no trajectory `final`, or is a privileged planner's.
    """
    found: list[Predictions] = []
    for path in paths:
        if path.suffix == ".pkl":
            submission = read_submission(path)
            both = {**submission.first_stage, **submission.second_stage}
            found += [both] if submission.is_two_stage else submission.predictions
            continue
        if privileged := privileged_of(path):
            raise DataError(
                "a submission must come from a planner that sees the past only, but that of "
                f"{path} knew more: {privileged}; choose other predictions"
            )
        by_id = read_predictions(path)
        if FINAL not in by_id:
            raise DataError(
                f"predictions must hold trajectories {FINAL!r}, got {sorted(by_id)} in {path}; write it "
                "with tools/evaluate.py"
            )
        found.append(by_id[FINAL])
    return found


def arrange(team: TeamInfo, seeds: Sequence[Predictions], wanted: WantedTokens) -> Submission:
    """Predictions as a submission for a split, in the order of its tokens.

    Args:
      team: who submits.
      seeds: one per training seed, each with exactly the tokens of the split; of a two-stage split one, with
        the tokens of both stages.
      wanted: the tokens of the split.

    Raises:
      DataError: tokens are missing or do not belong to the split, or a two-stage split has several seeds.
    """
    tokens = [*wanted.first_stage, *(wanted.second_stage or ())]
    for number, predictions in enumerate(seeds, start=1):
        missing = [token for token in tokens if token not in predictions]
        extra = sorted(set(predictions) - set(tokens))
        if missing or extra:
            raise DataError(
                f"predictions must have the {len(tokens)} tokens of the split {wanted.split!r}, number "
                f"{number} lacks {len(missing)} {missing[:5]} and has {len(extra)} others {extra[:5]}: "
                "evaluate the whole split first (tools/evaluate.py)"
            )
    if wanted.second_stage is None:
        return Submission(team, tuple({token: seed[token] for token in wanted.first_stage} for seed in seeds))
    if len(seeds) != 1:
        raise DataError(f"a two-stage submission needs one file, got {len(seeds)}: set predictions=FILE")
    return Submission(
        team,
        first_stage={token: seeds[0][token] for token in wanted.first_stage},
        second_stage={token: seeds[0][token] for token in wanted.second_stage},
    )
