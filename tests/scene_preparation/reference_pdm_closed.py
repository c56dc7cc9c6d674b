"""PDM-Closed's roll-out as pdm-scorer 2.6 tells it, one path at a time, each object asked of GEOS's tree.

The yardstick of `scoring.pdm_closed`, which must agree to the last bit. Slow, without kernels.
Shape letters: Q policies.
"""

from __future__ import annotations

import numpy as np
import shapely

from drivefine_agent.constants import EGO_LENGTH_M, EGO_REAR_AXLE_TO_CENTER_M, EGO_WIDTH_M
from drivefine_agent.geometry.se2 import wrap_angle
from drivefine_agent.scoring.centerline import Path
from drivefine_agent.scoring.forecast import Forecast
from drivefine_agent.scoring.nuplan_boxes import nuplan_box_corners


class ReferenceRollout:
    """Policies along one path; `poses` is (Q, 51, 3)."""

    def __init__(
        self, path: Path, targets: np.ndarray, forecast: Forecast, rear_axle: np.ndarray, speed: float
    ) -> None:
        self.path, self.targets, self.forecast = path, targets, forecast
        start = float(path.project(shapely.Point(rear_axle[:2])))
        ahead = path.substring(start, start + np.abs(targets.max()) * 50 * 0.1)
        self.corridor = ahead.buffer(EGO_WIDTH_M / 2, quad_segs=16, cap_style="square")
        self.arc_lengths = np.full(len(targets), start)
        self.speeds = np.full(len(targets), float(speed))
        self.poses = np.zeros((len(targets), 51, 3))
        self.poses[:, 0] = interpolate(path, self.arc_lengths)
        self.leads = np.zeros((len(targets), 3))
        self.step = 0

    def advance_to(self, last_step: int) -> None:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            while self.step < last_step:
                self.step += 1
                if self.step % 2 == 0:
                    self.find_leads(self.step // 2)
                self.follow()
                self.poses[:, self.step] = interpolate(self.path, self.arc_lengths)

    def keep_only(self, policy: int) -> None:
        for name in ("targets", "arc_lengths", "speeds", "poses", "leads"):
            setattr(self, name, getattr(self, name)[policy : policy + 1])

    def find_leads(self, map_index: int) -> None:
        """The record of what is followed goes from policy to policy without being cleared."""
        forecast = self.forecast
        arc_length, speed, rear_length = 0.0, 0.0, 0.0
        polygons = forecast.polygons(map_index)
        hits = [
            hit
            for hit in shapely.STRtree(polygons, node_capacity=10).query(self.corridor, "intersects")
            if not forecast.is_ignored[hit]
        ]
        places = [self.path.project(shapely.centroid(polygons[hit])) for hit in hits]
        for policy, own in enumerate(self.arc_lengths):
            pose = self.poses[policy, self.step - 1]
            shift = EGO_REAR_AXLE_TO_CENTER_M * np.array([np.cos(pose[2]), np.sin(pose[2]), 0.0])
            ego = shapely.Polygon(nuplan_box_corners(pose + shift, EGO_LENGTH_M, EGO_WIDTH_M))
            ahead = [hit for hit, place in zip(hits, places, strict=True) if place > own]
            if ahead:
                distances = [shapely.distance(ego, polygons[hit]) for hit in ahead]
                nearest = ahead[int(np.argmin(distances))]
                arc_length = own + min(distances)
                if nearest < forecast.num_objects:
                    relative = wrap_angle(forecast.headings[nearest] - pose[2])
                    speed = forecast.speeds[nearest] * np.cos(relative)
            else:
                arc_length, rear_length = self.path.length, EGO_LENGTH_M / 2
            self.leads[policy] = arc_length, speed, rear_length

    def follow(self) -> None:
        lead, lead_speed, rear_length = self.leads.T
        v = self.speeds
        wanted = 1.0 + v * 1.5 + (v * (v - lead_speed)) / (2 * np.sqrt(1.5 * 3.0))
        gap = np.maximum(lead - self.arc_lengths - rear_length, 1.0)
        accel = np.clip(1.5 * (1 - (v / self.targets) ** 10 - (wanted / gap) ** 2), -3.0, 1.5)
        self.arc_lengths = self.arc_lengths + 0.1 * v
        self.speeds = v + 0.1 * accel


def interpolate(path: Path, arc_lengths: np.ndarray) -> np.ndarray:
    """(..., 3) poses, as scipy's interp1d has them; NaN becomes 0."""
    query = np.clip(arc_lengths, 1e-5, path.length)
    high = np.clip(np.searchsorted(path.arc_length, query), 1, len(path.arc_length) - 1)
    span = (path.arc_length[high] - path.arc_length[high - 1])[..., None]
    slope = (path.poses[high] - path.poses[high - 1]) / span
    poses = slope * (query - path.arc_length[high - 1])[..., None] + path.poses[high - 1]
    poses[..., 2] = wrap_angle(poses[..., 2])
    return np.nan_to_num(poses, nan=0.0)


def reference_plan(
    centerline: Path, forecast: Forecast, rear_axle: np.ndarray, speed: float, targets: np.ndarray, best: int
) -> tuple[np.ndarray, np.ndarray]:
    """(15, 41, 3) the proposals, and (51, 3) the one numbered `best`, continued."""
    rollouts = [
        ReferenceRollout(centerline.shifted(offset), targets, forecast, rear_axle, speed)
        for offset in (0.0, -1.0, 1.0)
    ]
    for rollout in rollouts:
        rollout.advance_to(40)
    proposals = np.concatenate([rollout.poses[:, :41] for rollout in rollouts])
    winner = rollouts[best // 5]
    winner.keep_only(best % 5)
    winner.advance_to(50)
    return proposals, winner.poses[0]
