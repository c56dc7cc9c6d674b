"""Which of several samples is driven: by hand, and through the agent."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from drivefine_agent.agent import DriveFineAgent
from drivefine_agent.baselines.base import PlanningCase, privileged_knowledge
from drivefine_agent.data.maps import load_map
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import DataError
from drivefine_agent.learned_scorer import PREDICTED, predicted_score
from drivefine_agent.model.scorer_head import ScorerHead, ScorerHeadConfig, save_scorer
from drivefine_agent.model.weight_files import weights_hash
from drivefine_agent.navsim_inputs import agent_input_from_window, observation_from_window
from drivefine_agent.planner import Planner, PlanResult
from drivefine_agent.scoring.build import build_scoring_scene
from drivefine_agent.scoring.scorer import score_v1
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


def test_the_scorer_takes_the_highest_expected_score_and_the_oracle_the_highest_true_one() -> None:
    """Expected scores 0.5 x 1, 0.9 x 0.8, 0.8 x 0.9 (equal: the earlier one); true ones partly unknown."""
    plans = result(np.stack([[straight(5.0), straight(6.0), straight(7.0)]] * 2), np.zeros((2, 3)))
    predicted = np.ones((2, 3, len(PREDICTED)))
    for name, values in {
        "no_at_fault_collisions": [0.5, 0.9, 0.8],
        "drivable_area_compliance": [1.0, 0.8, 0.9],
    }.items():
        predicted[0, :, PREDICTED.index(name)] = values
    predicted[1, :2, PREDICTED.index("ego_progress")] = 0.0
    plans = replace(plans, predicted=predicted)
    assert select(plans, "scorer").tolist() == [1, 2]
    true = np.array([[0.2, 0.1, 0.9], [np.nan, 0.0, np.nan]])
    assert select(plans, "oracle", true).tolist() == [2, 1]
    with pytest.raises(ValueError, match="'scorer' needs plans whose sub-scores were predicted"):
        select(replace(plans, predicted=None), "scorer")


@pytest.fixture(scope="module")
def scored_cases(windows: list[SceneWindow], navsim_mini: Path, front_image: Image) -> list[PlanningCase]:
    chosen = windows[::6]
    scenes = [build_scoring_scene(w, load_map(navsim_mini / "maps", w.map_name)) for w in chosen]
    return [PlanningCase(w, front_image, scene) for w, scene in zip(chosen, scenes, strict=True)]


def test_the_oracle_drives_the_best_of_its_samples(
    checkpoint: Path, scored_cases: list[PlanningCase]
) -> None:
    """By the score itself, of what it really drives; so never worse than any other choice among the same."""
    settings = {"num_denoising_steps": 4, "num_samples": 6, "temperature": 1.0}

    def scores(selection: str) -> NDArray[np.float64]:
        agent = DriveFineAgent(str(checkpoint), selection=selection, **settings)  # type: ignore[arg-type]
        poses = agent.plan(scored_cases)
        scenes = [case.scoring_scene for case in scored_cases]
        return np.array([score_v1(s, p[None]).score[0] for s, p in zip(scenes, poses, strict=True)])

    oracle = scores("oracle")
    others = np.stack([scores(name) for name in ("first", "consensus", "confidence")])
    assert (oracle >= others).all()
    assert (oracle > others.min(axis=0)).any()


def test_the_oracle_says_what_it_is_and_stays_out_of_navsim(
    checkpoint: Path, scored_cases: list[PlanningCase], front_image: Image
) -> None:
    agent = DriveFineAgent(str(checkpoint), num_samples=6, temperature=1.0, selection="oracle")
    assert agent.name() == "drivefine_best_of_6_oracle"
    assert privileged_knowledge(agent) == "picked by the true score"
    assert privileged_knowledge(DriveFineAgent(str(checkpoint))) == ""
    assert agent.needs_scoring_scene
    case = scored_cases[0]
    with pytest.raises(DataError, match="only tools/evaluate"):
        agent.compute_trajectory(agent_input_from_window(case.window, front_image))
    with pytest.raises(DataError, match="only tools/evaluate"):
        agent.get_feature_builders()
    with pytest.raises(DataError, match="needs scoring scenes of NAVSIM"):
        agent.plan([replace(case, scoring_scene=None)])
    assert agent.fallbacks.num_fallbacks == 0


def test_the_agent_drives_what_its_scorer_prefers(
    checkpoint: Path, scored_cases: list[PlanningCase], tmp_path: Path
) -> None:
    settings = {"num_denoising_steps": 4, "num_samples": 5, "temperature": 1.0, "selection": "scorer"}
    planner = Planner.from_pretrained(checkpoint / "model")
    width = planner.model.config.text_config.hidden_size
    torch.manual_seed(3)
    head = ScorerHead(ScorerHeadConfig(width, PREDICTED, weights_hash(checkpoint / "model")))
    save_scorer(head, tmp_path / "scorer")
    agent = DriveFineAgent(str(checkpoint), scorer_path=str(tmp_path / "scorer"), **settings)  # type: ignore[arg-type]
    observations = [observation_from_window(c.window, c.front_image) for c in scored_cases]
    plans = agent.planner.plan(observations, agent._options, 0, agent.scorer)
    assert plans.predicted is not None
    best = predicted_score(plans.predicted).argmax(axis=1)
    assert len(set(best.tolist())) > 1
    driven = agent.plan(scored_cases)
    wanted = plans.final[np.arange(len(best)), best].astype(np.float32)
    np.testing.assert_array_equal(driven, wanted)
    assert agent.name() == "drivefine_best_of_5_scorer"
    with pytest.raises(DataError, match="no learned scorer at"):
        DriveFineAgent(str(checkpoint), **settings).initialize()  # type: ignore[arg-type]


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
