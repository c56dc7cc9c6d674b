"""NAVSIM's environment variables: set, and pointing to what they should.

Source of when they are read: navsim/common/dataclasses.py, planning/metric_caching/caching.py (1.1 and 2.2).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from drivefine_agent.constants import MAP_VERSIONS
from drivefine_agent.doctor.findings import Finding, failure, ok, warning
from drivefine_agent.doctor.options import DoctorOptions

MAP_VERSION = "nuplan-maps-v1.0"
"""What NAVSIM's code says, whatever the variable says."""
_AT_IMPORT = "NAVSIM reads it while it is imported, so it must be exported before Python starts"
_SPLITS = Path("navsim") / "planning" / "script" / "config" / "common" / "train_test_split"


def check(options: DoctorOptions) -> list[Finding]:
    """All variables."""
    environment = options.environment
    has_dataset = options.dataset_root is not None
    return [
        _folder(
            environment,
            "OPENSCENE_DATA_ROOT",
            f"the folder with navsim_logs and sensor_blobs; {_AT_IMPORT}",
            lambda folder: (folder / "navsim_logs").is_dir() or "it holds no navsim_logs",
            is_optional=has_dataset,
        ),
        _folder(
            environment,
            "NUPLAN_MAPS_ROOT",
            f"the folder with {next(iter(MAP_VERSIONS))}/ and the other cities; {_AT_IMPORT}",
            lambda folder: any((folder / name).is_dir() for name in MAP_VERSIONS) or "it holds no map",
            is_optional=has_dataset,
        ),
        _folder(
            environment,
            "NAVSIM_EXP_ROOT",
            "the folder for caches and results",
            lambda folder: os.access(folder, os.W_OK) or "it cannot be written",
            is_optional=has_dataset,
        ),
        _folder(
            environment,
            "NAVSIM_DEVKIT_ROOT",
            "the NAVSIM checkout, here used for its split files only",
            lambda folder: (
                (folder / _SPLITS).is_dir() or f"it holds no {_SPLITS}: is it the checkout's root?"
            ),
            is_optional=True,
        ),
        _map_version(environment),
    ]


def _folder(
    environment: Mapping[str, str],
    name: str,
    meaning: str,
    judge: Callable[[Path], bool | str],
    *,
    is_optional: bool,
) -> Finding:
    value = environment.get(name)
    export = f"export {name}=..., {meaning}"
    if not value:
        if is_optional:
            return ok(name, "not set, and not needed here")
        return warning(name, "not set", export)
    folder = Path(value)
    if not folder.is_dir():
        what = "a file, not a folder" if folder.exists() else "no folder"
        return failure(name, f"{value} is {what}", export)
    verdict = judge(folder)
    if verdict is not True:
        return failure(name, f"{value}: {verdict}", export)
    return ok(name, value)


def _map_version(environment: Mapping[str, str]) -> Finding:
    value = environment.get("NUPLAN_MAP_VERSION")
    if value in (None, "", MAP_VERSION):
        return ok(
            "NUPLAN_MAP_VERSION", f"{value or 'not set'} (NAVSIM's code uses {MAP_VERSION} in any case)"
        )
    return warning(
        "NUPLAN_MAP_VERSION",
        f"{value}, but NAVSIM's code uses {MAP_VERSION} whatever it says",
        f"export NUPLAN_MAP_VERSION={MAP_VERSION}",
    )
