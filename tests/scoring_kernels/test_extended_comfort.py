"""Two-frame extended comfort, by the official numbers of pdm-scorer 8 (G6) and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_toy_world import ego_at_origin, states_of, straight_poses

from drivefine_agent.errors import DataError
from drivefine_agent.scoring.extended_comfort import (
    extended_comfort,
    extended_comfort_differences,
    motion_of,
    overlap_shift,
)


def straight_motion(speed: float, initial_speed: float = 5.0) -> np.ndarray:
    return motion_of(states_of(straight_poses(speed), ego_at_origin(initial_speed)))[0]


def turning_motion(rate: float) -> np.ndarray:
    """At 5 m/s from straight ahead into a constant turn."""
    heading = rate * 0.5 * np.arange(1, 9)
    poses = np.stack([5 / rate * np.sin(heading), 5 / rate * (1 - np.cos(heading)), heading], axis=-1)
    return motion_of(states_of(poses, ego_at_origin(5.0)))[0]


def test_golden_speeds() -> None:
    previous = straight_motion(5.0)
    within = extended_comfort_differences(straight_motion(6.0), previous, 0.5)
    assert within[:2] == pytest.approx([0.3467, 0.4306], abs=5e-5)
    assert extended_comfort(straight_motion(6.0), previous, 0.5) == 1.0
    beyond = extended_comfort_differences(straight_motion(6.5), previous, 0.5)
    assert beyond[1] == pytest.approx(0.6459, abs=5e-5)
    assert extended_comfort(straight_motion(6.5), previous, 0.5) == 0.0


def test_golden_turns() -> None:
    previous = straight_motion(5.0)
    for rate, difference, expected in ((0.05, 0.0573, 1.0), (0.1, 0.1146, 0.0)):
        found = extended_comfort_differences(turning_motion(rate), previous, 0.5)
        assert found[2] == pytest.approx(difference, abs=5e-5)
        assert extended_comfort(turning_motion(rate), previous, 0.5) == expected


def test_the_later_frame_is_compared_with_the_shifted_earlier_one() -> None:
    """A plan that goes on exactly as the plan before differs by nothing; unshifted it would."""
    ramp = np.stack([np.linspace(0.0, 2.0, 41), np.linspace(0.0, 1.0, 41)])
    later = np.stack([ramp[0] + 5 * 0.05, ramp[1] + 5 * 0.025])
    assert extended_comfort_differences(later, ramp, 0.5) == pytest.approx(np.zeros(4), abs=1e-7)
    assert extended_comfort_differences(ramp, ramp, 0.5)[0] == pytest.approx(5 * 0.05, abs=1e-7)


def test_heading_that_wraps_is_no_turn() -> None:
    heading = np.linspace(3.0, 3.4, 41)
    plain = np.stack([np.zeros(41), heading])
    wrapped = np.stack([np.zeros(41), (heading + np.pi) % (2 * np.pi) - np.pi])
    assert extended_comfort_differences(wrapped, plain, 0.5)[2:] == pytest.approx([0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize(("interval_s", "shift"), [(0.5, 5), (0.45, 4), (0.549, 5), (0.06, 1)])
def test_shift_rounds_half_to_even(interval_s: float, shift: int) -> None:
    assert overlap_shift(interval_s) == shift


@pytest.mark.parametrize("interval_s", [0.55, 0.6, 0.0, -0.5, 0.04, np.nan])
def test_frames_must_be_neighbours(interval_s: float) -> None:
    motion = straight_motion(5.0)
    with pytest.raises(DataError, match=r"between 0.05 and 0.55 s apart"):
        extended_comfort(motion, motion, interval_s)


def test_motion_must_be_finite_and_whole() -> None:
    motion = straight_motion(5.0)
    with pytest.raises(ValueError, match="previous"):
        extended_comfort(motion, motion[:, :40], 0.5)
    broken = motion.copy()
    broken[0, 3] = np.nan
    with pytest.raises(ValueError, match="current"):
        extended_comfort(broken, motion, 0.5)
