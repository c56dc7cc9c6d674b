"""DriveFineAgent as NAVSIM calls it, and as our evaluation does."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from drivefine_agent.agent import DriveFineAgent
from drivefine_agent.baselines.base import BatchPlanner, PlanningCase
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import DataError
from drivefine_agent.features import DriveFineFeatureBuilder, TokenizedTrajectoryTargetBuilder
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.text_tokenizer import TextTokenizer, train_text_tokenizer
from drivefine_agent.navsim_api import TrajectorySampling
from drivefine_agent.navsim_inputs import agent_input_from_window, scene_from_window
from drivefine_agent.planner import Planner
from drivefine_agent.prompt import PromptBuilder
from drivefine_agent.tokenizer import ActionTokenizer

Image = NDArray[np.uint8]


@pytest.fixture(scope="module")
def agent(checkpoint: Path) -> DriveFineAgent:
    agent = DriveFineAgent(str(checkpoint), num_denoising_steps=4)
    agent.initialize()
    return agent


def test_constructor_loads_nothing(tmp_path: Path) -> None:
    DriveFineAgent(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("path", [None, "nowhere"])
def test_missing_checkpoint_is_an_error_and_no_fallback(
    path: str | None, windows: list[SceneWindow], front_image: Image
) -> None:
    agent = DriveFineAgent(path)
    with pytest.raises(DataError, match="checkpoint"):
        agent.initialize()
    with pytest.raises(DataError, match="checkpoint"):
        agent.compute_trajectory(agent_input_from_window(windows[0], front_image))


def test_only_the_current_front_image_is_asked_for_as_a_python_list(agent: DriveFineAgent) -> None:
    config = agent.get_sensor_config()
    assert config.cam_f0 == [3]
    assert type(config.cam_f0) is list, "NAVSIM ignores any other sequence"
    assert [config.get_sensors_at_iteration(i) for i in range(4)] == [[], [], [], ["cam_f0"]]


def test_all_ways_to_a_trajectory_agree(
    agent: DriveFineAgent, checkpoint: Path, windows: list[SceneWindow], front_image: Image
) -> None:
    """NAVSIM's call, its features and forward, our batch call and the planner itself."""
    case = PlanningCase(windows[0], front_image)
    from_batch = agent.plan([case, PlanningCase(windows[5], front_image)])[0]
    agent_input = agent_input_from_window(windows[0], front_image)
    trajectory = agent.compute_trajectory(agent_input)
    features = agent.get_feature_builders()[0].compute_features(agent_input)
    from_features = agent.eval()({name: value[None] for name, value in features.items()})["trajectory"][0]
    assert trajectory.poses.dtype == np.float32
    assert trajectory.poses.shape == (8, 3)
    np.testing.assert_array_equal(trajectory.poses, from_batch)  # float32 and float64, no bit apart
    np.testing.assert_array_equal(trajectory.poses, from_features.numpy())
    assert agent.fallbacks.num_fallbacks == 0


def test_refinement_is_a_switch(checkpoint: Path, windows: list[SceneWindow], front_image: Image) -> None:
    cases = [PlanningCase(window, front_image) for window in windows[:3]]
    refined = DriveFineAgent(str(checkpoint), num_denoising_steps=4)
    plain = DriveFineAgent(str(checkpoint), num_denoising_steps=4, refine=False)
    stages = refined.plan_stages(cases)
    assert set(stages) == set(refined.stage_names) == {"final", "generated"}
    assert plain.stage_names == ("final",)
    np.testing.assert_array_equal(plain.plan(cases), stages["generated"])
    assert not np.array_equal(stages["final"], stages["generated"])


def test_blank_image_hides_the_picture(
    checkpoint: Path, windows: list[SceneWindow], front_image: Image
) -> None:
    agent = DriveFineAgent(str(checkpoint), num_denoising_steps=4, blank_image=True)
    one, other = (
        agent.get_feature_builders()[0].compute_features(agent_input_from_window(windows[0], image))
        for image in (front_image, 255 - front_image)
    )
    assert torch.equal(one["drivefine_tiles"], other["drivefine_tiles"])
    plans = [agent.plan([PlanningCase(windows[0], image)]) for image in (front_image, 255 - front_image)]
    np.testing.assert_array_equal(*plans)


def test_failure_falls_back_on_constant_velocity_is_logged_and_counted(
    checkpoint: Path, windows: list[SceneWindow], caplog: pytest.LogCaptureFixture
) -> None:
    agent = DriveFineAgent(str(checkpoint), num_denoising_steps=4)
    without_image = agent_input_from_window(windows[0], None)
    with caplog.at_level(logging.ERROR):
        trajectory = agent.compute_trajectory(without_image)
    speed = np.linalg.norm(without_image.ego_statuses[-1].ego_velocity)
    np.testing.assert_allclose(trajectory.poses[:, 0], speed * 0.5 * np.arange(1, 9), rtol=1e-6)
    assert (agent.fallbacks.num_planned, agent.fallbacks.num_fallbacks) == (1, 1)
    assert "falls back on constant velocity" in caplog.text
    assert "cam_f0" in caplog.text


def test_strict_raises_instead(checkpoint: Path, windows: list[SceneWindow]) -> None:
    agent = DriveFineAgent(str(checkpoint), strict=True)
    with pytest.raises(DataError, match="cam_f0"):
        agent.compute_trajectory(agent_input_from_window(windows[0], None))


def test_fallback_without_a_speed_stands_still(
    checkpoint: Path, windows: list[SceneWindow], front_image: Image
) -> None:
    agent = DriveFineAgent(str(checkpoint), num_denoising_steps=4)
    agent_input = agent_input_from_window(windows[0], front_image)
    agent_input.ego_statuses[-1].ego_velocity = np.array([np.nan, 0.0], dtype=np.float32)
    assert (agent.compute_trajectory(agent_input).poses == 0).all()
    assert agent.fallbacks.num_fallbacks == 1


def test_evaluation_gets_errors_as_they_are(agent: DriveFineAgent, windows: list[SceneWindow]) -> None:
    assert isinstance(agent, BatchPlanner)
    with pytest.raises(DataError, match=windows[0].token):
        agent.plan([PlanningCase(windows[0], None)])


def test_training_as_navsim_does_it_lowers_the_loss(
    checkpoint: Path, windows: list[SceneWindow], front_image: Image
) -> None:
    """Builders, forward, loss, optimizer; `initialize` is never called in NAVSIM's training."""
    agent = DriveFineAgent(str(checkpoint), optimizer={"learning_rate": 3e-3, "action_factor": 1.0})
    inputs = [agent_input_from_window(window, front_image) for window in windows[:4]]
    scenes = [scene_from_window(window, front_image) for window in windows[:4]]
    features = [agent.get_feature_builders()[0].compute_features(agent_input) for agent_input in inputs]
    targets = [agent.get_target_builders()[0].compute_targets(scene) for scene in scenes]
    feature_batch = {name: torch.stack([f[name] for f in features]) for name in features[0]}
    target_batch = {name: torch.stack([t[name] for t in targets]) for name in targets[0]}
    assert not set(feature_batch) & set(target_batch)
    optimizer = agent.get_optimizers()
    assert isinstance(optimizer, torch.optim.Optimizer)  # without Lightning the number of steps is not known
    agent.train()
    losses = []
    torch.manual_seed(0)
    for _ in range(12):
        loss = agent.compute_loss(feature_batch, target_batch, agent(feature_batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3]), losses
    assert any(name.startswith("model.") for name, _ in agent.named_parameters())


def test_builders_need_no_weights(checkpoint: Path, windows: list[SceneWindow], front_image: Image) -> None:
    """NAVSIM caches features without `initialize`, in many processes."""
    agent = DriveFineAgent(str(checkpoint))
    agent.get_feature_builders()[0].compute_features(agent_input_from_window(windows[0], front_image))
    agent.get_target_builders()[0].compute_targets(scene_from_window(windows[0], None))
    assert agent._planner is None


def test_cache_names_tell_formats_apart(checkpoint: Path) -> None:
    names = {
        DriveFineAgent(str(checkpoint), blank_image=blank).get_feature_builders()[0].get_unique_name()
        for blank in (False, True)
    }
    assert len(names) == 2


def test_cache_names_tell_action_tables_and_vocabularies_apart() -> None:
    """As many bins over another range mean other ids: a cache of one must not be read for the other."""
    near, far = (
        DriveFineConfig.debug(spatial_min_m=-low, spatial_step_m=low / 160, spatial_bins=320)
        for low in (16.0, 32.0)
    )
    targets = [
        TokenizedTrajectoryTargetBuilder(ActionTokenizer(config.action_spec)) for config in (near, far)
    ]
    assert len({builder.get_unique_name() for builder in targets}) == 2
    tiny, other = TextTokenizer.tiny(), train_text_tokenizer(["another text"], vocab_size=300)
    features = [DriveFineFeatureBuilder(PromptBuilder(near, tokenizer)) for tokenizer in (tiny, other)]
    assert len({builder.get_unique_name() for builder in features}) == 2
    again = DriveFineFeatureBuilder(PromptBuilder(near, TextTokenizer.tiny()))
    assert again.get_unique_name() == features[0].get_unique_name()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trajectory_sampling": TrajectorySampling(time_horizon=5, interval_length=0.5)}, "8 poses"),
        ({"dtype": "float33"}, "torch dtype"),
        ({"num_denoising_steps": 0}, "num_steps"),
        ({"schedule": "quadratic"}, "unknown schedule"),
    ],
)
def test_impossible_settings_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DriveFineAgent("x", **arguments)  # type: ignore[arg-type]


def test_planner_and_agent_read_the_same_folder(checkpoint: Path) -> None:
    assert Planner.from_pretrained(checkpoint / "model").model.config.n_refine == 2
    assert DriveFineAgent(str(checkpoint / "model")).planner.model.config.n_refine == 2
