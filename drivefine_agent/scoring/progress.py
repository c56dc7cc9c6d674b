"""Ego progress: metres along the route's centreline, before normalisation.

Source: pdm-scorer 4.6; NAVSIM v1.1, PDMScorer.
"""

from __future__ import annotations

import numpy as np
import shapely

from drivefine_agent.scoring.types import FloatArray


def raw_progress(center: FloatArray, centerline: FloatArray) -> FloatArray:
    """Progress of each proposal along the centreline.

    Args:
      center: (P, S, 2) centre of the ego [m].
      centerline: (N, 2) vertices [m].

    Returns:
      (P,) arc length between the projections of the last and the first centre [m], at least 0.
    """
    line = shapely.linestrings(np.asarray(centerline))
    start = shapely.line_locate_point(line, shapely.points(center[:, 0]))
    end = shapely.line_locate_point(line, shapely.points(center[:, -1]))
    return np.maximum(end - start, 0.0)
