"""Places on a path: pose at a progress, the rest of the path, a stretch of it.

A path is a pair (progress (n,) [m], vertices (n, 3) x, y, unwrapped heading), n >= 2.
Source: pdm-scorer 4.13 and 5.3; nuplan-devkit, planning/simulation/path.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from drivefine_agent.scoring.angles import principal_value


@njit(cache=True, nogil=True)
def pose_on_path(progress, vertices, at):
    """(3,) x, y, heading in [-pi, pi) at a progress within the path; on a vertex, the segment before it."""
    index = min(max(np.searchsorted(progress, at), 1), len(progress) - 1)
    start, end = vertices[index - 1], vertices[index]
    length, offset = progress[index] - progress[index - 1], at - progress[index - 1]
    pose = np.empty(3)
    for field in range(3):
        pose[field] = (end[field] - start[field]) / length * offset + start[field]
    pose[2] = principal_value(pose[2])
    return pose


@njit(cache=True, nogil=True)
def path_to_go(progress, vertices, at):
    """(m, 2) line from a progress to the end of the path; the last segment at the very end."""
    first = np.searchsorted(progress, at, side="right")
    if first == len(progress):
        return vertices[-2:, :2].copy()
    line = np.empty((1 + len(progress) - first, 2))
    line[0] = pose_on_path(progress, vertices, at)[:2]
    line[1:] = vertices[first:, :2]
    return line


@njit(cache=True, nogil=True)
def stretch_of_path(progress, vertices, start, end):
    """(m, 2) line between two places; a whole segment where both are the beginning or the end of the path."""
    first = np.searchsorted(progress, start, side="right")
    stop = np.searchsorted(progress, end)  # one past the last vertex before the end
    if first == len(progress):
        return vertices[-2:, :2].copy()
    if stop == 0:
        return vertices[:2, :2].copy()
    inner = max(stop - first, 0)
    line = np.empty((2 + inner, 2))
    line[0] = pose_on_path(progress, vertices, start)[:2]
    line[1 : 1 + inner] = vertices[first : first + inner, :2]
    line[1 + inner] = pose_on_path(progress, vertices, end)[:2]
    return line


@njit(cache=True, nogil=True)
def bounds_of(points, margin):
    """(4,) least x and y, largest x and y of points (m, 2), widened by a margin."""
    bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
    for point in points:
        bounds[0], bounds[1] = min(bounds[0], point[0] - margin), min(bounds[1], point[1] - margin)
        bounds[2], bounds[3] = max(bounds[2], point[0] + margin), max(bounds[3], point[1] + margin)
    return bounds


@njit(cache=True, nogil=True)
def may_touch(line, margin, bounds):
    """(n,) whether a line (m, 2), widened by a margin, may touch the things within some bounds (n, 4)."""
    result = np.zeros(len(bounds), dtype=np.bool_)
    for n in range(len(bounds)):
        for i in range(len(line) - 1):
            if (
                min(line[i, 0], line[i + 1, 0]) - margin <= bounds[n, 2]
                and max(line[i, 0], line[i + 1, 0]) + margin >= bounds[n, 0]
                and min(line[i, 1], line[i + 1, 1]) - margin <= bounds[n, 3]
                and max(line[i, 1], line[i + 1, 1]) + margin >= bounds[n, 1]
            ):
                result[n] = True
                break
    return result


@njit(cache=True, nogil=True)
def lines_within(first, second, distance):
    """Whether two lines (m, 2), (n, 2) come at least as near as a distance."""
    square = distance * distance
    for j in range(len(second) - 1):
        cx, cy, dx, dy = second[j, 0], second[j, 1], second[j + 1, 0], second[j + 1, 1]
        x_low, x_high = min(cx, dx) - distance, max(cx, dx) + distance
        y_low, y_high = min(cy, dy) - distance, max(cy, dy) + distance
        for i in range(len(first) - 1):
            ax, ay, bx, by = first[i, 0], first[i, 1], first[i + 1, 0], first[i + 1, 1]
            if max(ax, bx) < x_low or min(ax, bx) > x_high or max(ay, by) < y_low or min(ay, by) > y_high:
                continue
            if (
                _square_distance(cx, cy, ax, ay, bx, by) <= square
                or _square_distance(dx, dy, ax, ay, bx, by) <= square
                or _square_distance(ax, ay, cx, cy, dx, dy) <= square
                or _square_distance(bx, by, cx, cy, dx, dy) <= square
                or _cross(ax, ay, bx, by, cx, cy, dx, dy)
            ):
                return True
    return False


@njit(cache=True, nogil=True)
def is_beside(line, distance, axis):
    """Whether the middle of an axis (its first two points) is beside a segment of a line (m, 2), so near."""
    px, py = (axis[0, 0] + axis[1, 0]) / 2, (axis[0, 1] + axis[1, 1]) / 2
    for i in range(len(line) - 1):
        ax, ay = line[i, 0], line[i, 1]
        dx, dy = line[i + 1, 0] - ax, line[i + 1, 1] - ay
        along, square = (px - ax) * dx + (py - ay) * dy, dx * dx + dy * dy
        if 0.0 < along < square and abs((px - ax) * dy - (py - ay) * dx) < distance * math.sqrt(square):
            return True
    return False


@njit(cache=True, nogil=True)
def inner_distance(first, second):
    """Least distance of two lines (m, 2), (n, 2), without the links from an axis (two points) to the rest."""
    square = np.inf
    for i in range(len(first) - 1):
        for j in range(len(second) - 1):
            if i == 1 or j == 1:
                continue
            ax, ay, bx, by = first[i, 0], first[i, 1], first[i + 1, 0], first[i + 1, 1]
            cx, cy, dx, dy = second[j, 0], second[j, 1], second[j + 1, 0], second[j + 1, 1]
            if _cross(ax, ay, bx, by, cx, cy, dx, dy):
                return 0.0
            square = min(
                square,
                _square_distance(cx, cy, ax, ay, bx, by),
                _square_distance(dx, dy, ax, ay, bx, by),
                _square_distance(ax, ay, cx, cy, dx, dy),
                _square_distance(bx, by, cx, cy, dx, dy),
            )
    return math.sqrt(square)


@njit(cache=True, nogil=True)
def _cross(ax, ay, bx, by, cx, cy, dx, dy):
    """Whether segments ab and cd cross."""
    a_side = (dx - cx) * (ay - cy) - (dy - cy) * (ax - cx) > 0.0
    b_side = (dx - cx) * (by - cy) - (dy - cy) * (bx - cx) > 0.0
    c_side = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax) > 0.0
    d_side = (bx - ax) * (dy - ay) - (by - ay) * (dx - ax) > 0.0
    return a_side != b_side and c_side != d_side


@njit(cache=True, nogil=True)
def _square_distance(px, py, ax, ay, bx, by):
    """Of a point from the segment ab."""
    dx, dy, px, py = bx - ax, by - ay, px - ax, py - ay
    square = dx * dx + dy * dy
    share = min(max((px * dx + py * dy) / square, 0.0), 1.0) if square > 0.0 else 0.0
    return (px - share * dx) ** 2 + (py - share * dy) ** 2
