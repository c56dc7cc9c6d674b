"""Hand-worked values of the objectives, their signs, and what must leave them alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rl.objectives import group_advantages, grpo_loss, kl_k3, pair_advantages, refiner_loss

NAN = float("nan")
EPSILON = 0.2
LN2 = math.log(2.0)


def _valid(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.bool)


def _random_log_probs(*shape: int, seed: int = 0) -> Tensor:
    return -torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.1


def _gradient(log_probs: Tensor) -> Tensor:
    assert log_probs.grad is not None
    return log_probs.grad


# ------------------------------------------------------------------------------------------- advantages


def test_group_advantage_is_the_reward_minus_the_mean_without_deviation() -> None:
    got = group_advantages(torch.tensor([[0.0, 0.5, 1.0], [0.2, 0.2, 0.2]]), _valid(2, 3))
    torch.testing.assert_close(got, torch.tensor([[-0.5, 0.0, 0.5], [0.0, 0.0, 0.0]]))


def test_group_advantage_takes_the_mean_over_valid_rewards_only() -> None:
    is_valid = torch.tensor([[True, False, True], [False, False, False]])
    got = group_advantages(torch.tensor([[0.2, NAN, 0.8], [NAN, NAN, NAN]]), is_valid)
    torch.testing.assert_close(got, torch.tensor([[-0.3, 0.0, 0.3], [0.0, 0.0, 0.0]]))


def test_offline_advantage_of_anchor_to_target_is_target_minus_anchor() -> None:
    rewards = torch.tensor([[0.1, 0.4, 1.0]])
    expected = torch.tensor([[[0.0, 0.3, 0.9], [-0.3, 0.0, 0.6], [-0.9, -0.6, 0.0]]])
    torch.testing.assert_close(pair_advantages(rewards, rewards[:, None]), expected)


def test_offline_advantages_are_antisymmetric_with_zero_sum() -> None:
    rewards = torch.rand(4, 5, generator=torch.Generator().manual_seed(1))
    got = pair_advantages(rewards, rewards[:, None])
    assert torch.equal(got, -got.transpose(1, 2))
    torch.testing.assert_close(got.sum((1, 2)), torch.zeros(4), atol=1e-5, rtol=0)
    assert got.abs().max() > 0.1


def test_online_advantage_is_refined_minus_its_own_anchor() -> None:
    got = pair_advantages(torch.tensor([[0.5, 0.2]]), torch.tensor([[[0.7, 0.4], [0.9, 0.1]]]))
    torch.testing.assert_close(got, torch.tensor([[[0.2, -0.1], [0.7, -0.1]]]))


# ------------------------------------------------------------------------------------------- divergence


def test_k3_is_zero_with_zero_gradient_at_equality_and_known_elsewhere() -> None:
    log_probs = torch.tensor([-1.0, -1.0], requires_grad=True)
    value = kl_k3(log_probs, torch.tensor([-1.0, -1.0 + LN2]))
    torch.testing.assert_close(value, torch.tensor([0.0, 2.0 - LN2 - 1.0]))
    value.sum().backward()
    torch.testing.assert_close(_gradient(log_probs), torch.tensor([0.0, 1.0 - 2.0]))


# ------------------------------------------------------------------------------------------------- GRPO


def test_grpo_by_hand_with_both_clips() -> None:
    """Ratios 1.5 and 0.5 on two answers of one token; advantages +0.5 and -0.5."""
    log_probs = torch.tensor([[[math.log(1.5)], [math.log(0.5)]]], requires_grad=True)
    advantages = torch.tensor([[0.5, -0.5]])
    loss = grpo_loss(log_probs, torch.zeros(1, 2, 1), None, advantages, _valid(1, 2), EPSILON, 0.0)
    # min(1.5 * 0.5, 1.2 * 0.5) = 0.6;  min(0.5 * -0.5, 0.8 * -0.5) = -0.4
    assert loss.total.item() == pytest.approx(-(0.6 - 0.4) / 2)
    assert loss.clipped_share.item() == 1.0
    loss.total.backward()
    assert _gradient(log_probs).abs().max() == 0.0  # both have moved far enough


def test_grpo_does_not_clip_where_that_would_hide_a_mistake() -> None:
    """A bad answer that has become likelier, a good one less likely: the full pull back stays."""
    log_probs = torch.tensor([[[math.log(0.5)], [math.log(1.5)]]], requires_grad=True)
    advantages = torch.tensor([[0.5, -0.5]])
    loss = grpo_loss(log_probs, torch.zeros(1, 2, 1), None, advantages, _valid(1, 2), EPSILON, 0.0)
    assert loss.total.item() == pytest.approx(-(0.5 * 0.5 - 1.5 * 0.5) / 2)
    loss.total.backward()
    # d(-ratio A / 2) / d log p = -ratio A / 2
    torch.testing.assert_close(_gradient(log_probs), torch.tensor([[[-0.125], [0.375]]]))


def test_grpo_with_unequal_numbers_of_tokens_and_scenes_by_hand() -> None:
    """Ratios within the clip: mean over scenes of the mean over answers of the mean over tokens."""
    ratio = torch.tensor([[[1.1, 0.9], [1.0, 1.2]], [[1.0, 1.0], [0.8, 1.0]]]).double()
    advantages = torch.tensor([[0.4, -0.4], [-0.1, 0.1]]).double()
    loss = grpo_loss(ratio.log(), torch.zeros_like(ratio), None, advantages, _valid(2, 2), 0.3, 0.0)
    first = (1.0 * 0.4 + 1.1 * -0.4) / 2
    second = (1.0 * -0.1 + 0.9 * 0.1) / 2
    assert loss.total.item() == pytest.approx(-(first + second) / 2)
    assert loss.clipped_share.item() == 0.0


def test_grpo_gradient_at_the_start_is_minus_advantage_over_answers_and_tokens() -> None:
    log_probs = _random_log_probs(1, 3, 24).requires_grad_()
    advantages = torch.tensor([[-0.5, 0.0, 0.5]]).double()
    grpo_loss(log_probs, log_probs.detach(), None, advantages, _valid(1, 3), EPSILON, 0.0).total.backward()
    torch.testing.assert_close(
        _gradient(log_probs), (-advantages[..., None] / 3 / 24).expand_as(log_probs), rtol=1e-12, atol=0
    )


def test_divergence_enters_with_its_weight_and_raises_the_loss() -> None:
    log_probs, reference = torch.zeros(1, 2, 1), torch.full((1, 2, 1), LN2)
    loss = grpo_loss(log_probs, log_probs, reference, torch.zeros(1, 2), _valid(1, 2), EPSILON, 0.1)
    assert loss.total.item() == pytest.approx(0.1 * (1 - LN2))
    assert loss.kl.item() == pytest.approx(1 - LN2)


def test_a_gradient_step_makes_the_better_sample_likelier() -> None:
    """On logits of a real softmax: fails if the loss, the advantage or the ratio has the wrong sign."""
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    samples = torch.tensor([[[1], [3]]])  # (B, G, L)
    rewards = torch.tensor([[1.0, 0.0]]).double()

    def log_probs() -> Tensor:
        return torch.log_softmax(logits, -1)[samples]

    before = log_probs()
    advantages = group_advantages(rewards, _valid(1, 2))
    grpo_loss(before, before.detach(), None, advantages, _valid(1, 2), EPSILON, 0.0).total.backward()
    with torch.no_grad():
        logits -= 0.5 * _gradient(logits)
    change = (log_probs() - before).flatten().tolist()
    assert change[0] > 0.01
    assert change[1] < -0.01


def test_grpo_flips_its_gradient_with_the_rewards_sign() -> None:
    gradients = []
    for sign in (1.0, -1.0):
        log_probs = _random_log_probs(2, 3, 24).requires_grad_()
        advantages = group_advantages(
            sign * torch.tensor([[0.1, 0.7, 0.4], [1.0, 0.0, 0.0]]).double(), _valid(2, 3)
        )
        grpo_loss(
            log_probs, log_probs.detach(), None, advantages, _valid(2, 3), EPSILON, 0.0
        ).total.backward()
        gradients.append(_gradient(log_probs))
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], -gradients[1])


def test_equal_rewards_give_no_gradient() -> None:
    log_probs = _random_log_probs(1, 3, 24).requires_grad_()
    advantages = group_advantages(torch.full((1, 3), 0.5).double(), _valid(1, 3))
    loss = grpo_loss(
        log_probs, log_probs.detach(), log_probs.detach(), advantages, _valid(1, 3), EPSILON, 0.01
    )
    loss.total.backward()
    assert _gradient(log_probs).abs().max() == 0


def test_invalid_samples_are_as_if_they_had_not_been_drawn() -> None:
    log_probs, old, reference = (_random_log_probs(1, 3, 24, seed=seed) for seed in range(3))
    rewards, is_valid = torch.tensor([[0.1, NAN, 0.7]]), torch.tensor([[True, False, True]])
    keep = [0, 2]
    with_mask = grpo_loss(log_probs, old, reference, group_advantages(rewards, is_valid), is_valid, 0.2, 0.1)
    advantages = group_advantages(rewards[:, keep], _valid(1, 2))
    without = grpo_loss(
        log_probs[:, keep], old[:, keep], reference[:, keep], advantages, _valid(1, 2), 0.2, 0.1
    )
    assert without.total.abs() > 1e-3
    for got, expected in zip(with_mask, without, strict=True):
        torch.testing.assert_close(got, expected)


def test_unknown_rewards_leave_gradients_finite_and_their_samples_alone() -> None:
    log_probs = _random_log_probs(2, 3, 24).requires_grad_()
    rewards = torch.tensor([[0.1, NAN, 0.7], [NAN, NAN, NAN]])
    is_valid = rewards.isfinite()
    loss = grpo_loss(
        log_probs,
        log_probs.detach(),
        _random_log_probs(2, 3, 24, seed=1),
        group_advantages(rewards, is_valid),
        is_valid,
        EPSILON,
        0.1,
    )
    loss.total.backward()
    gradient = _gradient(log_probs)
    assert gradient.isfinite().all()
    assert gradient[~is_valid].abs().max() == 0
    assert gradient[is_valid].abs().min() > 0


# ---------------------------------------------------------------------------------------------- refiner


def test_refiner_by_hand() -> None:
    """Two anchors, two shared targets of one token, ratios within the clip."""
    ratios = torch.tensor([[[1.1, 0.9], [0.9, 1.1]]])[..., None]
    rewards = torch.tensor([[0.2, 0.6]])
    loss = refiner_loss(
        ratios.log(),
        torch.zeros(1, 2, 2, 1),
        pair_advantages(rewards, rewards[:, None]),
        _valid(1, 2, 2),
        EPSILON,
    )
    # anchor 0: (1.1 * 0 + 0.9 * 0.4) / 2;  anchor 1: (0.9 * -0.4 + 1.1 * 0) / 2
    assert loss.total.item() == pytest.approx(-(0.18 - 0.18) / 2, abs=1e-7)
    own = torch.tensor([[[0.5, 0.1], [0.5, 0.9]]])
    loss = refiner_loss(
        ratios.log(), torch.zeros(1, 2, 2, 1), pair_advantages(rewards, own), _valid(1, 2, 2), EPSILON
    )
    # anchor 0: (1.1 * 0.3 + 0.9 * -0.1) / 2 = 0.12;  anchor 1: (0.9 * -0.1 + 1.1 * 0.3) / 2 = 0.12
    assert loss.total.item() == pytest.approx(-0.12)
    assert loss.clipped_share.item() == 0.0


def test_refiner_clips_later_updates() -> None:
    """Ratio 2 with gain 0.5 counts as 1.2; ratio 2 with gain -0.5 counts in full."""
    log_probs = torch.full((1, 1, 2, 1), LN2, requires_grad=True)
    advantages = torch.tensor([[[0.5, -0.5]]])
    loss = refiner_loss(log_probs, torch.zeros(1, 1, 2, 1), advantages, _valid(1, 1, 2), EPSILON)
    assert loss.total.item() == pytest.approx(-(1.2 * 0.5 - 2.0 * 0.5) / 2)
    assert loss.clipped_share.item() == 1.0
    loss.total.backward()
    torch.testing.assert_close(_gradient(log_probs).flatten(), torch.tensor([0.0, 0.5]))


def test_a_gradient_step_makes_the_better_target_likelier() -> None:
    """On logits of a real softmax per anchor: better than the anchor rises, worse falls."""
    logits = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)  # one distribution per anchor
    rewards = torch.tensor([[1.0, 0.0]]).double()
    targets = torch.tensor([1, 3])  # of anchors 0 and 1 themselves

    def log_probs() -> Tensor:
        return torch.log_softmax(logits, -1)[:, targets][None, ..., None]  # (B, A, M, L)

    before = log_probs()
    advantages = pair_advantages(rewards, rewards[:, None])
    refiner_loss(before, before.detach(), advantages, _valid(1, 2, 2), EPSILON).total.backward()
    with torch.no_grad():
        logits -= 0.5 * _gradient(logits)
    change = (log_probs() - before)[0, :, :, 0]
    assert change[1, 0] > 0.01  # given the bad anchor: to the good one
    assert change[0, 1] < -0.01  # given the good anchor: away from the bad one


def test_refiner_flips_its_gradient_with_the_rewards_sign() -> None:
    gradients = []
    for sign in (1.0, -1.0):
        log_probs = _random_log_probs(1, 3, 3, 24).requires_grad_()
        rewards = sign * torch.tensor([[0.1, 0.7, 0.4]]).double()
        advantages = pair_advantages(rewards, rewards[:, None])
        refiner_loss(
            log_probs, log_probs.detach(), advantages, _valid(1, 3, 3), EPSILON, 1e-3
        ).total.backward()
        gradients.append(_gradient(log_probs))
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], -gradients[1])


def test_refiner_gives_equal_rewards_and_near_ties_no_gradient() -> None:
    log_probs = _random_log_probs(1, 3, 3, 24).requires_grad_()
    rewards = torch.tensor([[0.5, 0.5005, 0.5]]).double()
    advantages = pair_advantages(rewards, rewards[:, None])
    refiner_loss(log_probs, log_probs.detach(), advantages, _valid(1, 3, 3), EPSILON, 1e-3).total.backward()
    assert _gradient(log_probs).abs().max() == 0
    log_probs.grad = None
    refiner_loss(log_probs, log_probs.detach(), advantages, _valid(1, 3, 3), EPSILON).total.backward()
    assert _gradient(log_probs).abs().max() > 0  # it was the threshold


def test_refiner_leaves_out_anchors_and_targets_without_reward() -> None:
    log_probs, old = _random_log_probs(1, 3, 4, 24), _random_log_probs(1, 3, 4, 24, seed=1)
    rewards = torch.tensor([[0.1, NAN, 0.7]])
    values = torch.tensor([[[0.3, NAN, 0.9, NAN], [0.4, 0.5, 0.6, 0.7], [0.2, NAN, 0.1, NAN]]])
    is_pair = rewards.isfinite()[..., None] & values.isfinite()
    with_mask = refiner_loss(log_probs, old, pair_advantages(rewards, values), is_pair, EPSILON, 1e-3)
    anchors, targets = [0, 2], [0, 2]

    def kept(values: Tensor) -> Tensor:
        return values[:, anchors][:, :, targets]

    advantages = pair_advantages(rewards[:, anchors], kept(values))
    without = refiner_loss(kept(log_probs), kept(old), advantages, _valid(1, 2, 2), EPSILON, 1e-3)
    for got, expected in zip(with_mask, without, strict=True):
        torch.testing.assert_close(got, expected)


def test_refiner_gradients_stay_finite_where_rewards_are_unknown() -> None:
    log_probs = _random_log_probs(2, 2, 2, 24).requires_grad_()
    rewards = torch.tensor([[0.2, 0.6], [NAN, NAN]])
    values = torch.tensor([[[0.9, NAN], [0.1, 0.2]], [[NAN, 0.3], [NAN, NAN]]])
    is_pair = rewards.isfinite()[..., None] & values.isfinite()
    loss = refiner_loss(log_probs, log_probs.detach(), pair_advantages(rewards, values), is_pair, EPSILON)
    loss.total.backward()
    gradient = _gradient(log_probs)
    assert gradient.isfinite().all()
    assert gradient[~is_pair].abs().max() == 0
    assert gradient[is_pair].abs().min() > 0


def test_floor_spares_only_worse_targets_that_are_unlikely_already() -> None:
    log_probs = torch.tensor([[[[-13.0, -11.0], [-13.0, -11.0]]]], requires_grad=True)
    advantages = torch.tensor([[[0.4, -0.4]]])
    refiner_loss(
        log_probs, log_probs.detach(), advantages, _valid(1, 1, 2), EPSILON, log_prob_floor=-12.0
    ).total.backward()
    torch.testing.assert_close(
        _gradient(log_probs), torch.tensor([[[[-0.1, -0.1], [0.0, 0.1]]]]), rtol=1e-6, atol=0
    )
