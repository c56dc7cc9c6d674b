"""How roads are joined: lanes to lanes, curves, the paved polygon, lights and crosswalks."""

from __future__ import annotations

import numpy as np

from drivefine_agent.synthetic.lanes import FloatArray, connect, wrap
from drivefine_agent.synthetic.network import (
    SHOULDER_M,
    Arm,
    Block,
    Crossing,
    Junction,
    JunctionKind,
    Network,
    Segment,
    Turn,
    mouth_pose,
)

FILLET_M = 8.0
"""Tangent length of the rounded corner between two roads at a right angle [m]."""
CROSSWALK_ROOM_M = 4.5
"""Room between stop line and corner for a crosswalk [m]."""


def mouth_distances(
    headings: list[float], lefts: list[float], rights: list[float], room_m: float
) -> list[float]:
    """Distance of each arm's mouth from the junction's centre, so that neither lanes nor corners overlap.

    Args:
      headings: outward directions of the arms.
      lefts: width of each arm left of its reference line, seen outwards [m].
      rights: the same to the right [m].
      room_m: extra room for crosswalks [m].
    """
    order = np.argsort([float(wrap(h)) for h in headings])
    distances = [8.0] * len(headings)
    for i, arm in enumerate(order):
        neighbour = order[
            (i + 1) % len(order)
        ]  # next arm counter-clockwise: our left side meets its right side
        angle = float((headings[neighbour] - headings[arm]) % (2 * np.pi))
        if angle >= 0.9 * np.pi:
            continue
        fillet = FILLET_M / np.tan(angle / 2)
        width, other = lefts[arm], rights[neighbour]
        for index, own, across in ((arm, width, other), (neighbour, other, width)):
            meet = (across + own * np.cos(angle)) / np.sin(angle)
            distances[index] = max(distances[index], meet + fillet)
    return [d + room_m for d in distances]


def turn_of(in_heading: float, out_heading: float) -> Turn:
    """Left, straight or right for a vehicle that arrives with one heading and leaves with another."""
    change = float(wrap(out_heading - in_heading))
    if change > np.pi / 4:
        return "left"
    return "right" if change < -np.pi / 4 else "straight"


def lane_pairs(num_in: int, exits: dict[Turn, int]) -> list[tuple[int, Turn, int]]:
    """Which incoming lane leads by which turn to which outgoing lane (indices, 0 = leftmost).

    Args:
      num_in: incoming lanes.
      exits: number of outgoing lanes per available turn.
    """
    pairs: list[tuple[int, Turn, int]] = []
    if "straight" in exits:
        first, last, out = 0, num_in, exits["straight"]
        if last - first > out and "left" in exits:
            first += 1
        if last - first > out and "right" in exits:
            last -= 1
        pairs += [(i, "straight", min(i - first, out - 1)) for i in range(first, last)]
        if "left" in exits:
            pairs.append((0, "left", 0))
        if "right" in exits:
            pairs.append((num_in - 1, "right", exits["right"] - 1))
        return pairs
    num_left = num_in if "right" not in exits else (num_in + 1) // 2
    if "left" in exits:
        num_left = max(1, min(num_left, exits["left"])) if "right" in exits else num_left
        pairs += [(i, "left", min(i, exits["left"] - 1)) for i in range(num_left)]
    else:
        num_left = 0
    if "right" in exits:
        first = min(num_left, num_in - 1) if num_in > 1 else 0
        out = exits["right"]
        pairs += [(i, "right", max(0, out - num_in + i)) for i in range(first, num_in)]
    return pairs


def pave(arms: list[Arm]) -> FloatArray:
    """(M, 2) ring of the junction's surface: mouths, joined by rounded corners, counter-clockwise."""
    order = sorted(range(len(arms)), key=lambda i: float(wrap(arms[i].heading)))
    ring: list[FloatArray] = []
    for position, index in enumerate(order):
        arm, following = arms[index], arms[order[(position + 1) % len(order)]]
        corner = connect(arm.left, arm.heading + np.pi, following.right, following.heading)
        ring += [arm.right[None], corner.xy[:-1]]
    return np.vstack(ring)


def join(
    network: Network, kind: JunctionKind, arms: list[Arm], center: FloatArray, rng: np.random.Generator
) -> Junction:
    """Adds a junction with its connectors, lane-group connectors and marked crossings to a network."""
    junction_index = len(network.junctions)
    junction_id = network.new_id()
    connector_ids: list[int] = []
    for arm_index, arm in enumerate(arms):
        in_heading = arm.heading + np.pi
        exits: dict[Turn, int] = {}
        exit_arms: dict[Turn, int] = {}
        for other_index, other in enumerate(arms):
            turn = turn_of(in_heading, other.heading)
            if other_index != arm_index and other.num_out > 0 and turn not in exits:
                exits[turn], exit_arms[turn] = other.num_out, other_index
        if arm.num_in == 0 or not exits:
            continue
        incoming = incoming_lanes(network, arm)
        by_turn: dict[Turn, list[int]] = {}
        block_ids = {turn: network.new_id() for turn in exits}
        for lane_index, turn, out_index in lane_pairs(arm.num_in, exits):
            source = network.segments[incoming[lane_index]]
            target_arm = exit_arms[turn]
            target = network.segments[outgoing_lanes(network, arms[target_arm])[out_index]]
            connector = make_connector(
                network, source, target, block_ids[turn], junction_index, turn, arm_index, target_arm
            )
            network.segments[connector.id] = connector
            connector_ids.append(connector.id)
            by_turn.setdefault(turn, []).append(connector.id)
        for turn, members in by_turn.items():
            first = network.segments[members[0]]
            block = Block(
                block_ids[turn],
                True,
                tuple(members),
                network.segments[first.source].block,
                network.segments[first.target].block,
                junction_index,
            )
            network.blocks[block.id] = block
    junction = Junction(
        junction_id,
        kind,
        center,
        tuple(arms),
        pave(arms),
        tuple(connector_ids),
        stop_arms=tuple(range(len(arms))) if kind == "all_way_stop" else (),
        yield_arms=choose_yield_arms(kind, arms, rng),
        phases=choose_phases(kind, arms, rng),
    )
    network.junctions.append(junction)
    return junction


def incoming_lanes(network: Network, arm: Arm) -> tuple[int, ...]:
    """Lanes that end at an arm, leftmost first."""
    road = network.roads[arm.road]
    return road.forward if arm.at_end else road.backward


def outgoing_lanes(network: Network, arm: Arm) -> tuple[int, ...]:
    """Lanes that start at an arm, leftmost first."""
    road = network.roads[arm.road]
    return road.backward if arm.at_end else road.forward


def make_connector(
    network: Network,
    source: Segment,
    target: Segment,
    block: int,
    junction: int,
    turn: Turn,
    arm: int,
    target_arm: int,
) -> Segment:
    """The connector from the end of one lane to the start of another."""
    path = connect(
        source.path.xy[-1], float(source.path.heading[-1]), target.path.xy[0], float(target.path.heading[0])
    )
    half_width = np.linspace(source.half_width[-1], target.half_width[0], len(path.xy))
    return Segment(
        network.new_id(),
        True,
        block,
        path,
        half_width,
        min(source.speed_limit_mps, target.speed_limit_mps),
        junction=junction,
        source=source.id,
        target=target.id,
        turn=turn,
        arm=arm,
        target_arm=target_arm,
    )


def opposite_arms(arms: list[Arm], index: int) -> list[int]:
    """Later arms that roughly continue an arm on the other side of the junction."""
    turned = [abs(float(wrap(arm.heading - arms[index].heading))) for arm in arms]
    return [i for i in range(index + 1, len(arms)) if abs(turned[i] - np.pi) < np.pi / 5]


def choose_yield_arms(kind: JunctionKind, arms: list[Arm], rng: np.random.Generator) -> tuple[int, ...]:
    """Arms that give way: those beside the ego's road (arms 0 and 1), or the ego's and the one opposite."""
    if kind != "yield":
        return ()
    if rng.random() < 0.5:
        return tuple(range(2, len(arms)))
    return (0, *opposite_arms(arms, 0)[:1])


def choose_phases(
    kind: JunctionKind, arms: list[Arm], rng: np.random.Generator
) -> tuple[tuple[int, ...], ...]:
    """Signal phases: one per arm, or opposite arms together."""
    if kind != "signal":
        return ()
    together: list[tuple[int, ...]] = []
    paired = rng.random() < 0.25
    left = list(range(len(arms)))
    while left:
        arm = left.pop(0)
        partner = [i for i in opposite_arms(arms, arm) if i in left]
        if paired and partner:
            left.remove(partner[0])
            together.append((arm, partner[0]))
        else:
            together.append((arm,))
    return tuple(together)


def add_crosswalks(network: Network, junction_index: int, arm_indices: list[int]) -> None:
    """Adds a marked crossing just inside the mouth of each given arm."""
    junction = network.junctions[junction_index]
    for arm_index in arm_indices:
        arm = junction.arms[arm_index]
        left = arm.num_in * arm.lane_width_m + SHOULDER_M + 0.3
        right = -arm.num_out * arm.lane_width_m - SHOULDER_M - 0.3
        network.crossings.append(
            Crossing(
                network.new_id(),
                mouth_pose(arm, 2.3, left),
                mouth_pose(arm, 2.3, right),
                3.0,
                True,
                junction_index,
                arm_index,
            )
        )
