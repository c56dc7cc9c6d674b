import numpy as np
import pytest

from drivefine_agent.constants import NUM_POSES
from drivefine_agent.training.corruptions import (
    DEFAULT_SHARES,
    MAX_OUTLIER_M,
    MAX_OUTLIER_RAD,
    bend_path,
    change_speed,
    displace_numbers,
    draw_corruptions,
    drift,
)

STRAIGHT = np.stack([4.0 * np.arange(1, 9), np.zeros(8), np.zeros(8)], axis=-1)[
    None
]  # 8 m/s along x, (1, 8, 3)


def _circle(radius_m: float, speed_mps: float) -> np.ndarray:
    angle = speed_mps * 0.5 * np.arange(1, NUM_POSES + 1) / radius_m
    return np.stack([radius_m * np.sin(angle), radius_m * (1 - np.cos(angle)), angle], axis=-1)[None]


def test_shares_are_exact_where_they_can_be() -> None:
    kinds = draw_corruptions(100, DEFAULT_SHARES, np.random.default_rng(0))
    assert np.bincount(kinds, minlength=4).tolist() == [20, 40, 20, 20]


def test_shares_are_right_on_average_where_they_cannot_be_exact() -> None:
    rng = np.random.default_rng(1)
    counts = sum(np.bincount(draw_corruptions(3, DEFAULT_SHARES, rng), minlength=4) for _ in range(4000))
    # 12000 draws; standard deviation of a share of 0.2 is at most sqrt(0.2 * 0.8 / 12000) = 0.0037
    np.testing.assert_allclose(counts / 12000, DEFAULT_SHARES, atol=0.012)


@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.5, -0.5), (0.1, 0.1, 0.1, 0.1), (1.0,)])
def test_shares_that_are_no_distribution_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="sum 1"):
        draw_corruptions(4, shares, np.random.default_rng(0))


def test_outliers_hit_one_to_three_numbers_within_limits() -> None:
    poses = np.repeat(STRAIGHT, 500, axis=0)
    difference = displace_numbers(poses, np.random.default_rng(0)) - poses
    hits = (difference != 0).reshape(500, -1).sum(axis=1)
    assert set(hits.tolist()) == {1, 2, 3}
    assert (difference != 0).any(axis=0).all(), "every number is hit some time"
    assert np.abs(difference[..., :2]).max() <= MAX_OUTLIER_M
    assert np.abs(difference[..., 2]).max() <= MAX_OUTLIER_RAD


def test_speed_change_on_a_straight_road_scales_the_distance() -> None:
    for factor in (0.6, 1.0, 1.4):
        changed = change_speed(STRAIGHT, np.array([factor]))
        np.testing.assert_allclose(changed, STRAIGHT * [factor, 1, 1], atol=1e-12)


def test_speed_change_stays_on_the_path() -> None:
    """Half the speed round a circle of 20 m: on it, to the sagitta of a 4 m chord, 4^2 / (8 * 20) = 0.1 m."""
    slow = change_speed(_circle(20.0, 8.0), np.array([0.5]))
    distance = np.hypot(slow[..., 0], slow[..., 1] - 20.0)
    np.testing.assert_allclose(distance, 20.0, atol=0.11)
    np.testing.assert_allclose(slow[0, -1, 2], _circle(20.0, 4.0)[0, -1, 2], atol=0.01)


def test_a_standing_vehicle_stays_where_it_is_at_any_speed() -> None:
    np.testing.assert_array_equal(change_speed(np.zeros((1, 8, 3)), np.array([1.4])), 0.0)


def test_bend_turns_the_last_pose_by_the_angle_and_the_first_by_an_eighth() -> None:
    bent = bend_path(STRAIGHT, np.array([0.16]), np.array([0.0]))
    np.testing.assert_allclose(bent[0, [0, -1], 2], [0.02, 0.16])
    np.testing.assert_allclose(bent[0, -1, :2], [32 * np.cos(0.16), 32 * np.sin(0.16)])


def test_push_moves_the_last_pose_to_its_left_by_the_full_amount() -> None:
    pushed = bend_path(STRAIGHT, np.array([0.0]), np.array([1.0]))
    np.testing.assert_allclose(pushed[0, :, 1], (np.arange(1, 9) / 8) ** 2)
    np.testing.assert_allclose(pushed[0, :, 0], STRAIGHT[0, :, 0])


def test_drift_is_reproducible_and_changes_the_path() -> None:
    poses = np.repeat(_circle(30.0, 10.0), 16, axis=0)
    first, again = (drift(poses, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (np.abs(first - poses).max(axis=(1, 2)) > 1e-3).all()
