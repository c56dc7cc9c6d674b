"""The geometric sub-scores once more, with shapely and plain loops: ignore lists, no shortcuts.

Slow and close to the text of pdm-scorer 4.1, 4.2 and 4.7; the kernels are compared with it.
"""

from __future__ import annotations

import numpy as np
import shapely

from drivefine_agent.scoring.types import PolygonKind

LANES = (PolygonKind.LANE, PolygonKind.LANE_CONNECTOR)
DRIVABLE = (PolygonKind.ROADBLOCK, PolygonKind.INTERSECTION, PolygonKind.CARPARK_AREA)


def ego_points(state):
    """Four corners and the centre of one state."""
    x, y, heading = state[:3]
    along, left = np.array([np.cos(heading), np.sin(heading)]), np.array([-np.sin(heading), np.cos(heading)])
    center = np.array([x, y]) + 1.461 * along
    signs = ((1, 1), (-1, 1), (-1, -1), (1, -1))
    return np.array([center + a * 2.588 * along + b * 1.1485 * left for a, b in signs] + [center])


def areas_of(state, areas):
    """(non drivable, multiple lanes, off route, rear axle in intersection) of one state."""
    points = [shapely.Point(p) for p in ego_points(state)]
    inside = [[area.polygon.contains(p) for p in points] for area in areas]
    drivable = [flags for flags, area in zip(inside, areas, strict=True) if area.kind in DRIVABLE]
    lanes = [flags for flags, area in zip(inside, areas, strict=True) if area.kind in LANES]
    on_route = [f for f, area in zip(inside, areas, strict=True) if area.kind in LANES and area.on_route]
    corners_on_road = sum(any(flags[c] for flags in drivable) for c in range(4))
    touched = sum(any(flags[:4]) for flags in lanes)
    whole = any(all(flags[:4]) for flags in lanes)
    axle = shapely.Point(state[:2])
    crossing = any(a.kind == PolygonKind.INTERSECTION and a.polygon.contains(axle) for a in areas)
    return corners_on_road < 4, touched > 1 and not whole, not any(f[4] for f in on_route), crossing


def angle_to(state, point):
    way = np.asarray(point) - state[:2]
    with np.errstate(invalid="ignore"):
        return np.arccos(np.dot([np.cos(state[2]), np.sin(state[2])], way / np.linalg.norm(way)))


def collisions(states, areas, tracks, ignored=()):
    """(score, first at-fault index) of one proposal (41, 11)."""
    score, first, ignore = 1.0, np.inf, set(ignored)
    for t in range(len(states)):
        points = ego_points(states[t])
        ego = shapely.Polygon(points[:4])
        for k in range(len(tracks.is_agent)):
            track = shapely.Polygon(tracks.corners[t, k])
            if not tracks.exists[t, k] or k in ignore or not ego.intersects(track):
                continue
            off_road, multiple, *_ = areas_of(states[t], areas)
            if np.hypot(*states[t, 3:5]) <= 0.05:
                at_fault = False
            elif tracks.is_stopped[k]:
                at_fault = True
            elif angle_to(states[t], tracks.center[t, k]) > np.deg2rad(150):
                at_fault = False
            elif shapely.LineString([points[0], points[3]]).intersects(track):
                at_fault = True
            else:
                at_fault = off_road or multiple
            if at_fault:
                score = min(score, 0.0 if tracks.is_agent[k] else 0.5)
                first = min(first, t)
            else:
                ignore.add(k)
    return score, first


def time_to_collision(states, areas, tracks, ignored=()):
    """(score, first violating index) of one proposal (41, 11)."""
    score, first, ignore = 1.0, np.inf, set(ignored)
    for t in range(len(states)):
        speed = np.hypot(*states[t, 3:5])
        for f in (0, 3, 6, 9):
            shift = speed * 0.1 * f * np.array([np.cos(states[t, 2]), np.sin(states[t, 2])])
            ego = shapely.Polygon(ego_points(states[t])[:4] + shift)
            for k in range(len(tracks.is_agent)):
                if not tracks.exists[t + f, k] or k in ignore or speed < 0.005:
                    continue
                if not ego.intersects(shapely.Polygon(tracks.corners[t + f, k])):
                    continue
                off_road, multiple, _, crossing = areas_of(states[t], areas)
                angle = angle_to(states[t], tracks.center[t + f, k])
                beside = (off_road or multiple or crossing) and not angle > np.deg2rad(150)
                if angle < np.deg2rad(30) or beside:
                    score, first = 0.0, min(first, t)
                else:
                    ignore.add(k)
    return score, first
