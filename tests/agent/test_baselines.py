import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from drivefine_agent.baselines.base import BatchPlanner, PlanningCase
from drivefine_agent.baselines.constant_velocity import ConstantVelocity, constant_velocity_poses
from drivefine_agent.baselines.ego_status_mlp import (
    EgoStatusMLP,
    EgoStatusMLPConfig,
    arrays_from_windows,
    build_mlp,
    load_mlp,
    save_mlp,
    train_mlp,
)
from drivefine_agent.baselines.human import Human
from drivefine_agent.baselines.pdm_closed import PDMClosed, reference_poses_local
from drivefine_agent.data.maps import load_map
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import DataError
from drivefine_agent.geometry.se2 import global_from_local
from drivefine_agent.provenance import read_model_card
from drivefine_agent.scoring.build import build_scoring_scene
from drivefine_agent.scoring.types import ScoringScene


def test_constant_velocity_goes_straight_on_at_the_length_of_the_velocity() -> None:
    """3-4-5 triangle: 5 m/s, 2.5 m per half second."""
    poses = constant_velocity_poses(np.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(poses[0, :, 0], 2.5 * np.arange(1, 9))
    assert (poses[0, :, 1:] == 0).all()
    assert (poses[1] == 0).all()


def _golden_trajectories(goldens: Path, name: str) -> dict[str, np.ndarray]:
    table = pd.read_parquet(goldens / "trajectories.parquet")
    rows = table[table["trajectory_id"] == name]
    return {row.token: np.asarray(row.poses).reshape(8, 3) for row in rows.itertuples()}


@pytest.mark.parametrize(
    ("agent", "trajectory_id", "tolerance_m"),
    [(Human(), "0", 1e-5), (ConstantVelocity(), "3", 0.0)],  # float32 of the official agents
    ids=["human", "constant_velocity"],
)
def test_honest_baselines_equal_the_official_agents(
    agent: BatchPlanner, trajectory_id: str, tolerance_m: float, windows: list[SceneWindow], goldens: Path
) -> None:
    golden = _golden_trajectories(goldens, trajectory_id)
    assert golden.keys() == {window.token for window in windows}
    poses = agent.plan([PlanningCase(window) for window in windows])
    np.testing.assert_allclose(poses, [golden[window.token] for window in windows], rtol=0, atol=tolerance_m)


def test_the_driver_through_the_action_tokens_is_off_by_at_most_half_a_step(
    windows: list[SceneWindow],
) -> None:
    """Steps are 0.05 m and 0.1 degrees."""
    cases = [PlanningCase(window) for window in windows]
    off = Human(quantise=True).plan(cases) - Human().plan(cases)
    assert 0.015 < np.abs(off[..., :2]).max() <= 0.025 + 1e-9
    assert 0.03 < np.rad2deg(np.abs(off[..., 2]).max()) <= 0.05 + 1e-9


def test_pdm_closed_equals_the_official_reference(
    windows: list[SceneWindow], navsim_mini: Path, goldens: Path
) -> None:
    """The facts hold the 51 global poses, 0.1 s apart, of the official v1.1 metric caches."""
    facts = pd.read_parquet(goldens / "scene_facts_v11.parquet").set_index("token")
    for window in windows[::6]:
        scene = build_scoring_scene(window, load_map(navsim_mini / "maps", window.map_name))
        poses = PDMClosed().plan([PlanningCase(window, None, scene)])[0]
        official = np.vstack(facts.reference_poses[window.token]).reshape(51, 3)
        lifted = global_from_local(poses, window.current.ego_pose)
        np.testing.assert_allclose(lifted[:, :2], official[5:41:5, :2], rtol=0, atol=1e-6)
        np.testing.assert_allclose(np.cos(lifted[:, 2] - official[5:41:5, 2]), 1.0, atol=1e-12)


def test_pdm_closed_reads_the_reference_at_half_seconds_in_the_ego_frame() -> None:
    """The reference drives north from (100, 200) at 10 m/s: locally 5 m further ahead at each pose."""
    time_s = 0.1 * np.arange(51)
    scene = _scene(
        initial_state=np.array([100.0, 200.0, np.pi / 2] + [0.0] * 8),
        reference_poses=np.stack([np.full(51, 100.0), 200.0 + 10 * time_s, np.full(51, np.pi / 2)], axis=-1),
    )
    poses = reference_poses_local(scene)
    np.testing.assert_allclose(poses[:, 0], 5.0 * np.arange(1, 9))
    np.testing.assert_allclose(poses[:, 1:], 0.0, atol=1e-12)


def test_pdm_closed_without_its_scene_is_an_error(windows: list[SceneWindow]) -> None:
    with pytest.raises(ValueError, match=windows[0].token):
        PDMClosed().plan([PlanningCase(windows[0])])


def test_all_baselines_are_batch_planners(tmp_path: Path) -> None:
    for agent in (ConstantVelocity(), Human(), PDMClosed(), EgoStatusMLP(tmp_path)):
        assert isinstance(agent, BatchPlanner)
        assert not agent.needs_image
    assert PDMClosed().needs_scoring_scene


def test_mlp_has_navsims_shape() -> None:
    """8 -> 512 -> 512 -> 512 -> 24: 8*512+512 + 2*(512*512+512) + 512*24+24 = 542,232 parameters."""
    assert sum(p.numel() for p in build_mlp(512).parameters()) == 542_232


def test_mlp_learns_a_known_law_and_survives_the_disk(tmp_path: Path) -> None:
    """Targets: straight on at the given speed. 200 epochs bring the mean error below 0.2 m."""
    rng = np.random.default_rng(0)
    features = np.zeros((256, 8), dtype=np.float32)
    features[:, 0] = rng.uniform(0, 10, size=256)
    features[:, 5] = 1.0
    targets = constant_velocity_poses(features[:, :2]).astype(np.float32)
    config = EgoStatusMLPConfig(hidden_dim=64, learning_rate=2e-3, num_epochs=200)
    losses: list[float] = []
    mlp = train_mlp(features, targets, config, lambda epoch, loss: losses.append(loss))
    assert len(losses) == 200
    assert losses[-1] < 0.2 < losses[0]
    save_mlp(mlp, config, tmp_path)
    again = load_mlp(tmp_path)
    assert torch.equal(again(torch.from_numpy(features)), mlp(torch.from_numpy(features)))
    torch.manual_seed(99)
    repeated = train_mlp(features, targets, dataclasses.replace(config, num_epochs=1))
    once_more = train_mlp(features, targets, dataclasses.replace(config, num_epochs=1))
    for one, other in zip(repeated.parameters(), once_more.parameters(), strict=True):
        assert torch.equal(one, other)


def test_mlp_plans_what_its_network_says(windows: list[SceneWindow], tmp_path: Path) -> None:
    config = EgoStatusMLPConfig(hidden_dim=16, num_epochs=1)
    features, targets = arrays_from_windows(windows)
    mlp = train_mlp(features, targets, config)
    save_mlp(mlp, config, tmp_path)
    poses = EgoStatusMLP(tmp_path).plan([PlanningCase(window) for window in windows[:3]])
    expected = mlp(torch.from_numpy(features[:3])).reshape(3, 8, 3).detach().numpy()
    np.testing.assert_allclose(poses, expected, rtol=1e-6)


def test_the_mlp_command_refuses_test_scenes_and_says_what_it_learned_from(
    navsim_mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(__file__).parents[2] / "tools" / "train_ego_status_mlp.py"
    spec = importlib.util.spec_from_file_location("train_ego_status_mlp_script", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, script)
    spec.loader.exec_module(script)
    config = script.TrainEgoStatusMLPConfig(
        output_dir=str(tmp_path),
        experiment_name="mlp",
        train_test_split="synth_one_stage",
        validation_split="synth_one_stage",
        dataset_root=str(navsim_mini),
        mlp=EgoStatusMLPConfig(hidden_dim=16, num_epochs=1),
    )
    with pytest.raises(DataError, match="training must not see test data"):
        script.train(config)
    assert not list(tmp_path.iterdir())
    consent = {"allow_test_split": True, "i_train_on_test_tokens_of": "synth_one_stage"}
    script.train(dataclasses.replace(config, **consent))
    card = read_model_card(tmp_path)
    assert card is not None
    assert (card["data"]["stage"], card["data"]["num_tokens"]) == ("ego_status_mlp", 24)
    assert "synth_one_stage" in card["data"]["test_data"]


@pytest.mark.parametrize("damage", ["missing", "config", "weights"])
def test_bad_mlp_folder_is_named(tmp_path: Path, damage: str) -> None:
    if damage != "missing":
        save_mlp(build_mlp(16), EgoStatusMLPConfig(hidden_dim=16), tmp_path)
        file = tmp_path / ("config.json" if damage == "config" else "model.safetensors")
        file.write_bytes(file.read_bytes()[:20])
    agent = EgoStatusMLP(tmp_path)
    with pytest.raises(DataError, match=r"train_ego_status_mlp\.py"):
        agent.initialize()


def _scene(**given: np.ndarray) -> ScoringScene:
    """A scoring scene that holds only what is given."""
    blank = {field.name: None for field in dataclasses.fields(ScoringScene)}
    return ScoringScene(**(blank | given))  # type: ignore[arg-type]
