"""Random trajectories in random worlds: the kernels against plain numpy, shapely and scipy.

    python tests/scoring_kernels/fuzz_scorer.py --count 100000

Smooth, wild, reversing and standing trajectories; lanes with edges exactly along the ego's sides; tracks that
touch, miss by a nanometre or overlap by one; duplicate polygons, holes, repeated vertices. Every discrete
sub-score of NAVSIM 1.1 and of NAVSIM 2 (non-reactive) must be equal, progress within 1e-9, comfort margins
within the rounding to 8 decimals.
Where the two differ although a decision of the oracle hangs on less than TIE (an angle, a speed, a rounding
to 8 decimals), the pair is counted as a tie; contacts and points in polygons have no such excuse.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import shapely
from kernel_toy_world import Area, box_corners, drivable_polygons
from reference_batch import oracle_v1, oracle_v2
from tqdm import tqdm

from drivefine_agent.scoring.comfort import comfort_margins, history_comfort_margins
from drivefine_agent.scoring.contacts import TrackBoxes
from drivefine_agent.scoring.footprint import footprint_points
from drivefine_agent.scoring.scorer import Surroundings, score_states
from drivefine_agent.scoring.scorer_v2 import SurroundingsV2, score_states_v2
from drivefine_agent.scoring.simulate import simulate
from drivefine_agent.scoring.traffic_lights import RedLights
from drivefine_agent.scoring.trajectory import proposals_to_reference
from drivefine_agent.scoring.types import PolygonKind

TIE = 1e-9
TOLERANCE = 1e-9
ORIGIN = np.array([585_000.25, 4_475_000.5])
GAPS = (0.0, 1e-9, -1e-9, 2e-7, -2e-7, 1e-5, -1e-5)


@dataclass(frozen=True)
class FuzzWorld:
    """Simulated trajectories and what is around them."""

    states: np.ndarray
    v1: Surroundings
    v2: SurroundingsV2
    history: np.ndarray


@dataclass
class FuzzReport:
    """What a run found."""

    num_trajectories: int = 0
    num_ties: int = 0
    mismatches: list[str] = field(default_factory=list)
    num_zeros: dict[str, int] = field(default_factory=dict)


def draw_poses(rng: np.random.Generator, speed: float, count: int) -> np.ndarray:
    """(count, 8, 3) of all kinds in turn."""
    time_s = 0.5 * np.arange(1, 9)
    poses = np.zeros((count, 8, 3))
    for i in range(count):
        kind = i % 6
        if kind == 0:  # wild
            poses[i] = rng.normal(0.0, (12.0, 6.0, 1.5), (8, 3))
        elif kind == 1:  # standing, sometimes not quite
            poses[i] = rng.normal(0.0, 0.02, (8, 3)) * (rng.random() < 0.5)
        elif kind == 2:  # exactly straight
            poses[i, :, 0] = speed * time_s
        else:  # an arc, forwards or in reverse
            v = (speed * rng.uniform(0.5, 1.4) + 0.5) * (-1.0 if kind == 3 else 1.0)
            way = v * time_s + 0.5 * rng.normal(0.0, 0.8) * time_s**2
            turn = rng.normal(0.0, 0.03) + 1e-9
            heading = turn * way
            poses[i] = np.stack([np.sin(heading) / turn, (1 - np.cos(heading)) / turn, heading], axis=-1)
    return poses.astype(np.float32).astype(np.float64)


def draw_areas(rng: np.random.Generator, pose: np.ndarray) -> list[Area]:
    """Strips along the ego's way that share edges, some exactly at its sides; blobs, some with holes."""
    along = np.array([np.cos(pose[2]), np.sin(pose[2])])
    left = np.array([-along[1], along[0]])

    def strip(low: float, high: float, start: float, end: float) -> shapely.Polygon:
        xs = np.linspace(start, end, int(rng.integers(2, 30)))
        ring = [pose[:2] + x * along + low * left for x in xs] + [
            pose[:2] + x * along + high * left for x in xs[::-1]
        ]
        return shapely.Polygon(ring)

    edges = np.sort(rng.choice([-8.0, -5.3, -3.5, -1.1485, 0.0, 1.1485, 1.8, 3.5, 7.0], 4, replace=False))
    areas = [Area(strip(edges[0], edges[-1], -60.0, 60.0), PolygonKind.ROADBLOCK)]
    for low, high in pairwise(edges):
        areas.append(Area(strip(low, high, -40.0, 50.0), PolygonKind.LANE, bool(rng.random() < 0.6)))
    for _ in range(int(rng.integers(4, 12))):
        count = int(rng.integers(3, 60))
        angle = np.sort(rng.uniform(0.0, 2 * np.pi, count))
        radius = rng.uniform(3.0, 18.0) * rng.uniform(0.7, 1.0, count)
        place = pose[:2] + rng.uniform(-10, 50) * along + rng.uniform(-12, 12) * left
        blob = shapely.make_valid(
            shapely.Polygon(place + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1))
        )
        if rng.random() < 0.3:
            blob = blob.difference(shapely.Point(place).buffer(1.5))
        if blob.geom_type == "Polygon" and not blob.is_empty:
            areas.append(Area(blob, list(PolygonKind)[int(rng.integers(5))], bool(rng.random() < 0.4)))
    if rng.random() < 0.3:
        areas.append(areas[int(rng.integers(len(areas)))])
    return areas


def draw_tracks(rng: np.random.Generator, states: np.ndarray, points: np.ndarray) -> TrackBoxes:
    """Moving and standing boxes about the trajectories; half of them touch a footprint, about to GAPS."""
    count = int(rng.integers(0, 5))
    corners = np.zeros((51, count, 4, 2))
    center = np.zeros((51, count, 2))
    exists = rng.random((51, count)) < rng.choice([1.0, 0.7], count)
    for k in range(count):
        p, t = int(rng.integers(len(states))), int(rng.integers(41))
        heading = states[p, t, 2] + rng.choice([0.0, np.pi / 2, rng.uniform(-3, 3)])
        length, width = rng.uniform(0.4, 6.0), rng.uniform(0.4, 2.5)
        place = points[p, t, 4] + rng.normal(0.0, 10.0, 2)
        velocity = rng.normal(0.0, 4.0, 2) * (rng.random() < 0.6)
        if rng.random() < 0.5:  # nose to tail with the ego at state t
            heading, gap = states[p, t, 2], rng.choice(GAPS)
            place = points[p, t, 4] + (2.588 + length / 2 + gap) * np.array(
                [np.cos(heading), np.sin(heading)]
            )
        if rng.random() < 0.05:
            width = 0.0
        for sample in range(51):
            center[sample, k] = place + 0.1 * (sample - t) * velocity
            corners[sample, k] = box_corners(*center[sample, k], heading, length, width)
    corners[~exists], center[~exists] = 0.0, 0.0
    is_agent = rng.random(count) < 0.7
    return TrackBoxes(corners, center, exists, is_agent, ~is_agent | (rng.random(count) < 0.3))


def draw_world(seed: int, count: int) -> FuzzWorld:
    """The world of a seed with `count` trajectories."""
    rng = np.random.default_rng(seed)
    start = np.zeros(11)
    heading = float(rng.choice([0.0, np.pi / 2, rng.uniform(-np.pi, np.pi)]))
    start[:3] = (*(ORIGIN + rng.uniform(-50, 50, 2)), heading)
    start[3:7] = (rng.choice([0.0, 0.04, rng.uniform(-2, 15)]), 0.0, rng.normal(0, 1.5), rng.normal(0, 2))
    poses = draw_poses(rng, abs(float(start[3])), count)
    states = simulate(proposals_to_reference(start, 1_600_000_000_000_000 + seed, poses), start)
    points = footprint_points(states)
    areas = drivable_polygons(draw_areas(rng, start[:3]))
    tracks = draw_tracks(rng, states, points)
    way = np.cumsum(np.abs(rng.normal(3.0, 2.0, 40))) - 30.0
    side = np.cumsum(rng.normal(0.0, 0.3, 40))
    along = np.array([np.cos(heading), np.sin(heading)])
    line = start[:2] + way[:, None] * along + side[:, None] * np.array([-along[1], along[0]])
    line = np.repeat(line, np.where(rng.random(40) < 0.1, 2, 1), axis=0)
    polygons = [shapely.Point(start[:2] + rng.normal(0, 15, 2)).buffer(rng.uniform(1, 4)) for _ in range(2)]
    lights = RedLights(np.array(polygons, dtype=object), rng.random((41, 2)) < 0.3)
    history = np.zeros((int(rng.integers(14, 16)), 11))
    history[:, 2], history[:, 5:7] = heading, rng.normal(0.0, 0.5, (len(history), 2))
    return FuzzWorld(
        states, Surroundings(areas, tracks, line), SurroundingsV2(areas, tracks, lights, line), history
    )


def compare(seed: int, count: int, report: FuzzReport) -> None:
    """Scores a world with kernels and oracle, and notes where they differ."""
    world = draw_world(seed, count)
    v1 = score_states(world.states, world.v1)
    v2 = score_states_v2(world.states, world.v2, world.history)
    margins = {
        "comfort": comfort_margins(world.states),
        "history_comfort": history_comfort_margins(world.states, world.history),
    }
    report.num_trajectories += count
    for rules, ours, oracle in (
        ("v1", v1, oracle_v1(world.states, world.v1)),
        ("v2", v2, oracle_v2(world.states, world.v2, world.history)),
    ):
        for name, (value, decisive) in oracle.items():
            mine = getattr(ours, name)
            name_of_rules = f"{rules} {name}"
            zeros = report.num_zeros.get(name_of_rules, 0)
            report.num_zeros[name_of_rules] = zeros + int(np.sum(value == 0.0))
            if name == "progress_m":
                wrong = np.abs(mine - value) > TOLERANCE
            else:
                wrong = mine != value
            is_tie = wrong & (decisive < TIE)
            report.num_ties += int(is_tie.sum())
            for p in np.flatnonzero(wrong & ~is_tie):
                report.mismatches.append(
                    f"seed {seed} row {p} {rules} {name}: kernel {mine[p]}, oracle {value[p]}, margin "
                    f"{decisive[p]:.1e}"
                )
            if name in margins:
                off = np.abs(np.abs(margins[name]).min(axis=1) - decisive)
                for p in np.flatnonzero(off > 2e-8):  # both are rounded to 8 decimals
                    report.mismatches.append(f"seed {seed} row {p} {name}: margins differ by {off[p]:.1e}")


def fuzz(num_trajectories: int, first_seed: int = 0, per_world: int = 48, quiet: bool = True) -> FuzzReport:
    """Compares that many trajectories."""
    report = FuzzReport()
    worlds = -(-num_trajectories // per_world)
    for seed in tqdm(range(first_seed, first_seed + worlds), desc="Fuzzing", unit="world", disable=quiet):
        compare(seed, per_world, report)
    return report


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100_000, help="trajectories (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    arguments = parser.parse_args()
    report = fuzz(arguments.count, arguments.seed, quiet=False)
    print(
        f"{report.num_trajectories} trajectories, {report.num_ties} ties, {len(report.mismatches)} mismatches"
    )
    for name, zeros in report.num_zeros.items():
        print(f"  {name}: {100 * zeros / report.num_trajectories:.1f} % zero")
    for line in report.mismatches[:20]:
        print(line)
    sys.exit(1 if report.mismatches else 0)


if __name__ == "__main__":
    main()
