"""From sub-scores to the PDM score of NAVSIM 1.1.

Source: pdm-scorer 4.6 and 4.12; NAVSIM v1.1, PDMScorer.
"""

from __future__ import annotations

import numpy as np

from drivefine_agent.scoring.types import FloatArray

PROGRESS_WEIGHT = 5.0
TIME_TO_COLLISION_WEIGHT = 5.0
COMFORT_WEIGHT = 2.0
DRIVING_DIRECTION_WEIGHT = 0.0
MIN_PROGRESS_M = 5.0


def normalised_progress(
    progress_m: FloatArray, multiplier: FloatArray, best_progress_m: FloatArray | float
) -> FloatArray:
    """Ego progress sub-score, given the best progress it is measured against.

    Args:
      progress_m: (P,) raw progress [m].
      multiplier: (P,) product of the multiplicative sub-scores.
      best_progress_m: (P,) or () largest raw progress times multiplier among those compared, the proposal
        included [m].

    Returns:
      (P,) in [0, 1]. Where nobody gets further than 5 m: 1, or 0 where the multiplier is 0.
    """
    earned = progress_m * multiplier
    counts = np.asarray(best_progress_m) > MIN_PROGRESS_M
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = earned / best_progress_m
    return np.where(counts, relative, np.where(multiplier != 0.0, 1.0, 0.0))


def progress_against_reference(
    progress_m: FloatArray, multiplier: FloatArray, reference_progress_m: float, reference_multiplier: float
) -> FloatArray:
    """(P,) ego progress of each proposal beside the reference alone, whatever else is in the batch."""
    best = np.maximum(progress_m * multiplier, reference_progress_m * reference_multiplier)
    return normalised_progress(progress_m, multiplier, best)


def progress_within_batch(progress_m: FloatArray, multiplier: FloatArray) -> FloatArray:
    """(P,) ego progress relative to the best of the batch, as PDM-Closed compares its own proposals."""
    if len(progress_m) == 0:
        return np.zeros(0)
    return normalised_progress(progress_m, multiplier, float(np.max(progress_m * multiplier)))


def pdm_score_v1(
    no_at_fault_collisions: FloatArray,
    drivable_area_compliance: FloatArray,
    driving_direction_compliance: FloatArray,
    ego_progress: FloatArray,
    time_to_collision_within_bound: FloatArray,
    comfort: FloatArray,
) -> FloatArray:
    """PDMS = NC x DAC x (5 EP + 5 TTC + 2 C + 0 DDC) / 12, elementwise."""
    weighted = (
        PROGRESS_WEIGHT * ego_progress
        + TIME_TO_COLLISION_WEIGHT * time_to_collision_within_bound
        + COMFORT_WEIGHT * comfort
        + DRIVING_DIRECTION_WEIGHT * driving_direction_compliance
    )
    total = PROGRESS_WEIGHT + TIME_TO_COLLISION_WEIGHT + COMFORT_WEIGHT + DRIVING_DIRECTION_WEIGHT
    return no_at_fault_collisions * drivable_area_compliance * (weighted / total)
