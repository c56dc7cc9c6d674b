"""The seam: an unrelated `navsim` is not taken for NAVSIM; equivalents mean what NAVSIM's classes mean."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drivefine_agent import navsim_api
from drivefine_agent.navsim_api.equivalents import (
    AbstractAgent,
    AgentInput,
    Camera,
    Cameras,
    EgoStatus,
    Frame,
    Lidar,
    Scene,
    SceneMetadata,
    SensorConfig,
    Trajectory,
    TrajectorySampling,
)

ROOT = Path(__file__).parents[2]
without_navsim = pytest.mark.skipif(
    navsim_api.IS_NAVSIM, reason="a real NAVSIM is installed and would be found"
)


def _run(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": f"{path}:{ROOT}"},
        capture_output=True,
        text=True,
    )


@without_navsim
def test_an_unrelated_package_called_navsim_is_neither_used_nor_imported(tmp_path: Path) -> None:
    package = tmp_path / "navsim"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('a ship simulator')")
    code = "import drivefine_agent.navsim_api as api; print(api.IS_NAVSIM, api.AbstractAgent.__module__)"
    result = _run(code, tmp_path)
    assert result.stdout.split() == ["False", "drivefine_agent.navsim_api.equivalents"], result.stderr


@without_navsim
def test_navsim_without_nuplan_is_reported_and_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "navsim" / "agents"
    folder.mkdir(parents=True)
    (folder / "abstract_agent.py").write_text("import nuplan")
    result = _run("import drivefine_agent.navsim_api as api; print(api.IS_NAVSIM)", tmp_path)
    assert result.stdout.strip() == "False"
    assert "nuplan-devkit is not importable" in result.stderr


@without_navsim
@pytest.mark.parametrize(
    ("signature", "has_sampling"),
    [("requires_scene=False", False), ("trajectory_sampling, requires_scene=False", True)],
    ids=["NAVSIM 1.1", "NAVSIM 2.2"],
)
def test_base_constructor_gets_what_each_navsim_version_takes(
    tmp_path: Path, signature: str, has_sampling: bool
) -> None:
    """A stand-in of both versions' module layout: the first positional argument means different things."""
    files = {
        "navsim/agents/abstract_agent.py": f"class AbstractAgent:\n    def __init__(self, {signature}): "
        "self.requires_scene = requires_scene\n",
        "navsim/common/dataclasses.py": "\n".join(
            f"class {name}: pass"
            for name in (
                "AgentInput Annotations Camera Cameras EgoStatus Frame Lidar Scene SceneMetadata "
                "SensorConfig Trajectory"
            ).split()
        ),
        "navsim/planning/training/abstract_feature_target_builder.py": "class AbstractFeatureBuilder: pass\n"
        "class AbstractTargetBuilder: pass\n",
        "nuplan/planning/simulation/trajectory/trajectory_sampling.py": "class TrajectorySampling:\n"
        "    def __init__(self, time_horizon, interval_length): pass\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    code = (
        "import drivefine_agent.navsim_api as api\n"
        "arguments = api.base_agent_arguments(api.default_sampling())\n"
        "agent = api.AbstractAgent(**arguments)\n"
        "print(api.IS_NAVSIM, 'trajectory_sampling' in arguments, agent.requires_scene)\n"
    )
    result = _run(code, tmp_path)
    assert result.stdout.split() == ["True", str(has_sampling), "False"], result.stderr


@without_navsim
def test_equivalents_are_used_without_navsim() -> None:
    assert navsim_api.AbstractAgent is AbstractAgent
    assert navsim_api.BASE_TAKES_SAMPLING


def test_sampling_fills_in_the_third_number() -> None:
    assert TrajectorySampling(time_horizon=4, interval_length=0.5).num_poses == 8
    assert TrajectorySampling(num_poses=8, interval_length=0.5).time_horizon == 4.0
    assert TrajectorySampling(num_poses=8, time_horizon=4).interval_length == 0.5
    with pytest.raises(ValueError, match="must equal time_horizon"):
        TrajectorySampling(num_poses=8, time_horizon=4, interval_length=0.1)
    with pytest.raises(ValueError, match="needs two of"):
        TrajectorySampling(num_poses=8)


def test_trajectory_refuses_another_number_of_poses() -> None:
    with pytest.raises(ValueError, match=r"\(8, 3\), got \(10, 3\)"):
        Trajectory(np.zeros((10, 3)))


def test_sensor_config_names_the_sensors_of_a_frame() -> None:
    config = SensorConfig.build_no_sensors()
    config.cam_f0 = [3]
    config.lidar_pc = True
    assert [config.get_sensors_at_iteration(i) for i in (2, 3)] == [["lidar_pc"], ["cam_f0", "lidar_pc"]]


def test_scene_gives_local_poses() -> None:
    """The ego drives north, heading 90 degrees, at 2 m per frame from (10, 20): locally straight ahead."""
    cameras = Cameras(*(Camera() for _ in range(8)))
    command = np.array([0, 1, 0, 0])

    def global_pose(frame: int) -> np.ndarray:
        return np.array([10.0, 20.0 + 2 * frame, np.pi / 2])

    frames = [
        Frame(
            token=str(i),
            timestamp=i * 500_000,
            roadblock_ids=[],
            traffic_lights=[],
            annotations=None,
            ego_status=EgoStatus(global_pose(i), np.ones(2), np.zeros(2), command, True),
            lidar=Lidar(),
            cameras=cameras,
        )
        for i in range(4 + 8)
    ]
    scene = Scene(SceneMetadata("log", "scene", "map", "3", 4, 8), None, frames)
    future = scene.get_future_trajectory(8)
    np.testing.assert_allclose(future.poses[:, 0], 2.0 * np.arange(1, 9))
    np.testing.assert_allclose(future.poses[:, 1:], 0.0, atol=1e-12)
    np.testing.assert_allclose(scene.get_history_trajectory().poses[:, 0], [-6, -4, -2, 0], atol=1e-12)
    agent_input = scene.get_agent_input()
    assert isinstance(agent_input, AgentInput)
    np.testing.assert_allclose(agent_input.ego_statuses[0].ego_pose, [-6, 0, 0], atol=1e-12)
    assert not agent_input.ego_statuses[0].in_global_frame
    with pytest.raises(ValueError, match="the 12 frames of scene '3', got frames 4 to 13"):
        scene.get_future_trajectory(9)
