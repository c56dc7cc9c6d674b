"""A seeded world: a neighbourhood, its traffic and one drive through it, as the frames of a log."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from drivefine_agent.constants import FRAME_INTERVAL_S
from drivefine_agent.synthetic.ego import Expert
from drivefine_agent.synthetic.lanes import FloatArray
from drivefine_agent.synthetic.layout import draw_network
from drivefine_agent.synthetic.network import Network
from drivefine_agent.synthetic.roadmap import Roadmap
from drivefine_agent.synthetic.scenery import Scenery, furnish
from drivefine_agent.synthetic.traffic import DT_S, Traffic

ROUTE_METRES_PER_SECOND = 12.0
"""Length of the route for each second of the drive, so that a fast drive does not run out of road."""


@dataclass(frozen=True)
class TrackState:
    """A road user or standing object in one frame, in local coordinates."""

    id: int
    kind: str
    x: float
    y: float
    heading: float
    length: float
    width: float
    height: float
    vx: float
    vy: float
    tone: float
    is_braking: bool = False


@dataclass(frozen=True)
class WorldFrame:
    """The world at one instant, in local coordinates."""

    ego_pose: FloatArray
    """(3,) rear axle."""
    ego_velocity: FloatArray
    """(2,) ego frame."""
    ego_acceleration: FloatArray
    """(2,) ego frame."""
    command: int
    """0 left, 1 straight, 2 right."""
    tracks: tuple[TrackState, ...]
    lights: dict[tuple[int, int], str]
    """(junction index, arm) -> green, yellow or red."""


@dataclass(frozen=True)
class World:
    """A neighbourhood and one drive through it."""

    network: Network
    scenery: Scenery
    frames: tuple[WorldFrame, ...]
    route_blocks: tuple[int, ...]
    """Local ids of the drive's roadblocks and roadblock connectors, in order."""
    style: int
    """Seed of the look."""


def seed_of(*parts: object) -> int:
    """A 64-bit seed from any parts, by hashing their text."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "little")


def build_neighbourhood(seed: int, duration_s: float, is_dense: bool = False) -> tuple[Network, Scenery]:
    """The network and scenery of a seed."""
    network = draw_network(
        np.random.default_rng(seed_of(seed, "network")), ROUTE_METRES_PER_SECOND * duration_s, is_dense
    )
    return network, furnish(network, np.random.default_rng(seed_of(seed, "scenery")))


def build_world(seed: int, duration_s: float, is_dense: bool = False) -> World:
    """The world of a seed with a drive of `duration_s`, one frame every half second."""
    network, scenery = build_neighbourhood(seed, duration_s, is_dense)
    roadmap = Roadmap(network, scenery)
    expert = Expert(roadmap, scenery, np.random.default_rng(seed_of(seed, "expert")))
    traffic = Traffic(roadmap, expert.body, np.random.default_rng(seed_of(seed, "traffic")))
    traffic.populate()
    steps_per_frame = round(FRAME_INTERVAL_S / DT_S)
    frames = []
    for step in range(round(duration_s / DT_S) + 1):
        if step % steps_per_frame == 0:
            frames.append(record(expert, traffic, scenery))
        traffic.index(expert.lanes_beside())
        acceleration = expert.decide(traffic)
        traffic.advance(acceleration)
        expert.advance(acceleration)
    return World(network, scenery, tuple(frames), route_blocks(expert), seed_of(seed, "style") % 2**31)


def route_blocks(expert: Expert) -> tuple[int, ...]:
    """Roadblocks and roadblock connectors of the drive, alternating."""
    segments = expert.network.segments
    blocks: list[int] = []
    for plan in expert.plans:
        blocks.append(segments[plan.lanes[0]].block)
        if plan.connector is not None:
            blocks.append(segments[plan.connector].block)
    return tuple(blocks)


def record(expert: Expert, traffic: Traffic, scenery: Scenery) -> WorldFrame:
    """The present state as a frame."""
    pose, velocity, acceleration = expert.state()
    tracks = [
        TrackState(
            v.id,
            v.kind,
            v.x,
            v.y,
            v.heading,
            v.length,
            v.width,
            v.height,
            v.v * float(np.cos(v.heading)),
            v.v * float(np.sin(v.heading)),
            v.tone,
            v.acceleration < -0.35 or v.v < 0.1,
        )
        for v in traffic.vehicles
        if not v.is_ego
    ]
    tracks += [
        TrackState(p.id, "pedestrian", p.x, p.y, p.heading, 0.7, 0.7, 1.75, p.vx, p.vy, p.tone)
        for p in traffic.pedestrians
    ]
    tracks += [
        TrackState(100_000 + i, p.kind, p.x, p.y, p.heading, p.length, p.width, p.height, 0.0, 0.0, p.tone)
        for i, p in enumerate(scenery.props)
    ]
    lights = {
        (index, arm): signal.light(arm)
        for index, signal in traffic.signals.items()
        for arm, mouth in enumerate(signal.junction.arms)
        if mouth.num_in > 0
    }
    return WorldFrame(pose, velocity, acceleration, expert.command(), tuple(tracks), lights)
