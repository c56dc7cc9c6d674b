"""A short run of `fuzz_scorer.py`, and scores that do not depend on the company they are computed in."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("scipy.signal", reason="comfort is compared with scipy's filters")

from fuzz_scorer import FuzzWorld, draw_world, fuzz

from drivefine_agent.scoring.scorer import score_states
from drivefine_agent.scoring.scorer_v2 import score_states_v2

SEED, COUNT = 77, 48


def test_kernels_equal_the_oracle_on_random_trajectories_in_random_worlds():
    report = fuzz(1000, first_seed=900_000)
    assert report.num_trajectories >= 1000
    assert not report.mismatches, report.mismatches[:5]
    assert report.num_ties <= 2
    for name, zeros in report.num_zeros.items():
        assert 0 < zeros < report.num_trajectories, name


def scores(world: FuzzWorld, rows: np.ndarray) -> np.ndarray:
    """(fields, rows) every number of both scorers."""
    parts = (
        score_states(world.states[rows], world.v1),
        score_states_v2(world.states[rows], world.v2, world.history),
    )
    return np.stack([getattr(part, name) for part in parts for name in part.__dataclass_fields__])


def scores_elsewhere(rows: np.ndarray) -> np.ndarray:
    return scores(draw_world(SEED, COUNT), rows)


def test_scores_are_the_same_bits_in_every_batch_order_thread_and_process():
    world = draw_world(SEED, COUNT)
    rows = np.arange(COUNT)
    together = scores(world, rows)
    order = np.random.default_rng(0).permutation(COUNT)
    np.testing.assert_array_equal(scores(world, order), together[:, order])
    for size in (1, 7):
        pieces = [scores(world, rows[i : i + size]) for i in range(0, COUNT, size)]
        np.testing.assert_array_equal(np.concatenate(pieces, axis=1), together)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: scores(world, rows), range(8)):
            np.testing.assert_array_equal(result, together)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes:
        halves = list(processes.map(scores_elsewhere, (rows[:20], rows[20:])))
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), together)
