"""All sub-scores once more, for many trajectories: numpy, shapely, scipy, ignore lists and no shortcuts.

Follows pdm-scorer 4.1-4.10. Every function returns values (P,) and by how much the closest of the decisions
behind a value was taken (P,), infinite where geometry decided alone (GEOS decides that exactly).
"""

from __future__ import annotations

import numpy as np
import shapely
from scipy.signal import savgol_filter

from drivefine_agent.scoring.footprint import footprint_points
from drivefine_agent.scoring.types import PolygonKind

LANES = (PolygonKind.LANE, PolygonKind.LANE_CONNECTOR)
DRIVABLE = (PolygonKind.ROADBLOCK, PolygonKind.INTERSECTION, PolygonKind.CARPARK_AREA)


def areas_of(states, points, polygons):
    """Flags (P, S): non drivable, multiple lanes, off route, rear axle and centre in an intersection."""
    tested = np.concatenate([points, states[:, :, None, :2]], axis=2)  # (P, S, 6, 2)
    shape = states.shape[:2]
    on_road = np.zeros((*shape, 4), dtype=bool)
    touched = np.zeros(shape, dtype=int)
    whole, route, axle, middle = (np.zeros(shape, dtype=bool) for _ in range(4))
    for polygon, kind, on_route in zip(
        polygons.shapely_polygons, polygons.kind, polygons.on_route, strict=True
    ):
        inside = shapely.contains_xy(polygon, tested[..., 0], tested[..., 1])
        if kind in DRIVABLE:
            on_road |= inside[..., :4]
        if kind in LANES:
            touched += inside[..., :4].any(axis=-1)
            whole |= inside[..., :4].all(axis=-1)
            route |= inside[..., 4] & bool(on_route)
        if kind == PolygonKind.INTERSECTION:
            axle |= inside[..., 5]
            middle |= inside[..., 4]
    return ~on_road.all(axis=-1), (touched > 1) & ~whole, ~route, axle, middle


def contacts(points, tracks, shift, look):
    """(P, S, K) whether the ego, moved by `shift` (P, S, 2), touches the tracks `look` samples later."""
    num_states = points.shape[1]
    corners = points[:, :, :4] + shift[:, :, None]
    ego = shapely.polygons(corners)
    exists = tracks.exists[look : look + num_states]
    boxes = shapely.polygons(tracks.corners[look : look + num_states])  # (S, K)
    low, high = corners.min(axis=2), corners.max(axis=2)
    track_low = tracks.corners[look : look + num_states].min(axis=2)
    track_high = tracks.corners[look : look + num_states].max(axis=2)
    near = (low[:, :, None] <= track_high).all(axis=-1) & (high[:, :, None] >= track_low).all(axis=-1)
    near &= exists
    hits = np.zeros(near.shape, dtype=bool)
    p, s, k = np.nonzero(near)
    hits[p, s, k] = shapely.intersects(ego[p, s], boxes[s, k])
    return hits


def angles_to(states, places):
    """Angles (H,) from states (H, 11) to places (H, 2) [rad], NaN as in the official code.

    And how close each was to a threshold or to NaN.
    """
    way = places - states[:, :2]
    norm = np.sqrt(way[:, 0] * way[:, 0] + way[:, 1] * way[:, 1])
    with np.errstate(invalid="ignore", divide="ignore"):
        dot = np.cos(states[:, 2]) * (way[:, 0] / norm) + np.sin(states[:, 2]) * (way[:, 1] / norm)
        angle = np.arccos(dot)
        margin = np.minimum(np.abs(angle - np.deg2rad(30)), np.abs(angle - np.deg2rad(150)))
    return angle, np.where(np.abs(dot) < 1.0 - 1e-15, margin, 0.0)


def collisions(states, points, areas, tracks):
    hits = contacts(points, tracks, np.zeros((*states.shape[:2], 2)), 0)
    value, margin = np.ones(len(states)), np.full(len(states), np.inf)
    ignored = np.zeros((len(states), hits.shape[2]), dtype=bool)
    rows = np.nonzero(hits)
    angles, close = angles_to(states[rows[0], rows[1]], tracks.center[rows[1], rows[2]])
    for hit, (p, t, k) in enumerate(zip(*rows, strict=True)):
        if ignored[p, k]:
            continue
        speed = np.hypot(*states[p, t, 3:5])
        margin[p] = min(margin[p], abs(speed - 0.05))
        at_fault = bool(tracks.is_stopped[k])
        if speed <= 0.05:
            at_fault = False
        elif not at_fault:
            margin[p] = min(margin[p], close[hit])
            if not angles[hit] > np.deg2rad(150):
                bumper = shapely.LineString(points[p, t, [0, 3]])
                at_fault = bumper.intersects(shapely.Polygon(tracks.corners[t, k]))
                at_fault = bool(at_fault or areas[0][p, t] or areas[1][p, t])
        if at_fault:
            value[p] = min(value[p], 0.0 if tracks.is_agent[k] else 0.5)
        else:
            ignored[p, k] = True
    return value, margin


def time_to_collision(states, points, areas, tracks):
    num_states = states.shape[1]
    speed = np.hypot(states[..., 3], states[..., 4])
    velocity = np.stack([np.cos(states[..., 2]) * speed, np.sin(states[..., 2]) * speed], axis=-1)
    looks = (0, 3, 6, 9)
    hits = np.stack(
        [contacts(points[:, :num_states], tracks, velocity * (0.1 * look), look) for look in looks], axis=2
    )
    value, margin = np.ones(len(states)), np.abs(speed - 0.005).min(axis=1)
    ignored = np.zeros((len(states), hits.shape[3]), dtype=bool)
    rows = np.nonzero(hits)
    times = rows[1] + np.array(looks)[rows[2]]
    angles, close = angles_to(states[rows[0], rows[1]], tracks.center[times, rows[3]])
    for hit, (p, t, _, k) in enumerate(zip(*rows, strict=True)):
        if ignored[p, k] or speed[p, t] < 0.005:
            continue
        angle, margin[p] = angles[hit], min(margin[p], close[hit])
        beside = areas[0][p, t] or areas[1][p, t] or areas[3][p, t]
        if angle < np.deg2rad(30) or (beside and not angle > np.deg2rad(150)):
            value[p] = 0.0
        else:
            ignored[p, k] = True
    return value, margin


def driving_direction(center, counts):
    step = np.zeros(center.shape[:2])
    step[:, 1:] = np.linalg.norm(np.diff(center, axis=1), axis=-1)
    step[~counts] = 0.0
    padded = np.concatenate([np.zeros((len(step), 10)), step], axis=1)
    longest = np.lib.stride_tricks.sliding_window_view(padded, 11, axis=1).sum(axis=-1).max(axis=1)
    margin = np.minimum(abs(longest - 2.0), abs(longest - 6.0))
    return np.where(longest < 2.0, 1.0, np.where(longest < 6.0, 0.5, 0.0)), margin


def lane_keeping(center, skipped, line):
    distance = shapely.distance(shapely.points(center), shapely.LineString(line))
    value = np.ones(len(center))
    for p in range(len(center)):
        count = 0
        for t in range(center.shape[1]):
            if skipped[p, t]:
                continue
            count = count + 1 if distance[p, t] > 0.5 else 0
            if count >= 20:
                value[p] = 0.0
    return value, np.abs(distance - 0.5).min(axis=1)


def traffic_lights(points, lights):
    ego = shapely.polygons(points[:, :, :4])
    touches = np.zeros(ego.shape, dtype=bool)
    for light, polygon in enumerate(lights.polygons):
        touches |= shapely.intersects(ego, polygon) & lights.is_red[: ego.shape[1], light]
    return np.where(touches.any(axis=1), 0.0, 1.0), np.full(len(ego), np.inf)


def progress(center, line):
    route = shapely.LineString(line)
    ends = shapely.line_locate_point(route, shapely.points(center[:, [0, -1]]))
    return np.maximum(ends[:, 1] - ends[:, 0], 0.0), np.full(len(center), np.inf)


def comfort(states, lon_accel, windows):
    """Windows: longitudinal and lateral acceleration, jerk's smoothing, jerk's slope."""
    interval = np.mean(np.diff(np.arange(states.shape[1]) * 0.1))

    def filtered(series, window, degree=2, derivative=0):
        return np.round(savgol_filter(series, window, degree, deriv=derivative, delta=interval, axis=-1), 8)

    heading = states[..., 2]
    turns = np.round(np.diff(heading, axis=1) / (2 * np.pi))
    heading = heading - 2 * np.pi * np.concatenate(
        [np.zeros((len(heading), 1)), turns.cumsum(axis=1)], axis=1
    )
    accel, smooth, slope = windows
    magnitude = np.hypot(states[..., 5], states[..., 6])
    series = [
        (filtered(lon_accel, accel), -4.05, 2.40),
        (filtered(states[..., 6], accel), -4.89, 4.89),
        (filtered(filtered(magnitude, smooth), slope, 2, 1), -8.37, 8.37),
        (filtered(filtered(lon_accel, smooth), slope, 2, 1), -4.13, 4.13),
        (filtered(heading, 5, 2, 1), -0.95, 0.95),
        (filtered(heading, 5, 3, 2), -1.93, 1.93),
    ]
    margins = np.stack(
        [np.minimum(s.min(axis=1) - low, high - s.max(axis=1)) for s, low, high in series], axis=1
    )
    return np.where((margins > 0).all(axis=1), 1.0, 0.0), np.abs(margins).min(axis=1)


def oracle_v1(states, around):
    """Sub-scores of NAVSIM 1.1 by name of StateScoresV1."""
    points = footprint_points(states)
    center = points[:, :, 4]
    areas = areas_of(states, points, around.polygons)
    n = states.shape[1]
    return {
        "no_at_fault_collisions": collisions(states, points, areas, around.tracks),
        "drivable_area_compliance": (np.where(areas[0].any(axis=1), 0.0, 1.0), np.full(len(states), np.inf)),
        "driving_direction_compliance": driving_direction(center, areas[2]),
        "progress_m": progress(center, around.centerline),
        "time_to_collision_within_bound": time_to_collision(states, points, areas, around.tracks),
        "comfort": comfort(states, states[..., 5], (n, 8, n)),
    }


def oracle_v2(states, around, history):
    """Sub-scores of NAVSIM 2 in non-reactive traffic by name of StateScoresV2."""
    points = footprint_points(states)
    center = points[:, :, 4]
    areas = areas_of(states, points, around.polygons)
    past = np.concatenate([np.broadcast_to(history, (len(states), *history.shape)), states], axis=1)
    lon_accel = past[..., 5] + 1.461 * (past[..., 9] ** 2 + past[..., 10])
    return {
        "no_at_fault_collisions": collisions(states, points, areas, around.tracks),
        "drivable_area_compliance": (np.where(areas[0].any(axis=1), 0.0, 1.0), np.full(len(states), np.inf)),
        "driving_direction_compliance": driving_direction(center, areas[2] & ~areas[4]),
        "traffic_light_compliance": traffic_lights(points, around.lights),
        "progress_m": progress(center, around.centerline),
        "time_to_collision_within_bound": time_to_collision(states[:, :32], points, areas, around.tracks),
        "lane_keeping": lane_keeping(center, areas[4], around.centerline),
        "history_comfort": comfort(past, lon_accel, (8, 8, 15)),
    }
