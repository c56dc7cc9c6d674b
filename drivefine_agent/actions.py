"""The action vocabulary: which values a token can stand for, and which of the 24 answer slots uses which.

    action ids   0 .. 3999   x or y of a pose [m], one table for both axes
              4000 .. 5799   heading of a pose [degrees]
    slots        3k, 3k+1, 3k+2   x, y, heading of pose k

An action id is what the tokenizer, masking, decoding and the losses speak; the language model's own
vocabulary lies below it (`DriveFineConfig.base_vocab_size`), and only the model knows that. `MASKED` marks a
slot not yet filled in.
"""

from __future__ import annotations

from dataclasses import dataclass

from drivefine_agent.constants import NUM_POSE_FIELDS, NUM_POSES

MASKED = -1
"""In place of an action id: this slot holds the mask token."""


@dataclass(frozen=True)
class ValueGrid:
    """Equally spaced values `minimum + step * i`, i = 0 .. num_bins - 1, with zero exactly on the grid."""

    minimum: float
    step: float
    num_bins: int
    is_periodic: bool = False
    """Whether the bin after the last one is the first (a full circle of headings)."""

    def __post_init__(self) -> None:
        zero = -self.minimum / self.step if self.step > 0 else -1.0
        if self.num_bins < 2 or abs(zero - round(zero)) > 1e-6 or not 0 <= round(zero) < self.num_bins:
            raise ValueError(f"a grid needs step > 0, at least 2 bins and a bin at exactly zero, got {self}")

    @property
    def zero_index(self) -> int:
        """The bin of the value 0."""
        return round(-self.minimum / self.step)


@dataclass(frozen=True)
class ActionSpec:
    """Both tables and the layout of the answer; by default the paper's 4000 x 0.05 m, 1800 x 0.1 degrees."""

    spatial_m: ValueGrid = ValueGrid(-100.0, 0.05, 4000)
    heading_deg: ValueGrid = ValueGrid(-90.0, 0.1, 1800)
    num_poses: int = NUM_POSES

    @classmethod
    def full_circle(cls) -> ActionSpec:
        """3600 heading bins over [-180, 180) degrees: no heading is ever clipped. Not the paper's table."""
        return cls(heading_deg=ValueGrid(-180.0, 0.1, 3600, is_periodic=True))

    @property
    def answer_length(self) -> int:
        """Number of slots of an answer."""
        return self.num_poses * NUM_POSE_FIELDS

    @property
    def heading_offset(self) -> int:
        """The first heading id."""
        return self.spatial_m.num_bins

    @property
    def num_actions(self) -> int:
        """Size of the action vocabulary."""
        return self.spatial_m.num_bins + self.heading_deg.num_bins
