"""Prepare the scenes of a split for scoring and keep them in a scene cache.

    python tools/build_scene_cache.py train_test_split=navtest metric_cache_path=CACHE num_workers=16
    python tools/build_scene_cache.py train_test_split=test dataset_root=DATASET metric_cache_path=CACHE
    python tools/build_scene_cache.py official_metric_cache_path=DIR metric_cache_path=CACHE

The last converts metric caches that NAVSIM's run_metric_caching.py wrote (benchmark=navsim_v1 those of 1.1,
navsim_v2 those of 2.2) without NAVSIM; no logs are needed, and maps only for NAVSIM 2's reactive traffic.
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

from drivefine_agent.data.dataset_paths import DatasetPaths
from drivefine_agent.errors import DataError, DriveFineError
from drivefine_agent.evaluation.dataset import DatasetKeys, load_split_scenes
from drivefine_agent.evaluation.job import BENCHMARKS
from drivefine_agent.scoring.cache_build import BuildResult, SceneRef, build_scene_cache, scene_refs
from drivefine_agent.scoring.cache_layout import RULES_V2
from drivefine_agent.scoring.cache_sources import metric_cache_refs

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


def find_metric_caches(config: DictConfig, rules: str) -> tuple[list[SceneRef], Path | None]:
    """The official metric caches to convert; the maps, if the rules have a use for them and they are told."""
    maps_root = find_maps(config) if rules == RULES_V2 else None
    if rules == RULES_V2 and maps_root is None:
        print("no map folder is known (maps_root, dataset_root): scenes will have no reactive traffic")
    folder = Path(config.official_metric_cache_path)
    with_traffic = maps_root is not None
    refs = metric_cache_refs(folder, rules, with_traffic=with_traffic, max_scenes=config.max_scenes)
    return refs, maps_root


def find_maps(config: DictConfig) -> Path | None:
    """The map folder, where a key or NUPLAN_MAPS_ROOT names one."""
    if config.maps_root is not None:
        return Path(config.maps_root)
    if config.dataset_root is not None:
        return DatasetPaths.from_root(config.dataset_root).maps_root
    root = os.environ.get("NUPLAN_MAPS_ROOT")
    return Path(root) if root else None


def build(config: DictConfig) -> BuildResult:
    """Scenes of the split, or official metric caches -> cache folder."""
    rules = BENCHMARKS[config.benchmark.name]
    scenes: list[SceneRef]
    maps_root: Path | None
    if config.official_metric_cache_path is None:
        scenes, maps_root = find_scenes(config)
    else:
        scenes, maps_root = find_metric_caches(config, rules)
    return build_scene_cache(
        scenes,
        maps_root,
        Path(config.metric_cache_path),
        rules=rules,
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
        sys.exit("stopped: run the same command again to go on (metric_cache_path keeps what is done)")
    print_result(result, config.metric_cache_path)
    if result.failures and not config.allow_failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
