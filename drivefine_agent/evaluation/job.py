"""One evaluation from split to files: what tools/evaluate.py does once its configuration is read.

First all scenes are planned, in batches, then the plans are scored, in worker processes. Both passes keep
what they have in a log and go on where they were. `make_plans` alone serves submissions, `score_plans` files
of predictions.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from drivefine_agent.baselines.base import BatchPlanner, privileged_knowledge
from drivefine_agent.constants import IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX
from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.data.folder_lock import check_locks
from drivefine_agent.data.sensors import read_image
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.outcomes import (
    FINAL,
    GENERATED,
    OutcomeLog,
    SceneOutcome,
    configuration_hash,
    file_identities,
    stage_table,
    write_predictions_file,
)
from drivefine_agent.evaluation.results_csv import METRICS_V1, write_csv
from drivefine_agent.evaluation.run import Driver, ImageReader, SceneSource, drive, failures
from drivefine_agent.evaluation.score import ScoringJob, is_outcome_of, score_windows
from drivefine_agent.provenance import all_training_data, parent_record, read_model_card, with_scorer
from drivefine_agent.scoring.cache_layout import RULES_V1, RULES_V2
from drivefine_agent.scoring.scorer_v2 import HUMAN_FILTERS, TRAFFIC, HumanFilter, Traffic

LOGGER = logging.getLogger(__name__)

TWO_STAGE = "navhard_two_stage"
BENCHMARKS = {"navsim_v1": RULES_V1, "navsim_v2": RULES_V2, TWO_STAGE: RULES_V2}
"""Rules of the scoring scenes, by benchmark."""
RULE_SETS = {
    RULES_V1: "PDMS of NAVSIM 1.1 (tag v1.1)",
    RULES_V2: "EPDMS of NAVSIM 2.2 (tag v2.2 of 2025-09-29)",
}

RESULTS_NAME = "results.csv"
BEFORE_NAME = "results_before_refinement.csv"
PREDICTIONS_NAME = "predictions.parquet"
FAILURES_NAME = "failures.jsonl"
SUMMARY_NAME = "summary.json"

_STAMPED = ("drivefine", "numpy", "shapely", "numba", "torch")

FRONT_CAMERA = "CAM_F0"
BLANK_GREY = 128  # of the image that takes the camera's place when `blank_image` is set

_SCORER = "scorer"  # as selection.SCORER and learned_scorer.SCORER_FOLDER, which import torch


@dataclass(frozen=True)
class EvaluationSettings:
    """What is evaluated, apart from the planner."""

    benchmark: str
    """Rules: `navsim_v1`, `navsim_v2` (one stage) or `navhard_two_stage`."""
    sensor_path: Path
    """Sensor blobs of the split, the root of every `CameraRecord.data_path`."""
    output_dir: Path
    maps_root: Path | None = None
    """Where scenes that the cache lacks find their map."""
    scene_cache_path: Path | None = None
    """Scene cache (tools/build_scene_cache.py); None builds every scene on the fly."""
    synthetic_sensor_path: Path | None = None
    """Sensor blobs of the second stage."""
    traffic: Traffic = "non_reactive"
    """NAVSIM 2, one stage: whether the others react. Two stages are always reactive, as in NAVSIM."""
    human_penalty_filter: HumanFilter = "true"
    """NAVSIM 2: the rule that `results.csv` follows; the summary gives the others as well."""
    with_pdms: bool = True
    """NAVSIM 2, one stage: score by NAVSIM 1.1's rules as well."""
    scene_cache_path_v1: Path | None = None
    """Scene cache for that; None builds every scene on the fly."""
    batch_size: int = 16
    """Scenes planned at once."""
    num_workers: int | None = None
    """Scoring processes; None: as many as cores where there are enough scenes."""
    blank_image: bool = False
    """Give the planner a grey image: what it scores then, it scores without looking."""
    resume: bool = True
    """Take over valid outcomes of an earlier run with the same configuration."""
    show_progress: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"num_workers must be at least 1 or null, got {self.num_workers}")
        if self.benchmark not in BENCHMARKS:
            raise ValueError(f"benchmark must be one of {list(BENCHMARKS)}, got {self.benchmark!r}")
        if self.human_penalty_filter not in HUMAN_FILTERS:
            raise ValueError(
                f"human_penalty_filter must be one of {HUMAN_FILTERS}, got {self.human_penalty_filter!r}"
            )
        if self.traffic not in TRAFFIC:
            raise ValueError(f"traffic must be one of {TRAFFIC}, got {self.traffic!r}")

    @property
    def rules(self) -> str:
        """Rules of the scoring scenes: `navsim_v1` or `navsim_v2`."""
        return BENCHMARKS[self.benchmark]

    def scoring_job(self, rules: str | None = None) -> ScoringJob:
        """How plans are scored; by other rules than the benchmark's, scenes are built on the fly."""
        is_own = rules is None or rules == self.rules
        return ScoringJob(
            rules=self.rules if rules is None else rules,
            traffic="reactive" if self.benchmark == TWO_STAGE else self.traffic,
            scene_cache_path=self.scene_cache_path if is_own else self.scene_cache_path_v1,
            maps_root=self.maps_root,
        )


@dataclass(frozen=True)
class EvaluationFiles:
    """What an evaluation wrote, and its numbers."""

    results: Path
    predictions: Path
    summary: Path
    table: pd.DataFrame
    """Per-scene results of the trajectory that counts."""
    before_refinement: Path | None = None
    """Results of the trajectories before refinement, of planners that refine."""
    failures: Path | None = None
    """Token, trajectory id and reason per line; None if nothing failed."""
    scores: Path | None = None
    """NAVSIM 2: averages under all rules, side by side."""
    means: dict[str, float] | None = None
    """NAVSIM 2: what the last summary row says, by metric."""


def image_reader(settings: EvaluationSettings) -> ImageReader:
    """Reads the front camera image of a window (1080, 1920, 3), or makes a grey one if so set."""

    def read(window: SceneWindow) -> NDArray[np.uint8]:
        if FRONT_CAMERA not in window.current.cameras:
            raise DataError(
                f"the current frame of scene {window.token!r} has no {FRONT_CAMERA}: {window.log_path}; "
                "fetch the whole log"
            )
        if settings.blank_image:
            return np.full((IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX, 3), BLANK_GREY, dtype=np.uint8)
        folder = settings.sensor_path
        if window.second_stage is not None:
            if settings.synthetic_sensor_path is None:
                raise DataError("second-stage images need a folder, got none: set synthetic_sensor_path")
            folder = settings.synthetic_sensor_path
        return read_image(folder, window.current.cameras[FRONT_CAMERA].data_path)

    return read


def identify(
    settings: EvaluationSettings, agent: Mapping[str, Any], windows: Sequence[SceneWindow]
) -> dict[str, Any]:
    """Everything on which outcomes depend: rules, agent with its checkpoint files, logs, maps or cache.

    Args:
      settings: of the evaluation.
      agent: the agent's configuration; files and folders named in it are identified by size and time.
      windows: the scenes; their log files are identified likewise.
    """
    prepared = [path for path in (settings.scene_cache_path, settings.maps_root) if path is not None]
    return {
        "benchmark": settings.benchmark,
        "traffic": settings.scoring_job().traffic,
        "versions": versions(),
        **_identify_plans(settings, agent, windows),
        "prepared": file_identities(prepared),
        "maps_root": str(settings.maps_root),
    }


def _identify_plans(
    settings: EvaluationSettings, agent: Mapping[str, Any], windows: Sequence[SceneWindow]
) -> dict[str, Any]:
    """What plans depend on, of planners that see no scoring scene."""
    named = [Path(value) for value in _texts(agent) if _is_existing(value)]
    logs = sorted({window.log_path for window in windows if window.log_path is not None})
    return {
        "agent": dict(agent),
        "files": file_identities([*named, *logs]),
        "sensor_path": str(settings.sensor_path),
        "synthetic_sensor_path": str(settings.synthetic_sensor_path),
        "blank_image": settings.blank_image,
    }


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def _is_existing(text: str) -> bool:
    """Whether a configuration value names a file or folder."""
    return 0 < len(text) < 4096 and "\0" not in text and Path(text).exists()


def make_plans(
    planner: BatchPlanner,
    windows: Sequence[SceneWindow],
    settings: EvaluationSettings,
    agent: Mapping[str, Any],
) -> dict[str, SceneOutcome]:
    """The first pass: trajectories of all scenes by token, as outcomes without scores.

    Args:
      planner: answers batches of scenes; initialized here, if there is anything left to plan.
      windows: the scenes.
      settings: of the evaluation.
      agent: the planner's configuration, for recognising an earlier run.

    Raises:
      DataError: no scenes, a scene cache or checkpoint that cannot be read.
    """
    if not windows:
        raise DataError(
            "an evaluation needs at least one scene, got none from the split: choose another train_test_split"
        )
    identity = _identify_plans(settings, agent, windows)
    if planner.needs_scoring_scene:
        identity = identify(settings, agent, windows)
    log = OutcomeLog(settings.output_dir / "outcomes", configuration_hash(identity), "plans")
    done = dict(log.outcomes) if settings.resume else {}
    settings.scoring_job().source()  # says now what is wrong with the scene cache, not after the planning
    if any(window.token not in done or not done[window.token].is_valid for window in windows):
        planner.initialize()
    source = settings.scoring_job().source() if planner.needs_scoring_scene else SceneSource(None, None)
    driver = Driver(planner, source, image_reader(settings))
    with _bar(settings, len(windows), f"{planner.name()}: planning") as bar:
        plans = drive(driver, windows, done, log.append, settings.batch_size, bar.update)
    write_predictions(list(plans.values()), settings, privileged_knowledge(planner))
    return plans


def planner_facts(
    planner: BatchPlanner, plans: Mapping[str, SceneOutcome], settings: EvaluationSettings
) -> dict[str, Any]:
    """What the summary says of a planner: privileged knowledge, and how long it took per scene.

    Times are shares of a batch. The first batch of a process warms up: the median tells more than the mean.
    """
    times = [plan.planning_ms for plan in plans.values() if plan.planning_ms is not None]
    return {
        "privileged": privileged_knowledge(planner),
        "planning": {
            "mean_ms": round(float(np.mean(times)), 3) if times else None,
            "median_ms": round(float(np.median(times)), 3) if times else None,
            "num_timed": len(times),
            "batch_size": settings.batch_size,
        },
    }


def score_plans(
    plans: Mapping[str, SceneOutcome],
    windows: Sequence[SceneWindow],
    settings: EvaluationSettings,
    identity: Mapping[str, Any],
    rules: str | None = None,
) -> tuple[list[SceneOutcome], dict[str, Any]]:
    """The second pass: outcomes of all scenes in order, and counts for the summary.

    Args:
      plans: of `make_plans`, or read from a file (`outcomes.plans_of`).
      windows: the scenes.
      settings: of the evaluation.
      identity: of `identify`, for recognising an earlier run.
      rules: other rules than those of the benchmark.

    Raises:
      DataError: a scene cache that cannot be read, or a worker process that died.
    """
    job = settings.scoring_job(rules)
    log = OutcomeLog(settings.output_dir / "outcomes", configuration_hash({**identity, "rules": job.rules}))
    done = dict(log.outcomes) if settings.resume else {}
    num_resumed = sum(1 for window in windows if is_outcome_of(done, plans, window.token))
    if num_resumed:
        LOGGER.info("%d of %d scenes are taken over from %s", num_resumed, len(windows), log.path)
    started = time.perf_counter()
    with _bar(settings, len(windows), f"scoring by {job.rules}") as bar:
        outcomes, counted = score_windows(
            job, windows, plans, done, log.append, settings.num_workers, bar.update
        )
    LOGGER.info("scoring scenes: %d from the scene cache, %d built", counted.num_cached, counted.num_built)
    if job.scene_cache_path is not None and counted.num_built:
        LOGGER.warning("%d scenes are not in the scene cache %s", counted.num_built, job.scene_cache_path)
    return outcomes, {
        "num_scenes": len(windows),
        "num_taken_over": num_resumed,
        "num_scenes_from_cache": counted.num_cached,
        "num_scenes_built": counted.num_built,
        "seconds": round(time.perf_counter() - started, 3),
    }


def run_evaluation(
    planner: BatchPlanner,
    windows: Sequence[SceneWindow],
    settings: EvaluationSettings,
    agent: Mapping[str, Any],
) -> EvaluationFiles:
    """Evaluate a planner by NAVSIM 1.1's rules and write the results; arguments as in `make_plans`."""
    plans = make_plans(planner, windows, settings, agent)
    identity = identify(settings, agent, windows)
    outcomes, counts = score_plans(plans, windows, settings, identity)
    facts = planner_facts(planner, plans, settings)
    return write_evaluation(outcomes, planner.name(), settings, identity, counts, facts)


def _bar(settings: EvaluationSettings, total: int, text: str) -> tqdm:
    return tqdm(total=total, unit="scene", desc=text, disable=not settings.show_progress)


def write_evaluation(
    outcomes: Sequence[SceneOutcome],
    agent_name: str,
    settings: EvaluationSettings,
    identity: Mapping[str, Any],
    counts: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> EvaluationFiles:
    """Write NAVSIM's CSV, the trajectories, failures and a summary; files of an earlier run are replaced.

    Args:
      outcomes: of all scenes.
      agent_name: for the summary.
      settings: of the evaluation.
      identity: of `identify`.
      counts: of `score_plans`.
      facts: of `planner_facts`; of a file's predictions, what is known of `privileged`.
    """
    folder = settings.output_dir
    check_locks(folder)
    table = stage_table(outcomes, FINAL)
    write_csv(folder / RESULTS_NAME, table)
    has_before = all(GENERATED in outcome.stages for outcome in outcomes)
    if has_before:
        write_csv(folder / BEFORE_NAME, stage_table(outcomes, GENERATED))
    else:
        (folder / BEFORE_NAME).unlink(missing_ok=True)
    predictions = settings.output_dir / PREDICTIONS_NAME
    failed = write_failures(outcomes, settings)
    means = {name: None if np.isnan(mean := table[name].mean()) else float(mean) for name in METRICS_V1}
    summary = {
        "agent_name": agent_name,
        **facts,
        **stamp(settings),
        "num_valid": int(table["valid"].sum()),
        **counts,
        "training_data": training_data_of(identity),
        "means": means,
        "configuration_hash": configuration_hash(identity),
        "configuration": identity,
    }
    write_bytes(folder / SUMMARY_NAME, (json.dumps(summary, indent=1) + "\n").encode())
    return EvaluationFiles(
        results=folder / RESULTS_NAME,
        predictions=predictions,
        summary=folder / SUMMARY_NAME,
        table=table,
        before_refinement=folder / BEFORE_NAME if has_before else None,
        failures=failed,
    )


def training_data_of(identity: Mapping[str, Any]) -> list[dict[str, Any] | None] | None:
    """What the evaluated checkpoint, and the learned scorer that chooses, learned from, by their cards.

    None: no checkpoint, or neither has a card.

    Args:
      identity: of `identify`.

    Raises:
      DataError: a card is damaged.
    """
    agent = identity["agent"]
    checkpoint = agent.get("checkpoint_path")
    if checkpoint is None:
        return None
    card = read_model_card(Path(checkpoint))
    records = None if card is None else all_training_data(card)
    if agent.get("selection") != _SCORER:
        return records
    scorer = parent_record(Path(agent.get("scorer_path") or Path(checkpoint) / _SCORER))
    return None if records is None and scorer["training_data"] is None else with_scorer(records, scorer)


def write_predictions(
    outcomes: Sequence[SceneOutcome], settings: EvaluationSettings, privileged: str = ""
) -> Path:
    """Write the trajectories (`predictions.parquet`), marked where their planner was privileged."""
    path = settings.output_dir / PREDICTIONS_NAME
    write_predictions_file(path, outcomes, privileged)
    return path


def write_failures(outcomes: Sequence[SceneOutcome], settings: EvaluationSettings) -> Path | None:
    """Write what failed, a line each; None, and no file, if nothing did."""
    path = settings.output_dir / FAILURES_NAME
    failed = failures(outcomes)
    if not failed:
        path.unlink(missing_ok=True)
        return None
    write_bytes(path, "".join(json.dumps(row) + "\n" for row in failed).encode())
    LOGGER.warning("%d trajectories failed, for example: %s", len(failed), failed[0])
    return path


def stamp(settings: EvaluationSettings) -> dict[str, Any]:
    """By which rules and with which versions numbers were made."""
    is_v2 = settings.rules == RULES_V2
    return {
        "benchmark": settings.benchmark,
        "rule_set": RULE_SETS[settings.rules],
        "traffic": settings.scoring_job().traffic if is_v2 else "non_reactive",
        "human_penalty_filter": settings.human_penalty_filter if is_v2 else None,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of this package and of what its numbers depend on."""
    return {name: metadata.version(name) for name in _STAMPED}
