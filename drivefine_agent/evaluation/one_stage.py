"""EPDMS of one stage: every frame by itself, and its comfort beside the frame before.

NAVSIM's script writes nothing if a single frame failed. Here a failed frame is a row that is not valid; the
frame after it has no predecessor then (its divisor is 14 instead of 16), and `navsim_would_say` tells.

Source: pdm-scorer 4.16; NAVSIM v2.2, run_pdm_score_one_stage.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from drivefine_agent.evaluation.scored_frames import ScoredFrame
from drivefine_agent.scoring.extended_comfort import extended_comfort
from drivefine_agent.scoring.frame_pairs import adjacent_pairs, start_seconds


def one_stage_comfort(frames: Iterable[ScoredFrame]) -> dict[str, float]:
    """Extended comfort of the frames that have a predecessor, by token.

    Raises:
      DataError: two frames of a log are less than 0.05 s or exactly 0.55 s apart.
    """
    by_token = {frame.token: frame for frame in frames if not frame.is_second_stage}
    pairs = adjacent_pairs((frame.token, frame.log_name, frame.timestamp_us) for frame in by_token.values())
    return {token: pair_comfort(by_token[token], by_token[previous]) for token, previous in pairs.items()}


def pair_comfort(current: ScoredFrame, previous: ScoredFrame) -> float:
    """Extended comfort of a frame and the one before it; see `extended_comfort` for what raises."""
    interval_s = start_seconds(current.timestamp_us) - start_seconds(previous.timestamp_us)
    return extended_comfort(current.motion, previous.motion, interval_s)


def navsim_would_say(table: pd.DataFrame) -> list[str]:
    """Sentences on where NAVSIM's own script would have written no CSV for these rows; empty if nowhere."""
    sentences = []
    failed = list(table.loc[~table["valid"], "token"])
    if failed:
        sentences.append(
            f"{len(failed)} of {len(table)} scenes failed ({_some(failed)}): NAVSIM 2.2's script would have "
            "written no CSV at all; the averages here are over the other scenes, and a frame that follows a "
            "failed one is scored without extended comfort (divisor 14)."
        )
    if table["two_frame_extended_comfort"].isna().all():
        sentences.append(
            "no two frames of a log are at most 0.55 s apart: NAVSIM 2.2's script would have written no CSV "
            "at all; here every scene is scored without extended comfort (divisor 14)."
        )
    return sentences


def _some(tokens: Sequence[str], limit: int = 3) -> str:
    """The first few names."""
    more = f" and {len(tokens) - limit} more" if len(tokens) > limit else ""
    return ", ".join(tokens[:limit]) + more
