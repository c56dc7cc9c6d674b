"""Two-frame extended comfort: the worked numbers of pdm-scorer 8 (G6) and NAVSIM's own results."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import savgol_filter

from drivefine_agent.errors import DataError
from drivefine_agent.scoring.extended_comfort import (
    extended_comfort,
    extended_comfort_differences,
    motion_of,
    overlap_shift,
)
from drivefine_agent.scoring.simulate import simulate
from drivefine_agent.scoring.trajectory import proposals_to_reference

START_US = 1_600_000_000_000_000
TIMES = 0.5 * np.arange(1, 9)


def motion(poses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of poses (8, 3) that are followed from 5 m/s, straight on, without acceleration."""
    initial = np.zeros(11)
    initial[3] = 5.0
    states = simulate(proposals_to_reference(initial, START_US, poses[None]), initial)
    return motion_of(states)[0]


def straight(speed: float) -> NDArray[np.float64]:
    return np.column_stack([speed * TIMES, np.zeros(8), np.zeros(8)])


def turn(rate: float, speed: float = 5.0) -> NDArray[np.float64]:
    """A circular arc."""
    heading, radius = rate * TIMES, speed / rate
    return np.column_stack([radius * np.sin(heading), radius * (1.0 - np.cos(heading)), heading])


@pytest.mark.parametrize(
    ("speed", "accel", "jerk", "comfort"), [(6.0, 0.3467, 0.4306, 1.0), (6.5, None, 0.6459, 0.0)]
)
def test_a_new_speed(speed: float, accel: float | None, jerk: float, comfort: float) -> None:
    pair = motion(straight(speed)), motion(straight(5.0))
    differences = extended_comfort_differences(*pair, 0.5)
    if accel is not None:
        assert differences[0] == pytest.approx(accel, abs=5e-5)
    assert differences[1] == pytest.approx(jerk, abs=5e-5)
    assert differences[2:] == pytest.approx([0.0, 0.0])
    assert extended_comfort(*pair, 0.5) == comfort


@pytest.mark.parametrize(("rate", "yaw_rate", "comfort"), [(0.05, 0.0573, 1.0), (0.1, 0.1146, 0.0)])
def test_a_new_turn(rate: float, yaw_rate: float, comfort: float) -> None:
    """G6 does not say by which poses it turned: within 2 %."""
    pair = motion(turn(rate)), motion(straight(5.0))
    assert extended_comfort_differences(*pair, 0.5)[2] == pytest.approx(yaw_rate, rel=0.02)
    assert extended_comfort(*pair, 0.5) == comfort


def test_the_plan_that_goes_on_as_before_is_comfortable() -> None:
    """At any speed: two plans that agree where they overlap in time differ in nothing."""
    both = np.zeros((2, 46))
    both[0], both[1] = np.sin(np.arange(46) / 3.0), 0.02 * np.arange(46) ** 1.5
    np.testing.assert_array_equal(extended_comfort_differences(both[:, 5:], both[:, :41], 0.5), np.zeros(4))


def test_features_are_scipys_filters_on_the_overlap_alone() -> None:
    """The same definition, written with scipy: 36 samples each, windows 8, 15, 5, 5, degree 2."""
    generator = np.random.default_rng(3)
    current, previous = 0.3 * generator.normal(size=(2, 2, 41))  # headings that need no unwrapping
    features = []
    for acceleration, heading in (current[:, :36], previous[:, 5:]):
        smooth = np.round(savgol_filter(acceleration, 8, 2), 8)
        features.append(
            [
                smooth,
                np.round(savgol_filter(smooth, 15, 2, deriv=1, delta=0.1), 8),
                np.round(savgol_filter(heading, 5, 2, deriv=1, delta=0.1), 8),
                np.round(savgol_filter(heading, 5, 2, deriv=2, delta=0.1), 8),
            ]
        )
    expected = np.sqrt(np.mean((np.array(features[0]) - np.array(features[1])) ** 2, axis=1))
    ours = extended_comfort_differences(current, previous, 0.5)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-8)  # one unit of the rounding


def test_headings_may_cross_pi() -> None:
    current, previous = motion(turn(0.05)), motion(straight(5.0))
    turned = [m + np.array([[0.0], [np.pi - 0.01]]) for m in (current, previous)]
    for m in turned:
        m[1] = (m[1] + np.pi) % (2 * np.pi) - np.pi
    assert np.ptp(turned[0][1]) > 6.0  # it does cross
    np.testing.assert_allclose(
        extended_comfort_differences(*turned, 0.5),
        extended_comfort_differences(current, previous, 0.5),
        atol=1e-7,
    )


def test_the_bounds_themselves_are_comfortable() -> None:
    """RMS exactly at a bound: a constant difference of 0.7 m/s^2 in acceleration and nothing else."""
    previous, current = np.zeros((2, 41)), np.zeros((2, 41))
    current[0] = 0.7
    assert extended_comfort(current, previous, 0.5) == 1.0
    current[0] = 0.70001
    assert extended_comfort(current, previous, 0.5) == 0.0


@pytest.mark.parametrize(
    ("interval_s", "shift"), [(0.5, 5), (0.45, 4), (0.4499, 4), (0.0501, 1), (0.5499, 5), (0.35, 3), (0.1, 1)]
)
def test_shift_is_the_nearest_sample(interval_s: float, shift: int) -> None:
    """round(0.35 / 0.1) is 3: the quotient is 3.4999999999999996."""
    assert overlap_shift(interval_s) == shift


@pytest.mark.parametrize("interval_s", [0.55, 0.6, 1.0, 0.0, -0.5, 0.04, float("nan")])
def test_frames_too_far_apart_or_at_once_are_an_error(interval_s: float) -> None:
    still = np.zeros((2, 41))
    with pytest.raises(DataError, match=r"between 0\.05 and 0\.55 s apart"):
        extended_comfort(still, still, interval_s)


def test_states_that_are_not_finite_are_refused() -> None:
    still, broken = np.zeros((2, 41)), np.zeros((2, 41))
    broken[0, 40] = np.nan
    with pytest.raises(ValueError, match="expected finite motion"):
        extended_comfort(broken, still, 0.5)


def test_official_results_of_the_official_simulated_states(goldens: Path) -> None:
    """The four runs whose official states are known; every frame that has a predecessor in its log."""
    with gzip.open(goldens / "simulated_states.json.gz", "rt") as stream:
        records = json.load(stream)
    facts = json.loads((goldens / "aggregates_v22.json").read_text())
    start = {scene["scene"]: scene["start_time"] for scene in facts["scenes"]}
    states = {
        (record["token"], record["trajectory_id"]): np.array(record["states"]) for record in records["v22"]
    }
    results = []
    for pair in facts["one_stage_pairs"]:
        key = (pair["scene"], str(pair["run"]))
        if pair["previous"] is None or key not in states:
            continue
        now, previous = states[key], states[pair["previous"], str(pair["run"])]
        interval_s = start[pair["scene"]] - start[pair["previous"]]
        ours = extended_comfort(motion_of(now), motion_of(previous), interval_s)
        assert ours == pair["two_frame_extended_comfort"], key
        results.append(ours)
    assert len(results) == 48
    assert set(results) == {0.0, 1.0}
