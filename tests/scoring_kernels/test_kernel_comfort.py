"""Comfort: the filters against scipy's, the rules against hand-made series."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_toy_world import ego_at_origin, states_of, straight_poses

from drivefine_agent.scoring.comfort import comfort, comfort_margins, savgol_filter

scipy_signal = pytest.importorskip("scipy.signal", reason="the filters are compared with scipy's")

SERIES = np.random.default_rng(1).normal(size=41).cumsum()


def apply(table, series):
    window = table.weights.shape[1]
    return np.array([w @ series[s : s + window] for s, w in zip(table.start, table.weights, strict=True)])


@pytest.mark.parametrize(
    ("window", "degree", "derivative"),
    [(41, 2, 0), (8, 2, 0), (41, 2, 1), (5, 2, 1), (5, 3, 2), (15, 2, 1), (8, 2, 1), (6, 3, 2)],
)
def test_filters_equal_scipys(window, degree, derivative):
    ours = apply(savgol_filter(41, window, degree, derivative, 0.1), SERIES)
    theirs = scipy_signal.savgol_filter(SERIES, window, degree, deriv=derivative, delta=0.1)
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_even_window_has_the_published_weights():
    table = savgol_filter(41, 8, 2, 0, 0.1)
    np.testing.assert_allclose(table.weights[20] * 128, [-12, 12, 28, 36, 36, 28, 12, -12], atol=1e-10)
    assert table.start[20] == 17


def test_a_ramp_is_shifted_by_half_a_sample_inside_and_exact_at_the_ends():
    ramp = np.arange(41.0)
    filtered = apply(savgol_filter(41, 8, 2, 0, 0.1), ramp)
    np.testing.assert_allclose(filtered[4:-4], ramp[4:-4] + 0.5, atol=1e-10)
    np.testing.assert_allclose(filtered[:4], ramp[:4], atol=1e-10)
    np.testing.assert_allclose(filtered[-4:], ramp[-4:], atol=1e-10)


def margins_by_scipy(states):
    """(6,) the same six margins from scipy's filters."""

    def smooth(series, window):
        return np.round(scipy_signal.savgol_filter(series, window, 2), 8)

    def slope(series, window, degree=2, derivative=1):
        interval = np.mean(np.diff(np.arange(41) * 0.1))
        filtered = scipy_signal.savgol_filter(series, window, degree, deriv=derivative, delta=interval)
        return np.round(filtered, 8)

    def margin(series, low, high):
        return min(series.min() - low, high - series.max())

    ax, ay, heading = states[:, 5], states[:, 6], np.unwrap(states[:, 2])
    return np.array(
        [
            margin(smooth(ax, 41), -4.05, 2.40),
            margin(smooth(ay, 41), -4.89, 4.89),
            margin(slope(smooth(np.hypot(ax, ay), 8), 41), -8.37, 8.37),
            margin(slope(smooth(ax, 8), 41), -4.13, 4.13),
            margin(slope(heading, 5), -0.95, 0.95),
            margin(slope(heading, 5, 3, 2), -1.93, 1.93),
        ]
    )


def test_margins_equal_those_by_scipy():
    rng = np.random.default_rng(2)
    states = np.zeros((50, 41, 11))
    states[..., 5] = rng.normal(0.0, 2.0, (50, 1)) + rng.normal(0.0, 1.0, (50, 41))
    states[:, 0, 6] = rng.normal(0.0, 5.0, 50)
    heading = rng.uniform(-4.0, 4.0, (50, 1)) + np.cumsum(rng.normal(0.0, 0.05, (50, 41)), axis=1)
    states[..., 2] = (heading + np.pi) % (2 * np.pi) - np.pi
    margins = comfort_margins(states)
    for p in range(50):
        np.testing.assert_allclose(margins[p], margins_by_scipy(states[p]), atol=2e-8)
    np.testing.assert_array_equal(comfort(states), (margins > 0).all(axis=1))


def accelerating(ax: float) -> np.ndarray:
    states = np.zeros((1, 41, 11))
    states[..., 5] = ax
    return states


@pytest.mark.parametrize(("ax", "expected"), [(2.39, 1.0), (2.4, 0.0), (-4.04, 1.0), (-4.05, 0.0)])
def test_longitudinal_bounds_are_strict(ax, expected):
    assert comfort(accelerating(ax)) == [expected]


@pytest.mark.parametrize(("ay", "expected"), [(20.0, 1.0), (40.0, 0.0)])
def test_a_single_lateral_peak_hardly_matters(ay, expected):
    states = np.zeros((1, 41, 11))
    states[0, 0, 6] = ay
    assert comfort(states) == [expected]
    failed = comfort_margins(states)[0] <= 0
    assert failed.tolist() == [False, ay == 40.0, ay == 40.0, False, False, False]


@pytest.mark.parametrize(("speed", "expected"), [(9.0, 1.0), (10.0, 0.0)])
def test_golden_speed_changes_from_5_mps(speed, expected):
    states = states_of(straight_poses(speed), ego_at_origin(speed=5.0))
    assert comfort(states) == [expected]


def test_a_heading_that_crosses_pi_is_comfortable():
    states = np.zeros((1, 41, 11))
    states[0, :, 2] = (3.0 + 0.01 * np.arange(41) + np.pi) % (2 * np.pi) - np.pi
    assert comfort(states) == [1.0]
    assert comfort_margins(states)[0, 4] == pytest.approx(0.95 - 0.1)


def test_missing_values_are_not_comfortable():
    states = np.zeros((2, 41, 11))
    states[0, 5, 5] = np.nan
    assert comfort(states).tolist() == [0.0, 1.0]


def test_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"expected states of shape \(P, 41, 11\), got \(3, 40, 11\)"):
        comfort(np.zeros((3, 40, 11)))
