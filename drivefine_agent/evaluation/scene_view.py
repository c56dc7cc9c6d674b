"""From a scene to what the bird's-eye drawing shows: everything turned into the ego frame of now."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import shapely
from numpy.typing import NDArray

from drivefine_agent.data.maps import Layer, Map
from drivefine_agent.evaluation.birdseye import Area, BirdsEyeView
from drivefine_agent.geometry.indices import StateIndex
from drivefine_agent.geometry.se2 import rotate
from drivefine_agent.scoring.types import PolygonKind, ScoringScene

FloatArray = NDArray[np.float64]

_MAP_RADIUS_M = 80.0

_KINDS = {
    PolygonKind.LANE: "lane",
    PolygonKind.LANE_CONNECTOR: "connector",
    PolygonKind.INTERSECTION: "intersection",
    PolygonKind.CARPARK_AREA: "carpark",
    PolygonKind.ROADBLOCK: "roadblock",
}


def birdseye_view(
    scene: ScoringScene, map_: Map | None = None, red_connectors: Collection[str] = ()
) -> BirdsEyeView:
    """The surroundings of a scene in the ego frame of now.

    Args:
      scene: its drivable areas and centreline.
      map_: adds crosswalks, walkways, stop lines and lane centre lines, which scoring does not need.
      red_connectors: ids of lane connectors whose light is red; shown where the route leads through them.
    """
    origin = scene.initial_state[[StateIndex.X, StateIndex.Y, StateIndex.HEADING]]
    areas = _drivable_areas(scene, origin, frozenset(red_connectors))
    lane_lines: tuple[FloatArray, ...] = ()
    if map_ is not None:
        centre = origin[:2]
        for layer, kind, objects in (
            (Layer.WALKWAYS, "walkway", map_.walkways),
            (Layer.CROSSWALKS, "crosswalk", map_.crosswalks),
            (Layer.STOP_LINES, "stop_line", map_.stop_lines),
        ):
            near = (objects[name] for name in map_.query(layer, centre, _MAP_RADIUS_M))
            areas += [Area(kind, rings) for polygon in near for rings in polygon_rings(polygon, origin)]
        lanes = map_.query(Layer.LANES, centre, _MAP_RADIUS_M)
        lane_lines = tuple(to_ego(map_.lanes[name].baseline, origin) for name in lanes)
    return BirdsEyeView(
        areas=tuple(areas),
        lane_lines=lane_lines,
        route_line=to_ego(scene.centerline, origin),
    )


def to_ego(points: FloatArray, origin: FloatArray) -> FloatArray:
    """Points (..., 2), global, as seen from the pose `origin` (3,)."""
    return rotate(points - origin[:2], -origin[2])


def polygon_rings(polygon: shapely.Geometry, origin: FloatArray) -> Iterable[tuple[FloatArray, ...]]:
    """Exterior and holes (N, 2) of each part of a polygon, as seen from `origin`."""
    for part in shapely.get_parts(polygon):
        if part.geom_type == "Polygon":
            yield tuple(
                to_ego(shapely.get_coordinates(ring), origin) for ring in (part.exterior, *part.interiors)
            )


def _drivable_areas(scene: ScoringScene, origin: FloatArray, red_connectors: frozenset[str]) -> list[Area]:
    vertices = to_ego(scene.polygon_xy, origin)
    rings = [
        vertices[slice(*scene.polygon_ring_offsets[i : i + 2])]
        for i in range(len(scene.polygon_ring_offsets) - 1)
    ]
    ids = scene.polygon_ids or ("",) * len(scene.polygon_kind)
    areas = []
    for index, code in enumerate(scene.polygon_kind):
        kind = PolygonKind(code)
        name = _KINDS[kind]
        if scene.polygon_on_route[index]:
            name = {"lane": "route_lane", "connector": "route_connector"}.get(name, name)
            if kind is PolygonKind.LANE_CONNECTOR and ids[index] in red_connectors:
                name = "red_light"
        areas.append(Area(name, tuple(rings[slice(*scene.polygon_part_offsets[index : index + 2])])))
    return areas
