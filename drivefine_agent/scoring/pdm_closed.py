"""PDM-Closed, the reference planner whose progress the score is measured against (pdm-scorer 2.6).

Three paths (the centreline and its shifts by 1 m to either side) times five speed policies give 15 proposals;
each is rolled out with the Intelligent Driver Model behind whatever leads it in the forecast. The proposals
are simulated and scored like a model's trajectory, and the best one, continued to 5 s, is the reference.

All known quirks are kept: the record of the leading object is reused for the policies of a path without being
reset, and is zero in the first step, so that every moving proposal brakes there.

Shape letters: Q = 5 policies of a path, S = 51 knots of 0.1 s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from drivefine_agent.constants import (
    EGO_LENGTH_M,
    EGO_REAR_AXLE_TO_CENTER_M,
    EGO_WIDTH_M,
    NUM_SIM_STEPS,
    SIM_INTERVAL_S,
)
from drivefine_agent.data.types import FloatArray
from drivefine_agent.geometry.se2 import wrap_angle
from drivefine_agent.scoring.centerline import Path
from drivefine_agent.scoring.forecast import SAMPLES_PER_MAP, Forecast
from drivefine_agent.scoring.nuplan_boxes import nuplan_box_corners

NUM_KNOTS = 51
NUM_PLAN_STEPS = NUM_KNOTS - 1
LATERAL_OFFSETS_M = (0.0, -1.0, 1.0)
SPEED_LIMIT_FRACTIONS = np.array([0.2, 0.4, 0.6, 0.8, 1.0])
FALLBACK_SPEED_MPS = 15.0
NUM_POLICIES = len(SPEED_LIMIT_FRACTIONS)
NUM_PROPOSALS = len(LATERAL_OFFSETS_M) * NUM_POLICIES

MIN_GAP_M = 1.0
HEADWAY_S = 1.5
MAX_ACCEL_MPS2 = 1.5
MAX_DECEL_MPS2 = 3.0
ACCEL_EXPONENT = 10

CORRIDOR_BUFFER_SEGMENTS = 16


@dataclass
class Lead:
    """What a proposal follows; one record serves all policies of a path in a step."""

    arc_length_m: float = 0.0
    speed_mps: float = 0.0
    rear_length_m: float = 0.0


@dataclass
class PathRollout:
    """The roll-out of policies along one path, advanced step by step."""

    path: Path
    target_speeds: FloatArray
    """(Q,) [m/s]."""
    forecast: Forecast
    corridor: shapely.Polygon
    """The part of the path within reach, as wide as the ego."""
    poses: FloatArray
    """(Q, 51, 3) global."""
    arc_lengths: FloatArray
    """(Q,) [m] at the current step."""
    speeds: FloatArray
    """(Q,) [m/s] at the current step."""
    leads: FloatArray
    """(Q, 3) arc length [m], speed [m/s] and rear length [m] of what leads each policy."""
    step: int = 0

    @classmethod
    def start(
        cls,
        path: Path,
        target_speeds: FloatArray,
        forecast: Forecast,
        rear_axle: FloatArray,
        speed_mps: float,
    ) -> PathRollout:
        """The roll-out at step 0: on the path, not at the ego."""
        arc_length = float(path.project(shapely.Point(rear_axle[0], rear_axle[1])))
        reach = np.abs(target_speeds.max()) * NUM_PLAN_STEPS * SIM_INTERVAL_S
        ahead = path.substring(arc_length, arc_length + reach)
        num_policies = len(target_speeds)
        poses = np.zeros((num_policies, NUM_KNOTS, 3))
        poses[:, 0] = path.interpolate(np.array([arc_length]))
        return cls(
            path=path,
            target_speeds=target_speeds,
            forecast=forecast,
            corridor=ahead.buffer(EGO_WIDTH_M / 2, quad_segs=CORRIDOR_BUFFER_SEGMENTS, cap_style="square"),
            poses=poses,
            arc_lengths=np.full(num_policies, arc_length),
            speeds=np.full(num_policies, float(speed_mps)),
            leads=np.zeros((num_policies, 3)),
        )

    def advance_to(self, last_step: int) -> None:
        """Roll out up to and including a step of 0.1 s."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # a speed limit of 0
            while self.step < last_step:
                self.step += 1
                if self.step % SAMPLES_PER_MAP == 0:
                    self.leads = self._find_leads(self.step)
                self._follow()
                self.poses[:, self.step] = self.path.interpolate(self.arc_lengths)

    def only(self, policy: int) -> PathRollout:
        """One policy on its own, to be continued; further steps reset its lead record."""
        chosen = slice(policy, policy + 1)
        return PathRollout(
            path=self.path,
            target_speeds=self.target_speeds[chosen],
            forecast=self.forecast,
            corridor=self.corridor,
            poses=self.poses[chosen].copy(),
            arc_lengths=self.arc_lengths[chosen].copy(),
            speeds=self.speeds[chosen].copy(),
            leads=self.leads[chosen].copy(),
            step=self.step,
        )

    def _find_leads(self, step: int) -> FloatArray:
        """(Q, 3) records of the leading objects; in policy order, since one record serves them all."""
        map_index = step // SAMPLES_PER_MAP
        entries, entry_arc_lengths = self._entries_in_corridor(map_index)
        is_ahead = entry_arc_lengths[None, :] > self.arc_lengths[:, None]  # (Q, candidates)
        distances = np.empty(is_ahead.shape)
        if is_ahead.any():
            ego = shapely.polygons(_footprints(self.poses[:, step - 1]))
            distances = shapely.distance(ego[:, None], self.forecast.polygons[map_index, entries][None, :])
        distances = np.where(is_ahead, distances, np.inf)

        record = Lead()
        leads = np.empty((len(self.arc_lengths), 3))
        for policy in range(len(leads)):
            if is_ahead[policy].any():
                nearest = int(np.argmin(distances[policy]))
                record.arc_length_m = self.arc_lengths[policy] + distances[policy, nearest]
                entry = int(entries[nearest])
                if entry < self.forecast.num_objects:  # red lights keep the speed of the record
                    relative = wrap_angle(self.forecast.headings[entry] - self.poses[policy, step - 1, 2])
                    record.speed_mps = float(self.forecast.speeds[entry] * np.cos(relative))
            else:
                record.arc_length_m = self.path.length
                record.rear_length_m = EGO_LENGTH_M / 2
            leads[policy] = record.arc_length_m, record.speed_mps, record.rear_length_m
        return leads

    def _entries_in_corridor(self, map_index: int) -> tuple[NDArray[np.int64], FloatArray]:
        """Entries of the forecast that touch the corridor, in tree order, and their arc lengths [m]."""
        entries = self.forecast.trees[map_index].query(self.corridor, predicate="intersects")
        entries = entries[~self.forecast.is_ignored[entries]]
        centroids = shapely.centroid(self.forecast.polygons[map_index, entries])
        return entries, np.asarray(self.path.project(centroids), dtype=np.float64)

    def _follow(self) -> None:
        """One step of the Intelligent Driver Model; the position moves with the old speed."""
        lead_arc_length, lead_speed, rear_length = self.leads.T
        desired_gap = (
            MIN_GAP_M
            + self.speeds * HEADWAY_S
            + (self.speeds * (self.speeds - lead_speed)) / (2 * np.sqrt(MAX_ACCEL_MPS2 * MAX_DECEL_MPS2))
        )
        gap = np.maximum(lead_arc_length - self.arc_lengths - rear_length, MIN_GAP_M)
        accel = MAX_ACCEL_MPS2 * (
            1 - (self.speeds / self.target_speeds) ** ACCEL_EXPONENT - (desired_gap / gap) ** 2
        )
        accel = np.clip(accel, -MAX_DECEL_MPS2, MAX_ACCEL_MPS2)
        self.arc_lengths = self.arc_lengths + SIM_INTERVAL_S * self.speeds
        self.speeds = self.speeds + SIM_INTERVAL_S * accel


def _footprints(poses: FloatArray) -> FloatArray:
    """Corners (..., 4, 2) of the ego at rear-axle poses (..., 3)."""
    centers = poses.copy()
    centers[..., 0] += EGO_REAR_AXLE_TO_CENTER_M * np.cos(poses[..., 2])
    centers[..., 1] += EGO_REAR_AXLE_TO_CENTER_M * np.sin(poses[..., 2])
    return nuplan_box_corners(centers, EGO_LENGTH_M, EGO_WIDTH_M)


def target_speeds(speed_limit_mps: float | None) -> FloatArray:
    """(5,) speeds [m/s] that the policies aim at, from the speed limit of the starting lane."""
    limit = FALLBACK_SPEED_MPS if speed_limit_mps is None else speed_limit_mps
    return SPEED_LIMIT_FRACTIONS * limit


def plan_pdm_closed(
    centerline: Path,
    forecast: Forecast,
    rear_axle: FloatArray,
    speed_mps: float,
    speed_limit_mps: float | None,
    score_proposals: Callable[[FloatArray], FloatArray],
) -> FloatArray:
    """Run PDM-Closed once, without history.

    Args:
      centerline: of the route.
      forecast: of the objects around the ego.
      rear_axle: (3,) ego pose, global.
      speed_mps: longitudinal velocity of the ego.
      speed_limit_mps: of the starting lane; None means 15 m/s.
      score_proposals: (15, 41, 3) global poses at 0.0 ... 4.0 s -> (15,) scores.

    Returns:
      (51, 3) the un-simulated poses of the best proposal at 0.0 ... 5.0 s, global.
    """
    targets = target_speeds(speed_limit_mps)
    rollouts = [
        PathRollout.start(centerline.shifted(offset), targets, forecast, rear_axle, speed_mps)
        for offset in LATERAL_OFFSETS_M
    ]
    for rollout in rollouts:
        rollout.advance_to(NUM_SIM_STEPS)
    proposals = np.concatenate([rollout.poses[:, : NUM_SIM_STEPS + 1] for rollout in rollouts])
    best = int(np.argmax(score_proposals(proposals)))  # the first on ties

    winner = rollouts[best // NUM_POLICIES].only(best % NUM_POLICIES)
    winner.advance_to(NUM_PLAN_STEPS)
    return winner.poses[0]
