"""Traffic light compliance: no part of the ego touches a lane connector of the route while it is red.

There is no exemption for standing in it from the start, nor for entering before the light changed.

Shape letters: P proposals, S = 41 simulated states, L lane connectors.
Source: pdm-scorer 2.8 and 4.5; NAVSIM v2.2, PDMScorer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from drivefine_agent.scoring.types import FloatArray


@dataclass(frozen=True)
class RedLights:
    """The lane connectors that are red at some time."""

    polygons: NDArray[np.object_]
    """(L,) shapely polygons, global."""
    is_red: NDArray[np.bool_]
    """(T, L) at each sample of 0.1 s."""

    @classmethod
    def none(cls, num_samples: int) -> RedLights:
        """No light is ever red."""
        return cls(np.zeros(0, dtype=object), np.zeros((num_samples, 0), dtype=bool))

    @classmethod
    def always(cls, polygons: Sequence[shapely.Polygon], num_samples: int) -> RedLights:
        """Lights that stay red, as the reference planner believes."""
        array = np.empty(len(polygons), dtype=object)
        array[:] = polygons
        return cls(array, np.ones((num_samples, len(polygons)), dtype=bool))


def traffic_light_compliance(corners: FloatArray, lights: RedLights) -> FloatArray:
    """Compliance of each proposal.

    Args:
      corners: (P, S, 4, 2) corners of the ego [m], global.
      lights: with at least S samples.

    Returns:
      (P,) 0 where the ego touches a red connector in any state, else 1.
    """
    score = np.ones(len(corners))
    score[red_light_contacts(corners, lights)[:, 0]] = 0.0
    return score


def red_light_contacts(corners: FloatArray, lights: RedLights) -> NDArray[np.int64]:
    """(C, 3) proposal, state and light wherever the ego touches a red connector; arguments as above."""
    if not len(lights.polygons) or not len(corners):
        return np.zeros((0, 3), dtype=np.int64)
    low, high = corners.min(axis=2), corners.max(axis=2)  # (P, S, 2)
    bounds = shapely.bounds(lights.polygons)  # (L, 4)
    near = (bounds[:, 0] <= high[..., None, 0]) & (bounds[:, 2] >= low[..., None, 0])
    near &= (bounds[:, 1] <= high[..., None, 1]) & (bounds[:, 3] >= low[..., None, 1])
    p, t, light = np.nonzero(near & lights.is_red[: corners.shape[1]])
    touches = shapely.intersects(shapely.polygons(corners[p, t]), lights.polygons[light])
    return np.stack([p, t, light], axis=1)[touches]
