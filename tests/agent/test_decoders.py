"""Agents of the baselines that share DriveFine's prompt: same scenes in, trajectories by another decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from drivefine_agent.agent import DriveFineAgent
from drivefine_agent.baselines.base import BatchPlanner, PlanningCase
from drivefine_agent.baselines.diffusion_head import DiffusionHead
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.diffusion.continuous import denormalise
from drivefine_agent.errors import DataError
from drivefine_agent.training.config import ModelChoice
from drivefine_agent.training.model_choice import build_planner


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Debug models of random weights; the head's output is not zero, as it is in a new one."""
    folders = {}
    for decoder in ("autoregressive", "diffusion_head"):
        folders[decoder] = tmp_path_factory.mktemp(decoder)
        planner = build_planner(ModelChoice(preset="debug", decoder=decoder), seed=0)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in planner.model.named_parameters():
                if name.startswith("pose_head"):
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        planner.save_pretrained(folders[decoder] / "model")
    return folders


def agent_of(decoder: str, folder: Path, seed: int = 0) -> BatchPlanner:
    if decoder == "diffusion_head":
        return DiffusionHead(folder, seed=seed)
    return DriveFineAgent(str(folder), decoder="autoregressive", refine=False, temperature=0.7, seed=seed)


@pytest.mark.parametrize("decoder", ["autoregressive", "diffusion_head"])
def test_a_plan_follows_from_seed_and_scene_whatever_else_is_in_the_batch(
    decoder: str, runs: dict[str, Path], windows: list[SceneWindow], front_image: NDArray[np.uint8]
) -> None:
    cases = [PlanningCase(window, front_image) for window in windows[:3]]
    agent = agent_of(decoder, runs[decoder])
    assert isinstance(agent, BatchPlanner)
    assert agent.name() == decoder
    together = agent.plan(cases)
    assert together.shape == (3, 8, 3)
    for case, plan in zip(cases, together, strict=True):
        np.testing.assert_allclose(agent.plan([case])[0], plan, rtol=0, atol=1e-4)
    other = agent_of(decoder, runs[decoder], seed=1).plan(cases)
    assert np.abs(other - together).max() > 1e-2
    dark = agent.plan([PlanningCase(case.window, front_image // 4) for case in cases])
    assert np.abs(dark - together).max() > 1e-2
    with pytest.raises(DataError, match="needs the front camera image, got none"):
        agent.plan([PlanningCase(windows[0])])


def test_a_head_plans_inside_navtrains_extremes(
    runs: dict[str, Path], windows: list[SceneWindow], front_image: NDArray[np.uint8]
) -> None:
    """The last step ends at the clipped trajectory."""
    plans = DiffusionHead(runs["diffusion_head"]).plan(
        [PlanningCase(window, front_image) for window in windows]
    )
    corners = denormalise(np.array([[-1.0] * 3, [1.0] * 3]))
    assert (plans >= corners[0] - 1e-5).all()
    assert (plans <= corners[1] + 1e-5).all()
    assert plans.std(axis=0).min() > 0.0


def test_wrong_decoders_are_refused(runs: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="autoregressive, the agent wants diffusion_head"):
        DiffusionHead(runs["autoregressive"]).initialize()
    with pytest.raises(DataError, match="diffusion_head, the agent wants masked"):
        DriveFineAgent(str(runs["diffusion_head"])).initialize()
    with pytest.raises(ValueError, match="autoregressive with refine=false"):
        DriveFineAgent(decoder="autoregressive")
    with pytest.raises(ValueError, match="second_pass is for decoder=masked"):
        DriveFineAgent(decoder="autoregressive", refine=False, second_pass=8)
    with pytest.raises(ValueError, match="reads answers as DriveFine's experts do"):
        DriveFineAgent(
            decoder="autoregressive", refine=False, num_samples=2, temperature=1.0, selection="scorer"
        )
