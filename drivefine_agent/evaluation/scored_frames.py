"""A prediction scored under NAVSIM 2.2, what links it to its neighbours, and its row of a result table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from drivefine_agent.data.types import SceneWindow
from drivefine_agent.evaluation.outcomes import StageOutcome
from drivefine_agent.scoring.frame_scores import FrameScores, under_filter_rule
from drivefine_agent.scoring.types import HUMAN_FILTERED, FloatArray

EXTENDED_COMFORT = "two_frame_extended_comfort"
SUB_SCORES_V2 = (*FrameScores.names(), EXTENDED_COMFORT)
"""The nine sub-score columns in the order of NAVSIM 2.2's CSVs."""
METRICS_V2 = (*SUB_SCORES_V2, "score")
COLUMNS_ONE_STAGE = ("token", "valid", *METRICS_V2)


@dataclass(frozen=True)
class ScoredFrame:
    """One prediction, scored without extended comfort and without the human-penalty filter."""

    token: str
    log_name: str
    timestamp_us: int
    is_second_stage: bool
    scores: FrameScores
    human_zeros: tuple[str, ...]
    """Sub-scores in which the human driver got 0 in the same traffic; none in second-stage samples."""
    motion: FloatArray
    """(2, 41) of the simulated states, for extended comfort (`extended_comfort.motion_of`)."""
    start_xy: FloatArray
    """(2,) global rear axle at t = 0 [m]."""
    endpoint_xy: FloatArray
    """(2,) global position of the predicted pose at 4 s [m]."""

    def __post_init__(self) -> None:
        if self.is_second_stage and self.human_zeros:
            raise ValueError(
                "human_zeros must be empty in the second stage, where no human drove, got "
                f"{self.human_zeros} for sample {self.token!r}"
            )


def scored_frame(window: SceneWindow, stage: StageOutcome) -> ScoredFrame | None:
    """A scored trajectory of a scene (`score.score_stages_v2`); None where it failed."""
    if stage.error is not None or stage.scores is None or stage.details is None:
        return None
    is_second_stage = window.second_stage is not None
    flags = [0.0] * len(HUMAN_FILTERED) if is_second_stage else stage.details["human_zeros"]
    zeros = [name for name, flag in zip(HUMAN_FILTERED, flags, strict=True) if flag]
    return ScoredFrame(
        token=window.token,
        log_name=window.log_name,
        timestamp_us=window.current.timestamp_us,
        is_second_stage=is_second_stage,
        scores=FrameScores.from_mapping(stage.scores),
        human_zeros=tuple(zeros),
        motion=np.array(stage.details["motion"]).reshape(2, -1),
        start_xy=np.array(stage.details["start_xy"]),
        endpoint_xy=np.array(stage.details["endpoint_xy"]),
    )


def frame_table(
    tokens: Sequence[str],
    frames: Mapping[str, ScoredFrame],
    comfort: Mapping[str, float],
    rule: str,
    needs_comfort: Collection[str] = (),
) -> pd.DataFrame:
    """One row per token under a filter rule.

    Args:
      tokens: of the rows, in order.
      frames: what was scored; a token that is missing here failed: `valid` is False, its metrics are NaN.
      comfort: extended comfort by token; NaN (and the divisor 14) where it is missing.
      rule: of the human-penalty filter.
      needs_comfort: tokens that have no score without extended comfort.

    Returns:
      The columns COLUMNS_ONE_STAGE.
    """
    values = np.full((len(tokens), len(METRICS_V2)), np.nan)
    for row, token in enumerate(tokens):
        if token not in frames:
            continue
        frame = frames[token]
        scores = under_filter_rule(frame.scores, frame.human_zeros, rule)
        extended = comfort.get(token, np.nan)
        has_score = token not in needs_comfort or not np.isnan(extended)
        values[row] = [
            *(getattr(scores.shown, name) for name in FrameScores.names()),
            extended,
            scores.counted.final_score(extended) if has_score else np.nan,
        ]
    table = pd.DataFrame(values, columns=list(METRICS_V2))
    table.insert(0, "token", pd.Series(list(tokens), dtype="object"))
    table.insert(1, "valid", pd.Series([token in frames for token in tokens], dtype="bool"))
    return table
