"""One prediction's sub-scores under NAVSIM 2, by themselves and under the rules of the human-penalty filter.

The filter lifts what the recorded driver scored 0 in, to 1. Three rules are in use:

    true    columns and score are lifted (NAVSIM's tag v2.2, since 2025-09-29)
    legacy  columns are lifted, the score is not ("v2.2" as published before that date)
    false   nothing is lifted (second-stage samples always)

Source: pdm-scorer 4.12, 4.14, 4.16 and 6.2; NAVSIM v2.2, pdm_score, run_pdm_score_one_stage.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields

import numpy as np

from drivefine_agent.scoring.aggregate_v2 import weighted_average
from drivefine_agent.scoring.scorer_v2 import HUMAN_FILTERS
from drivefine_agent.scoring.types import HUMAN_FILTERED


@dataclass(frozen=True)
class FrameScores:
    """The eight sub-scores that one prediction has by itself, each in [0, 1]."""

    no_at_fault_collisions: float
    drivable_area_compliance: float
    driving_direction_compliance: float
    traffic_light_compliance: float
    ego_progress: float
    time_to_collision_within_bound: float
    lane_keeping: float
    history_comfort: float

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """NAVSIM's columns, in the order of its CSV."""
        return tuple(f.name for f in fields(cls))

    @classmethod
    def from_mapping(cls, values: Mapping[str, float]) -> FrameScores:
        """From a mapping that has at least the eight names."""
        return cls(**{name: float(values[name]) for name in cls.names()})

    @property
    def multiplier(self) -> float:
        """NC x DAC x DDC x TLC."""
        return (
            self.no_at_fault_collisions
            * self.drivable_area_compliance
            * self.driving_direction_compliance
            * self.traffic_light_compliance
        )

    def lifted(self, human_zeros: Collection[str]) -> FrameScores:
        """These scores after the human-penalty filter.

        Args:
          human_zeros: names of the sub-scores in which the human driver got exactly 0.

        Raises:
          ValueError: a name that the filter cannot act on.
        """
        unknown = set(human_zeros) - set(HUMAN_FILTERED)
        if unknown:
            raise ValueError(f"human_zeros must be among {HUMAN_FILTERED}, got {sorted(unknown)}")
        values = {name: getattr(self, name) for name in self.names()}
        return FrameScores(**{**values, **dict.fromkeys(human_zeros, 1.0)})

    def final_score(self, extended_comfort: float) -> float:
        """EPDMS; the divisor is 16, or 14 where `extended_comfort` is NaN."""
        parts = (
            self.ego_progress,
            self.time_to_collision_within_bound,
            self.lane_keeping,
            self.history_comfort,
            extended_comfort,
        )
        return self.multiplier * float(weighted_average(*(np.asarray(part) for part in parts)))


@dataclass(frozen=True)
class FilteredScores:
    """The sub-scores of a prediction under one of the filter rules."""

    shown: FrameScores
    """What the columns say."""
    counted: FrameScores
    """What the score is made of: the same, but under the rule `legacy`."""


def under_filter_rule(scores: FrameScores, human_zeros: Collection[str], rule: str) -> FilteredScores:
    """Unfiltered sub-scores of one prediction, seen under a filter rule.

    Args:
      scores: without any filter.
      human_zeros: sub-scores in which the human driver got 0; empty for second-stage samples.
      rule: one of HUMAN_FILTERS.

    Raises:
      ValueError: an unknown rule, or a name that the filter cannot act on.
    """
    if rule not in HUMAN_FILTERS:
        raise ValueError(f"human_penalty_filter must be one of {HUMAN_FILTERS}, got {rule!r}")
    lifted = scores.lifted(human_zeros)
    if rule == "true":
        return FilteredScores(lifted, lifted)
    return FilteredScores(lifted if rule == "legacy" else scores, scores)
