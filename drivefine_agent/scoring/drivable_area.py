"""Drivable area compliance: every corner of the ego stays on the drivable area, from t = 0 on.

Source: pdm-scorer 4.3; NAVSIM v1.1, PDMScorer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.scoring.types import FloatArray


def drivable_area_compliance(non_drivable: NDArray[np.bool_]) -> FloatArray:
    """(P,) 0 where a state of (P, S) `non_drivable` is set, else 1."""
    return np.where(non_drivable.any(axis=-1), 0.0, 1.0)
