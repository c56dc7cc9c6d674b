"""Traffic lights: green, yellow and all-red, and requests by which a drive meets red or green."""

from __future__ import annotations

import numpy as np

from drivefine_agent.synthetic.network import Junction

YELLOW_S = 2.6
ALL_RED_S = 1.2


class Signal:
    """The lights of one junction."""

    def __init__(self, junction: Junction, rng: np.random.Generator) -> None:
        self.junction = junction
        self.rng = rng
        self.phase = int(rng.integers(len(junction.phases)))
        self.stage = "green"
        self.remaining_s = float(rng.uniform(2.0, 10.0))
        self.following: int | None = None
        """Phase asked for next, instead of the cyclic one."""
        self.is_held = False
        """The present green (or, with `following`, the next one) lasts until released."""

    def phase_of(self, arm: int) -> int:
        """The phase in which an arm is green."""
        return next(i for i, arms in enumerate(self.junction.phases) if arm in arms)

    def light(self, arm: int) -> str:
        """`green`, `yellow` or `red` for an incoming arm."""
        if arm not in self.junction.phases[self.phase]:
            return "red"
        return "red" if self.stage == "all_red" else self.stage

    def ask(self, phase: int) -> None:
        """Goes to a phase as soon as yellow and all-red allow, and holds it."""
        self.is_held = True
        if self.phase == phase and self.stage == "green":
            self.following = None
            return
        self.following = phase
        if self.stage == "green":
            self.remaining_s = 0.0

    def release(self) -> None:
        """Back to the normal cycle."""
        self.is_held = False
        self.remaining_s = min(self.remaining_s, float(self.rng.uniform(4.0, 9.0)))

    def advance(self, dt_s: float) -> None:
        """One time step."""
        self.remaining_s -= dt_s
        if self.remaining_s > 0.0 or (self.stage == "green" and self.is_held and self.following is None):
            return
        if self.stage == "green":
            self.stage, self.remaining_s = "yellow", YELLOW_S
        elif self.stage == "yellow":
            self.stage, self.remaining_s = "all_red", ALL_RED_S
        else:
            cyclic = (self.phase + 1) % len(self.junction.phases)
            self.phase = cyclic if self.following is None else self.following
            self.following = None
            self.stage, self.remaining_s = "green", float(self.rng.uniform(7.0, 13.0))
