"""One evaluation from split to files: what tools/evaluate.py does once its configuration is read."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from drivefine_agent.baselines.base import BatchPlanner
from drivefine_agent.constants import IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX
from drivefine_agent.data.atomic import write_bytes
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
    predictions_table,
    stage_table,
)
from drivefine_agent.evaluation.results_csv import METRICS_V1, write_csv
from drivefine_agent.evaluation.run import Evaluator, ImageReader, SceneSource, evaluate, failures
from drivefine_agent.scoring.cache import SceneCache

LOGGER = logging.getLogger(__name__)

RESULTS_NAME = "results.csv"
BEFORE_NAME = "results_before_refinement.csv"
PREDICTIONS_NAME = "predictions.parquet"
FAILURES_NAME = "failures.jsonl"
SUMMARY_NAME = "summary.json"

FRONT_CAMERA = "CAM_F0"
BLANK_GREY = 128  # of the image that takes the camera's place when `blank_image` is set


@dataclass(frozen=True)
class EvaluationSettings:
    """What is evaluated, apart from the planner."""

    benchmark: str
    """Name of the rules, for the files: `navsim_v1`."""
    sensor_path: Path
    """Sensor blobs of the split, the root of every `CameraRecord.data_path`."""
    output_dir: Path
    maps_root: Path | None = None
    """Where scenes that the cache lacks find their map."""
    scene_cache_path: Path | None = None
    """Scene cache (tools/build_scene_cache.py); None builds every scene on the fly."""
    batch_size: int = 16
    """Scenes planned at once."""
    blank_image: bool = False
    """Give the planner a grey image: what it scores then, it scores without looking."""
    resume: bool = True
    """Take over valid outcomes of an earlier run with the same configuration."""
    show_progress: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")


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


def image_reader(settings: EvaluationSettings) -> ImageReader:
    """Reads the front camera image of a window (1080, 1920, 3), or makes a grey one if so set."""

    def read(window: SceneWindow) -> NDArray[np.uint8]:
        if FRONT_CAMERA not in window.current.cameras:
            raise DataError(
                f"the current frame of scene {window.token!r} has no {FRONT_CAMERA}: {window.log_path}"
            )
        if settings.blank_image:
            return np.full((IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX, 3), BLANK_GREY, dtype=np.uint8)
        return read_image(settings.sensor_path, window.current.cameras[FRONT_CAMERA].data_path)

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
    named = [Path(value) for value in _texts(agent) if _is_existing(value)]
    logs = sorted({window.log_path for window in windows if window.log_path is not None})
    prepared = [path for path in (settings.scene_cache_path, settings.maps_root) if path is not None]
    return {
        "benchmark": settings.benchmark,
        "agent": dict(agent),
        "files": file_identities([*named, *logs, *prepared]),
        "sensor_path": str(settings.sensor_path),
        "maps_root": str(settings.maps_root),
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


def run_evaluation(
    planner: BatchPlanner,
    windows: Sequence[SceneWindow],
    settings: EvaluationSettings,
    agent: Mapping[str, Any],
) -> EvaluationFiles:
    """Evaluate a planner on scenes and write the results.

    Args:
      planner: answers batches of scenes; initialized here.
      windows: the scenes.
      settings: of the evaluation.
      agent: the planner's configuration, for the files and for recognising an earlier run.

    Raises:
      DataError: no scenes, a scene cache or checkpoint that cannot be read.
    """
    if not windows:
        raise DataError("an evaluation needs at least one scene, the split gave none")
    cache = SceneCache(settings.scene_cache_path) if settings.scene_cache_path is not None else None
    identity = identify(settings, agent, windows)
    log = OutcomeLog(settings.output_dir / "outcomes", configuration_hash(identity))
    done = dict(log.outcomes) if settings.resume else {}
    num_resumed = sum(1 for window in windows if window.token in done and done[window.token].is_valid)
    if num_resumed:
        LOGGER.info("%d of %d scenes are taken over from %s", num_resumed, len(windows), log.path)
    scenes = SceneSource(cache, settings.maps_root)
    started = time.perf_counter()
    if num_resumed < len(windows):
        planner.initialize()
    is_quiet = not settings.show_progress
    with tqdm(total=len(windows), unit="scene", desc=planner.name(), disable=is_quiet) as bar:

        def advance(count: int) -> None:
            bar.update(count)

        outcomes = evaluate(
            Evaluator(planner, scenes, image_reader(settings)),
            windows,
            done,
            keep=log.append,
            batch_size=settings.batch_size,
            on_progress=advance,
        )
    seconds = time.perf_counter() - started
    LOGGER.info("scoring scenes: %d from the scene cache, %d built now", scenes.num_cached, scenes.num_built)
    if cache is not None and scenes.num_built:
        LOGGER.warning("%d scenes are not in the scene cache %s", scenes.num_built, settings.scene_cache_path)
    counts = {
        "num_scenes": len(windows),
        "num_taken_over": num_resumed,
        "num_scenes_from_cache": scenes.num_cached,
        "num_scenes_built": scenes.num_built,
        "seconds": round(seconds, 3),
    }
    return write_evaluation(outcomes, planner.name(), settings, identity, counts)


def write_evaluation(
    outcomes: Sequence[SceneOutcome],
    agent_name: str,
    settings: EvaluationSettings,
    identity: Mapping[str, Any],
    counts: Mapping[str, Any],
) -> EvaluationFiles:
    """Write NAVSIM's CSV, the trajectories, failures and a summary; files of an earlier run are replaced."""
    folder = settings.output_dir
    table = stage_table(outcomes, FINAL)
    write_csv(folder / RESULTS_NAME, table)
    has_before = all(GENERATED in outcome.stages for outcome in outcomes)
    if has_before:
        write_csv(folder / BEFORE_NAME, stage_table(outcomes, GENERATED))
    else:
        (folder / BEFORE_NAME).unlink(missing_ok=True)
    predictions = folder / PREDICTIONS_NAME
    write_bytes(predictions, predictions_table(outcomes).to_parquet(index=False))
    failed = failures(outcomes)
    if failed:
        write_bytes(folder / FAILURES_NAME, "".join(json.dumps(row) + "\n" for row in failed).encode())
        LOGGER.warning("%d trajectories failed, for example: %s", len(failed), failed[0])
    else:
        (folder / FAILURES_NAME).unlink(missing_ok=True)
    means = {name: None if np.isnan(mean := table[name].mean()) else float(mean) for name in METRICS_V1}
    summary = {
        "agent_name": agent_name,
        "num_valid": int(table["valid"].sum()),
        **counts,
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
        failures=folder / FAILURES_NAME if failed else None,
    )
