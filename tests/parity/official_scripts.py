"""Running a real NAVSIM's own scripts beside ours.

NAVSIM may live in another environment than ours: name its interpreter in DRIVEFINE_NAVSIM_PYTHON (default:
the interpreter that runs the tests). One interpreter imports one version of NAVSIM; run the tests with each.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INTERPRETER = os.environ.get("DRIVEFINE_NAVSIM_PYTHON", sys.executable)
# The version is told by a feature, not by a version string: NAVSIM 2's metric cache has the map's parameters.
PROBE = """
import os; os.environ.setdefault("NUPLAN_MAPS_ROOT", ".")
from dataclasses import fields
import navsim.planning.script
from navsim.planning.metric_caching.metric_cache import MetricCache
is_2 = "map_parameters" in {field.name for field in fields(MetricCache)}
print("2.2" if is_2 else "1.1", list(navsim.planning.script.__path__)[0])
"""
AGENT_PROBE = """
from importlib.util import find_spec
assert find_spec("drivefine_agent") is not None, "drivefine_agent is not installed"
"""


@dataclass(frozen=True)
class OfficialNavsim:
    """A NAVSIM that can be run."""

    version: str
    """1.1 or 2.2."""
    scripts: Path
    """Folder of run_pdm_score.py."""

    @property
    def is_2(self) -> bool:
        """Whether it is NAVSIM 2."""
        return self.version == "2.2"

    def run(self, dataset: Path, script: str, *overrides: str, worker: str = "sequential") -> str:
        """Runs one of its scripts on a dataset with its splits; returns what it printed."""
        search_path = f"pkg://navsim.planning.script.config.common,file://{dataset / 'splits'}"
        environment = {
            **os.environ,
            "OPENSCENE_DATA_ROOT": str(dataset),
            "NUPLAN_MAPS_ROOT": str(dataset / "maps"),
            "NAVSIM_EXP_ROOT": str(dataset / "exp"),
            "OMP_NUM_THREADS": "1",
        }
        command = [INTERPRETER, str(self.scripts / script)]
        command += [f"hydra.searchpath=[{search_path}]", f"worker={worker}", *overrides]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, f"{script} failed:\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr


def find_official_navsim() -> OfficialNavsim:
    """The NAVSIM of the interpreter; skips, with Python's own words as the reason, where there is none."""
    version, scripts = _probe(PROBE, "import NAVSIM").split(maxsplit=1)
    return OfficialNavsim(version, Path(scripts))


def need_our_agent() -> None:
    """Skips unless this package is installed in NAVSIM's environment too; if it is, it must work there."""
    _probe(AGENT_PROBE, "find this package, which must be installed beside NAVSIM")


def run_ours(script: str, *overrides: str) -> None:
    """Runs one of our tools."""
    command = [sys.executable, str(ROOT / "tools" / script), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, f"{script} failed:\n{done.stderr[-3000:]}"


def _probe(code: str, what: str) -> str:
    probe = subprocess.run([INTERPRETER, "-c", code], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        last_line = (probe.stderr.strip().splitlines() or ["no message"])[-1]
        pytest.skip(f"{INTERPRETER} cannot {what} ({last_line}); set DRIVEFINE_NAVSIM_PYTHON")
    return (probe.stdout.strip().splitlines() or [""])[-1]
