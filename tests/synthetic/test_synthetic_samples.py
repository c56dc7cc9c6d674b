"""Thinning of samples, on motions whose continuation is known."""

import numpy as np
import pytest

from drivefine_agent.data.scenes import SceneFilter
from drivefine_agent.synthetic.samples import candidate_indices, choose_samples, surprise_m
from drivefine_agent.synthetic.world import WorldFrame


def _drive(poses, speeds, accelerations=None):
    accelerations = np.zeros(len(poses)) if accelerations is None else accelerations
    return [
        WorldFrame(np.array(p, dtype=float), np.array([v, 0.0]), np.array([a, 0.0]), 1, (), {})
        for p, v, a in zip(poses, speeds, accelerations, strict=True)
    ]


def test_steady_driving_is_no_surprise():
    frames = _drive([(5.0 * i, 2.0, 0.0) for i in range(20)], np.full(20, 10.0))
    assert surprise_m(frames, 5) == pytest.approx(0.0, abs=1e-9)


def test_a_steady_turn_is_no_surprise():
    radius, speed = 30.0, 6.0
    angles = speed * 0.5 * np.arange(20) / radius
    poses = np.stack([radius * np.sin(angles), radius * (1 - np.cos(angles)), angles], axis=1)
    assert surprise_m(_drive(poses, np.full(20, speed)), 5) < 0.02


def test_a_sudden_stop_is_as_surprising_as_the_distance_not_driven():
    x = np.minimum(5.0 * np.arange(20), 25.0)  # 10 m/s until frame 5, then standing
    frames = _drive(np.stack([x, 0 * x, 0 * x], axis=1), np.full(20, 10.0))
    assert surprise_m(frames, 5) == pytest.approx(40.0)


@pytest.mark.parametrize("interval", [1, 3, 4])
def test_candidates_are_the_current_frames_of_navsims_windows(interval):
    scene_filter = SceneFilter(frame_interval=interval)
    starts = range(0, 101 - scene_filter.num_frames + 1, scene_filter.stride)
    assert candidate_indices(101, interval) == [start + 3 for start in starts]


def test_easy_samples_are_thinned_and_surprising_ones_stay():
    x = np.minimum(5.0 * np.arange(400), 1500.0)
    frames = _drive(np.stack([x, 0 * x, 0 * x], axis=1), np.where(x < 1500.0, 10.0, 0.0))
    surprising = [i for i in candidate_indices(400, 1) if surprise_m(frames, i) >= 2.0]
    chosen = choose_samples(frames, 7, 1, 2.0, 0.25)
    easy = len(candidate_indices(400, 1)) - len(surprising)
    assert set(surprising) <= set(chosen)
    assert 0.15 * easy < len(chosen) - len(surprising) < 0.35 * easy
    assert choose_samples(frames, 7, 1, 2.0, 0.0) == surprising
    assert choose_samples(frames, 7, 1, 2.0, 1.0) == candidate_indices(400, 1)
