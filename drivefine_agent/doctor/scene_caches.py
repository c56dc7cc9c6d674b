"""Our scene caches: whole, complete, and made from the logs and maps that lie here now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from drivefine_agent.data.dataset_paths import DatasetPaths
from drivefine_agent.data.logs import read_log
from drivefine_agent.data.scenes import iter_windows
from drivefine_agent.data.second_stage import read_second_stage
from drivefine_agent.data.splits import Split, known_splits, load_split
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.doctor.findings import Finding, failure, ok, warning
from drivefine_agent.doctor.options import DoctorOptions
from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.dataset import DatasetKeys, second_stage_folders, split_search_dirs
from drivefine_agent.scoring.cache import MANIFEST_NAME, SceneCache, read_manifest
from drivefine_agent.scoring.cache_build import scene_refs

MAX_FILES_COMPARED = 32
"""Of each split, unless all are asked for: a log takes about a second to read."""
_NUM_LISTED = 3


@dataclass
class _Comparison:
    """Scenes of a cache against what a split's files give now."""

    num_files: int = 0
    num_files_in_all: int = 0
    same: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    """Scenes of the split that the cache lacks."""


def scene_cache_findings(folder: Path, options: DoctorOptions) -> list[Finding]:
    """All that can be said of one cache."""
    topic = f"scene cache {folder}"
    rebuild = (
        f"tools/build_scene_cache.py metric_cache_path={folder} builds what is damaged, missing or outdated"
    )
    try:
        manifest = read_manifest(folder, None)
        cache = SceneCache(folder, manifest["rules"])
        damaged = _damage(cache, options)
    except DataError as error:
        return [failure(topic, str(error), f"build it again into another folder, or see above; {rebuild}")]
    if damaged:
        reasons = list(dict.fromkeys(damaged.values()))
        return [
            failure(
                topic,
                f"{len(damaged)} of its {len(cache)} scenes cannot be read",
                rebuild,
                *reasons[:_NUM_LISTED],
            )
        ]
    what = f"{len(cache)} scenes of rules {cache.rules}, format version {manifest['version']}"
    findings = [ok(topic, f"{what}, {'all read' if options.deep else 'all checksums right'}")]
    if cache.failures:
        findings.append(
            warning(
                f"{topic}, failures",
                f"{len(cache.failures)} scenes could not be prepared",
                "look at the reasons; such scenes have no score, here as in NAVSIM",
                *(f"{token}: {reason}" for token, reason in list(cache.failures.items())[:_NUM_LISTED]),
            )
        )
    return [*findings, *_provenance(topic, cache, options, rebuild)]


def _damage(cache: SceneCache, options: DoctorOptions) -> dict[str, str]:
    """Scenes that cannot be read, with the reason: by their checksums, deeply by reading every one."""
    damaged = cache.damaged()
    if not options.deep:
        return damaged
    tokens = tqdm(cache.tokens, desc=cache.folder.name, unit="scene", disable=not options.show_progress)
    for token in tokens:
        try:
            cache[token]
        except DataError as error:
            damaged[token] = str(error)
    return damaged


def _provenance(topic: str, cache: SceneCache, options: DoctorOptions, rebuild: str) -> list[Finding]:
    """Which splits the cache holds, and whether their files are still those it was made from."""
    keys = DatasetKeys("", dataset_root=options.dataset_root)
    try:
        search_dirs = split_search_dirs(keys, options.environment)
        if options.dataset_root is not None:
            paths = DatasetPaths.from_root(options.dataset_root)
        else:
            paths = DatasetPaths.from_environment(options.environment)
    except DataError:
        return [ok(f"{topic}, origin", "not compared with logs: no data set is named (--dataset DIR)")]
    findings: list[Finding] = []
    results: dict[str, _Comparison] = {}
    for name in options.splits or known_splits(search_dirs):
        try:
            split = load_split(name, search_dirs)
            if options.splits or paths.logs(split.data_split).is_dir():
                results[split.name] = _compare(cache, split, paths, options)
        except DataError as error:
            message = f"cannot be compared: {error}"
            findings.append(warning(f"{topic}, {name}", message, "see the check `dataset`"))
    # Splits may share tokens and cut longer or shorter windows around them: one that fits is enough.
    fitting = {token for result in results.values() for token in result.same}
    for name, result in results.items():
        result.stale = [token for token in result.stale if token not in fitting]
        if result.same or result.stale:
            findings.append(_origin_finding(f"{topic}, {name}", result, rebuild))
    if not findings:
        findings.append(
            warning(
                f"{topic}, origin",
                "none of its scenes was found in the files of the splits here",
                "name the split and the data set that it was built from: --splits, --dataset",
            )
        )
    return findings


def _origin_finding(topic: str, result: _Comparison, rebuild: str) -> Finding:
    how_many = (
        f"all {result.num_files} files"
        if result.num_files == result.num_files_in_all
        else f"{result.num_files} of {result.num_files_in_all} files (--deep: all)"
    )
    num = len(result.same) + len(result.stale)
    if result.stale:
        return failure(
            topic,
            f"{len(result.stale)} of {num} scenes were made from other data than lies here now; "
            f"{how_many} compared",
            f"logs or maps have changed since: {rebuild}. (If it was converted from official metric caches, "
            "logs cannot be compared with it, and all is well)",
            f"e.g. {', '.join(result.stale[:_NUM_LISTED])}",
        )
    seen = f"{num} scenes are as the logs and maps here; {how_many} compared"
    if result.absent:
        return warning(
            topic,
            f"{seen}. {len(result.absent)} scenes of the split are not in it",
            f"{rebuild}, if the whole split is wanted",
        )
    return ok(topic, seen)


def _compare(cache: SceneCache, split: Split, paths: DatasetPaths, options: DoctorOptions) -> _Comparison:
    built_s = (cache.folder / MANIFEST_NAME).stat().st_mtime
    folder = paths.logs(split.data_split)
    names = split.scene_filter.log_names
    logs = [path for path in sorted(folder.glob("*.pkl")) if names is None or path.stem in names]
    result = _Comparison()
    for path in _chosen(logs, built_s, options, result):
        _compare_windows(cache, iter_windows(read_log(path), split.scene_filter, path), paths, result)
    if split.scene_filter.include_synthetic_scenes:
        keys = DatasetKeys(split.name, dataset_root=options.dataset_root)
        scenes = sorted(second_stage_folders(keys, split.name, options.environment)[0].glob("*.pkl"))
        for path in _chosen(scenes, built_s, options, result):
            _compare_windows(cache, [read_second_stage(path)], paths, result)
    return result


def _compare_windows(
    cache: SceneCache, windows: Iterable[SceneWindow], paths: DatasetPaths, result: _Comparison
) -> None:
    """Sort the windows of one file by whether the cache has them, and has them from these very data."""
    known = []
    for window in windows:
        if window.token in cache:
            known.append(window)
        else:
            result.absent.append(window.token)
    for ref in scene_refs(known, paths.maps_root):
        is_same = cache.fingerprint(ref.token) in (ref.fingerprint, None)
        (result.same if is_same else result.stale).append(ref.token)


def _chosen(
    files: Sequence[Path], built_s: float, options: DoctorOptions, result: _Comparison
) -> Iterator[Path]:
    """All files, or a few: first those that are younger than the cache, then some spread over the rest."""
    result.num_files_in_all += len(files)
    if not options.deep and len(files) > MAX_FILES_COMPARED:
        young = [path for path in files if path.stat().st_mtime > built_s][:MAX_FILES_COMPARED]
        rest = [path for path in files if path not in set(young)]
        num = MAX_FILES_COMPARED - len(young)
        files = [*young, *(rest[index * len(rest) // num] for index in range(num))]
    result.num_files += len(files)
    yield from files
