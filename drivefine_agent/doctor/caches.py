"""Caches of all kinds: what they are, whether they are whole and fit the data that lies here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from drivefine_agent.data.metric_cache_index import FILE_NAME
from drivefine_agent.doctor.findings import Finding, failure, ok
from drivefine_agent.doctor.official_caches import metric_cache_findings, training_cache_findings
from drivefine_agent.doctor.options import DoctorOptions
from drivefine_agent.doctor.scene_caches import scene_cache_findings
from drivefine_agent.scoring.cache import MANIFEST_NAME, packs_of


def check(options: DoctorOptions) -> list[Finding]:
    """The caches that were named, else those in NAVSIM_EXP_ROOT."""
    exp_root = options.environment.get("NAVSIM_EXP_ROOT")
    folders = list(options.caches)
    if not folders and exp_root:
        folders = list(_caches_below(Path(exp_root)))
    if not folders:
        looked = (
            f"none in NAVSIM_EXP_ROOT ({exp_root})" if exp_root else "none named, NAVSIM_EXP_ROOT is not set"
        )
        return [ok("caches", f"{looked}; --caches DIR,... looks at others")]
    findings: list[Finding] = []
    for folder in folders:
        match kind_of(folder):
            case "scenes":
                findings += scene_cache_findings(folder, options)
            case "metric":
                findings += metric_cache_findings(folder, is_deep=options.deep)
            case "training":
                findings += training_cache_findings(folder)
            case _:
                findings.append(
                    failure(
                        f"cache {folder}",
                        "no folder" if not folder.is_dir() else "neither a scene cache nor one of NAVSIM's",
                        "give the folder that tools/build_scene_cache.py or NAVSIM's caching script wrote",
                    )
                )
    return findings


def kind_of(folder: Path) -> str | None:
    """`scenes` (ours), `metric` or `training` (NAVSIM's), or None."""
    if (folder / MANIFEST_NAME).is_file() or packs_of(folder):
        return "scenes"
    if any((folder / "metadata").glob("*.csv")) or _has(folder, f"*/*/*/{FILE_NAME}"):
        return "metric"
    return "training" if _has(folder, "*/*/*.gz") else None


def _has(folder: Path, pattern: str) -> bool:
    return next(folder.glob(pattern), None) is not None


def _caches_below(root: Path) -> Iterator[Path]:
    """Caches in a folder of experiments and in the experiments themselves."""
    for folder in sorted(path for path in root.glob("*") if path.is_dir()):
        if kind_of(folder) is not None:
            yield folder
        else:
            yield from sorted(
                path for path in folder.glob("*") if path.is_dir() and kind_of(path) is not None
            )
