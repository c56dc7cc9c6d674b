"""The script tools/reproduce.py, loaded as a module."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def reproduce() -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / "reproduce.py"
    spec = importlib.util.spec_from_file_location("reproduce_script", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
