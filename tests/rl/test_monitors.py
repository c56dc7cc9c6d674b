"""Monitors on numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from drivefine_agent.actions import ActionSpec
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.tokenizer import ActionTokenizer
from rl.monitors import (
    Means,
    drives_backward,
    entropy_scalars,
    group_scalars,
    is_at_table_edge,
    loss_scalars,
    refinement_scalars,
    reward_scalars,
    trajectory_scalars,
    worse_target_scalars,
)
from rl.objectives import PolicyLoss
from rl.rewards import SUB_SCORES, Scores

NAN = float("nan")


def _scores(rewards: list[list[float]]) -> Scores:
    """Every sub-score is twice the reward."""
    array = np.array(rewards)
    return Scores(array, np.repeat(2.0 * array[..., None], len(SUB_SCORES), axis=-1), ())


@pytest.fixture
def spec() -> ActionSpec:
    """2 m bins."""
    return DriveFineConfig.debug(spatial_step_m=2.0, spatial_min_m=-64.0).action_spec


def test_means_weigh_by_counts_and_skip_what_was_not_counted() -> None:
    means = Means()
    means.add({"a": (1.0, 3.0), "b": (NAN, 0.0), "c": (NAN, 0.0)})
    means.add({"a": (5.0, 1.0), "b": (2.0, 4.0)})
    got, counts = means.result()
    assert got["a"] == 2.0
    assert got["b"] == 2.0
    assert math.isnan(got["c"])
    assert counts == {"a": 4.0, "b": 4.0, "c": 0.0}


def test_unknown_rewards_are_counted_and_leave_the_means() -> None:
    got = reward_scalars(_scores([[0.2, NAN], [0.4, 0.9]]), "generated")
    assert got["generated/reward"] == (pytest.approx(0.5), 3.0)
    assert got["generated/comfort"] == (pytest.approx(1.0), 3.0)
    assert got["generated/masked_share"] == (0.25, 4.0)
    none = reward_scalars(_scores([[NAN, NAN]]), "generated")
    assert none["generated/reward"][1] == 0.0
    assert none["generated/masked_share"] == (1.0, 2.0)


def test_spread_of_groups() -> None:
    got = group_scalars(np.array([[0.0, 1.0, NAN], [0.3, 0.3, 0.3], [NAN, NAN, NAN]]))
    assert got["group/reward_std"] == (pytest.approx(0.25), 2.0)
    assert got["group/zero_variance_share"] == (pytest.approx(2 / 3), 3.0)


def test_refinement_against_its_own_anchor() -> None:
    """Gains +0.3, -0.1 | unknown, 0 | unknown anchor."""
    got = refinement_scalars(np.array([[0.5, 0.2, NAN]]), np.array([[0.8, 0.4, NAN, 0.2, 0.9, 0.1]]))
    assert got["refinement/accepted_share"] == (pytest.approx(1 / 3), 3.0)
    assert got["refinement/worse_share"] == (pytest.approx(1 / 3), 3.0)
    assert got["refinement/gain"] == (pytest.approx(0.2 / 3), 3.0)


def test_driving_backward_is_seen_against_the_heading() -> None:
    ahead = np.zeros((8, 3))
    ahead[:, 0] = np.arange(1, 9)
    back = ahead.copy()
    back[4, 0] = 3.5  # less than before
    first = ahead.copy()
    first[0, 0] = -0.5
    turned = np.zeros((8, 3))  # half way round, then towards where it came from
    turned[:, 2] = np.pi
    turned[:, 0] = -np.arange(8)
    jitter = np.zeros((8, 3))
    jitter[::2, 0] = 0.04
    got = drives_backward(np.stack([ahead, back, first, turned, jitter]))
    assert got.tolist() == [False, True, True, False, False]


def test_edges_of_the_tables(spec: ActionSpec) -> None:
    tokenizer = ActionTokenizer(spec)
    last, first_heading = spec.spatial_m.num_bins - 1, spec.heading_offset
    actions = torch.from_numpy(tokenizer.encode(np.zeros((8, 3))))
    assert not is_at_table_edge(actions, spec).any()
    actions[[0, 4, 5, 8]] = torch.tensor([0, last, first_heading, spec.num_actions - 1])
    assert is_at_table_edge(actions, spec).nonzero().flatten().tolist() == [0, 4, 5, 8]
    poses = tokenizer.decode(actions.numpy())[None, None]
    got = trajectory_scalars(actions[None, None], poses, spec, "refined")
    assert got["refined/table_edge_share"] == (pytest.approx(4 / 24), 24.0)
    assert got["refined/backward_share"] == (1.0, 1.0)  # x of the first pose is -64 m


def test_worse_targets_are_those_with_negative_known_advantage() -> None:
    log_probs = torch.tensor([[[[-1.0, -3.0], [-5.0, -7.0], [-9.0, -9.0]]]])
    advantages = torch.tensor([[[-0.5, 0.5, -0.1]]])
    is_valid = torch.tensor([[[True, True, False]]])
    got = worse_target_scalars(log_probs, advantages, is_valid, "offline")
    assert got == {"offline/worse_target_log_prob": (-2.0, 1.0)}


def test_losses_and_entropies_by_name() -> None:
    loss = PolicyLoss(torch.tensor(0.5), torch.tensor(0.25), torch.tensor(0.125))
    assert loss_scalars(loss, "generator", 3) == {
        "generator/loss": (0.5, 3.0),
        "generator/clipped_share": (0.125, 3.0),
        "generator/kl": (0.25, 3.0),
    }
    assert "offline/kl" not in loss_scalars(loss, "offline", 3)
    assert entropy_scalars(torch.tensor([1.0, 2.0]), None) == {"generator/entropy": (1.5, 2.0)}
