"""NAVSIM 2's reactive traffic: the vehicles of frame 0 follow their lanes and brake for the ego.

Source: pdm-scorer 4.13; NAVSIM v2.2, navsim/traffic_agents_policies and
navsim/planning/simulation/observation; nuplan-devkit, planning/simulation/observation/idm.
"""

from __future__ import annotations

import math

import numpy as np
import shapely
from numpy.typing import NDArray

from drivefine_agent.constants import EGO_LENGTH_M, EGO_WIDTH_M, SIM_INTERVAL_S, TRACK_TYPES
from drivefine_agent.errors import SceneError, TrafficError
from drivefine_agent.geometry.indices import StateIndex
from drivefine_agent.scoring.angles import principal_value
from drivefine_agent.scoring.contacts import TrackBoxes
from drivefine_agent.scoring.kernel_arrays import kernel_input
from drivefine_agent.scoring.nuplan_boxes import geos_centroids, nuplan_box_corners
from drivefine_agent.scoring.reactive_occupancy import MARGIN_M, Kept, Occupancy, widened
from drivefine_agent.scoring.reactive_paths import path_to_go, pose_on_path, stretch_of_path
from drivefine_agent.scoring.types import FloatArray, ReactiveTraffic, ScoringSceneV2

RADIUS_M = 100.0  # around the ego; a vehicle beyond it is simulated no more
MIN_GAP_M = 1.0
HEADWAY_S = 1.5
MAX_ACCELERATION_MPS2 = 1.0
MAX_DECELERATION_MPS2 = 2.0
EXPONENT = 4

_VEHICLE = TRACK_TYPES.index("vehicle")


def roll_out(scene: ScoringSceneV2, states: FloatArray) -> TrackBoxes:
    """The road users around the ego while it drives one proposal.

    Sample 0 holds what was detected in frame 0. In samples 1 to 40, vehicles are simulated, the others move
    as recorded, and a vehicle that is not simulated stays (parked off the lanes) or is gone.

    Args:
      scene: with `traffic`.
      states: (41, 11) simulated states of the proposal, see StateIndex.

    Returns:
      Boxes of the scene's K tracks at 41 samples.

    Raises:
      SceneError: the scene was prepared without reactive traffic.
      TrafficError: NAVSIM fails on this scene, or on this scene with this proposal.
    """
    traffic = scene.traffic
    if traffic is None:
        raise SceneError(
            f"scene '{scene.token}' has no reactive traffic: prepare it again, with reactive traffic"
        )
    try:
        poses, exists = simulate_vehicles(
            traffic, scene.track_tokens, states, scene.kept("reactive_geometries", dict)
        )
    except TrafficError as error:
        raise TrafficError(f"scene '{scene.token}': {error}") from error

    is_vehicle = scene.track_type == _VEHICLE
    all_exist = scene.track_exists & ~is_vehicle
    all_exist[0] = scene.exists_in_frame
    all_exist[:, traffic.vehicle_track] = exists
    corners, centers = scene.track_corners.copy(), scene.track_center.copy()
    boxes = nuplan_box_corners(poses, traffic.vehicle_sizes[:, 0], traffic.vehicle_sizes[:, 1])
    corners[:, traffic.vehicle_track] = boxes
    centers[:, traffic.vehicle_track] = geos_centroids(boxes)
    corners[~all_exist] = 0.0
    centers[~all_exist] = 0.0
    return TrackBoxes(corners, centers, all_exist, scene.track_is_agent, scene.track_is_stopped)


def simulate_vehicles(
    traffic: ReactiveTraffic, track_tokens: tuple[str, ...], states: FloatArray, kept: Kept | None = None
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Move the V vehicles of frame 0 through T samples.

    Args:
      traffic: of the scene.
      track_tokens: (K,) of the scene, or empty where tokens do not matter (none is a part of another).
      states: (T, 11) simulated ego states.
      kept: geometries of earlier roll-outs of this traffic; read and extended.

    Returns:
      (T, V, 3) centre x, y [m], heading [rad]; (T, V) whether the vehicle is there.

    Raises:
      TrafficError: see `roll_out`.
    """
    num_vehicles = len(traffic.vehicle_track)
    poses = np.repeat(traffic.vehicle_poses[None], len(states), axis=0)
    exists = np.zeros((len(states), num_vehicles), dtype=bool)
    exists[0] = True
    agents = _Agents(traffic, track_tokens, kept)
    parked = _Parked(traffic)
    for sample in range(1, len(states)):
        agents.step(states[sample - 1])
        moving = traffic.agent_vehicle[agents.active]
        poses[sample, moving] = agents.poses[agents.active]
        exists[sample, moving] = True
        exists[sample] |= parked.stay(moving, poses[sample, moving])
    return poses, exists


def idm_acceleration(speed: float, target_speed: float, lead_speed: float, gap: float) -> float:
    """Acceleration of the intelligent driver model [m/s^2], within its limits; speeds [m/s], gap [m]."""
    wanted_gap = (
        MIN_GAP_M
        + speed * HEADWAY_S
        + (speed * (speed - lead_speed)) / (2 * math.sqrt(MAX_ACCELERATION_MPS2 * MAX_DECELERATION_MPS2))
    )
    acceleration = MAX_ACCELERATION_MPS2 * (
        1 - (speed / target_speed) ** EXPONENT - (wanted_gap / max(gap, MIN_GAP_M)) ** 2
    )
    return min(max(-MAX_DECELERATION_MPS2, acceleration), MAX_ACCELERATION_MPS2)


class _Agents:
    """The simulated vehicles. `poses` (A, 3) and `active` (A,) are their present state."""

    def __init__(
        self, traffic: ReactiveTraffic, track_tokens: tuple[str, ...], kept: Kept | None = None
    ) -> None:
        tracks = traffic.vehicle_track[traffic.agent_vehicle]
        tokens = [track_tokens[k] if track_tokens else f"#{k:09d}" for k in tracks]
        self._tokens = tokens
        self._size = traffic.vehicle_sizes[traffic.agent_vehicle].tolist()
        self._progress = traffic.agent_progress.tolist()
        self._speed = traffic.vehicle_speed[traffic.agent_vehicle].tolist()
        self._target_speed = traffic.agent_target_speed.tolist()
        self._path_progress, self._path_vertices = _paths(traffic)
        self._refuse_invalid()
        self.active = np.ones(len(tokens), dtype=bool)
        self.poses = np.array([self._pose(agent) for agent in range(len(tokens))]).reshape(-1, 3)

        self._occupancy = Occupancy(tokens, kept)
        for agent, pose in enumerate(traffic.agent_poses):
            self._place_box(agent, pose, *self._size[agent])
        self._has_moved = np.zeros(len(tokens), dtype=bool)

    def step(self, state: FloatArray) -> None:
        """Move all agents by 0.1 s, one after the other; the later ones see where the earlier ones are now.

        The ego's rear-axle pose is taken for its centre, so its footprint is 1.461 m too far behind.
        """
        self._place_box(len(self._tokens), state[:3], EGO_LENGTH_M, EGO_WIDTH_M)
        self._drop_distant(state)
        for agent in np.flatnonzero(self.active).tolist():
            self._occupancy.next_turn()
            self._move(agent, *self._lead(agent, state))

    def _drop_distant(self, state: FloatArray) -> None:
        dx, dy = self.poses[:, 0] - state[StateIndex.X], self.poses[:, 1] - state[StateIndex.Y]
        for agent in np.flatnonzero(self.active & (np.sqrt(dx * dx + dy * dy) > RADIUS_M)).tolist():
            self.active[agent] = False
            self._occupancy.remove(agent)

    def _lead(self, agent: int, state: FloatArray) -> tuple[float, float]:
        """Speed of what is ahead along the agent's direction [m/s], and the gap to it [m].

        Without anything ahead, the end of the path counts as a standing obstacle.
        """
        length, width = self._size[agent]
        line = path_to_go(self._path_progress[agent], self._path_vertices[agent], self._bounded(agent))
        # Once moved, an agent's box has its centre on the corridor.
        is_sure = self._has_moved[agent] and min(length, width) > MARGIN_M
        if not is_sure and not self._occupancy.touches_own(agent, line, width / 2):
            raise TrafficError(
                f"the path of the vehicle '{self._tokens[agent]}' does not touch its box, as happens behind"
                " the last but one vertex of a lane: NAVSIM fails such a scene too; leave it out"
            )
        nearest = self._occupancy.nearest_ahead(agent, line, width / 2, MIN_GAP_M)
        if nearest is None:
            return 0.0, float(self._path_progress[agent][-1]) - self._progress[agent] - length / 2
        other, gap = nearest
        is_ego = other == len(self._tokens) or "ego" in self._tokens[other]
        if is_ego:
            speed, heading = math.hypot(state[StateIndex.VX], state[StateIndex.VY]), state[StateIndex.HEADING]
        else:
            speed, heading = self._speed[other], self.poses[other, 2]
        relative_heading = principal_value(float(heading - self.poses[agent, 2]))
        return speed * math.cos(relative_heading), gap

    def _move(self, agent: int, lead_speed: float, gap: float) -> None:
        speed = self._speed[agent]
        acceleration = idm_acceleration(speed, self._target_speed[agent], lead_speed, gap)
        self._progress[agent] += SIM_INTERVAL_S * speed
        self._speed[agent] = max(speed + SIM_INTERVAL_S * acceleration, 0.0)
        self.poses[agent] = self._pose(agent)
        self._has_moved[agent] = True

        length, width = self._size[agent]
        pose = self.poses[agent].copy()
        line = stretch_of_path(
            self._path_progress[agent],
            self._path_vertices[agent],
            self._bounded(agent, -length / 2),
            self._bounded(agent, length / 2 + self._speed[agent] * HEADWAY_S),
        )
        self._occupancy.set(
            agent,
            np.concatenate([_axis(pose, length), line]),
            width / 2,
            lambda: shapely.union_all([widened(line, width / 2), _box(pose, length, width)]),
        )

    def _place_box(self, entry: int, pose: FloatArray, length: float, width: float) -> None:
        self._occupancy.set(entry, _axis(pose, length), width / 2, lambda: _box(pose, length, width))

    def _bounded(self, agent: int, offset: float = 0.0) -> float:
        """The agent's progress, moved by an offset, within its path [m]."""
        progress = self._path_progress[agent]
        return float(max(progress[0], min(self._progress[agent] + offset, progress[-1])))

    def _pose(self, agent: int) -> FloatArray:
        pose: FloatArray = pose_on_path(
            self._path_progress[agent], self._path_vertices[agent], self._bounded(agent)
        )
        return pose

    def _refuse_invalid(self) -> None:
        for agent, token in enumerate(self._tokens):
            if len(self._path_progress[agent]) < 2:
                raise TrafficError(
                    f"the lane of the vehicle '{token}' has two vertices, of which the policy drops the last:"
                    " NAVSIM fails such a scene too; leave it out"
                )
            if math.isnan(self._speed[agent]):
                raise TrafficError(
                    f"the vehicle '{token}' has no velocity: NAVSIM fails such a scene too; leave it out"
                )


class _Parked:
    """Vehicles of frame 0 that stay where they are while they are not simulated and the place is free."""

    def __init__(self, traffic: ReactiveTraffic) -> None:
        self._may_freeze = traffic.may_freeze
        self._corners = nuplan_box_corners(
            traffic.vehicle_poses, traffic.vehicle_sizes[:, 0], traffic.vehicle_sizes[:, 1]
        )
        self._sizes = traffic.vehicle_sizes
        self._boxes = shapely.polygons(self._corners)
        self._centers = traffic.vehicle_poses[:, :2]
        self._radii = np.hypot(self._sizes[:, 0], self._sizes[:, 1]) / 2 + MARGIN_M
        frozen = np.flatnonzero(self._may_freeze)
        self._overlaps = np.zeros((len(self._boxes), len(self._boxes)), dtype=bool)
        for vehicle in frozen:
            self._overlaps[vehicle, frozen] = shapely.intersects(self._boxes[vehicle], self._boxes[frozen])

    def stay(self, moving: NDArray[np.int64], poses: FloatArray) -> NDArray[np.bool_]:
        """(V,) which vehicles stay, beside the simulated ones `moving` (A,) at poses (A, 3)."""
        candidate = self._may_freeze.copy()
        candidate[moving] = False
        vehicles = np.flatnonzero(candidate)
        offsets = self._centers[vehicles, None] - poses[None, :, :2]
        reach = self._radii[vehicles, None] + self._radii[moving]
        near, other = np.nonzero(np.sum(offsets * offsets, axis=-1) <= reach * reach)
        blocked = np.zeros(len(candidate), dtype=bool)
        if len(near):
            corners = nuplan_box_corners(poses[other], *self._sizes[moving[other]].T)
            hits = shapely.intersects(self._boxes[vehicles[near]], shapely.polygons(corners))
            blocked[vehicles[near[hits]]] = True
        stays = np.zeros(len(candidate), dtype=bool)
        for vehicle in vehicles:
            stays[vehicle] = not blocked[vehicle] and not (self._overlaps[vehicle] & stays).any()
        return stays


def _paths(traffic: ReactiveTraffic) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Progress (n,) and vertices (n, 3) of each agent's path."""
    vertices = np.concatenate([traffic.path_xy, traffic.path_heading[:, None]], axis=1)
    slices = [slice(a, b) for a, b in zip(traffic.path_offsets[:-1], traffic.path_offsets[1:], strict=True)]
    return (
        [kernel_input(traffic.path_progress[part]) for part in slices],
        [kernel_input(vertices[part]) for part in slices],
    )


def _box(pose: FloatArray, length: float, width: float) -> shapely.Polygon:
    return shapely.Polygon(nuplan_box_corners(pose, length, width))


def _axis(pose: FloatArray, length: float) -> FloatArray:
    """(2, 2) from the middle of a box's front to the middle of its rear."""
    x, y, heading = pose.tolist()
    dx, dy = length / 2 * math.cos(heading), length / 2 * math.sin(heading)
    return np.array([[x + dx, y + dy], [x - dx, y - dy]])
