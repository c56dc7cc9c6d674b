"""The dataset, scene cache and models of the tests of reinforcement learning."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location(
    "rl_conftest", Path(__file__).parents[1] / "rl" / "conftest.py"
)
assert _spec is not None
assert _spec.loader is not None
_rl = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_rl)
image_dataset = _rl.image_dataset
scene_cache = _rl.scene_cache
start = _rl.start
