"""What the reactive vehicles and the ego occupy, and which of it is next ahead.

Geometries are made only when somebody comes near: most vehicles drive alone.
Source: pdm-scorer 4.13; nuplan-devkit, occupancy_map/strtree_occupancy_map.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from drivefine_agent.errors import TrafficError
from drivefine_agent.scoring.reactive_paths import (
    bounds_of,
    inner_distance,
    is_beside,
    lines_within,
    may_touch,
)
from drivefine_agent.scoring.types import FloatArray

SIMPLIFY_TOLERANCE_M = 1e-5
TIE_TOLERANCE_M = 1e-9
MARGIN_M = 1e-3
SURE_MARGIN_M = 0.1  # more than what GEOS cuts off a widened line: 1 % of the width
EGO_TOKEN = "ego"

MAX_KEPT = 4096  # geometries of a scene, some kilobytes each

Geometry = Any  # a shapely geometry
Stages = tuple[tuple[Geometry, ...], bool]
"""A geometry as made, simplified once, twice, ...; and whether the last is equal to the one before."""
Kept = dict[tuple[int, bytes], Stages]
"""Stages by agent and line: most vehicles drive alike whatever the ego does."""


class Occupancy:
    """Entries 0 ... A - 1 for the agents and A for the ego, each a geometry around a line.

    NAVSIM simplifies every geometry before each agent's turn, again and again. `next_turn` only counts, and
    the passes are made up for when a geometry is looked at; the first one that changes nothing is the last.
    What stands still keeps its geometries, and roll-outs of the same agents share them through `kept`.
    """

    def __init__(self, tokens: Sequence[str], kept: Kept | None = None) -> None:
        self._kept: Kept = {} if kept is None else kept
        self._tokens = (*tokens, EGO_TOKEN)
        size = len(self._tokens)
        self._bounds: FloatArray = np.full((size, 4), np.inf)
        self._line: list[FloatArray] = [np.zeros((0, 2))] * size
        self._half_width = [0.0] * size
        self._make: list[Callable[[], Geometry] | None] = [None] * size
        self._stages: list[Stages] = [((), False)] * size
        self._corridor: list[tuple[FloatArray, Geometry] | None] = [None] * size
        self._set_at = [0] * size  # in which turn the entry was set
        self._turn = 0

    def set(self, entry: int, line: FloatArray, half_width: float, make: Callable[[], Geometry]) -> None:
        """Replace an entry by a geometry that will be made when needed.

        Args:
          entry: index.
          line: (m, 2) an axis of two points, then maybe a stretch of a path, both within the geometry. Every
            point of the geometry is within half_width of one of them; the same line means the same geometry.
          half_width: [m].
          make: makes the geometry.
        """
        self._set_at[entry] = self._turn
        if np.array_equal(line, self._line[entry]):
            return
        self._bounds[entry] = bounds_of(line, half_width + MARGIN_M)
        self._line[entry] = line
        self._half_width[entry] = half_width
        self._make[entry] = make
        self._stages[entry] = (), False

    def remove(self, entry: int) -> None:
        """Nothing touches the entry any more."""
        self._bounds[entry] = np.inf
        self._make[entry] = None

    def next_turn(self) -> None:
        """The next agent looks around: every geometry is simplified once more."""
        self._turn += 1

    def touches_own(self, agent: int, line: FloatArray, half_width: float) -> bool:
        """Whether the agent's corridor, the line (m, 2) widened, touches its own geometry."""
        return bool(shapely.intersects(self._simplified(agent), self._widened(agent, line, half_width)))

    def nearest_ahead(
        self, agent: int, line: FloatArray, half_width: float, least_gap: float
    ) -> tuple[int, float] | None:
        """The entry nearest to an agent's geometry of those that touch its corridor, and the gap [m].

        Args:
          agent: index.
          line: (m, 2) of the corridor.
          half_width: of the corridor [m].
          least_gap: gaps up to this one make no difference [m]; the one returned then is any of them.

        Returns:
          None where the corridor touches only the agent itself.

        Raises:
          TrafficError: all that is ahead goes unseen, since its token is a part of the agent's token.
        """
        near = [
            entry
            for entry in np.flatnonzero(may_touch(line, half_width + MARGIN_M, self._bounds)).tolist()
            if entry != agent
            and lines_within(line, self._line[entry], half_width + self._half_width[entry] + MARGIN_M)
        ]
        if not near:
            return None
        near, sure, distance = self._without_distant(agent, line, half_width, near)
        if len(near) == 1 and sure and distance + MARGIN_M <= least_gap:
            return near[0], least_gap
        ahead = near
        if len(sure) < len(near):
            corridor = self._widened(agent, line, half_width)
            ahead = [
                entry
                for entry in near
                if entry in sure or shapely.intersects(self._simplified(entry), corridor)
            ]
        if not ahead:
            return None
        # nuPlan means to leave out the agent itself, and leaves out every token that its token contains
        seen = [entry for entry in ahead if self._tokens[entry] not in self._tokens[agent]]
        if not seen:
            raise TrafficError(
                f"what is ahead of the vehicle '{self._tokens[agent]}' goes unseen, as that token contains"
                f" '{self._tokens[ahead[0]]}': NAVSIM fails such a token too; rename the track in the log"
            )
        own = self._simplified(agent)
        nearest = seen[0]
        if len(seen) > 1:
            distances = shapely.distance(own, _array([self._simplified(entry) for entry in seen]))
            nearest = seen[int(np.argmin(distances))]
            if np.sum(distances <= np.min(distances) + TIE_TOLERANCE_M) > 1:
                nearest = self._nearest_of_tied(agent, own, self._widened(agent, line, half_width))
        gap = shapely.length(shapely.shortest_line(own, self._simplified(nearest)))
        return nearest, float(gap)

    def _without_distant(
        self, agent: int, line: FloatArray, half_width: float, near: list[int]
    ) -> tuple[list[int], frozenset[int], float]:
        """Leaves out entries that cannot be the nearest, by the distances of lines alone.

        Returns:
          The entries left; which of them are seen and surely touch the corridor, their centre being in it;
          the least distance of the lines of those, which the gap exceeds by MARGIN_M at most [m].
        """
        sure = frozenset(
            entry
            for entry in near
            if is_beside(line, half_width - SURE_MARGIN_M, self._line[entry])
            and self._tokens[entry] not in self._tokens[agent]
        )
        if not sure:
            return near, sure, np.inf
        own = self._line[agent]
        distances = [inner_distance(own, self._line[entry]) for entry in near]
        limit = min(d for d, entry in zip(distances, near, strict=True) if entry in sure)
        reach = limit + self._half_width[agent] + 2 * MARGIN_M
        left = [
            entry for d, entry in zip(distances, near, strict=True) if d <= reach + self._half_width[entry]
        ]
        return left, sure & frozenset(left), limit

    def _nearest_of_tied(self, agent: int, own: Geometry, corridor: Geometry) -> int:
        """Of entries at the same distance, the one that GEOS's tree finds; the tree decides by its layout."""
        entries = [entry for entry, make in enumerate(self._make) if make is not None]
        geometries = _array([self._simplified(entry) for entry in entries])
        hits = shapely.STRtree(geometries).query(corridor)
        ahead = [entries[hit] for hit in hits if shapely.intersects(geometries[hit], corridor)]
        seen = [entry for entry in ahead if self._tokens[entry] not in self._tokens[agent]]
        tree = shapely.STRtree(_array([self._simplified(entry) for entry in seen]))
        return seen[int(tree.nearest(own))]

    def _widened(self, agent: int, line: FloatArray, half_width: float) -> Geometry:
        last = self._corridor[agent]
        if last is None or not np.array_equal(line, last[0]):
            last = line, widened(line, half_width)
            self._corridor[agent] = last
        return last[1]

    def _simplified(self, entry: int) -> Geometry:
        due = self._turn - self._set_at[entry]
        stages, is_simple = self._stages[entry]
        if len(stages) > due or is_simple:
            return stages[min(due, len(stages) - 1)]
        key = entry, self._line[entry].tobytes()
        if not stages:
            stages, is_simple = self._kept.get(key, ((), False))
        if not stages:
            make = self._make[entry]
            assert make is not None
            stages = (make(),)
        while len(stages) <= due and not is_simple:
            after = stages[-1].simplify(SIMPLIFY_TOLERANCE_M, preserve_topology=True)
            is_simple = bool(shapely.get_num_coordinates(stages[-1]) == shapely.get_num_coordinates(after))
            stages = (*stages, after)
        self._stages[entry] = stages, is_simple
        is_ego = entry == len(self._tokens) - 1
        if not is_ego and (key in self._kept or len(self._kept) < MAX_KEPT):
            self._kept[key] = stages, is_simple
        return stages[min(due, len(stages) - 1)]


def widened(line: FloatArray, half_width: float) -> shapely.Polygon:
    """A line (m, 2) widened to both sides, cut off square at its ends, as nuPlan widens it."""
    return shapely.buffer(shapely.linestrings(line), half_width, quad_segs=16, cap_style="flat")


def _array(geometries: list[Geometry]) -> NDArray[np.object_]:
    array = np.empty(len(geometries), dtype=object)
    array[:] = geometries
    return array
