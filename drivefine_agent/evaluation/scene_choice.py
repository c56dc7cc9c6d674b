"""Which scenes a report shows: chosen by a rule that the report states, not by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

DEFAULT_COUNT = 12
MIN_DISTANCE_M = 10.0
"""The best scenes are looked for where the recorded driver drove this far: standing well is easy."""

WORST, LOST, GAINED, BEST, BETWEEN = "worst", "refinement lost", "refinement gained", "best", "in between"


@dataclass(frozen=True)
class ChosenScene:
    """A scene and the part of the rule that picked it."""

    token: str
    reason: str


def choose_scenes(
    scores: Mapping[str, float],
    scores_before: Mapping[str, float] | None = None,
    distance_m: Mapping[str, float] | None = None,
    count: int = DEFAULT_COUNT,
) -> list[ChosenScene]:
    """At most `count` scenes, good and bad; `describe_rule` says the same in words.

    Args:
      scores: of the shown agent by scene token.
      scores_before: the same before refinement; None if there is no refinement.
      distance_m: how far the recorded driver went in each scene; None counts all as driven.
      count: how many.

    Raises:
      ValueError: if there is no scene to choose from.
    """
    if not scores:
        raise ValueError("scores of a report must be of at least one valid scene, got none")
    chosen: dict[str, str] = {}

    def take(limit: int, reason: str, key: Callable[[str], float], is_allowed: Callable[[str], bool]) -> None:
        candidates = sorted(token for token in scores if token not in chosen and is_allowed(token))
        for token in sorted(candidates, key=key)[:limit]:  # stable: ties go by token
            chosen[token] = reason

    def change(token: str) -> float:
        return (
            scores[token] - scores_before[token]
            if scores_before is not None and token in scores_before
            else 0.0
        )

    def is_driven(token: str) -> bool:
        return distance_m is None or distance_m.get(token, 0.0) >= MIN_DISTANCE_M

    third, sixth = count // 3, count // 6
    take(third, WORST, lambda token: scores[token], lambda token: True)
    take(sixth, LOST, change, lambda token: change(token) < 0.0)
    take(sixth, GAINED, lambda token: -change(token), lambda token: change(token) > 0.0)
    take(sixth, BEST, lambda token: -scores[token], is_driven)
    rest = sorted(
        (token for token in scores if token not in chosen), key=lambda token: (scores[token], token)
    )
    open_places = min(count - len(chosen), len(rest))
    for place in range(open_places):
        chosen[rest[(2 * place + 1) * len(rest) // (2 * open_places)]] = BETWEEN
    order = (BEST, GAINED, BETWEEN, LOST, WORST)
    return [
        ChosenScene(token, reason)
        for token, reason in sorted(
            chosen.items(), key=lambda item: (order.index(item[1]), -scores[item[0]], item[0])
        )
    ]


def describe_rule(has_refinement: bool, count: int = DEFAULT_COUNT) -> str:
    """The rule of `choose_scenes` in one paragraph."""
    third, sixth = count // 3, count // 6
    parts = [f"the {third} lowest scores"]
    if has_refinement:
        parts.append(
            f"up to {sixth} scenes in which refinement lost most and up to {sixth} in which it gained most"
        )
    parts.append(
        f"the {sixth} highest scores among scenes in which the driver went at least {MIN_DISTANCE_M:.0f} m"
    )
    parts.append("and for the remaining places scenes at even steps through the remaining ranks")
    return f"{count} scenes, chosen by rule: " + ", ".join(parts) + ". Ties go by scene token."
