r"""Score given trajectories: a Parquet file in, a Parquet file with sub-scores and scores out.

    python tools/score_trajectories.py benchmark=navsim_v1 trajectories=IN.parquet output=OUT.parquet \
        metric_cache_path=CACHE
    python tools/score_trajectories.py benchmark=navsim_v1 trajectories=IN.parquet output=OUT.parquet \
        dataset_root=DATASET train_test_split=test
    python tools/score_trajectories.py benchmark=navsim_v2 traffic=reactive human_penalty_filter=legacy ...

Scenes come from a scene cache (tools/build_scene_cache.py), or are prepared on the fly from logs and maps.
In: columns token, trajectory_id, poses (24 numbers: 8 poses of x, y, heading of the rear axle in the ego
frame of t = 0, 0.5 s apart). Out: token, trajectory_id, error, and NAVSIM's columns. A row that cannot be
scored has its reason in `error` and NaN in the metrics; the other rows are scored. Files may be of any
length: memory does not grow with it. All keys: navsim_configs/score_trajectories.yaml.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from drivefine_agent.data.maps import load_map
from drivefine_agent.data.scenes import SceneDataWarning, SceneFilter, load_scenes
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import DataError, DriveFineError
from drivefine_agent.evaluation.dataset import DatasetKeys, load_split_scenes
from drivefine_agent.evaluation.job import BENCHMARKS, TWO_STAGE
from drivefine_agent.evaluation.run import BUILDERS
from drivefine_agent.evaluation.score import available_cores
from drivefine_agent.evaluation.trajectory_file import ScoreSummary, TrajectoryFile, score_file
from drivefine_agent.scoring.batch import Scenes, ScoringRules
from drivefine_agent.scoring.cache import SceneCache
from drivefine_agent.scoring.observation import NUM_OBSERVATION_FRAMES, NUM_OBSERVATION_FRAMES_V2
from drivefine_agent.scoring.scorer_v2 import HUMAN_FILTERS, TRAFFIC
from drivefine_agent.scoring.types import ScoringScene


def scene_lookup(config: DictConfig, tokens: list[str]) -> Scenes:
    """Where prepared scenes come from: the cache if one is named, else logs and maps."""
    if config.metric_cache_path is not None:
        return SceneCache(config.metric_cache_path, BENCHMARKS[config.benchmark.name])
    windows, maps_root = _windows(config, tokens)
    by_token = {window.token: window for window in windows}
    build = BUILDERS[BENCHMARKS[config.benchmark.name]]

    def find(token: str) -> ScoringScene:
        if token not in by_token:
            raise KeyError(f"scene '{token}' is not in the logs (or in the split): check the token")
        window = by_token[token]
        return build(window, load_map(maps_root, window.map_name))

    return find


def _windows(config: DictConfig, tokens: list[str]) -> tuple[list[SceneWindow], Path]:
    """The windows of the split if one is named, else those of the tokens in all logs; and the map folder."""
    if config.train_test_split is not None:
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
        scenes = load_split_scenes(keys, show_progress=config.progress)
        if scenes.maps_root is None:
            raise DataError(
                "no map folder is known: set maps_root, dataset_root or the variable NUPLAN_MAPS_ROOT"
            )
        return [*scenes.windows, *scenes.second_stage], scenes.maps_root
    if config.navsim_log_path is None or config.maps_root is None:
        raise DataError(
            "scenes are needed to score against, got none: give metric_cache_path (a scene cache), or "
            "train_test_split with a dataset, or navsim_log_path and maps_root"
        )
    num_future = NUM_OBSERVATION_FRAMES if config.benchmark.name == "navsim_v1" else NUM_OBSERVATION_FRAMES_V2
    scene_filter = SceneFilter(
        num_future_frames=num_future - 1,
        frame_interval=1,
        has_route=False,
        tokens=tuple(tokens),
    )
    with warnings.catch_warnings():  # a token without a scene becomes the error of its rows
        warnings.simplefilter("ignore", SceneDataWarning)
        windows = load_scenes(
            config.navsim_log_path, scene_filter, on_missing="warn", show_progress=config.progress
        )
    return windows, Path(config.maps_root)


def scoring_rules(config: DictConfig) -> ScoringRules:
    """Rules of the benchmark; two stages are always reactive, as in NAVSIM."""
    human_filter = str(config.human_penalty_filter).lower()
    if config.traffic not in TRAFFIC or human_filter not in HUMAN_FILTERS:
        raise DataError(
            f"traffic must be one of {TRAFFIC} and human_penalty_filter one of {HUMAN_FILTERS}, got "
            f"{config.traffic!r} and {human_filter!r}: choose of these"
        )
    traffic = "reactive" if config.benchmark.name == TWO_STAGE else config.traffic
    return ScoringRules(BENCHMARKS[config.benchmark.name], traffic, human_filter)  # type: ignore[arg-type]


def score(config: DictConfig) -> ScoreSummary:
    """Trajectories in, scores out."""
    rules = scoring_rules(config)
    trajectories = TrajectoryFile(Path(config.trajectories))
    return score_file(
        trajectories,
        scene_lookup(config, trajectories.tokens()),
        Path(config.output),
        show_progress=config.progress,
        rules=rules,
        num_workers=config.num_workers or available_cores(),
    )


def print_summary(summary: ScoreSummary, output: str) -> None:
    """Means of what was scored, and the most frequent reasons for what was not."""
    print(f"{output}: {summary.num_scored} of {summary.num_rows} trajectories scored")
    if summary.num_scored:
        print("  mean  " + "  ".join(f"{name} {mean:.4f}" for name, mean in summary.means.items()))
    for reason, count in summary.reasons.most_common(5):
        print(f"  {count} x {reason}")


@hydra.main(version_base="1.3", config_path="../navsim_configs", config_name="score_trajectories")
def main(config: DictConfig) -> None:
    """Convert errors made for people into one line; everything else is a bug and keeps its traceback."""
    try:
        summary = score(config)
    except (DriveFineError, OmegaConfBaseException, HydraException) as error:
        sys.exit(f"error: {error}")
    print_summary(summary, config.output)


if __name__ == "__main__":
    main()
