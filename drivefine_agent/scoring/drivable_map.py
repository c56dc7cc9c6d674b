"""The polygons around the ego that decide where it may drive, in NAVSIM's order (pdm-scorer 2.3)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from numpy.typing import NDArray

from drivefine_agent.data.maps import Layer, Map
from drivefine_agent.data.types import FloatArray
from drivefine_agent.errors import SceneError
from drivefine_agent.scoring.route import block_lanes
from drivefine_agent.scoring.types import PolygonKind

MAP_HALF_SIDE_M = 100.0
TREE_NODE_CAPACITY = 10

DRIVABLE_KINDS = (PolygonKind.ROADBLOCK, PolygonKind.INTERSECTION, PolygonKind.CARPARK_AREA)
LANE_KINDS = (PolygonKind.LANE, PolygonKind.LANE_CONNECTOR)


@dataclass(frozen=True)
class DrivableMap:
    """M map polygons with their ids and kinds; the order is that of NAVSIM, which decides ties."""

    ids: tuple[str, ...]
    kinds: NDArray[np.int64]
    """(M,) PolygonKind values."""
    polygons: NDArray[np.object_]
    """(M,) shapely polygons."""

    @cached_property
    def tree(self) -> shapely.STRtree:
        """Spatial index; its query order depends on the node capacity."""
        return shapely.STRtree(self.polygons, node_capacity=TREE_NODE_CAPACITY)

    def on_route(self, lane_ids: set[str]) -> NDArray[np.bool_]:
        """(M,) whether a polygon is a lane or lane connector of the route."""
        is_lane = np.isin(self.kinds, LANE_KINDS)
        return is_lane & np.array([id_ in lane_ids for id_ in self.ids], dtype=bool)


def crop_drivable_map(map_: Map, center: FloatArray, half_side_m: float = MAP_HALF_SIDE_M) -> DrivableMap:
    """Collect the polygons around a point.

    Order: roadblocks; the lanes of these roadblocks; the lane connectors of the roadblock connectors found
    (whose own polygons are left out); intersections; car parks. Lanes come along wherever their roadblock
    touches the square.

    Args:
      map_: the map.
      center: (2,) middle of the square: the centre of the ego, not its rear axle.
      half_side_m: half the side of the axis-aligned square.
    """
    roadblocks = [map_.roadblocks[id_] for id_ in map_.query(Layer.ROADBLOCKS, center, half_side_m)]
    connectors = [
        map_.roadblock_connectors[id_] for id_ in map_.query(Layer.ROADBLOCK_CONNECTORS, center, half_side_m)
    ]
    entries = [(block.id, PolygonKind.ROADBLOCK, block.polygon) for block in roadblocks]
    for block in roadblocks:
        for lane in block_lanes(map_, block):
            entries.append((lane.id, PolygonKind.LANE, lane.polygon))
    for block in connectors:
        for lane in block_lanes(map_, block):
            entries.append((lane.id, PolygonKind.LANE_CONNECTOR, lane.polygon))
    for id_ in map_.query(Layer.INTERSECTIONS, center, half_side_m):
        entries.append((id_, PolygonKind.INTERSECTION, map_.intersections[id_]))
    for id_ in map_.query(Layer.CARPARKS, center, half_side_m):
        entries.append((id_, PolygonKind.CARPARK_AREA, map_.carparks[id_]))

    polygons = np.empty(len(entries), dtype=object)
    polygons[:] = [polygon for _, _, polygon in entries]
    ids = tuple(id_ for id_, _, _ in entries)
    return DrivableMap(
        ids=ids,
        kinds=np.array([kind for _, kind, _ in entries], dtype=np.int64),
        polygons=_single_polygons(polygons, ids),
    )


def _single_polygons(polygons: NDArray[np.object_], ids: tuple[str, ...]) -> NDArray[np.object_]:
    """Polygons (M,) with multi-polygons of one part unwrapped; more parts have no place in flat arrays."""
    for index in np.flatnonzero(shapely.get_type_id(polygons) != shapely.GeometryType.POLYGON):
        if shapely.get_num_geometries(polygons[index]) != 1:
            num_parts = shapely.get_num_geometries(polygons[index])
            raise SceneError(
                f"areas of a map must be single polygons, object '{ids[index]}' is a"
                f" {polygons[index].geom_type} of {num_parts} parts: repair the map"
            )
        polygons[index] = shapely.get_geometry(polygons[index], 0)
    return polygons


def polygon_arrays(
    polygons: NDArray[np.object_],
) -> tuple[FloatArray, NDArray[np.int64], NDArray[np.int64]]:
    """Flatten polygons (M,) into vertices (V, 2), ring offsets (R + 1,) and part offsets (M + 1,).

    Rings are closed, exteriors first; the inverse is `polygons_from_arrays`.
    """
    if len(polygons) == 0:
        return np.zeros((0, 2)), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    rings, polygon_index = shapely.get_rings(polygons, return_index=True)
    xy, ring_index = shapely.get_coordinates(rings, return_index=True)
    ring_offsets = np.concatenate([[0], np.cumsum(np.bincount(ring_index, minlength=len(rings)))])
    part_offsets = np.concatenate([[0], np.cumsum(np.bincount(polygon_index, minlength=len(polygons)))])
    return xy, ring_offsets.astype(np.int64), part_offsets.astype(np.int64)


def polygons_from_arrays(
    xy: FloatArray, ring_offsets: NDArray[np.int64], part_offsets: NDArray[np.int64]
) -> NDArray[np.object_]:
    """The shapely polygons (M,) of flattened arrays; the inverse of `polygon_arrays`."""
    return shapely.from_ragged_array(shapely.GeometryType.POLYGON, xy, (ring_offsets, part_offsets))
