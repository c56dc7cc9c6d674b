"""From sub-scores to the score, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from drivefine_agent.scoring.aggregate import (
    pdm_score_v1,
    progress_against_reference,
    progress_within_batch,
)


def against(progress, multiplier, reference, reference_multiplier=1.0):
    return progress_against_reference(
        np.array([progress]), np.array([multiplier]), reference, reference_multiplier
    )[0]


@pytest.mark.parametrize(
    ("progress", "multiplier", "reference", "expected"),
    [
        pytest.param(10.0, 1.0, 20.0, 0.5, id="half as far as the reference"),
        pytest.param(2.0, 1.0, 5.0, 1.0, id="the normaliser must exceed 5 m"),
        pytest.param(2.0, 1.0, 5.0001, 2.0 / 5.0001, id="and does"),
        pytest.param(30.0, 1.0, 20.0, 1.0, id="further than the reference"),
        pytest.param(30.0, 0.0, 20.0, 0.0, id="an infraction earns nothing"),
        pytest.param(30.0, 0.5, 20.0, 15.0 / 20.0, id="half a multiplier earns half the way"),
        pytest.param(2.0, 0.0, 3.0, 0.0, id="an infraction on a short way"),
        pytest.param(2.0, 0.5, 3.0, 1.0, id="half a multiplier on a short way"),
        pytest.param(0.0, 1.0, 0.0, 1.0, id="nobody moves"),
    ],
)
def test_progress_beside_the_reference(progress, multiplier, reference, expected):
    assert against(progress, multiplier, reference) == pytest.approx(expected, abs=1e-15)


def test_a_reference_with_an_infraction_sets_no_standard():
    assert against(8.0, 1.0, 20.0, reference_multiplier=0.0) == 1.0
    assert against(8.0, 1.0, 20.0, reference_multiplier=0.5) == 0.8


def test_a_faster_proposal_does_not_change_the_progress_of_the_others():
    alone = progress_against_reference(np.array([10.0]), np.ones(1), 20.0, 1.0)
    together = progress_against_reference(np.array([10.0, 60.0]), np.ones(2), 20.0, 1.0)
    assert together[0] == alone[0] == 0.5


def test_progress_within_a_batch_is_relative_to_its_best():
    progress = progress_within_batch(np.array([10.0, 30.0, 40.0]), np.array([1.0, 0.5, 0.0]))
    np.testing.assert_allclose(progress, [10.0 / 15.0, 1.0, 0.0])
    assert progress_within_batch(np.zeros(0), np.zeros(0)).shape == (0,)


def test_weighted_score():
    """0.5 * (5 * 0.8 + 5 * 1 + 2 * 1 + 0 * DDC) / 12."""
    half, one = np.array([0.5]), np.array([1.0])
    for direction in (0.0, 0.5, 1.0):
        score = pdm_score_v1(half, one, np.array([direction]), np.array([0.8]), one, one)
        assert score[0] == pytest.approx(0.5 * (4.0 + 5.0 + 2.0) / 12.0, abs=1e-15)
    assert pdm_score_v1(one, 0.0 * one, one, one, one, one) == [0.0]
    assert pdm_score_v1(one, one, one, one, one, one) == [1.0]
