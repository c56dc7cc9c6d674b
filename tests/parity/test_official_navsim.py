"""The same trajectories through a real NAVSIM 1.1 and through ours.

Skipped where no NAVSIM 1.1 can be imported. NAVSIM may live in another environment than ours: name its
interpreter in DRIVEFINE_NAVSIM_PYTHON (default: the interpreter that runs the tests).
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from drivefine_agent.data.maps import load_map
from drivefine_agent.data.scenes import SceneFilter, future_poses, load_scenes
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.scoring.build import build_scoring_scene
from drivefine_agent.scoring.scorer import score_v1

RUNNER = Path(__file__).with_name("run_official_navsim.py")
INTERPRETER = os.environ.get("DRIVEFINE_NAVSIM_PYTHON", sys.executable)
# NAVSIM 1.1 told by a feature, not by a version string: 2.x's metric cache has the map's parameters.
PROBE = """
import os; os.environ.setdefault("NUPLAN_MAPS_ROOT", ".")
from dataclasses import fields
from navsim.evaluate.pdm_score import pdm_score
from navsim.planning.metric_caching.metric_cache import MetricCache
assert "map_parameters" not in {field.name for field in fields(MetricCache)}, "this is NAVSIM 2.x"
"""
DISCRETE = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "driving_direction_compliance",
    "time_to_collision_within_bound",
    "comfort",
)
CONTINUOUS = ("ego_progress", "score")
TOLERANCE = 1e-9
SCENES_PER_LOG = 3

pytestmark = [pytest.mark.navsim, pytest.mark.slow]


def _navsim_11() -> None:
    """Skips, with NAVSIM's own words as the reason, unless the interpreter can import NAVSIM 1.1."""
    probe = subprocess.run([INTERPRETER, "-c", PROBE], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        last_line = (probe.stderr.strip().splitlines() or ["no message"])[-1]
        pytest.skip(f"{INTERPRETER} cannot import NAVSIM 1.1 ({last_line}); set DRIVEFINE_NAVSIM_PYTHON")


def _windows(log_dir: Path) -> list[SceneWindow]:
    """The first scenes of each log, ten frames apart."""
    windows = load_scenes(log_dir, SceneFilter(frame_interval=10))
    by_log: dict[str, list[SceneWindow]] = {}
    for window in windows:
        by_log.setdefault(window.log_name, []).append(window)
    return [window for log in sorted(by_log) for window in by_log[log][:SCENES_PER_LOG]]


def _trajectories(window: SceneWindow) -> NDArray[np.float64]:
    """(14, 8, 3) the driver's own, standing, constant speeds, arcs, drifts to the side, braking, noise."""
    human = future_poses(window, 8)
    speed = float(np.hypot(*window.current.ego_velocity))
    time_s = 0.5 * np.arange(1, 9)
    zero = np.zeros(8)

    def along(x_m: NDArray[np.float64], y_m: NDArray[np.float64] = zero) -> NDArray[np.float64]:
        return np.stack([x_m, y_m, zero], axis=-1)

    def arc(yaw_rate: float) -> NDArray[np.float64]:
        heading = yaw_rate * time_s
        x_m, y_m = speed / yaw_rate * np.sin(heading), speed / yaw_rate * (1 - np.cos(heading))
        return np.stack([x_m, y_m, heading], axis=-1)

    drift = np.zeros((8, 3))
    drift[:, 1] = np.linspace(0.3, 2.5, 8)
    noise = np.random.default_rng(20).normal(0.0, [0.3, 0.2, 0.03], (2, 8, 3))
    stopping = along(speed * np.minimum(time_s, 1.0) - 0.25 * speed * np.minimum(time_s, 1.0) ** 2)
    return np.stack(
        [
            human,
            along(zero),
            along(speed * time_s),
            along(1.5 * speed * time_s),
            along(0.5 * speed * time_s),
            along(15.0 * time_s),
            arc(0.15),
            arc(-0.3),
            human + drift,
            human - drift,
            human * [0.6, 1.0, 1.0],
            stopping,
            human + noise[0],
            human + noise[1],
        ]
    )


def test_same_scores_as_the_real_navsim(navsim_mini: Path, tmp_path: Path) -> None:
    _navsim_11()
    log_dir = navsim_mini / "navsim_logs" / "test"
    windows = _windows(log_dir)
    trajectories = {window.token: _trajectories(window) for window in windows}

    # nuplan-devkit makes a lock folder beside the maps, so it gets a copy.
    maps_root = shutil.copytree(navsim_mini / "maps", tmp_path / "maps")
    request = {
        "log_dir": str(log_dir),
        "maps_root": str(maps_root),
        "cache_dir": str(tmp_path / "metric_cache"),
        "num_history_frames": 4,
        "num_future_frames": 10,
        "trajectories": {token: poses.reshape(-1, 24).tolist() for token, poses in trajectories.items()},
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    command = [INTERPRETER, str(RUNNER), str(tmp_path / "request.json"), str(tmp_path / "response.json")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"the official run failed:\n{run.stderr[-3000:]}"
    official = json.loads((tmp_path / "response.json").read_text())["rows"]

    compared, worst, unequal = 0, dict.fromkeys(CONTINUOUS, 0.0), []
    for window in windows:
        scene = build_scoring_scene(window, load_map(navsim_mini / "maps", window.map_name))
        ours = score_v1(scene, trajectories[window.token])
        for row, theirs in enumerate(official[window.token]):
            compared += 1
            for name in DISCRETE:
                if getattr(ours, name)[row] != theirs[name]:
                    unequal.append((window.token, row, name, float(getattr(ours, name)[row]), theirs[name]))
            for name in CONTINUOUS:
                worst[name] = max(worst[name], abs(float(getattr(ours, name)[row]) - theirs[name]))
    print(f"\n{compared} trajectories of {len(windows)} scenes: {len(unequal)} unequal sub-scores, {worst}")
    assert compared == sum(len(poses) for poses in trajectories.values())
    assert not unequal, f"(token, trajectory, sub-score, ours, official): {unequal[:10]}"
    assert max(worst.values()) <= TOLERANCE, worst
