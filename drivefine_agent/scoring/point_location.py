"""Which map polygons hold a point, for very many points in a small area.

The ground is divided into square cells. The first point that falls into a cell has the cell looked at: the
polygons that cover all of it, and, of those with edges in it, these edges and whether the cell's reference
point is inside. Every further point then needs no more than the few edges between itself and the reference
point. Cells live as long as one call, so there is no state that calls or threads could share.

Whatever rounding could decide is not decided here: a point within a hair of an edge's line goes through the
even-odd rule over the whole polygon, and if it is within EDGE_TOLERANCE_M of an edge, to GEOS (`areas`).

Shape letters: M polygons, V vertices, B blocks of consecutive edges.
Source: pdm-scorer 7.4; the parity along a segment to a reference point is the classical crossing rule.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from drivefine_agent.scoring.types import FloatArray

EDGE_TOLERANCE_M = 1e-7
CELL_M = 2.0
MAX_CELLS = 1 << 16
OUTSIDE, INSIDE, TOO_CLOSE = 0, 1, -1
UNKNOWN = 2  # of a reference point that is itself too close to an edge

_CELL_MARGIN_M = 1e-6
BLOCK_EDGES = 8
_EDGE_FIELDS = 6
_ENTRY_FIELDS = 4


class PolygonTable(NamedTuple):
    """Polygons and the bounds of their parts; made once per scene by `polygon_table`."""

    xy: FloatArray
    """(V, 2) vertices of all rings, which are closed."""
    bounds: FloatArray
    """(M, 4) least x, least y, largest x, largest y."""
    blocks: NDArray[np.int64]
    """(M + 1,) slices of the blocks, one per polygon."""
    block_vertices: NDArray[np.int64]
    """(B, 2) first and last vertex of each run of edges."""
    block_bounds: FloatArray
    """(B, 4) least x, least y, largest x, largest y."""


class Cells(NamedTuple):
    """The ground under the points of one call."""

    x_low: float
    y_low: float
    size: float
    num_x: int
    num_y: int
    entries_of: NDArray[np.int64]
    """(num_y, num_x, 2) slices of the entries; -1 where no point has been yet."""


class Entries(NamedTuple):
    """What the cells looked at hold."""

    held: NDArray[np.int64]
    """(E, 4) polygon, whether the reference point is inside, slice of the edges."""
    edges: FloatArray
    """(N, 6) x and y of both vertices, tolerance of the cross product, and where the reference point is: 1 to
    the left, -1 to the right, 0 about on the edge's line."""
    counts: NDArray[np.int64]
    """(2,) how many polygons and edges are in use."""


@njit(cache=True, nogil=True)
def polygon_table(xy, ring_offsets, part_offsets):
    """The bounds of polygons and of every run of eight edges."""
    num_polygons = part_offsets.shape[0] - 1
    most = xy.shape[0] // BLOCK_EDGES + ring_offsets.shape[0]
    bounds = np.empty((num_polygons, 4))
    blocks = np.zeros(num_polygons + 1, dtype=np.int64)
    block_vertices = np.empty((most, 2), dtype=np.int64)
    block_bounds = np.empty((most, 4))
    count = 0
    for m in range(num_polygons):
        bounds[m] = bounds_of(xy[ring_offsets[part_offsets[m]] : ring_offsets[part_offsets[m + 1]]])
        for r in range(part_offsets[m], part_offsets[m + 1]):
            for first in range(ring_offsets[r], ring_offsets[r + 1] - 1, BLOCK_EDGES):
                last = min(first + BLOCK_EDGES, ring_offsets[r + 1] - 1)
                block_vertices[count, 0], block_vertices[count, 1] = first, last
                block_bounds[count] = bounds_of(xy[first : last + 1])
                count += 1
        blocks[m + 1] = count
    return PolygonTable(xy, bounds, blocks, block_vertices[:count], block_bounds[:count])


@njit(cache=True, nogil=True)
def bounds_of(points):
    """Least x, least y, largest x, largest y of points (n, 2)."""
    x_low, y_low, x_high, y_high = np.inf, np.inf, -np.inf, -np.inf
    for k in range(points.shape[0]):
        x_low = min(x_low, points[k, 0])
        y_low = min(y_low, points[k, 1])
        x_high = max(x_high, points[k, 0])
        y_high = max(y_high, points[k, 1])
    return x_low, y_low, x_high, y_high


@njit(cache=True, nogil=True)
def overlaps(bounds, m, x_low, y_low, x_high, y_high):
    """Whether row m of bounds (n, 4) touches a box."""
    return (
        bounds[m, 0] <= x_high and bounds[m, 2] >= x_low and bounds[m, 1] <= y_high and bounds[m, 3] >= y_low
    )


@njit(cache=True, nogil=True)
def cells_over(points, table):
    """Empty cells over the part of the ground where both points (n, 2) and polygons are, and their polygons.

    Returns:
      The cells, room for what they hold, and the (N,) polygons that have a part there.
    """
    x_low, y_low, x_high, y_high = bounds_of(points)
    near = np.empty(table.bounds.shape[0], dtype=np.int64)
    num_near = 0
    low_x, low_y, high_x, high_y = np.inf, np.inf, -np.inf, -np.inf
    bounds = table.bounds
    for m in range(bounds.shape[0]):
        if overlaps(bounds, m, x_low, y_low, x_high, y_high):
            near[num_near] = m
            num_near += 1
            low_x, low_y = min(low_x, bounds[m, 0]), min(low_y, bounds[m, 1])
            high_x, high_y = max(high_x, bounds[m, 2]), max(high_y, bounds[m, 3])
    x_low, y_low = max(x_low, low_x), max(y_low, low_y)
    width, height = min(x_high, high_x) - x_low, min(y_high, high_y) - y_low
    num_x, num_y, size = 0, 0, CELL_M
    if num_near > 0:
        size = max(CELL_M, np.sqrt(width * height / MAX_CELLS), max(width, height) / MAX_CELLS)
        num_x, num_y = int(width / size) + 1, int(height / size) + 1
    cells = Cells(x_low, y_low, size, num_x, num_y, np.full((num_y, num_x, 2), -1, dtype=np.int64))
    entries = Entries(
        np.empty((256, _ENTRY_FIELDS), dtype=np.int64),
        np.empty((1024, _EDGE_FIELDS)),
        np.zeros(2, dtype=np.int64),
    )
    return cells, entries, near[:num_near]


@njit(cache=True, nogil=True)
def cell_of(x, y, x_low, y_low, size, num_x, num_y):
    """Column and row of the cell that a point is in; -1, -1 outside of all cells."""
    column, row = (x - x_low) / size, (y - y_low) / size
    if column >= 0.0 and row >= 0.0 and column < num_x and row < num_y:
        return int(column), int(row)
    return -1, -1


@njit(cache=True, nogil=True)
def reference_point(column, row, x_low, y_low, size):
    """A place inside the cell, off the places where map edges like to run."""
    return x_low + (column + 0.5137) * size, y_low + (row + 0.4731) * size


@njit(cache=True, nogil=True)
def look_at_cell(column, row, cells, entries, near, table):
    """Notes what a cell holds; returns the entries, which may have moved to make room."""
    entries = _with_room(entries, near, table)
    held, edges, num_held, num_edges = entries.held, entries.edges, entries.counts[0], entries.counts[1]
    x_low = cells.x_low + column * cells.size - _CELL_MARGIN_M
    y_low = cells.y_low + row * cells.size - _CELL_MARGIN_M
    x_high, y_high = x_low + cells.size + 2 * _CELL_MARGIN_M, y_low + cells.size + 2 * _CELL_MARGIN_M
    x, y = reference_point(column, row, cells.x_low, cells.y_low, cells.size)
    xy, bounds, blocks, block_vertices, block_bounds = table
    cells.entries_of[row, column, 0] = num_held
    for n in range(near.shape[0]):
        m = near[n]
        if not overlaps(bounds, m, x_low, y_low, x_high, y_high):
            continue
        first_edge = num_edges
        for b in range(blocks[m], blocks[m + 1]):
            if overlaps(block_bounds, b, x_low, y_low, x_high, y_high):
                first, last = block_vertices[b, 0], block_vertices[b, 1]
                num_edges = _note_edges(xy, first, last, x_low, y_low, x_high, y_high, x, y, edges, num_edges)
        inside = even_odd(x, y, m, xy, blocks, block_vertices, block_bounds)
        if num_edges > first_edge or inside != OUTSIDE:
            held[num_held, 0] = m
            held[num_held, 1] = UNKNOWN if inside == TOO_CLOSE else inside
            held[num_held, 2], held[num_held, 3] = first_edge, num_edges
            num_held += 1
    cells.entries_of[row, column, 1] = num_held
    entries.counts[0], entries.counts[1] = num_held, num_edges
    return entries


@njit(cache=True, nogil=True)
def _with_room(entries, near, table):
    """The entries with room for a cell that all edges of all polygons come into."""
    most = 0
    for n in range(near.shape[0]):
        most += (table.blocks[near[n] + 1] - table.blocks[near[n]]) * BLOCK_EDGES
    held, edges = entries.held, entries.edges
    if entries.counts[0] + near.shape[0] > held.shape[0]:
        held = np.empty((2 * (entries.counts[0] + near.shape[0]), held.shape[1]), dtype=np.int64)
        held[: entries.counts[0]] = entries.held[: entries.counts[0]]
    if entries.counts[1] + most > edges.shape[0]:
        edges = np.empty((2 * (entries.counts[1] + most), edges.shape[1]))
        edges[: entries.counts[1]] = entries.edges[: entries.counts[1]]
    return Entries(held, edges, entries.counts)


@njit(cache=True, nogil=True)
def _note_edges(xy, first, last, x_low, y_low, x_high, y_high, x, y, edges, count):
    """Adds the edges between two vertices that come into a box, seen from the reference point x, y."""
    half_x, half_y = 0.5 * (x_high - x_low), 0.5 * (y_high - y_low)
    middle_x, middle_y = x_low + half_x, y_low + half_y
    for v in range(first, last):
        x1, y1, x2, y2 = xy[v, 0], xy[v, 1], xy[v + 1, 0], xy[v + 1, 1]
        if max(x1, x2) < x_low or min(x1, x2) > x_high or max(y1, y2) < y_low or min(y1, y2) > y_high:
            continue
        edge_x, edge_y = x2 - x1, y2 - y1
        across = edge_x * (middle_y - y1) - edge_y * (middle_x - x1)
        if abs(across) > abs(edge_x) * half_y + abs(edge_y) * half_x:
            continue  # the whole box is on one side
        side = edge_x * (y - y1) - edge_y * (x - x1)
        tolerance = EDGE_TOLERANCE_M * (abs(edge_x) + abs(edge_y))
        edges[count, 0], edges[count, 1], edges[count, 2], edges[count, 3] = x1, y1, x2, y2
        edges[count, 4] = tolerance
        edges[count, 5] = 0.0 if abs(side) <= tolerance else 1.0 if side > 0.0 else -1.0
        count += 1
    return count


@njit(cache=True, nogil=True)
def crossings(x, y, reference_x, reference_y, edges, first, last):
    """How many edges the segment from a point to the reference point crosses; -1 if rounding could decide.

    It could where one of the two points is about on an edge's line.
    """
    way_x, way_y = reference_x - x, reference_y - y
    count = 0
    for e in range(first, last):
        to_x, to_y = x - edges[e, 0], y - edges[e, 1]
        side = (edges[e, 2] - edges[e, 0]) * to_y - (edges[e, 3] - edges[e, 1]) * to_x
        if abs(side) <= edges[e, 4] or edges[e, 5] == 0.0:
            return -1
        if (side > 0.0) == (edges[e, 5] > 0.0):
            continue
        # A vertex that two edges share must be on the same side of the way for both: the same formula.
        start = way_y * to_x - way_x * to_y
        end = way_y * (x - edges[e, 2]) - way_x * (y - edges[e, 3])
        count += (start > 0.0) != (end > 0.0)
    return count


@njit(cache=True, nogil=True)
def even_odd(x, y, m, xy, blocks, block_vertices, block_bounds):
    """INSIDE or OUTSIDE of a polygon by the even-odd rule; TOO_CLOSE within the tolerance of an edge."""
    inside = OUTSIDE
    for b in range(blocks[m], blocks[m + 1]):
        if (
            block_bounds[b, 1] > y + EDGE_TOLERANCE_M
            or block_bounds[b, 3] < y - EDGE_TOLERANCE_M
            or block_bounds[b, 2] < x - EDGE_TOLERANCE_M
        ):
            continue  # wholly above, below or to the left of the point: cannot matter
        for v in range(block_vertices[b, 0], block_vertices[b, 1]):
            y1, y2 = xy[v, 1], xy[v + 1, 1]
            if min(y1, y2) > y + EDGE_TOLERANCE_M or max(y1, y2) < y - EDGE_TOLERANCE_M:
                continue
            edge_x, edge_y = xy[v + 1, 0] - xy[v, 0], y2 - y1
            to_x, to_y = x - xy[v, 0], y - y1
            cross = edge_x * to_y - edge_y * to_x  # > 0: the point is left of the directed edge
            if (
                abs(cross) <= EDGE_TOLERANCE_M * np.sqrt(edge_x * edge_x + edge_y * edge_y)
                and min(to_x, to_x - edge_x) <= EDGE_TOLERANCE_M
                and max(to_x, to_x - edge_x) >= -EDGE_TOLERANCE_M
            ):
                return TOO_CLOSE
            if (y1 > y) != (y2 > y) and (cross > 0.0) == (edge_y > 0.0):
                inside ^= 1
    return inside
