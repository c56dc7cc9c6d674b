"""EPDMS of two stages (navhard): mapping groups of first- and second-stage samples, and their summary.

NAVSIM's script writes nothing if a single sample of any group failed or is missing. Here such a group is left
out of the three summaries as a whole, and named: a failed follow-up is never counted as 0, and never just
dropped from its group, because the others' weights would then stand for a different question. The samples of
a group that is left out keep their rows; a row whose partner failed has no extended comfort and no score.

Source: pdm-scorer 4.17; NAVSIM v2.2, run_pdm_score.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from drivefine_agent.data.splits import StageGroup
from drivefine_agent.evaluation.one_stage import pair_comfort
from drivefine_agent.evaluation.scored_frames import METRICS_V2, ScoredFrame, frame_table
from drivefine_agent.scoring.frame_pairs import follow_up_weights
from drivefine_agent.scoring.two_stage import GroupValues, StageMeans, stage_means, weighted_mean

GROUP_COLUMNS = ("token", "previous_token", "stage_one", "stage_two", "score")
"""Of the per-group table: means of f and g of both members, and the combined score."""


@dataclass(frozen=True)
class TwoStageResult:
    """Everything that a two-stage evaluation is summed up in."""

    first: pd.DataFrame
    """First-stage rows (`scored_frames.COLUMNS_ONE_STAGE`)."""
    second: pd.DataFrame
    """Second-stage rows, with the same columns."""
    means: StageMeans
    """Over the groups that count, in the columns METRICS_V2."""
    groups: pd.DataFrame
    """GROUP_COLUMNS, one row per group that counts."""
    weights: dict[str, float]
    """Of the second-stage samples in groups that count, by token."""
    left_out: dict[str, str]
    """Reason by first-stage token, of the groups that do not count."""
    outside: tuple[str, ...]
    """Evaluated samples that belong to no group."""

    @property
    def is_complete(self) -> bool:
        """Whether NAVSIM's own script would have come to its end."""
        return not (self.left_out or self.outside) and len(self.groups) > 0


def groups_with_first_stage(groups: Sequence[StageGroup], first_tokens: Sequence[str]) -> list[StageGroup]:
    """The mapping groups of which at least one first-stage member is evaluated, as NAVSIM chooses them."""
    loaded = set(first_tokens)
    return [group for group in groups if group.token in loaded or group.previous_token in loaded]


def group_comfort(groups: Sequence[StageGroup], frames: Mapping[str, ScoredFrame]) -> dict[str, float]:
    """Extended comfort by token: both members of a pair get that of the later after the earlier.

    Raises:
      DataError: a pair that does not start between 0.05 and 0.55 s apart.
    """
    comfort = {}
    for group in groups:
        for now, previous in ((group.token, group.previous_token), *group.pairs):
            if now in frames and previous in frames:
                comfort[now] = comfort[previous] = pair_comfort(frames[now], frames[previous])
    return comfort


def two_stage_result(
    first_tokens: Sequence[str],
    second_tokens: Sequence[str],
    groups: Sequence[StageGroup],
    frames: Mapping[str, ScoredFrame],
    rule: str,
    comfort: Mapping[str, float] | None = None,
) -> TwoStageResult:
    """Rows and summaries of a two-stage evaluation.

    Args:
      first_tokens: evaluated first-stage samples, in the order of the rows.
      second_tokens: the second-stage ones.
      groups: the mapping of the split.
      frames: what was scored, by token; the other tokens failed.
      rule: of the human-penalty filter (acts on the first stage only).
      comfort: of `group_comfort`, if it is there already.
    """
    groups = groups_with_first_stage(groups, first_tokens)
    comfort = group_comfort(groups, frames) if comfort is None else comfort
    evaluated = {*first_tokens, *second_tokens}
    first = frame_table(first_tokens, frames, comfort, rule, needs_comfort=set(first_tokens))
    second = frame_table(second_tokens, frames, comfort, rule, needs_comfort=set(second_tokens))
    rows = pd.concat([first, second])
    values = dict(zip(rows["token"], rows[list(METRICS_V2)].to_numpy(), strict=True))
    left_out: dict[str, str] = {}
    weights: dict[str, float] = {}
    counted: dict[StageGroup, GroupValues] = {}
    for group in groups:
        reason = _why_left_out(group, evaluated, frames)
        if reason is not None:
            left_out[group.token] = reason
            continue
        weights.update(group_weights(group, frames))
        counted[group] = _group_values(group, values, weights)
    grouped = {token for group in groups for token in _members(group)}
    return TwoStageResult(
        first=first,
        second=second,
        means=stage_means(list(counted.values()), len(METRICS_V2)),
        groups=_group_table(counted),
        weights=weights,
        left_out=left_out,
        outside=tuple(token for token in (*first_tokens, *second_tokens) if token not in grouped),
    )


def group_weights(group: StageGroup, frames: Mapping[str, ScoredFrame]) -> dict[str, float]:
    """Weights of a group's second-stage samples by token; those of "now" and of "previous" sum to 1 each."""
    weights: dict[str, float] = {}
    for member, followers in _sides(group):
        starts = [frames[token].start_xy for token in followers]
        side = follow_up_weights(frames[member].endpoint_xy, np.stack(starts))
        weights.update(zip(followers, side.tolist(), strict=True))
    return weights


def navsim_would_say(result: TwoStageResult, num_failed: int) -> list[str]:
    """Sentences on why NAVSIM's own script would have written no CSV for this result; empty if it would."""
    sentences = []
    if result.left_out:
        token, reason = next(iter(result.left_out.items()))
        total = len(result.left_out) + len(result.groups)
        sentences.append(
            f"{num_failed} samples failed, and {len(result.left_out)} of {total} mapping groups are "
            f"incomplete (for example {token}: {reason}): NAVSIM 2.2's script would have written no CSV at "
            f"all; the summaries here are over the {len(result.groups)} complete groups, and nothing is "
            "counted as 0."
        )
    if result.outside:
        sentences.append(
            f"{len(result.outside)} samples belong to no mapping group (for example {result.outside[0]}): "
            "NAVSIM 2.2's script would have written no CSV at all; here they are in no summary."
        )
    return sentences


def _sides(group: StageGroup) -> tuple[tuple[str, list[str]], tuple[str, list[str]]]:
    """(first-stage member, its followers) of "now" and of "previous"."""
    now, previous = (list(side) for side in zip(*group.pairs, strict=True)) if group.pairs else ([], [])
    return (group.token, now), (group.previous_token, previous)


def _members(group: StageGroup) -> list[str]:
    return [group.token, group.previous_token, *(token for pair in group.pairs for token in pair)]


def _why_left_out(group: StageGroup, evaluated: set[str], frames: Mapping[str, ScoredFrame]) -> str | None:
    if not group.pairs:
        return "it has no second-stage samples"
    absent = [token for token in _members(group) if token not in evaluated]
    failed = [token for token in _members(group) if token in evaluated and token not in frames]
    reasons = []
    if absent:
        reasons.append(f"{len(absent)} of its samples are not in the data, first {absent[0]}")
    if failed:
        reasons.append(f"{len(failed)} of its samples failed, first {failed[0]}")
    return "; ".join(reasons) or None


def _group_values(
    group: StageGroup, values: Mapping[str, np.ndarray], weights: Mapping[str, float]
) -> GroupValues:
    (now, now_followers), (previous, previous_followers) = _sides(group)

    def mean(tokens: list[str]) -> np.ndarray:
        return weighted_mean(
            np.stack([values[token] for token in tokens]), [weights[token] for token in tokens]
        )

    return GroupValues(values[now], mean(now_followers), values[previous], mean(previous_followers))


def _group_table(counted: Mapping[StageGroup, GroupValues]) -> pd.DataFrame:
    score = METRICS_V2.index("score")
    rows = [
        (
            group.token,
            group.previous_token,
            (values.first_now[score] + values.first_previous[score]) / 2.0,
            (values.second_now[score] + values.second_previous[score]) / 2.0,
            values.combined[score],
        )
        for group, values in counted.items()
    ]
    return pd.DataFrame(rows, columns=list(GROUP_COLUMNS))
