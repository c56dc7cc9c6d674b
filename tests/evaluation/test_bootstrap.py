import itertools

import numpy as np
import pytest
from scipy.stats import binom

from drivefine_agent.evaluation import bootstrap
from drivefine_agent.evaluation.bootstrap import bootstrap_interval, bootstrap_means, paired_interval


def test_equal_values_give_an_interval_without_width() -> None:
    interval = bootstrap_interval(np.full(7, 0.25))
    assert (interval.mean, interval.low, interval.high, interval.num_scenes) == (0.25, 0.25, 0.25, 7)
    assert interval.excludes_zero


def test_two_values_by_hand() -> None:
    """Resamples of (0, 1): (0,0), (0,1), (1,0), (1,1): mean 0 with probability 1/4: the 2.5 % point is 0."""
    interval = bootstrap_interval([0.0, 1.0])
    assert (interval.low, interval.mean, interval.high) == (0.0, 0.5, 1.0)
    means, counts = np.unique(bootstrap_means([0.0, 1.0]), return_counts=True)
    assert means.tolist() == [0.0, 0.5, 1.0]
    # 10,000 draws of probability 1/4: standard deviation 43, so 200 is beyond four of them.
    assert np.abs(counts - [2500, 5000, 2500]).max() < 200


def test_one_outlier_of_three_by_hand() -> None:
    """(0, 0, 3): the mean is 3 only if all three draws hit the outlier, 1/27 > 2.5 %, so the upper end is 3.

    P(mean = 0) = (2/3)^3 = 30 %: the lower end is 0. At 90 % the upper 5 % point is 2: P(mean >= 2) = 7/27.
    """
    assert bootstrap_interval([0.0, 0.0, 3.0]).high == 3.0
    interval = bootstrap_interval([0.0, 0.0, 3.0], level=0.9)
    assert (interval.low, interval.mean, interval.high) == (0.0, 1.0, 2.0)


def test_agrees_with_all_resamples_of_five_values() -> None:
    values = np.array([-0.3, 0.0, 0.1, 0.35, 0.8])
    exact = np.array(
        [np.mean(chosen) for chosen in itertools.product(values, repeat=5)]
    )  # 3125 equally likely
    interval = bootstrap_interval(values, num_resamples=40_000)
    # Neighbouring support points are at most 0.03 apart here; the Monte Carlo error is smaller.
    assert interval.low == pytest.approx(np.quantile(exact, 0.025), abs=0.02)
    assert interval.high == pytest.approx(np.quantile(exact, 0.975), abs=0.02)
    assert bootstrap_means(values, 40_000).mean() == pytest.approx(values.mean(), abs=0.004)  # 0.17 / 200


def test_agrees_with_the_binomial_distribution() -> None:
    """Of n zeros and ones with k ones, the resampled sum is Binomial(n, k/n) exactly."""
    n, k = 200, 130
    values = np.repeat([1.0, 0.0], [k, n - k])
    interval = bootstrap_interval(values)
    assert interval.low == pytest.approx(binom.ppf(0.025, n, k / n) / n, abs=1.5 / n)
    assert interval.high == pytest.approx(binom.ppf(0.975, n, k / n) / n, abs=1.5 / n)


def test_agrees_with_the_normal_interval_for_many_scenes() -> None:
    values = np.random.default_rng(5).normal(0.02, 0.2, size=2000)
    interval = bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert interval.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_pairing_removes_what_both_agents_share() -> None:
    """Scenes differ wildly, the agents by exactly 0.1: paired, there is no doubt left."""
    difficulty = np.random.default_rng(0).uniform(0.0, 0.9, size=50)
    interval = paired_interval(difficulty + 0.1, difficulty)
    assert (interval.low, interval.high) == pytest.approx((0.1, 0.1))
    assert interval.excludes_zero


def test_swapping_the_agents_mirrors_the_interval() -> None:
    generator = np.random.default_rng(1)
    first, second = generator.uniform(size=30), generator.uniform(size=30)
    there, back = paired_interval(first, second), paired_interval(second, first)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.mean == pytest.approx(-back.mean)


def test_equal_agents_do_not_exclude_zero() -> None:
    assert not paired_interval([0.5, 0.2], [0.5, 0.2]).excludes_zero


def test_same_seed_same_interval_other_seed_other_draws() -> None:
    values = np.random.default_rng(2).normal(size=40)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert not np.array_equal(bootstrap_means(values, seed=3), bootstrap_means(values, seed=4))


def test_chunks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=64)
    whole = bootstrap_means(values, 100)
    monkeypatch.setattr(bootstrap, "_CHUNK_ELEMENTS", 64 * 7)
    assert np.array_equal(bootstrap_means(values, 100), whole)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"shape \(n,\) with n >= 1, got \(0,\)"),
        ([[1.0]], r"got \(1, 1\)"),
        ([0.1, float("nan")], "finite values, got 1"),
    ],
    ids=["empty", "two axes", "nan"],
)
def test_bad_values_are_refused(values: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values)


def test_unequal_lengths_are_refused_instead_of_broadcast() -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(3,\) and \(1,\)"):
        paired_interval([1.0, 2.0, 3.0], [1.0])


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_the_level_is_a_fraction(level: float) -> None:
    with pytest.raises(ValueError, match="level between 0 and 1"):
        bootstrap_interval([1.0], level=level)


def test_at_least_one_resample() -> None:
    with pytest.raises(ValueError, match="num_resamples must be at least 1, got 0"):
        bootstrap_means([1.0], num_resamples=0)
