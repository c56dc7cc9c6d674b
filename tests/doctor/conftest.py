"""Options that look at nothing of the machine the tests run on, and a folder of data that may be spoilt."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

_NAVSIM_VARIABLES = (
    "OPENSCENE_DATA_ROOT",
    "NUPLAN_MAPS_ROOT",
    "NAVSIM_EXP_ROOT",
    "NAVSIM_DEVKIT_ROOT",
    "NUPLAN_MAP_VERSION",
    "OPENBLAS_CORETYPE",
)


@pytest.fixture
def clean_environment() -> dict[str, str]:
    """The process's variables without NAVSIM's."""
    return {name: value for name, value in os.environ.items() if name not in _NAVSIM_VARIABLES}


@pytest.fixture
def dataset(navsim_mini: Path, tmp_path: Path) -> Path:
    """A copy of the small data set, without the second stage, of which most images are left out."""
    root = tmp_path / "dataset"
    shutil.copytree(
        navsim_mini, root, ignore=shutil.ignore_patterns("navhard_two_stage", "synth_two_stage.yaml")
    )
    return root
