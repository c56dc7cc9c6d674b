"""NAVSIM's own caches: metric caches of 1.1 and 2.2, and training caches. Nothing in them is executed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from drivefine_agent.data.metric_cache import read_metric_cache
from drivefine_agent.data.metric_cache_index import list_metric_caches, listed_files
from drivefine_agent.doctor.findings import Finding, failure, ok, warning
from drivefine_agent.errors import DataError

NUM_SAMPLED = 5
"""Files that are opened, unless all are asked for: one takes up to 0.1 s."""
_NUM_LISTED = 3


def metric_cache_findings(folder: Path, *, is_deep: bool = False) -> list[Finding]:
    """A folder that NAVSIM's run_metric_caching.py wrote."""
    topic = f"metric cache {folder}"
    again = "build it again with NAVSIM's run_metric_caching.py, or copy the missing files"
    try:
        paths = list(list_metric_caches(folder).values())
    except DataError as error:
        return [failure(topic, str(error), again)]
    step = 1 if is_deep else max(1, len(paths) // NUM_SAMPLED)
    versions: Counter[str] = Counter()
    map_roots: set[str] = set()
    faults = []
    for path in paths[::step]:
        try:
            cache = read_metric_cache(path)
        except DataError as error:
            faults.append(str(error))
            continue
        versions[cache.version] += 1
        map_roots.add(cache.map_root)
    num_opened = len(paths[::step])
    opened = f"{num_opened} opened: " + (
        ", ".join(f"{count} of NAVSIM {version}" for version, count in versions.items()) or "none readable"
    )
    findings = []
    if faults:
        seen = f"{len(paths)} scenes, {opened}; {len(faults)} cannot be read"
        findings.append(failure(topic, seen, again, *faults[:_NUM_LISTED]))
    elif len(versions) > 1:
        findings.append(
            failure(
                topic,
                f"{len(paths)} scenes, {opened}: the two versions cannot read each other's caches",
                "build one folder for each version",
            )
        )
    else:
        findings.append(ok(topic, f"{len(paths)} scenes, {opened}"))
    return [*findings, *_index_findings(topic, folder), *_map_root_findings(topic, map_roots)]


def _index_findings(topic: str, folder: Path) -> list[Finding]:
    """What NAVSIM makes of the lists: it reads the first one only, with its paths as they are."""
    lists = sorted((folder / "metadata").glob("*.csv"))
    if not lists:
        return [
            warning(
                f"{topic}, list",
                "no metadata/*.csv; we do without, NAVSIM finds no scene then",
                "copy the folder `metadata` too",
            )
        ]
    findings = []
    if len(lists) > 1:
        findings.append(
            warning(
                f"{topic}, list",
                f"{len(lists)} lists in metadata/ (several nodes); we read all, NAVSIM reads one and "
                "leaves the "
                "scenes of the others out",
                "join them into one file with one header line",
            )
        )
    lines = listed_files(lists[0])
    if lines and not Path(lines[0]).is_file():
        findings.append(
            warning(
                f"{topic}, paths",
                f"its list names files where none is ({lines[0]}); we find them all the same, NAVSIM does "
                "not",
                f"the folder was moved: replace the old folder's path by {folder.resolve()} in {lists[0]}",
            )
        )
    return findings


def _map_root_findings(topic: str, map_roots: set[str]) -> list[Finding]:
    """NAVSIM 2.2 freezes the maps' path into each cache."""
    gone = sorted(root for root in map_roots if root and not Path(root).is_dir())
    if not gone:
        return []
    return [
        warning(
            f"{topic}, maps",
            f"made with maps at {gone[0]}, which does not exist here; NAVSIM's reactive traffic opens "
            "them there",
            "pass +traffic_agents_policy.reactive.map_root_override=$NUPLAN_MAPS_ROOT to NAVSIM, or make "
            "a link; "
            "ours needs neither",
        )
    ]


def training_cache_findings(folder: Path) -> list[Finding]:
    """A folder that NAVSIM's run_dataset_caching.py wrote: `<log>/<token>/<builder>.gz`."""
    topic = f"training cache {folder}"
    strays = sorted(path.name for path in folder.iterdir() if not path.is_dir())
    builders: Counter[str] = Counter()
    tokens: set[Path] = set()
    for path in folder.glob("*/*/*.gz"):
        builders[path.name.removesuffix(".gz")] += 1
        tokens.add(path.parent)
    names = ", ".join(f"{name} ({count})" for name, count in sorted(builders.items()))
    findings = [ok(topic, f"{len(tokens)} samples with {names}")]
    if strays:
        findings.append(
            failure(
                f"{topic}, strays",
                f"NAVSIM takes every entry for a log's folder, and these are none: {', '.join(strays[:5])}",
                "move them elsewhere",
            )
        )
    lacking = {name: len(tokens) - count for name, count in builders.items() if count < len(tokens)}
    if lacking:
        findings.append(
            warning(
                f"{topic}, incomplete",
                ", ".join(f"{count} samples lack {name}" for name, count in sorted(lacking.items())),
                "NAVSIM leaves such samples out in silence: run run_dataset_caching.py again",
            )
        )
    return findings
