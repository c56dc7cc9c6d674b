"""What a road network is: roads, lanes, connectors, junctions and crossings, with nuPlan's topology.

A *road* carries lanes of both directions beside one reference line. Its forward lanes form one lane group
(roadblock), its backward lanes another. Roads end at *junctions*, where lane connectors, gathered into
lane-group connectors, lead from incoming to outgoing lanes inside one intersection polygon. A junction may
be a crossing with lights or stop lines, or a mere *joint* where lanes end, merge or begin. Traffic keeps to
the right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from drivefine_agent.synthetic.lanes import FloatArray, Path, left_of, strip, unit

JunctionKind = Literal["signal", "all_way_stop", "yield", "joint"]
Turn = Literal["left", "straight", "right"]

SHOULDER_M = 0.6
"""Paved strip between the lanes and the kerb; part of the roadblock."""
PARKING_WIDTH_M = 2.5
WALKWAY_WIDTH_M = 2.2
PARKING_MARGIN_M = 14.0
"""Parking strips keep this distance from both ends of a road [m]."""


@dataclass(frozen=True)
class RoadSpec:
    """Cross-section of a road."""

    num_forward: int
    num_backward: int
    lane_width_m: float
    speed_limit_mps: float
    parking_left: bool = False
    parking_right: bool = False
    walkway_left: bool = True
    walkway_right: bool = True

    @property
    def left_width_m(self) -> float:
        """Reference line to the left edge of the lanes."""
        return self.num_backward * self.lane_width_m

    @property
    def right_width_m(self) -> float:
        """Reference line to the right edge of the lanes."""
        return self.num_forward * self.lane_width_m

    def kerb_m(self, side: int) -> float:
        """Reference line to the kerb on a side (+1 left, -1 right), parking strip included."""
        lanes = self.left_width_m if side > 0 else self.right_width_m
        has_strip = self.parking_left if side > 0 else self.parking_right
        return lanes + (PARKING_WIDTH_M if has_strip else SHOULDER_M)


@dataclass(frozen=True)
class Segment:
    """A lane or a lane connector: what a vehicle follows."""

    id: int
    is_connector: bool
    block: int
    """Id of its roadblock or roadblock connector."""
    path: Path
    half_width: FloatArray
    """(N,) at the vertices of `path` [m]."""
    speed_limit_mps: float
    road: int = -1
    """Index of the road (lanes)."""
    index: int = 0
    """Lane index, 0 = leftmost in driving direction (lanes)."""
    is_forward: bool = True
    junction: int = -1
    """Index of the junction (connectors)."""
    source: int = -1
    target: int = -1
    turn: Turn = "straight"
    arm: int = -1
    """Incoming arm of the junction (connectors)."""
    target_arm: int = -1

    def polygon(self) -> FloatArray:
        """(M, 2) ring of the segment's surface."""
        return strip(self.path.offset(self.half_width).xy, self.path.offset(-self.half_width).xy)


@dataclass(frozen=True)
class Block:
    """A roadblock (lane group) or roadblock connector (lane-group connector)."""

    id: int
    is_connector: bool
    segments: tuple[int, ...]
    source: int = -1
    target: int = -1
    junction: int = -1


@dataclass(frozen=True)
class Road:
    """A stretch of road between two junctions, or from a junction to the border of the neighbourhood."""

    spec: RoadSpec
    reference: Path
    """Line between the two directions; forward lanes run along it, on its right."""
    forward: tuple[int, ...]
    backward: tuple[int, ...]
    """Lane ids, leftmost in driving direction first."""

    def edge(self, side: int, extra_m: float = 0.0) -> FloatArray:
        """(N, 2) border of the lanes on a side (+1 left, -1 right), `extra_m` further out."""
        width = self.spec.left_width_m if side > 0 else self.spec.right_width_m
        return self.reference.offset(side * (width + extra_m)).xy

    def band(
        self, inner_m: float, outer_m: float, start_m: float = 0.0, end_m: float | None = None
    ) -> FloatArray:
        """(M, 2) ring between two signed offsets (left positive) from arc length `start_m` to `end_m`."""
        last = self.reference.length if end_m is None else end_m
        keep = (self.reference.s >= start_m - 1e-9) & (self.reference.s <= last + 1e-9)
        high, low = max(inner_m, outer_m), min(inner_m, outer_m)
        return strip(self.reference.offset(high).xy[keep], self.reference.offset(low).xy[keep])


@dataclass(frozen=True)
class Arm:
    """One road's mouth at a junction, seen outwards from the junction."""

    road: int
    at_end: bool
    """The road's reference line ends here (its forward lanes come in)."""
    position: FloatArray
    """(2,) end of the reference line."""
    heading: float
    """Outwards."""
    num_in: int
    num_out: int
    lane_width_m: float

    @property
    def left(self) -> FloatArray:
        """(2,) kerb corner on the side of the incoming lanes."""
        return self.position + (self.num_in * self.lane_width_m + SHOULDER_M) * left_of(self.heading)

    @property
    def right(self) -> FloatArray:
        """(2,) kerb corner on the side of the outgoing lanes."""
        return self.position - (self.num_out * self.lane_width_m + SHOULDER_M) * left_of(self.heading)


@dataclass(frozen=True)
class Junction:
    """Where roads meet."""

    id: int
    kind: JunctionKind
    center: FloatArray
    arms: tuple[Arm, ...]
    polygon: FloatArray
    """(M, 2) ring of the paved surface."""
    connectors: tuple[int, ...]
    stop_arms: tuple[int, ...] = ()
    """Arms whose incoming traffic must stop first."""
    yield_arms: tuple[int, ...] = ()
    """Arms whose incoming traffic gives way to the others."""
    phases: tuple[tuple[int, ...], ...] = ()
    """Signal phases: the arms that are green together."""


@dataclass(frozen=True)
class Crossing:
    """A straight way for pedestrians over a road."""

    id: int
    start: FloatArray
    end: FloatArray
    width_m: float
    is_marked: bool
    junction: int = -1
    arm: int = -1

    @property
    def length_m(self) -> float:
        """Kerb to kerb."""
        return float(np.hypot(*(self.end - self.start)))

    @property
    def direction(self) -> FloatArray:
        """(2,) unit vector from start to end."""
        return (self.end - self.start) / self.length_m

    def polygon(self) -> FloatArray:
        """(4, 2) ring of the marked area."""
        across = 0.5 * self.width_m * np.array([-self.direction[1], self.direction[0]])
        return np.array([self.start + across, self.start - across, self.end - across, self.end + across])


@dataclass
class Network:
    """A neighbourhood's roads, in local coordinates."""

    roads: list[Road] = field(default_factory=list)
    junctions: list[Junction] = field(default_factory=list)
    segments: dict[int, Segment] = field(default_factory=dict)
    blocks: dict[int, Block] = field(default_factory=dict)
    crossings: list[Crossing] = field(default_factory=list)
    route_roads: list[int] = field(default_factory=list)
    """The ego's drive: roads, all run forward."""
    parking_roads: list[int] = field(default_factory=list)
    """Streets joined to nothing, where cars are parked and nobody drives (dense worlds only)."""
    next_id: int = 1

    def new_id(self) -> int:
        """A fresh object id, unique over all kinds of objects of the neighbourhood."""
        self.next_id += 1
        return self.next_id - 1

    def successors(self, segment_id: int) -> list[int]:
        """Segments that follow a segment."""
        segment = self.segments[segment_id]
        return [segment.target] if segment.is_connector else self.outgoing().get(segment_id, [])

    def outgoing(self) -> dict[int, list[int]]:
        """Lane id -> connectors that leave it."""
        if not hasattr(self, "_outgoing"):
            table: dict[int, list[int]] = {}
            for segment in self.segments.values():
                if segment.is_connector:
                    table.setdefault(segment.source, []).append(segment.id)
            self._outgoing = table
        return self._outgoing

    def incoming(self) -> dict[int, list[int]]:
        """Lane id -> connectors that lead into it."""
        if not hasattr(self, "_incoming"):
            table: dict[int, list[int]] = {}
            for segment in self.segments.values():
                if segment.is_connector:
                    table.setdefault(segment.target, []).append(segment.id)
            self._incoming = table
        return self._incoming


def mouth_pose(arm: Arm, inward_m: float, lateral_m: float) -> FloatArray:
    """(2,) point `inward_m` inside the junction from the mouth of an arm, `lateral_m` to the outward left."""
    return arm.position - inward_m * unit(arm.heading) + lateral_m * left_of(arm.heading)
