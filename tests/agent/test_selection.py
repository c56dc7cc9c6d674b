"""Which of several samples is driven: by hand, and through the agent."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from drivefine_agent.agent import DriveFineAgent
from drivefine_agent.baselines.base import PlanningCase
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.navsim_inputs import agent_input_from_window
from drivefine_agent.planner import PlanResult
from drivefine_agent.selection import consensus, select

Image = NDArray[np.uint8]


def straight(speed_mps: float, lateral_m: float = 0.0) -> NDArray[np.float64]:
    """(8, 3) a straight plan."""
    poses = np.zeros((8, 3))
    poses[:, 0] = speed_mps * 0.5 * np.arange(1, 9)
    poses[:, 1] = lateral_m
    return poses


def result(poses: NDArray[np.float64], log_probs: NDArray[np.float64]) -> PlanResult:
    num_scenes, num_samples = poses.shape[:2]
    ids = np.zeros((num_scenes, num_samples, 24), dtype=np.int64)
    spread = np.repeat(log_probs[..., None] / 24, 24, axis=-1).astype(np.float32)
    return PlanResult(poses, None, ids, None, ids, spread, np.zeros(num_scenes, dtype=np.int64))


def test_consensus_is_the_plan_closest_to_all_others() -> None:
    """Speeds 5, 6, 7, 20 m/s: distances to the others are as 18, 16, 16, 42; first of equals."""
    scene = np.stack([straight(speed) for speed in (5.0, 6.0, 7.0, 20.0)])
    other = np.stack([straight(5.0, lateral) for lateral in (9.0, 0.0, -1.0, 1.0)])  # 27, 11, 13, 11
    assert consensus(np.stack([scene, other])).tolist() == [1, 1]
    assert consensus(scene[None, ::-1]).tolist() == [1]  # 7 m/s comes first now


def test_confidence_takes_the_most_probable_answer() -> None:
    poses = np.stack([[straight(5.0), straight(6.0), straight(7.0)]] * 2)
    plans = result(poses, np.array([[-3.0, -1.0, -2.0], [-0.5, -1.0, -0.5]]))
    assert select(plans, "confidence").tolist() == [1, 0]
    assert select(plans, "first").tolist() == [0, 0]
    with pytest.raises(ValueError, match="oracle"):
        select(plans, "oracle")  # type: ignore[arg-type]


@pytest.mark.parametrize("selection", ["consensus", "confidence"])
def test_samples_do_not_depend_on_order_batch_or_agent(
    checkpoint: Path, windows: list[SceneWindow], front_image: Image, selection: str
) -> None:
    """NAVSIM's call, a batch in reverse and cached features drive the same sample of the same scene."""
    settings = {"num_denoising_steps": 4, "num_samples": 5, "temperature": 1.0, "selection": selection}
    agent = DriveFineAgent(str(checkpoint), **settings)  # type: ignore[arg-type]
    inputs = [agent_input_from_window(window, front_image) for window in windows[:3]]
    alone = np.stack([agent.compute_trajectory(agent_input).poses for agent_input in inputs])
    cases = [PlanningCase(window, front_image) for window in windows[:3]]
    other = DriveFineAgent(str(checkpoint), **settings)  # type: ignore[arg-type]
    np.testing.assert_array_equal(other.plan(cases[::-1])[::-1], alone)
    builder = agent.get_feature_builders()[0]
    features = [builder.compute_features(agent_input) for agent_input in inputs]
    batch = {name: torch.stack([f[name] for f in features]) for name in features[0]}
    np.testing.assert_array_equal(agent.eval()(batch)["trajectory"].numpy(), alone)
    reseeded = DriveFineAgent(str(checkpoint), seed=1, **settings)  # type: ignore[arg-type]
    assert (reseeded.plan(cases) != alone).any()
    assert agent.name() == "drivefine_best_of_5"
