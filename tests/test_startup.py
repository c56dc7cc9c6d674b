"""What starts: the agent's import and every command's `--help`, without what neither needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from licence_list import declared, direct

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(
    f"{folder}/{path.name}"
    for folder in ("tools", "rl")
    for path in (ROOT / folder).glob("*.py")
    if "__main__" in path.read_text()
)
OPTIONAL = {
    "deepspeed",
    "fiona",
    "geopandas",
    "matplotlib",
    "navsim",
    "nuplan",
    "pyogrio",
    "pytorch_lightning",
    "ray",
    "tensorboard",
    "torchao",
    "torchvision",
    "wandb",
}
"""Packages that a part may use when it is asked to, and none may need in order to start."""
ABOUT_MODELS = {
    "tools/bench.py",
    "tools/bench_latency.py",
    "tools/export_checkpoint.py",
    "tools/fit_text_tokenizer.py",
    "tools/import_checkpoint.py",
}
"""Commands that list the presets of models, which are configurations of transformers."""


def run(*arguments: str) -> str:
    """What a fresh Python prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, env=environment, cwd=ROOT
    )
    return done.stdout


def importing(module: str) -> tuple[float, set[str]]:
    """CPU time [s] of importing a module in a fresh process, the least of three, and what it loads."""
    program = (
        f"import sys, time; start = time.process_time(); import {module}; "
        "print(time.process_time() - start, *sys.modules)"
    )
    answers = [run("-c", program).split() for _ in range(3)]
    return min(float(answer[0]) for answer in answers), {name.split(".")[0] for name in answers[0][1:]}


def test_the_agent_starts_without_transformers_and_hardly_later_than_torch() -> None:
    time_s, loaded = importing("drivefine_agent.agent")
    assert not loaded & (OPTIONAL | {"transformers", "numba", "pandas"})
    torch_s, _ = importing("torch")
    # 1.3 s against 1.0 s of torch alone on an idle core; a busy one doubles both.
    assert time_s < max(1.5, 1.5 * torch_s), f"{time_s:.2f} s, torch alone {torch_s:.2f} s"


def test_only_the_engine_of_deepspeed_imports_anything_optional() -> None:
    """Every module of the package and of rl/, one after the other in one process, `rl.zero_engine` last."""
    program = (
        "import importlib, pkgutil, sys, drivefine_agent, rl\n"
        "names = [module.name for package in (drivefine_agent, rl)\n"
        "         for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.')]\n"
        "names.remove('rl.zero_engine')\n"
        "for name in names: importlib.import_module(name)\n"
        "print(*names, *sys.modules)"
    )
    loaded = set(run("-c", program).split())
    assert {"drivefine_agent.agent", "rl.engine", "rl.ray_rewards"} <= loaded
    assert not {name.split(".")[0] for name in loaded} & OPTIONAL


def test_every_extra_counts_as_optional() -> None:
    extras = {requirement.name for requirement in direct().values()} - {
        requirement.name for requirement in declared()[""]
    }
    assert extras >= {"deepspeed", "matplotlib", "ray", "tensorboard", "torchao"}
    assert extras <= OPTIONAL


@cache
def helps() -> dict[str, dict[str, Any]]:
    """What `--help` of each command does, see run_help.py."""
    answers = [json.loads(line) for line in run("tests/run_help.py", *COMMANDS).splitlines()]
    return {answer["command"]: answer for answer in answers}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_the_settings_and_loads_nothing_optional(command: str) -> None:
    answer = helps()[command]
    assert answer["exit_code"] == 0, answer["stderr"]
    assert "Traceback" not in answer["stdout"] + answer["stderr"]
    not_needed = OPTIONAL if command in ABOUT_MODELS else OPTIONAL | {"transformers"}
    assert not set(answer["loaded"]) & not_needed
    config = ROOT / "navsim_configs" / f"{Path(command).stem}.yaml"
    if config.is_file() and "hydra.main" in (ROOT / command).read_text():
        settings = set(yaml.safe_load(config.read_text())) - {"defaults", "hydra"}
        assert all(f"\n{name}:" in answer["stdout"] for name in settings)
    else:
        assert answer["stdout"].startswith(f"usage: {Path(command).name}")
        assert len(answer["stdout"].splitlines()) > 5
