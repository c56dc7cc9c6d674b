"""Prepare the scenes of a split for scoring and keep them in a scene cache.

    python tools/build_scene_cache.py train_test_split=navtest metric_cache_path=CACHE num_workers=16
    python tools/build_scene_cache.py train_test_split=test dataset_root=DATASET metric_cache_path=CACHE

Scenes that the cache already has are kept as long as their log and map are the same, so a build that was
stopped goes on where it was, and a cache can be extended by another split. Exits with 1 if a scene could not
be prepared (allow_failures=true: with 0); the reasons are printed, kept in the cache's manifest.json, and
told to whoever asks the cache for such a scene.
All keys: navsim_configs/build_scene_cache.yaml.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from drivefine_agent.errors import DataError, DriveFineError
from drivefine_agent.evaluation.dataset import DatasetKeys, load_split_scenes
from drivefine_agent.evaluation.job import BENCHMARKS
from drivefine_agent.scoring.cache_build import BuildResult, SceneRef, build_scene_cache, scene_refs

_NUM_LISTED = 10  # failures printed; the manifest has all


def find_scenes(config: DictConfig) -> tuple[list[SceneRef], Path]:
    """Where the scenes of the split lie, without their frames (workers read them again); the maps."""
    keys = DatasetKeys(
        train_test_split=str(config.train_test_split),
        dataset_root=config.dataset_root,
        navsim_log_path=config.navsim_log_path,
        original_sensor_path=".",  # no images are read
        maps_root=config.maps_root,
        splits_path=config.splits_path,
        synthetic_scenes_path=config.synthetic_scenes_path,
        synthetic_sensor_path=".",
        max_scenes=config.max_scenes,
    )
    scenes = load_split_scenes(keys, show_progress=config.progress)
    if scenes.maps_root is None:
        raise DataError(
            "no map folder is known: set maps_root, dataset_root or the variable NUPLAN_MAPS_ROOT"
        )
    return scene_refs((*scenes.windows, *scenes.second_stage), scenes.maps_root), scenes.maps_root


def build(config: DictConfig) -> BuildResult:
    """Scenes of the split -> cache folder."""
    scenes, maps_root = find_scenes(config)
    return build_scene_cache(
        scenes,
        maps_root,
        Path(config.metric_cache_path),
        rules=BENCHMARKS[config.benchmark.name],
        num_workers=config.num_workers or os.cpu_count() or 1,
        overwrite=config.force_feature_computation,
        show_progress=config.progress,
    )


def print_result(result: BuildResult, folder: str) -> None:
    """Counts and failures."""
    print(
        f"scene cache {folder}: {result.num_built} scenes built, {result.num_kept} kept,"
        f" {len(result.failures)} could not be prepared"
    )
    for token, reason in list(result.failures.items())[:_NUM_LISTED]:
        print(f"  {token}: {reason}")
    if len(result.failures) > _NUM_LISTED:
        print(f"  and {len(result.failures) - _NUM_LISTED} more, see {Path(folder) / 'manifest.json'}")


@hydra.main(version_base="1.3", config_path="../navsim_configs", config_name="build_scene_cache")
def main(config: DictConfig) -> None:
    """Convert errors made for people into one line; everything else is a bug and keeps its traceback."""
    try:
        result = build(config)
    except (DriveFineError, OmegaConfBaseException, HydraException) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: run the same command again to go on")
    print_result(result, config.metric_cache_path)
    if result.failures and not config.allow_failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
