"""The data set: maps, logs, images and second stage, split by split; and what of it can be used."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drivefine_agent.constants import MAP_VERSIONS
from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.data.dataset_paths import DatasetPaths
from drivefine_agent.data.maps import MAPS_INDEX_NAME, load_map, map_path
from drivefine_agent.data.split_writer import write_split
from drivefine_agent.data.splits import Split, known_splits, load_split
from drivefine_agent.doctor.dataset_scan import (
    ImageFolders,
    SplitFolders,
    StageScan,
    scan_first_stage,
    scan_second_stage,
    usable_groups,
    usable_split,
)
from drivefine_agent.doctor.findings import Finding, failure, ok, warning
from drivefine_agent.doctor.options import DoctorOptions
from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.dataset import DatasetKeys, second_stage_folders, split_search_dirs

_NUM_LISTED = 3
_MAGIC = b"SQLite format 3\0"
_FETCH_MAPS = (
    "fetch nuPlan's maps v1.0 (NAVSIM's download/download_maps.sh) and set NUPLAN_MAPS_ROOT to the "
    "folder that "
    f"holds {MAPS_INDEX_NAME}"
)


def check(options: DoctorOptions) -> list[Finding]:
    """Maps, then every split."""
    if options.dataset_root is None and not options.environment.get("OPENSCENE_DATA_ROOT"):
        return [
            warning(
                "data set",
                "none is named",
                "give --dataset DIR or set OPENSCENE_DATA_ROOT and NUPLAN_MAPS_ROOT; `python "
                "tools/make_world.py "
                "output=DIR` makes one without any download",
            )
        ]
    try:
        if options.dataset_root is not None:
            paths = DatasetPaths.from_root(options.dataset_root)
        else:
            paths = DatasetPaths.from_environment(options.environment)
    except DataError as error:
        return [failure("data set", str(error), "correct the path")]
    findings, maps = map_findings(paths.maps_root, is_deep=options.deep)
    return [*findings, *_splits(options, paths, maps)]


def map_findings(maps_root: Path, *, is_deep: bool = False) -> tuple[list[Finding], list[str]]:
    """What is wrong with the maps, and the names of those that are there."""
    if not maps_root.is_dir():
        return [failure("maps", f"no folder at {maps_root}", _FETCH_MAPS)], []
    good, faults = [], []
    for name in MAP_VERSIONS:
        try:
            fault = _map_fault(maps_root, name, is_deep)
        except DataError as error:
            fault = str(error)
        if fault is None:
            good.append(name)
        else:
            faults.append(fault)
    findings = []
    if faults:
        findings.append(
            failure(
                "maps",
                f"{len(good)} of {len(MAP_VERSIONS)} cities in {maps_root}; NAVSIM opens all four, "
                "whichever a "
                "split needs",
                _FETCH_MAPS,
                *faults,
            )
        )
    else:
        findings.append(ok("maps", f"all {len(good)} cities in {maps_root}"))
    if not (maps_root / MAPS_INDEX_NAME).is_file():
        findings.append(
            warning(
                "maps' index", f"no {MAPS_INDEX_NAME} in {maps_root}; NAVSIM needs it, we do not", _FETCH_MAPS
            )
        )
    if not os.access(maps_root, os.W_OK):
        findings.append(
            warning(
                "maps' folder",
                f"{maps_root} cannot be written; NAVSIM makes a folder of locks there, we do not",
                "copy the maps to a folder of your own, or make symbolic links to them in one, if you "
                "run NAVSIM",
            )
        )
    return findings, good


def _map_fault(maps_root: Path, name: str, is_deep: bool) -> str | None:
    path = map_path(maps_root, name)
    if not path.is_file():
        return f"missing: {path}"
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return f"not a GeoPackage: {path}"
    if is_deep:
        load_map(maps_root, name)
    return None


def _splits(options: DoctorOptions, paths: DatasetPaths, maps: Sequence[str]) -> list[Finding]:
    """Every split that was asked for, else every known one that has logs here."""
    keys = DatasetKeys("", dataset_root=options.dataset_root)
    search_dirs = split_search_dirs(keys, options.environment)
    names = options.splits or tuple(known_splits(search_dirs))
    if not names:
        return [
            warning(
                "splits",
                f"none known: no split files in {', '.join(map(str, search_dirs))}",
                "set NAVSIM_DEVKIT_ROOT to a NAVSIM checkout, which has them, or give --splits FILE.yaml",
            )
        ]
    findings: list[Finding] = []
    absent: list[str] = []
    for name in names:
        try:
            split = load_split(name, search_dirs)
        except DataError as error:
            findings.append(failure(f"split {name}", str(error), "correct the name or the file"))
            continue
        if not options.splits and not _has_any_log(split, paths.logs(split.data_split)):
            absent.append(name)
            continue
        findings += split_findings(options, split, paths, maps)
    if absent:
        findings.append(ok("splits that are not here", f"none of their logs is: {', '.join(absent)}"))
    return findings


def _has_any_log(split: Split, folder: Path) -> bool:
    there = {path.stem for path in folder.glob("*.pkl")}
    names = split.scene_filter.log_names
    return bool(there if names is None else there.intersection(names))


def split_findings(
    options: DoctorOptions, split: Split, paths: DatasetPaths, maps: Sequence[str]
) -> list[Finding]:
    """One split: what is there, what is usable, what is missing."""
    folders = SplitFolders(paths.logs(split.data_split), paths.sensors(split.data_split))
    images = ImageFolders(is_deep=options.deep)
    how: dict[str, Any] = {"num_workers": options.num_workers, "show_progress": options.show_progress}
    first = scan_first_stage(split, folders, maps, images, **how)
    second = None
    if split.scene_filter.include_synthetic_scenes:
        keys = DatasetKeys(split.name, dataset_root=options.dataset_root)
        scenes, sensors = second_stage_folders(keys, split.name, options.environment)
        folders = SplitFolders(folders.logs, folders.sensors, scenes, sensors)
        second = scan_second_stage(split, folders, first, maps, images, **how)
    written = _write(options, split, first, second)

    findings = [_stage_finding(f"split {split.name}", first, folders.logs, written)]
    if second is not None:
        source = folders.second_stage or folders.logs
        findings.append(_stage_finding(f"split {split.name}, stage two", second, source, written))
    if second is not None and split.reactive_all_mapping is not None:
        num_usable, num = len(usable_groups(split, first, second)), len(split.reactive_all_mapping)
        topic = f"split {split.name}, mapping"
        seen = f"{num_usable} of {num} groups of both stages have all their samples"
        if num_usable == num:
            findings.append(ok(topic, seen))
        else:
            findings.append(failure(topic, seen, "fetch what is missing above; NAVSIM needs every group"))
    if first.num_with_gaps:
        findings.append(
            warning(
                f"split {split.name}, gaps",
                f"{first.num_with_gaps} of {first.found} samples hold a step longer than 0.55 s, though "
                "frames "
                "count as 0.5 s apart",
                "nothing, to compare with others: NAVSIM scores them so; leave them out of training if "
                "they hurt",
            )
        )
    return findings


def _stage_finding(topic: str, scan: StageScan, source: Path, written: str) -> Finding:
    wanted = scan.found if scan.wanted is None else scan.wanted
    if len(scan.usable) == wanted and wanted and not scan.missing and not scan.damaged:
        return ok(topic, f"all {wanted} samples have log, map and front camera image; in {source}")
    parts = [
        (len(scan.missing), "files missing"),
        (len(scan.damaged), "files damaged"),
        (len(scan.absent_tokens), "samples in no log that is here"),
        (sum(scan.no_map.values()), "samples without their map"),
    ]
    counts = ", ".join(f"{count} {what}" for count, what in parts if count) or "no sample found"
    details = [
        *_first("missing", scan.missing),
        *_first("damaged", scan.damaged),
        *(_first("in no file", scan.absent_tokens) if not scan.missing else ()),
        *(f"no map {name}: {count} samples" for name, count in scan.no_map.items()),
    ]
    return failure(
        topic,
        f"{len(scan.usable)} of {wanted} samples usable; {counts}; in {source}",
        f"fetch or repair the files (NAVSIM's download/ scripts){written}",
        *details,
    )


def _first(what: str, lines: Sequence[str]) -> list[str]:
    more = [f"... and {len(lines) - _NUM_LISTED} more"] if len(lines) > _NUM_LISTED else []
    return [f"{what}: {line}" for line in lines[:_NUM_LISTED]] + more


def _write(options: DoctorOptions, split: Split, first: StageScan, second: StageScan | None) -> str:
    """Write the lists and the usable split; a clause that says where."""
    if options.output is None:
        return "; --output DIR writes all that is missing, and a split of what is usable"
    scans = [scan for scan in (first, second) if scan is not None]
    lines = [f"missing\t{line}" for scan in scans for line in scan.missing]
    lines += [f"damaged\t{line}" for scan in scans for line in scan.damaged]
    lines += [f"in no file\t{line}" for scan in scans for line in scan.absent_tokens]
    listing = options.output / f"{split.name}_missing.txt"
    reduced = usable_split(split, first, second)
    try:
        write_bytes(listing, "".join(f"{line}\n" for line in lines).encode())
        if not reduced.scene_filter.tokens:
            return f", listed in {listing}"
        path = write_split(options.output, reduced)
    except DataError as error:  # the findings matter more than the files
        return f" (nothing could be written: {error})"
    return (
        f", listed in {listing}. Or do with the usable samples: train_test_split={path} for our commands, "
        f"train_test_split={reduced.name} with file://{options.output.resolve()} in hydra.searchpath for "
        "NAVSIM's"
    )
