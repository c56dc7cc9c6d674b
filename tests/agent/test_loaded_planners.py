"""One model per process, agents that can be sent to workers, and a border that lets nothing through."""

import gc
import logging
import pickle
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from drivefine_agent.agent import DriveFineAgent
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.loaded_planners import shared_planner
from drivefine_agent.navsim_inputs import agent_input_from_window

CPU = torch.device("cpu")


def test_agents_of_a_process_share_the_weights(checkpoint: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        agents = [DriveFineAgent(str(checkpoint)) for _ in range(4)]
        list(pool.map(DriveFineAgent.initialize, agents))
    assert len({id(agent.planner.model) for agent in agents}) == 1
    other_precision = DriveFineAgent(str(checkpoint), dtype="bfloat16")
    assert other_precision.planner.model is not agents[0].planner.model


def test_weights_go_with_the_last_agent_and_new_ones_are_read_anew(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint / "model", tmp_path / "model"))
    planner = shared_planner(folder, CPU, torch.float32)
    assert shared_planner(folder, CPU, torch.float32) is planner
    config = folder / "config.json"
    config.write_text(config.read_text() + "\n")
    assert shared_planner(folder, CPU, torch.float32) is not planner
    alive = weakref.ref(planner)
    del planner
    gc.collect()
    assert alive() is None


def test_threads_plan_the_same_as_one_after_the_other(
    checkpoint: Path, windows: list[SceneWindow], front_image: NDArray[np.uint8]
) -> None:
    inputs = [agent_input_from_window(window, front_image) for window in windows[:8]]
    one = DriveFineAgent(str(checkpoint), num_denoising_steps=4)
    expected = [one.compute_trajectory(agent_input).poses for agent_input in inputs]
    agents = [DriveFineAgent(str(checkpoint), num_denoising_steps=4) for _ in inputs]
    with ThreadPoolExecutor(4) as pool:
        plans = list(pool.map(DriveFineAgent.compute_trajectory, agents, inputs))
    np.testing.assert_array_equal([plan.poses for plan in plans], expected)


def test_an_agent_can_be_sent_to_a_worker_before_it_is_initialised(
    checkpoint: Path, windows: list[SceneWindow], front_image: NDArray[np.uint8]
) -> None:
    agent = DriveFineAgent(str(checkpoint), num_denoising_steps=4)
    packed = pickle.dumps(agent)
    assert len(packed) < 10_000
    agent_input = agent_input_from_window(windows[0], front_image)
    poses = pickle.loads(packed).compute_trajectory(agent_input).poses
    np.testing.assert_array_equal(poses, agent.compute_trajectory(agent_input).poses)


class Unreadable:
    """An input of which nothing can be read."""

    def __getattr__(self, name: str) -> Any:
        raise OSError(f"{name} lies on a disk that is gone")


def test_nothing_leaves_the_border_but_in_strict_mode(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Any exception, even one that also hides the speed: the car stands, and both are logged."""
    agent = DriveFineAgent(str(checkpoint), num_denoising_steps=4)
    with caplog.at_level(logging.ERROR):
        poses = agent.compute_trajectory(Unreadable()).poses  # type: ignore[arg-type]
    assert (poses == 0).all()
    assert agent.fallbacks.num_fallbacks == 1
    assert "fallback 1 of 1" in caplog.text
    assert "stands still" in caplog.text
    with pytest.raises(OSError, match="disk that is gone"):
        DriveFineAgent(str(checkpoint), strict=True).compute_trajectory(Unreadable())  # type: ignore[arg-type]


def test_training_has_a_model_of_its_own(checkpoint: Path) -> None:
    """Frozen and updated weights must not reach agents that plan."""
    planning, training = DriveFineAgent(str(checkpoint)), DriveFineAgent(str(checkpoint))
    before = [parameter.requires_grad for parameter in planning.planner.model.parameters()]
    training.get_optimizers()
    assert training.planner.model is not planning.planner.model
    assert [parameter.requires_grad for parameter in planning.planner.model.parameters()] == before
    trained = {name for name, parameter in training.named_parameters() if parameter.requires_grad}
    assert trained
    assert not any("refine_layers" in name for name in trained)
