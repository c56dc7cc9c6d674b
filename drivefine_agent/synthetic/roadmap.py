"""A network prepared for driving: lines with speeds, conflicts, merges, crossing points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drivefine_agent.synthetic.lanes import FloatArray, Path, gaussian_smooth
from drivefine_agent.synthetic.network import Network, Segment
from drivefine_agent.synthetic.scenery import Scenery, driving_line

LATERAL_ACCELERATION_MPS2 = 2.0
"""Vehicles take curves at this lateral acceleration at most."""
APPROACH_DECELERATION_MPS2 = 1.2
"""Vehicles slow down for curves at this rate."""
CONFLICT_DISTANCE_M = 2.9
"""Connectors that come nearer than this cannot be used at the same time."""


@dataclass(frozen=True)
class CrossingPoint:
    """Where a segment meets a pedestrian crossing."""

    crossing: int
    """Index in Network.crossings."""
    entry_m: float
    """Arc length on the segment's line where the crossing begins."""
    along_m: float
    """Distance of the meeting point from the crossing's start."""


@dataclass(frozen=True)
class Line:
    """A segment's driving line and the speed it allows."""

    segment: Segment
    path: Path
    allowed_speed: FloatArray
    """(N,) speed that later curves of this line still allow, at the vertices [m/s]."""

    def speed_at(self, s: float) -> float:
        """Allowed speed at an arc length."""
        return float(np.interp(s, self.path.s, self.allowed_speed))


def curve_speed(path: Path, limit_mps: float) -> FloatArray:
    """(N,) speed allowed at each vertex by limit and curvature, with a gentle approach to later curves."""
    curvature = np.abs(gaussian_smooth(path.curvature, 1.5))
    speed = np.minimum(limit_mps, np.sqrt(LATERAL_ACCELERATION_MPS2 / np.maximum(curvature, 1e-4)))
    speed = np.maximum(speed, 2.5)
    squares = speed**2
    steps = 2.0 * APPROACH_DECELERATION_MPS2 * np.diff(path.s)
    for i in range(len(squares) - 2, -1, -1):
        squares[i] = min(squares[i], squares[i + 1] + steps[i])
    return np.sqrt(squares)


class Roadmap:
    """Lookup tables of one neighbourhood."""

    def __init__(self, network: Network, scenery: Scenery) -> None:
        self.network = network
        self.lines: dict[int, Line] = {}
        for segment in network.segments.values():
            path = driving_line(segment, scenery.shifts)
            self.lines[segment.id] = Line(segment, path, curve_speed(path, segment.speed_limit_mps))
        self.successors = {i: network.successors(i) for i in network.segments}
        self.conflicts = {i: self._conflicts_of(s) for i, s in network.segments.items() if s.is_connector}
        self.siblings = {
            i: [j for j in network.outgoing()[s.source] if j != i]
            for i, s in network.segments.items()
            if s.is_connector
        }
        self.merges = {
            i: [
                j
                for j in network.incoming()[s.target]
                if j != i and network.junctions[s.junction].kind == "joint"
            ]
            for i, s in network.segments.items()
            if s.is_connector
        }
        self.shared = self._shared(scenery)
        self.crossing_points: dict[int, list[CrossingPoint]] = self._crossing_points()

    def length(self, segment: int) -> float:
        """Length of a segment's driving line [m]."""
        return self.lines[segment].path.length

    def _conflicts_of(self, segment: Segment) -> frozenset[int]:
        """Connectors of the same junction (not a joint) that cross or merge with a connector."""
        junction = self.network.junctions[segment.junction]
        if junction.kind == "joint":
            return frozenset()
        mine = segment.path.xy
        found = []
        for other_id in junction.connectors:
            other = self.network.segments[other_id]
            if other_id == segment.id or other.source == segment.source:
                continue
            gaps = ((mine[:, None, :] - other.path.xy[None, :, :]) ** 2).sum(-1)
            if gaps.min() < CONFLICT_DISTANCE_M**2:
                found.append(other_id)
        return frozenset(found)

    def _shared(self, scenery: Scenery) -> dict[int, list[tuple[int, float, float]]]:
        """Lane -> (other lane, from, to) where a closure makes two lanes use the same ground."""
        table: dict[int, list[tuple[int, float, float]]] = {}
        for shift in scenery.shifts:
            if not shift.closes_lane:
                continue
            lane = self.network.segments[shift.lane]
            road = self.network.roads[lane.road]
            lanes = road.forward if lane.is_forward else road.backward
            other = lanes[lane.index + (-1 if shift.shift_m > 0 else 1)]
            span = (shift.start_m - shift.transition_m - 8.0, shift.end_m + shift.transition_m)
            table.setdefault(lane.id, []).append((other, *span))
            table.setdefault(other, []).append((lane.id, *span))
        return table

    def _crossing_points(self) -> dict[int, list[CrossingPoint]]:
        """Segment -> its crossing points in driving order."""
        ids = list(self.lines)
        counts = [len(self.lines[i].path.xy) for i in ids]
        vertices = np.vstack([self.lines[i].path.xy for i in ids])
        owner = np.repeat(np.arange(len(ids)), counts)
        first = np.concatenate([[0], np.cumsum(counts)])
        table: dict[int, list[CrossingPoint]] = {}
        for index, crossing in enumerate(self.network.crossings):
            delta = vertices - crossing.start
            along = delta @ crossing.direction
            across = delta @ np.array([-crossing.direction[1], crossing.direction[0]])
            inside = (
                (np.abs(across) < 0.5 * crossing.width_m + 0.5) & (along > 0) & (along < crossing.length_m)
            )
            for position in np.unique(owner[inside]):
                hits = np.flatnonzero(inside & (owner == position))
                line = self.lines[ids[position]]
                point = CrossingPoint(
                    index, float(line.path.s[hits[0] - first[position]]), float(along[hits].mean())
                )
                table.setdefault(ids[position], []).append(point)
        for points in table.values():
            points.sort(key=lambda p: p.entry_m)
        return table
