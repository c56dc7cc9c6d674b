"""The sub-scores in words, and which of them multiply the score."""

from __future__ import annotations

RULE_TEXTS = {
    "no_at_fault_collisions": "no at-fault collision",
    "drivable_area_compliance": "drivable area compliance",
    "driving_direction_compliance": "driving direction compliance",
    "traffic_light_compliance": "traffic light compliance",
    "time_to_collision_within_bound": "time to collision within bound",
    "comfort": "comfort",
    "ego_progress": "ego progress",
    "lane_keeping": "lane keeping",
    "history_comfort": "history comfort",
    "two_frame_extended_comfort": "extended comfort",
    "score": "score",
}
WITHOUT_WEIGHT = "driving_direction_compliance"
"""In NAVSIM 1.1: it is scored there, and costs nothing."""
_MULTIPLIED = {
    "navsim_v1": ("no_at_fault_collisions", "drivable_area_compliance"),
    "navsim_v2": (
        "no_at_fault_collisions",
        "drivable_area_compliance",
        "driving_direction_compliance",
        "traffic_light_compliance",
    ),
}
SCORE_FORMULAS = {
    "navsim_v1": "NC · DAC · (5 EP + 5 TTC + 2 C) / 12",
    "navsim_v2": "NC · DAC · DDC · TLC · (5 EP + 5 TTC + 2 LK + 2 HC + 2 EC) / 16",
}


def score_formula(benchmark: str) -> str:
    """How a scene's score follows from its sub-scores."""
    return SCORE_FORMULAS["navsim_v1" if benchmark == "navsim_v1" else "navsim_v2"]


def is_multiplied(rule: str, benchmark: str) -> bool:
    """Whether a sub-score of 0 makes the whole score 0."""
    return rule in _MULTIPLIED["navsim_v1" if benchmark == "navsim_v1" else "navsim_v2"]
