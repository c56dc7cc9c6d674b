"""The seam cannot drift from NAVSIM: our stand-ins against signatures and values of the official classes.

The facts were taken from NAVSIM 1.1 and 2.2 by `describe_navsim.py` and `dump_agent_inputs.py`. Where a
NAVSIM is importable, the tests marked `navsim` take them anew.
"""

import inspect
import json
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from describe_navsim import parameters
from official_scripts import INTERPRETER, find_official_navsim

from drivefine_agent.agent import DriveFineAgent
from drivefine_agent.baselines.constant_velocity import ConstantVelocity
from drivefine_agent.data.scenes import load_scenes
from drivefine_agent.data.sensors import read_image
from drivefine_agent.data.splits import load_split
from drivefine_agent.navsim_api import equivalents
from drivefine_agent.navsim_inputs import agent_input_from_window, scene_from_window

DATA = Path(__file__).parents[1] / "data"
SIGNATURES: dict[str, dict[str, Any]] = json.loads((DATA / "navsim_signatures.json").read_text())
CLASSES = sorted(SIGNATURES["2.2"])
PARITY = Path(__file__).parent


@pytest.mark.parametrize("name", CLASSES)
def test_stand_ins_take_what_navsim_2_takes(name: str) -> None:
    """Same parameters, in the same order, with the same defaults; no method that NAVSIM's class lacks."""
    ours, official = getattr(equivalents, name), SIGNATURES["2.2"][name]
    if official["constructor"]:
        assert parameters(ours.__init__) == official["constructor"]
    for method, member in inspect.getmembers(ours, callable):
        if not method.startswith("_") and method in vars(ours):
            assert method in official["methods"], f"NAVSIM's {name} has no {method}"
            assert parameters(member) == official["methods"][method], method


@pytest.mark.parametrize("name", CLASSES)
def test_what_we_use_is_in_navsim_1_too(name: str) -> None:
    """NAVSIM 2 only added parameters, all with defaults but the agent's sampling, which the seam handles."""
    old, new = SIGNATURES["1.1"][name]["constructor"], SIGNATURES["2.2"][name]["constructor"]
    assert [entry for entry in new if entry in old] == old
    for added, default in (entry for entry in new if entry not in old):
        assert default is not None or (name, added) == ("AbstractAgent", "trajectory_sampling")


@pytest.mark.parametrize("version", ["1.1", "2.2"])
@pytest.mark.parametrize("agent", [DriveFineAgent, ConstantVelocity])
def test_agents_override_navsim_s_methods_as_they_are_called(version: str, agent: type) -> None:
    """Every method of NAVSIM's agent that ours defines takes the same arguments, by name."""
    official = SIGNATURES[version]["AbstractAgent"]["methods"]
    for method in set(official) & set(vars(agent)):
        assert parameters(getattr(agent, method)) == official[method], method


def test_agent_inputs_are_navsim_s_to_the_bit(navsim_mini: Path) -> None:
    """Values, shapes and dtypes of all 24 samples, as NAVSIM 1.1 and 2.2 hand them to an agent."""
    split = load_split("synth_one_stage", [navsim_mini / "splits"])
    windows = load_scenes(navsim_mini / "navsim_logs" / split.data_split, split.scene_filter)
    golden = np.load(DATA / "golden" / "agent_inputs.npz")
    by_token = {window.token: window for window in windows}
    assert sorted(by_token) == golden["token"].tolist()
    for row, token in enumerate(golden["token"].tolist()):
        window = by_token[token]
        sensors = navsim_mini / "sensor_blobs" / split.data_split
        image = read_image(sensors, window.current.cameras["CAM_F0"].data_path)
        agent_input = agent_input_from_window(window, image)
        for name in ("ego_pose", "ego_velocity", "ego_acceleration", "driving_command"):
            ours = np.stack([getattr(status, name) for status in agent_input.ego_statuses])
            assert ours.dtype == golden[name].dtype, name
            np.testing.assert_array_equal(ours, golden[name][row], err_msg=name)
        loaded = agent_input.cameras[-1].cam_f0.image
        assert loaded is not None
        assert loaded.shape == tuple(golden["image_shape"][row])
        assert zlib.crc32(np.ascontiguousarray(loaded)) == golden["image_crc"][row]
        future = scene_from_window(window, None).get_future_trajectory(8).poses
        np.testing.assert_allclose(future, golden["future_poses"][row], rtol=1e-14, atol=1e-14)


@pytest.mark.navsim
def test_signatures_are_those_of_the_installed_navsim() -> None:
    navsim = find_official_navsim()
    described = subprocess.run(
        [INTERPRETER, str(PARITY / "describe_navsim.py")], capture_output=True, text=True, check=True
    )
    assert json.loads(described.stdout) == SIGNATURES[navsim.version]


@pytest.mark.navsim
def test_agent_inputs_are_those_of_the_installed_navsim(navsim_mini: Path, tmp_path: Path) -> None:
    find_official_navsim()
    dataset = shutil.copytree(navsim_mini, tmp_path / "data")  # nuplan-devkit writes beside the maps
    script = [INTERPRETER, str(PARITY / "dump_agent_inputs.py"), str(dataset), str(tmp_path / "inputs.npz")]
    subprocess.run(script, capture_output=True, check=True)
    golden, anew = np.load(DATA / "golden" / "agent_inputs.npz"), np.load(tmp_path / "inputs.npz")
    for name in golden.files:
        np.testing.assert_array_equal(anew[name], golden[name], err_msg=name)
