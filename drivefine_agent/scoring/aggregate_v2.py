"""From sub-scores to the scores of NAVSIM 2: progress, the interim score, the human-penalty filter, EPDMS.

Shape letters: P proposals.
Source: pdm-scorer 4.6, 4.12 and 4.14; NAVSIM v2.2, PDMScorer and pdm_score.
"""

from __future__ import annotations

import numpy as np

from drivefine_agent.scoring.types import FloatArray

MIN_PROGRESS_M = 5.0
PROGRESS_WEIGHT = 5.0
TIME_TO_COLLISION_WEIGHT = 5.0
LANE_KEEPING_WEIGHT = 2.0
HISTORY_COMFORT_WEIGHT = 2.0
EXTENDED_COMFORT_WEIGHT = 2.0


def relative_progress(progress_m: FloatArray, best_progress_m: FloatArray | float) -> FloatArray:
    """Ego progress sub-score, given the best progress it is measured against.

    Args:
      progress_m: (P,) raw progress [m]; unlike in NAVSIM 1.1 not multiplied by anything.
      best_progress_m: (P,) or () largest raw progress times multiplier among those compared, the proposal
        included [m].

    Returns:
      (P,) in [0, 1]. Where nobody gets further than 5 m: 1.
    """
    counts = np.asarray(best_progress_m) > MIN_PROGRESS_M
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.clip(progress_m / best_progress_m, 0.0, 1.0)
    return np.where(counts, relative, 1.0)


def multiplier(
    no_at_fault_collisions: FloatArray,
    drivable_area_compliance: FloatArray,
    driving_direction_compliance: FloatArray,
    traffic_light_compliance: FloatArray,
) -> FloatArray:
    """NC x DAC x DDC x TLC, elementwise."""
    return (
        no_at_fault_collisions
        * drivable_area_compliance
        * driving_direction_compliance
        * traffic_light_compliance
    )


def weighted_average(
    ego_progress: FloatArray,
    time_to_collision_within_bound: FloatArray,
    lane_keeping: FloatArray,
    history_comfort: FloatArray,
    two_frame_extended_comfort: FloatArray | None = None,
) -> FloatArray:
    """(5 EP + 5 TTC + 2 LK + 2 HC + 2 EC) / 16, elementwise.

    Where extended comfort is NaN, or not given at all, its term and its weight are left out: / 14.
    """
    total = (
        PROGRESS_WEIGHT * ego_progress
        + TIME_TO_COLLISION_WEIGHT * time_to_collision_within_bound
        + LANE_KEEPING_WEIGHT * lane_keeping
        + HISTORY_COMFORT_WEIGHT * history_comfort
    )
    weight = PROGRESS_WEIGHT + TIME_TO_COLLISION_WEIGHT + LANE_KEEPING_WEIGHT + HISTORY_COMFORT_WEIGHT
    if two_frame_extended_comfort is None:
        return np.asarray(total / weight)
    has_neighbour = ~np.isnan(two_frame_extended_comfort)
    extended = EXTENDED_COMFORT_WEIGHT * np.where(has_neighbour, two_frame_extended_comfort, 0.0)
    return np.asarray((total + extended) / (weight + EXTENDED_COMFORT_WEIGHT * has_neighbour))
