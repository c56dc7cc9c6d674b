"""One evaluation by NAVSIM 2's rules, from scored plans to files.

Every plan is scored once; the three rules of the human-penalty filter, and PDMS where the scenes are long
enough for it, are reported side by side in `scores.csv` and in the summary.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from drivefine_agent.baselines.base import BatchPlanner
from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.data.splits import StageGroup
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.evaluation.job import (
    BEFORE_NAME,
    PREDICTIONS_NAME,
    RESULTS_NAME,
    RULE_SETS,
    SUMMARY_NAME,
    TWO_STAGE,
    EvaluationFiles,
    EvaluationSettings,
    identify,
    make_plans,
    planner_facts,
    score_plans,
    stamp,
    training_data_of,
    write_failures,
)
from drivefine_agent.evaluation.one_stage import navsim_would_say as one_stage_says
from drivefine_agent.evaluation.one_stage import one_stage_comfort
from drivefine_agent.evaluation.outcomes import (
    FINAL,
    GENERATED,
    SceneOutcome,
    configuration_hash,
    stage_table,
)
from drivefine_agent.evaluation.results_csv_v2 import groups_path, write_one_stage, write_two_stage
from drivefine_agent.evaluation.run import failures
from drivefine_agent.evaluation.scored_frames import METRICS_V2, ScoredFrame, frame_table, scored_frame
from drivefine_agent.evaluation.two_stage import TwoStageResult, two_stage_result
from drivefine_agent.evaluation.two_stage import navsim_would_say as two_stage_says
from drivefine_agent.scoring.cache_layout import RULES_V1, RULES_V2
from drivefine_agent.scoring.extended_comfort import overlap_shift
from drivefine_agent.scoring.frame_pairs import adjacent_pairs, start_seconds
from drivefine_agent.scoring.observation import NUM_OBSERVATION_FRAMES
from drivefine_agent.scoring.scorer_v2 import HUMAN_FILTERS

LOGGER = logging.getLogger(__name__)

SCORES_NAME = "scores.csv"
_RULE_NAMES = {"true": "EPDMS", "legacy": "EPDMS (legacy filter)", "false": "EPDMS (no filter)"}


@dataclass(frozen=True)
class RuleScore:
    """The average of one trajectory under one set of rules, as `scores.csv` lists it."""

    name: str
    """PDMS, or EPDMS with its filter rule."""
    rule_set: str
    human_penalty_filter: str
    traffic: str
    score: float
    """NaN where there is none."""
    num_scenes: int
    num_valid: int


def run_evaluation_v2(
    planner: BatchPlanner,
    windows: Sequence[SceneWindow],
    settings: EvaluationSettings,
    agent: Mapping[str, Any],
    groups: Sequence[StageGroup] = (),
) -> EvaluationFiles:
    """Evaluate a planner on one stage, or on the samples of both stages, and write the results.

    Args:
      planner: see `job.make_plans`.
      windows: the scenes; with two stages, the second-stage ones as well.
      settings: of the evaluation.
      agent: the planner's configuration.
      groups: the split's mapping between the stages.
    """
    check_pairs(windows, groups)
    plans = make_plans(planner, windows, settings, agent)
    identity, facts = identify(settings, agent, windows), planner_facts(planner, plans, settings)
    return score_and_write(plans, planner.name(), windows, settings, identity, facts, groups)


def score_and_write(
    plans: Mapping[str, SceneOutcome],
    agent_name: str,
    windows: Sequence[SceneWindow],
    settings: EvaluationSettings,
    identity: Mapping[str, Any],
    facts: Mapping[str, Any],
    groups: Sequence[StageGroup] = (),
) -> EvaluationFiles:
    """Score plans (`job.make_plans`, or read from a file) by NAVSIM 2's rules and write the results.

    Other arguments as in `job.write_evaluation`.
    """
    check_pairs(windows, groups)
    outcomes, counts = score_plans(plans, windows, settings, identity)
    pdms = None if settings.benchmark == TWO_STAGE else _pdms(plans, windows, settings, identity)
    by_token = {outcome.token: outcome for outcome in outcomes}
    folder = settings.output_dir
    frames = _frames(by_token, windows, FINAL)
    tables, scores, sentences = _results(frames, windows, settings, groups)
    own = tables[settings.human_penalty_filter]
    _write(folder / RESULTS_NAME, own)
    has_before = all(GENERATED in outcome.stages for outcome in outcomes)
    if has_before:
        before = _results(_frames(by_token, windows, GENERATED), windows, settings, groups)[0]
        _write(folder / BEFORE_NAME, before[settings.human_penalty_filter])
    else:
        (folder / BEFORE_NAME).unlink(missing_ok=True)
    if pdms is not None:
        scores.insert(0, pdms)
    write_bytes(folder / SCORES_NAME, _scores_table(scores, settings).to_csv(index=False).encode())
    for sentence in sentences:
        LOGGER.warning(sentence)
    table = pd.concat([own.first, own.second]) if isinstance(own, TwoStageResult) else own
    means = own.means.combined if isinstance(own, TwoStageResult) else table[list(METRICS_V2)].mean()
    summary = {
        "agent_name": agent_name,
        **facts,
        **stamp(settings),
        "num_valid": int(table["valid"].sum()),
        "num_failed": int((~table["valid"]).sum()),
        **counts,
        "training_data": training_data_of(identity),
        "scores": {score.name: _number(score.score) for score in scores},
        "means": {name: _number(value) for name, value in zip(METRICS_V2, means, strict=True)},
        "navsim_would_say": sentences,
        **(_two_stage_summary(own) if isinstance(own, TwoStageResult) else {}),
        "configuration_hash": configuration_hash(identity),
        "configuration": dict(identity),
    }
    write_bytes(folder / SUMMARY_NAME, (json.dumps(summary, indent=1) + "\n").encode())
    return EvaluationFiles(
        results=folder / RESULTS_NAME,
        predictions=folder / PREDICTIONS_NAME,
        summary=folder / SUMMARY_NAME,
        table=table,
        before_refinement=folder / BEFORE_NAME if has_before else None,
        failures=write_failures(outcomes, settings),
        scores=folder / SCORES_NAME,
        means=dict(zip(METRICS_V2, np.asarray(means, dtype=np.float64).tolist(), strict=True)),
    )


def check_pairs(windows: Sequence[SceneWindow], groups: Sequence[StageGroup]) -> None:
    """Raise DataError before anything is planned if two frames that must be neighbours in time are not."""
    start = {window.token: start_seconds(window.current.timestamp_us) for window in windows}
    if groups:
        pairs = [pair for group in groups for pair in ((group.token, group.previous_token), *group.pairs)]
    else:
        frames = [(window.token, window.log_name, window.current.timestamp_us) for window in windows]
        pairs = list(adjacent_pairs(frames).items())
    for now, previous in pairs:
        if now in start and previous in start:
            overlap_shift(start[now] - start[previous])


Result: TypeAlias = pd.DataFrame | TwoStageResult


def _frames(
    outcomes: Mapping[str, SceneOutcome], windows: Sequence[SceneWindow], stage: str
) -> dict[str, ScoredFrame]:
    """The trajectories of one id that were scored, by token."""
    frames = {}
    for window in windows:
        frame = scored_frame(window, outcomes[window.token].stages[stage])
        if frame is not None:
            frames[window.token] = frame
    return frames


def _results(
    frames: Mapping[str, ScoredFrame],
    windows: Sequence[SceneWindow],
    settings: EvaluationSettings,
    groups: Sequence[StageGroup],
) -> tuple[dict[str, Result], list[RuleScore], list[str]]:
    """The result under each filter rule, their averages, and what NAVSIM would have said."""
    results: dict[str, Result] = {}
    scores = []
    sentences: list[str] = []
    num_valid = sum(window.token in frames for window in windows)
    for rule in HUMAN_FILTERS:
        if settings.benchmark == TWO_STAGE:
            first = [window.token for window in windows if window.second_stage is None]
            second = [window.token for window in windows if window.second_stage is not None]
            two = two_stage_result(first, second, groups, frames, rule)
            sentences = two_stage_says(two, len(windows) - num_valid)
            results[rule], score = two, float(two.means.combined[METRICS_V2.index("score")])
        else:
            tokens = [window.token for window in windows]
            table = frame_table(tokens, frames, one_stage_comfort(frames.values()), rule)
            sentences = one_stage_says(table)
            results[rule], score = table, float(table["score"].mean())
        scores.append(
            RuleScore(
                _RULE_NAMES[rule],
                RULE_SETS[RULES_V2],
                rule,
                settings.scoring_job().traffic,
                score,
                len(windows),
                num_valid,
            )
        )
    return results, scores, sentences


def _write(path: Path, result: Result) -> None:
    if isinstance(result, TwoStageResult):
        write_two_stage(path, result)
        write_bytes(groups_path(path), result.groups.to_csv(index=False).encode())
    else:
        write_one_stage(path, result)


def _pdms(
    plans: Mapping[str, SceneOutcome],
    windows: Sequence[SceneWindow],
    settings: EvaluationSettings,
    identity: Mapping[str, Any],
) -> RuleScore:
    """NAVSIM 1.1's score of the same plans; NaN where the split's windows are too short for it."""
    score, num_valid = np.nan, 0
    if not settings.with_pdms:
        LOGGER.info("PDMS is not computed (pdms=false)")
    elif any(window.num_future_frames < NUM_OBSERVATION_FRAMES - 1 for window in windows):
        LOGGER.warning("no PDMS beside EPDMS: it needs 10 future frames, the split's samples have fewer")
    elif settings.maps_root is None and settings.scene_cache_path_v1 is None:
        LOGGER.warning("no PDMS beside EPDMS: it needs the maps (maps_root), or metric_cache_path_v1")
    else:
        outcomes, _ = score_plans(plans, windows, settings, identity, RULES_V1)
        table = stage_table(outcomes, FINAL)
        score, num_valid = float(table["score"].mean()), int(table["valid"].sum())
        failed = [row for row in failures(outcomes) if row["trajectory_id"] == FINAL]
        if failed:
            LOGGER.warning("PDMS failed on %d of %d scenes, first: %s", len(failed), len(windows), failed[0])
    return RuleScore("PDMS", RULE_SETS[RULES_V1], "", "non_reactive", score, len(windows), num_valid)


def _scores_table(scores: Sequence[RuleScore], settings: EvaluationSettings) -> pd.DataFrame:
    """One row per set of rules, with everything that says how the number was made."""
    versions = {f"{name}_version": version for name, version in stamp(settings)["versions"].items()}
    return pd.DataFrame([{"benchmark": settings.benchmark, **vars(score), **versions} for score in scores])


def _two_stage_summary(result: TwoStageResult) -> dict[str, Any]:
    score = METRICS_V2.index("score")
    return {
        "stage_one": _number(result.means.stage_one[score]),
        "stage_two": _number(result.means.stage_two[score]),
        "num_groups": result.num_counted,
        "groups_left_out": dict(result.left_out),
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
