"""PDM-Closed, the reference planner whose progress the score is measured against (pdm-scorer 2.6).

Three paths (the centreline and its shifts by 1 m to either side) times five speed policies give 15 proposals;
each is rolled out with the Intelligent Driver Model behind whatever leads it in the forecast. The proposals
are simulated and scored like a model's trajectory, and the best one, continued to 5 s, is the reference.

All known quirks are kept: the record of the leading object is reused for the policies of a path without being
reset, and is zero in the first step, so that every moving proposal brakes there.

Shape letters: B = 3 paths, Q = 5 policies of a path, N vertices of a path, 51 knots of 0.1 s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numba import njit

from drivefine_agent.constants import (
    EGO_LENGTH_M,
    NUM_SIM_STEPS,
    SIM_INTERVAL_S,
)
from drivefine_agent.data.types import FloatArray
from drivefine_agent.geometry.se2 import wrap_angle
from drivefine_agent.scoring.centerline import Path, poses_along
from drivefine_agent.scoring.forecast import SAMPLES_PER_MAP, Forecast
from drivefine_agent.scoring.pdm_corridor import Candidates

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
_BRAKING = 2 * np.sqrt(MAX_ACCEL_MPS2 * MAX_DECEL_MPS2)


@dataclass
class Rollout:
    """The roll-out of the same policies along several paths, advanced step by step."""

    path_arc_lengths: FloatArray
    """(B, N) of the paths' vertices [m]."""
    path_poses: FloatArray
    """(B, N, 3) the paths' vertices."""
    candidates: Candidates
    """What may have to be followed."""
    target_speeds: FloatArray
    """(Q,) [m/s]."""
    poses: FloatArray
    """(B, Q, 51, 3) global."""
    arc_lengths: FloatArray
    """(B, Q) [m] at the current step."""
    speeds: FloatArray
    """(B, Q) [m/s] at the current step."""
    leads: FloatArray
    """(B, Q, 3) rows of `_lead_records`; zero at first."""
    step: int = 0

    @classmethod
    def start(
        cls,
        paths: Sequence[Path],
        target_speeds: FloatArray,
        forecast: Forecast,
        rear_axle: FloatArray,
        speed_mps: float,
    ) -> Rollout:
        """The policies at the beginning: on each path beside the rear axle (3,), at the ego's speed.

        The paths have equally many vertices, as shifts of one path have.
        """
        reach = np.abs(target_speeds.max()) * NUM_PLAN_STEPS * SIM_INTERVAL_S
        starts = [float(path.project(shapely.Point(rear_axle[0], rear_axle[1]))) for path in paths]
        shape = len(paths), len(target_speeds)
        rollout = cls(
            path_arc_lengths=np.stack([path.arc_length for path in paths]),
            path_poses=np.stack([path.poses for path in paths]),
            candidates=Candidates.find(paths, starts, reach, forecast),
            target_speeds=target_speeds,
            poses=np.zeros((*shape, NUM_KNOTS, 3)),
            arc_lengths=np.repeat(starts, shape[1]).reshape(shape),
            speeds=np.full(shape, float(speed_mps)),
            leads=np.zeros((*shape, 3)),
        )
        rollout._place()
        return rollout

    def advance_to(self, last_step: int) -> None:
        """Roll out up to and including a step of 0.1 s."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # a speed limit of 0
            while self.step < last_step:
                self.step += 1
                if self.step % SAMPLES_PER_MAP == 0:
                    self.leads = self._find_leads(self.step)
                self._follow()
                self._place()

    def only(self, path: int, policy: int) -> Rollout:
        """One policy on its own, to be continued; further steps reset its lead record."""
        of_path, chosen = slice(path, path + 1), slice(policy, policy + 1)
        return Rollout(
            path_arc_lengths=self.path_arc_lengths[of_path],
            path_poses=self.path_poses[of_path],
            candidates=self.candidates.only(path),
            target_speeds=self.target_speeds[chosen],
            poses=self.poses[of_path, chosen].copy(),
            arc_lengths=self.arc_lengths[of_path, chosen].copy(),
            speeds=self.speeds[of_path, chosen].copy(),
            leads=self.leads[of_path, chosen].copy(),
            step=self.step,
        )

    def _place(self) -> None:
        self.poses[:, :, self.step] = poses_along(self.path_arc_lengths, self.path_poses, self.arc_lengths)

    def _find_leads(self, step: int) -> FloatArray:
        """(B, Q, 3) records of what is followed, from where everybody was in the step before."""
        poses, forecast = self.poses[:, :, step - 1], self.candidates.forecast
        entries, gaps = self.candidates.nearest_ahead(step // SAMPLES_PER_MAP, self.arc_lengths, poses)
        is_object = (entries >= 0) & (entries < forecast.num_objects)
        objects = entries[is_object]
        speeds = np.zeros(entries.shape)
        relative = wrap_angle(forecast.headings[objects] - poses[..., 2][is_object])
        speeds[is_object] = forecast.speeds[objects] * np.cos(relative)
        return _lead_records(entries, is_object, self.arc_lengths + gaps, speeds, self.path_arc_lengths)

    def _follow(self) -> None:
        """One step of the Intelligent Driver Model; the position moves with the old speed."""
        speed_ratios, gap_ratios = _driver_model(
            self.arc_lengths, self.speeds, self.target_speeds, self.leads
        )
        powers = speed_ratios**ACCEL_EXPONENT  # by numpy: another power differs in the last bit
        self.arc_lengths, self.speeds = _moved(self.arc_lengths, self.speeds, powers, gap_ratios)


@njit(cache=True, nogil=True)
def _lead_records(entries, is_object, arc_lengths, speeds, path_arc_lengths):
    """(B, Q, 3) arc length, speed and rear length of what is followed.

    One record serves the policies of a path, one after the other: a red light keeps its speed, and all but
    the end of the path keep its rear length.
    """
    leads = np.empty((*entries.shape, 3))
    for path in range(entries.shape[0]):
        record = np.zeros(3)
        for policy in range(entries.shape[1]):
            if entries[path, policy] < 0:
                record[0], record[2] = path_arc_lengths[path, -1], EGO_LENGTH_M / 2
            else:
                record[0] = arc_lengths[path, policy]
                if is_object[path, policy]:
                    record[1] = speeds[path, policy]
            leads[path, policy] = record
    return leads


@njit(cache=True, nogil=True, error_model="numpy")
def _driver_model(arc_lengths, speeds, target_speeds, leads):
    """(B, Q) speed by wanted speed, and wanted gap by gap; NaN where a speed limit is 0."""
    speed_ratios, gap_ratios = np.empty_like(speeds), np.empty_like(speeds)
    for path in range(speeds.shape[0]):
        for policy in range(speeds.shape[1]):
            speed = speeds[path, policy]
            lead_arc_length, lead_speed, rear_length = leads[path, policy]
            wanted = MIN_GAP_M + speed * HEADWAY_S + (speed * (speed - lead_speed)) / _BRAKING
            gap = lead_arc_length - arc_lengths[path, policy] - rear_length
            if gap < MIN_GAP_M:
                gap = MIN_GAP_M
            speed_ratios[path, policy] = speed / target_speeds[policy]
            gap_ratios[path, policy] = wanted / gap
    return speed_ratios, gap_ratios


@njit(cache=True, nogil=True)
def _moved(arc_lengths, speeds, powers, gap_ratios):
    """(B, Q) arc lengths and speeds 0.1 s later, `powers` being those of the speed ratios."""
    new_arc_lengths, new_speeds = np.empty_like(arc_lengths), np.empty_like(speeds)
    for path in range(speeds.shape[0]):
        for policy in range(speeds.shape[1]):
            gap_ratio = gap_ratios[path, policy]
            accel = MAX_ACCEL_MPS2 * (1.0 - powers[path, policy] - gap_ratio * gap_ratio)
            if accel < -MAX_DECEL_MPS2:
                accel = -MAX_DECEL_MPS2
            if accel > MAX_ACCEL_MPS2:
                accel = MAX_ACCEL_MPS2
            new_arc_lengths[path, policy] = arc_lengths[path, policy] + SIM_INTERVAL_S * speeds[path, policy]
            new_speeds[path, policy] = speeds[path, policy] + SIM_INTERVAL_S * accel
    return new_arc_lengths, new_speeds


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
    rollout = Rollout.start(
        [centerline.shifted(offset) for offset in LATERAL_OFFSETS_M],
        target_speeds(speed_limit_mps),
        forecast,
        rear_axle,
        speed_mps,
    )
    rollout.advance_to(NUM_SIM_STEPS)
    proposals = rollout.poses[:, :, : NUM_SIM_STEPS + 1].reshape(NUM_PROPOSALS, NUM_SIM_STEPS + 1, 3)
    best = int(np.argmax(score_proposals(proposals)))  # the first on ties

    winner = rollout.only(*divmod(best, NUM_POLICIES))
    winner.advance_to(NUM_PLAN_STEPS)
    return winner.poses[0, 0]
