"""Measures of agreement against scipy and by hand; what a choice by predictions costs."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from drivefine_agent.evaluation.agreement import (
    area_under_curve,
    brier,
    calibration_error,
    kendall,
    pearson,
    reliability,
    spearman,
)
from drivefine_agent.evaluation.scorer_quality import JudgedScene, quality_markdown, scorer_quality
from drivefine_agent.learned_scorer import PREDICTED, predicted_score


def test_correlations_equal_scipys_with_and_without_ties() -> None:
    rng = np.random.default_rng(0)
    for digits in (1, 8):
        a = rng.random(40).round(digits)
        b = (a + rng.random(40)).round(digits)
        assert pearson(a, b) == pytest.approx(scipy.stats.pearsonr(a, b)[0])
        assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b)[0])
        assert kendall(a, b) == pytest.approx(scipy.stats.kendalltau(a, b)[0])
        positive = b > 1.0
        wins = scipy.stats.mannwhitneyu(a[positive], a[~positive]).statistic
        assert area_under_curve(a, positive) == pytest.approx(wins / (positive.sum() * (~positive).sum()))


def test_undefined_measures_are_not_numbers() -> None:
    constant, other = np.full(5, 0.1), np.arange(5.0)
    assert np.isnan([pearson(constant, other), spearman(constant, other), kendall(constant, other)]).all()
    assert np.isnan(area_under_curve(other, np.ones(5, dtype=bool)))


def test_calibration_by_hand() -> None:
    """Two bins: predicted 0.25 and 0.15 of which half came true (weights 1, 3), and 0.9, which came true.

    In the bins of fifths [0, 0.2), [0.2, 0.4), [0.8, 1]: errors |0.15 - 0|, |0.25 - 1|, |0.9 - 1|.
    """
    predicted, true = np.array([0.25, 0.15, 0.9]), np.array([1.0, 0.0, 1.0])
    weights = np.array([1.0, 3.0, 1.0])
    rows = reliability(predicted, true, weights, num_bins=5)
    assert [(row["low"], row["weight"]) for row in rows] == [(0.0, 3.0), (0.2, 1.0), (0.8, 1.0)]
    assert calibration_error(rows) == pytest.approx((3 * 0.15 + 0.75 + 0.1) / 5)
    assert brier(predicted, true, weights) == pytest.approx((0.75**2 + 3 * 0.15**2 + 0.1**2) / 5)
    assert reliability(np.array([1.0]), np.array([1.0]), np.ones(1))[0]["low"] == 0.9


def scene(kinds: list[str], true: list[float], predicted: list[float]) -> JudgedScene:
    """Candidates that differ in drivable area only, the rest is perfect: the score is that sub-score."""
    place = PREDICTED.index("drivable_area_compliance")
    rows, guesses = np.ones((len(true), len(PREDICTED))), np.ones((len(true), len(PREDICTED)))
    rows[:, place], guesses[:, place] = true, predicted
    return JudgedScene(np.array(kinds), guesses, rows, predicted_score(rows))


def test_choices_and_their_regret_by_hand() -> None:
    first = scene(["generated", "refined", "refined"], [0.0, 1.0, 0.5], [0.3, 0.2, 0.9])
    second = scene(["generated", "refined", "refined"], [1.0, 0.0, 0.0], [0.9, 0.5, 0.8])
    quality = scorer_quality([first, second], [("refined", 6), ("refined", 1)])
    everything, refined, only = quality["selection"]
    assert everything["mean_score"] == {
        "first": 0.5,
        "random": pytest.approx((0.5 + 1 / 3) / 2),
        "scorer": 0.75,
        "oracle": 1.0,
    }
    assert everything["regret"]["scorer"] == pytest.approx(0.25)
    assert everything["oracle_minus_scorer"]["mean"] == pytest.approx(0.25)
    assert refined["mean_score"] == {"first": 0.5, "random": 0.375, "scorer": 0.25, "oracle": 0.5}
    assert only["mean_score"]["scorer"] == only["mean_score"]["first"] == 0.5
    drivable = quality["sub_scores"]["drivable_area_compliance"]
    # Full marks were predicted 0.2 and 0.9, less 0.3, 0.9, 0.5, 0.8: 0 + 3.5 of 8 pairs.
    assert drivable["auc"] == pytest.approx(3.5 / 8)
    assert quality["sub_scores"]["ego_progress"]["num_candidates"] == 3  # NC x DAC is not 0
    text = quality_markdown(quality)
    assert "| all candidates | 2 | 50.0 | 41.7 | 75.0 | 100.0 |" in text


def test_a_perfect_scorer_has_no_regret_and_no_error() -> None:
    rng = np.random.default_rng(1)
    scenes = []
    for _ in range(5):
        truth = rng.choice([0.0, 0.5, 1.0], size=(8, len(PREDICTED)))
        scenes.append(JudgedScene(np.array(["refined"] * 8), truth, truth, predicted_score(truth)))
    quality = scorer_quality(scenes)
    row = quality["selection"][0]
    assert row["regret"]["scorer"] == 0.0 < row["regret"]["random"]
    assert quality["ranking"]["spearman_within_scene"] == pytest.approx(1.0)
    assert quality["ranking"]["mean_absolute_error"] == 0.0
    for name in PREDICTED:
        assert quality["sub_scores"][name]["brier"] == 0.0
        assert quality["sub_scores"][name]["expected_calibration_error"] == 0.0
