"""The drivable-area map as the scorer reads it: tagged polygons in flat arrays, and their shapely twins.

Shape letters: M polygons, R rings, V vertices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from numpy.typing import NDArray

from drivefine_agent.scoring.kernel_arrays import kernel_input
from drivefine_agent.scoring.point_location import PolygonTable, polygon_table
from drivefine_agent.scoring.types import FloatArray, ScoringScene


@dataclass(frozen=True)
class DrivablePolygons:
    """Tagged map polygons, in the layout of ScoringScene."""

    xy: FloatArray
    """(V, 2) vertices of all rings [m], global; rings are closed."""
    ring_offsets: NDArray[np.int64]
    """(R + 1,) slices of `xy`."""
    part_offsets: NDArray[np.int64]
    """(M + 1,) slices of the rings: exterior first, then holes."""
    kind: NDArray[np.int64]
    """(M,) PolygonKind values."""
    on_route: NDArray[np.bool_]
    """(M,) lanes and lane connectors of the corrected route."""

    @classmethod
    def from_scene(cls, scene: ScoringScene) -> DrivablePolygons:
        """The polygons of a scene (views, no copies)."""
        return cls(
            xy=scene.polygon_xy,
            ring_offsets=scene.polygon_ring_offsets,
            part_offsets=scene.polygon_part_offsets,
            kind=scene.polygon_kind,
            on_route=scene.polygon_on_route,
        )

    @classmethod
    def from_shapely(
        cls, polygons: list[shapely.Polygon], kind: NDArray[np.int64], on_route: NDArray[np.bool_]
    ) -> DrivablePolygons:
        """Flatten shapely polygons, keeping their order.

        Args:
          polygons: M single polygons, holes allowed.
          kind: (M,) PolygonKind values.
          on_route: (M,) see the field.

        Raises:
          ValueError: if an entry is not a single, non-empty polygon, or the lengths differ.
        """
        if not len(polygons) == len(kind) == len(on_route):
            raise ValueError(
                f"expected one kind and one route flag per polygon, got {len(polygons)} polygons, "
                f"{len(kind)} kinds and {len(on_route)} flags"
            )
        rings, ring_ends, part_ends = [], [0], [0]
        for index, polygon in enumerate(polygons):
            if polygon.geom_type != "Polygon" or polygon.is_empty:
                raise ValueError(
                    f"expected single polygons with an area, got {polygon.geom_type} at index {index}"
                )
            for ring in (polygon.exterior, *polygon.interiors):
                coordinates = shapely.get_coordinates(ring)
                rings.append(coordinates)
                ring_ends.append(ring_ends[-1] + len(coordinates))
            part_ends.append(len(ring_ends) - 1)
        return cls(
            xy=np.concatenate(rings) if rings else np.zeros((0, 2)),
            ring_offsets=np.array(ring_ends, dtype=np.int64),
            part_offsets=np.array(part_ends, dtype=np.int64),
            kind=np.asarray(kind, dtype=np.int64),
            on_route=np.asarray(on_route, dtype=np.bool_),
        )

    @cached_property
    def table(self) -> PolygonTable:
        """The polygons as the kernels take them."""
        table: PolygonTable = polygon_table(
            kernel_input(self.xy),
            kernel_input(self.ring_offsets, np.int64),
            kernel_input(self.part_offsets, np.int64),
        )
        return table

    @cached_property
    def shapely_polygons(self) -> NDArray[np.object_]:
        """(M,) shapely polygons, prepared; only the rare points too close to an edge need them."""
        out = np.empty(len(self.kind), dtype=object)
        for index in range(len(out)):
            first, last = int(self.part_offsets[index]), int(self.part_offsets[index + 1])
            rings = [self.xy[self.ring_offsets[r] : self.ring_offsets[r + 1]] for r in range(first, last)]
            out[index] = shapely.Polygon(rings[0], rings[1:])
        shapely.prepare(out)
        return out
