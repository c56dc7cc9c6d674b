"""Map layers in metres -> a nuPlan map GeoPackage that nuplan-devkit, NAVSIM and `maps.load_map` read.

Fill a `MapLayers` and call `write_map`; call `write_maps_index` once all four cities are written
(nuplan-devkit opens all of them, whichever is used). The same layers give the same bytes with the same
versions of pyproj and SQLite: nothing in the file depends on the clock, on its path, or on the order in
which objects were made.
"""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import shapely
from numpy.typing import ArrayLike

from drivefine_agent.constants import MAP_CRS, MAP_VERSIONS
from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.data.maps import GEOGRAPHIC_CRS, MAPS_INDEX_NAME
from drivefine_agent.errors import DataError

_SRS_ID = 4326
_TIMESTAMP = (
    "2020-01-01T00:00:00.000Z"  # GeoPackage wants a time of last change; a fixed one keeps bytes equal
)
_CREATOR = "drivefine"


@dataclass(frozen=True)
class Lane:
    """A lane between intersections. Its successors: the connectors whose `source_lane_fid` is this lane."""

    fid: int
    polygon: shapely.Polygon
    baseline: ArrayLike
    """(N, 2) centre line in driving direction [m]."""
    roadblock_fid: int
    lane_index: int
    """Position within the roadblock, 0 is leftmost."""
    speed_limit_mps: float | None = None
    """None: the map states no limit."""
    left_boundary: ArrayLike | None = None
    """(N, 2) [m]; None: the baseline stands in (nothing here or in NAVSIM reads it)."""
    right_boundary: ArrayLike | None = None
    width_m: float = 3.5


@dataclass(frozen=True)
class LaneConnector:
    """The way across an intersection from one lane to one other. Traffic lights name connectors by `fid`."""

    fid: int
    polygon: shapely.Polygon
    baseline: ArrayLike
    """(N, 2) centre line in driving direction [m]."""
    roadblock_connector_fid: int
    source_lane_fid: int
    """The lane that is left (nuPlan's column `exit_lane_fid`)."""
    target_lane_fid: int
    """The lane that is entered (nuPlan's column `entry_lane_fid`)."""
    intersection_fid: int
    speed_limit_mps: float | None = None
    stop_line_fids: tuple[int, ...] = ()
    """Stop lines of its traffic light; empty: it has none."""
    turn_type: int = 0
    """nuPlan: 0 straight, 1 left, 2 right, 3 u-turn."""
    left_boundary: ArrayLike | None = None
    right_boundary: ArrayLike | None = None


@dataclass(frozen=True)
class Roadblock:
    """All lanes of one direction between two intersections (nuPlan's lane group)."""

    fid: int
    polygon: shapely.Polygon


@dataclass(frozen=True)
class RoadblockConnector:
    """All lane connectors from one roadblock to one other."""

    fid: int
    polygon: shapely.Polygon
    source_roadblock_fid: int
    target_roadblock_fid: int
    intersection_fid: int


@dataclass(frozen=True)
class Area:
    """An intersection, crosswalk, walkway, car park or other drivable area."""

    fid: int
    polygon: shapely.Polygon


@dataclass(frozen=True)
class StopLine:
    """The area in which a vehicle waits."""

    fid: int
    polygon: shapely.Polygon
    lane_fids: tuple[int, ...] = ()
    lane_connector_fids: tuple[int, ...] = ()
    traffic_light_fids: tuple[int, ...] = ()
    stop_type: int = 2
    """nuPlan's StopLineType: 0 pedestrian crossing, 1 stop sign, 2 traffic light, 3 turn stop, 4 yield."""


@dataclass(frozen=True)
class TrafficLight:
    """A light's place; its state is in the logs, by lane connector."""

    fid: int
    xy: ArrayLike
    """(2,) [m]."""
    heading: float = 0.0
    """Direction the light faces [rad]."""


@dataclass(frozen=True)
class Boundary:
    """A marking or kerb that belongs to no particular lane. Those of lanes come from the lanes themselves."""

    fid: int
    line: ArrayLike
    """(N, 2) [m]."""


@dataclass(frozen=True)
class MapLayers:
    """Everything in one city's map, in metres of the city's UTM zone (constants.MAP_CRS).

    The vehicle drives on roadblocks, intersections and car parks: their union is the scorer's drivable
    area. Lanes join only through lane connectors, and a connector is drivable only where an intersection
    covers it.

    Feature ids are positive integers. They must differ between lanes and lane connectors and between
    roadblocks and roadblock connectors, since logs name both by bare ids; ids from one counter satisfy
    this. Within a layer, objects are stored by ascending id, which is the "order in file" of all rules of
    nuPlan.
    """

    lanes: Sequence[Lane] = ()
    lane_connectors: Sequence[LaneConnector] = ()
    roadblocks: Sequence[Roadblock] = ()
    roadblock_connectors: Sequence[RoadblockConnector] = ()
    intersections: Sequence[Area] = ()
    stop_lines: Sequence[StopLine] = ()
    crosswalks: Sequence[Area] = ()
    walkways: Sequence[Area] = ()
    carparks: Sequence[Area] = ()
    generic_drivable_areas: Sequence[Area] = ()
    boundaries: Sequence[Boundary] = ()
    traffic_lights: Sequence[TrafficLight] = ()


def write_map(path: str | Path, map_name: str, layers: MapLayers) -> None:
    """Write one city's GeoPackage.

    Args:
      path: the file, for NAVSIM `<maps root>/<map name>/<version>/map.gpkg` (see `map_path`).
      map_name: one of constants.MAP_VERSIONS; decides the UTM zone.
      layers: what to write [m].

    Raises:
      DataError: unknown map name, ids that repeat, or a join key that names nothing.
    """
    if map_name not in MAP_CRS:
        raise DataError(f"unknown map {map_name!r}: nuPlan has {sorted(MAP_CRS)}; choose one of them")
    _check(layers, map_name)
    tables = _tables(layers)
    _to_degrees(tables, MAP_CRS[map_name])
    connection = sqlite3.connect(":memory:")
    try:
        _write_tables(connection, tables, MAP_CRS[map_name])
        content = connection.serialize()
    finally:
        connection.close()
    write_bytes(path, content)


def map_path(maps_root: str | Path, map_name: str) -> Path:
    """Where nuplan-devkit expects the map of a city."""
    if map_name not in MAP_VERSIONS:
        raise DataError(f"unknown map {map_name!r}: nuPlan has {sorted(MAP_VERSIONS)}; choose one of them")
    return Path(maps_root) / map_name / MAP_VERSIONS[map_name] / "map.gpkg"


def write_maps_index(maps_root: str | Path) -> None:
    """Write `nuplan-maps-v1.0.json`, which names the version of each of the four cities."""
    index = {name: {"version": version, "layers": {}} for name, version in sorted(MAP_VERSIONS.items())}
    write_bytes(Path(maps_root) / MAPS_INDEX_NAME, json.dumps(index, indent=1).encode() + b"\n")


_Row = tuple[int, shapely.Geometry, tuple[Any, ...]]  # fid, geometry, values of the columns


@dataclass
class _Table:
    """One layer to be written."""

    geometry_type: str
    columns: dict[str, str]
    """Name -> SQL type."""
    rows: list[_Row] = field(default_factory=list)

    def add(self, fid: int, geometry: shapely.Geometry, **values: Any) -> None:
        """Add a row; columns that are not given hold what `_UNSTATED` has for their type."""
        cells = tuple(values.pop(name, _UNSTATED[sql_type]) for name, sql_type in self.columns.items())
        assert not values, f"no such columns: {sorted(values)}"
        self.rows.append((int(fid), geometry, cells))


_UNSTATED = {"INTEGER": 0, "REAL": 0.0, "TEXT": ""}

_SIDES = {"left_boundary_fid": "INTEGER", "right_boundary_fid": "INTEGER"}
_EDGES = {"from_edge_fid": "INTEGER", "to_edge_fid": "INTEGER"}
_REFLECTORS = {"left_has_reflectors": "INTEGER", "right_has_reflectors": "INTEGER"}

# nuPlan's layers: name -> (geometry, columns beside fid, geom and creator_id).
_LAYERS: dict[str, tuple[str, dict[str, str]]] = {
    "lanes_polygons": (
        "POLYGON",
        {
            "lane_group_fid": "INTEGER",
            "lane_fid": "INTEGER",
            "lane_index": "INTEGER",
            "name": "TEXT",
            "road_type_fid": "INTEGER",
            "lane_type_fid": "INTEGER",
            "width": "REAL",
            "left_offset": "REAL",
            "right_offset": "REAL",
            "min_speed": "REAL",
            "max_speed": "REAL",
            "stops": "INTEGER",
            "speed_limit_mps": "REAL",
            **_SIDES,
            **_REFLECTORS,
            **_EDGES,
        },
    ),
    "lane_connectors": (
        "LINESTRING",
        {
            "exit_lane_fid": "INTEGER",
            "entry_lane_fid": "INTEGER",
            "exit_lane_group_fid": "INTEGER",
            "entry_lane_group_fid": "INTEGER",
            "lane_group_connector_fid": "INTEGER",
            "intersection_fid": "INTEGER",
            "turn_type_fid": "INTEGER",
            "bulb_fids": "TEXT",
            "traffic_light_stop_line_fids": "TEXT",
            "overlap": "INTEGER",
            "reflector_side_fid": "INTEGER",
            "speed_limit_mps": "REAL",
            **_REFLECTORS,
        },
    ),
    "gen_lane_connectors_scaled_width_polygons": (
        "POLYGON",
        {"lane_connector_fid": "INTEGER", "baseline_path_fid": "INTEGER", **_EDGES, **_SIDES},
    ),
    "baseline_paths": (
        "LINESTRING",
        # one of the two join keys is null in every row, hence REAL
        {
            "lane_fid": "REAL",
            "lane_connector_fid": "REAL",
            "path_type_fid": "INTEGER",
            "dubins_node_fids": "TEXT",
        },
    ),
    "boundaries": (
        "LINESTRING",
        {"boundary_segment_fids": "TEXT", "boundary_type_fid": "INTEGER", "has_reflectors": "INTEGER"},
    ),
    "lane_groups_polygons": ("POLYGON", {**_SIDES, **_EDGES}),
    "lane_group_connectors": (
        "POLYGON",
        {
            "from_lane_group_fid": "INTEGER",
            "to_lane_group_fid": "INTEGER",
            "intersection_fid": "INTEGER",
            **_SIDES,
            **_EDGES,
        },
    ),
    "intersections": ("POLYGON", {"intersection_type_fid": "INTEGER", "is_mini": "INTEGER"}),
    "stop_polygons": (
        "POLYGON",
        {
            "stop_polygon_type_fid": "INTEGER",
            "lane_group_fid": "INTEGER",
            "lane_fids": "TEXT",
            "lane_connector_fids": "TEXT",
            "traffic_light_fids": "TEXT",
            "crosswalk_fids": "TEXT",
            "precedence_area_fids": "TEXT",
        },
    ),
    "crosswalks": ("POLYGON", {"intersection_fids": "TEXT", "lane_fids": "TEXT", "is_marked": "INTEGER"}),
    "walkways": ("POLYGON", {}),
    "carpark_areas": ("POLYGON", {"heading": "REAL"}),
    "generic_drivable_areas": ("POLYGON", {}),
    "road_segments": ("POLYGON", {"lane_group_fids": "TEXT"}),
    "traffic_lights": ("POINT", {"light_type_fid": "INTEGER", "ori_mean_yaw": "REAL"}),
    "dubins_nodes": ("POINT", {"radius": "REAL", "heading": "REAL"}),
}


def _tables(layers: MapLayers) -> dict[str, _Table]:
    """The layers of a nuPlan map, in metres, with nuPlan's columns."""
    tables = {name: _Table(geometry, columns) for name, (geometry, columns) in _LAYERS.items()}
    counter = _Counter(layers)
    for boundary in layers.boundaries:
        tables["boundaries"].add(boundary.fid, _line(boundary.line))
    _add_lanes(tables, layers, counter)
    _add_lane_connectors(tables, layers, counter)
    for roadblock in sorted(layers.roadblocks, key=_fid):
        tables["lane_groups_polygons"].add(roadblock.fid, roadblock.polygon)
        # nuPlan's road segments cover the roadblocks; one each is enough for its drivable area
        tables["road_segments"].add(counter.next(), roadblock.polygon, lane_group_fids=str(roadblock.fid))
    for connector in layers.roadblock_connectors:
        tables["lane_group_connectors"].add(
            connector.fid,
            connector.polygon,
            from_lane_group_fid=connector.source_roadblock_fid,
            to_lane_group_fid=connector.target_roadblock_fid,
            intersection_fid=connector.intersection_fid,
        )
    for stop_line in layers.stop_lines:
        tables["stop_polygons"].add(
            stop_line.fid,
            stop_line.polygon,
            stop_polygon_type_fid=stop_line.stop_type,
            lane_fids=_joined(stop_line.lane_fids),
            lane_connector_fids=_joined(stop_line.lane_connector_fids),
            traffic_light_fids=_joined(stop_line.traffic_light_fids),
        )
    for crosswalk in layers.crosswalks:
        tables["crosswalks"].add(crosswalk.fid, crosswalk.polygon, is_marked=1)
    for name, areas in (
        ("intersections", layers.intersections),
        ("walkways", layers.walkways),
        ("carpark_areas", layers.carparks),
        ("generic_drivable_areas", layers.generic_drivable_areas),
    ):
        for area in areas:
            tables[name].add(area.fid, area.polygon)
    for light in layers.traffic_lights:
        place = shapely.Point(np.asarray(light.xy, dtype=np.float64))
        tables["traffic_lights"].add(light.fid, place, ori_mean_yaw=float(light.heading))
    return tables


def _add_lanes(tables: dict[str, _Table], layers: MapLayers, counter: _Counter) -> None:
    for lane in sorted(layers.lanes, key=_fid):
        left, right = _add_sides(tables, lane, counter)
        tables["baseline_paths"].add(
            counter.next(), _line(lane.baseline), lane_fid=float(lane.fid), lane_connector_fid=None
        )
        limit = _number(lane.speed_limit_mps)
        tables["lanes_polygons"].add(
            lane.fid,
            lane.polygon,
            lane_group_fid=lane.roadblock_fid,
            lane_fid=lane.fid,
            lane_index=lane.lane_index,
            name=f"lane_{lane.fid}",
            width=float(lane.width_m),
            max_speed=limit,
            speed_limit_mps=limit,
            left_boundary_fid=left,
            right_boundary_fid=right,
        )


def _add_lane_connectors(tables: dict[str, _Table], layers: MapLayers, counter: _Counter) -> None:
    roadblock_of = {lane.fid: lane.roadblock_fid for lane in layers.lanes}
    for connector in sorted(layers.lane_connectors, key=_fid):
        left, right = _add_sides(tables, connector, counter)
        baseline = counter.next()
        tables["baseline_paths"].add(
            baseline, _line(connector.baseline), lane_fid=None, lane_connector_fid=float(connector.fid)
        )
        tables["gen_lane_connectors_scaled_width_polygons"].add(
            counter.next(),
            connector.polygon,
            lane_connector_fid=connector.fid,
            baseline_path_fid=baseline,
            left_boundary_fid=left,
            right_boundary_fid=right,
        )
        tables["lane_connectors"].add(
            connector.fid,
            _line(connector.baseline),
            exit_lane_fid=connector.source_lane_fid,
            entry_lane_fid=connector.target_lane_fid,
            exit_lane_group_fid=roadblock_of[connector.source_lane_fid],
            entry_lane_group_fid=roadblock_of[connector.target_lane_fid],
            lane_group_connector_fid=connector.roadblock_connector_fid,
            intersection_fid=connector.intersection_fid,
            turn_type_fid=connector.turn_type,
            traffic_light_stop_line_fids=_joined(connector.stop_line_fids),
            speed_limit_mps=_number(connector.speed_limit_mps),
        )


def _add_sides(tables: dict[str, _Table], lane: Lane | LaneConnector, counter: _Counter) -> tuple[int, int]:
    """Add the left and right boundary of a lane; their ids."""
    left, right = counter.next(), counter.next()
    for fid, line in ((left, lane.left_boundary), (right, lane.right_boundary)):
        tables["boundaries"].add(fid, _line(lane.baseline if line is None else line))
    return left, right


class _Counter:
    """Ids for rows that the caller does not name, above all ids that the caller does."""

    def __init__(self, layers: MapLayers) -> None:
        self._last = max((item.fid for layer in vars(layers).values() for item in layer), default=0)

    def next(self) -> int:
        self._last += 1
        return self._last


def _check(layers: MapLayers, map_name: str) -> None:
    for names in (
        ("lanes", "lane_connectors"),
        ("roadblocks", "roadblock_connectors"),
        *((n,) for n in vars(layers)),
    ):
        fids = [item.fid for name in names for item in getattr(layers, name)]
        repeated = sorted({fid for fid in fids if fids.count(fid) > 1}) if len(set(fids)) < len(fids) else []
        bad = [fid for fid in fids if not isinstance(fid, int | np.integer) or fid < 1]
        if repeated or bad:
            raise DataError(
                f"feature ids must be positive integers that differ within {' and '.join(names)}, "
                f"got {(repeated or bad)[:5]} for the map {map_name!r}"
                "; give each a number of its own"
            )
    known = {name: {item.fid for item in items} for name, items in vars(layers).items()}
    references = [
        ("lane", lane.fid, "roadblock_fid", lane.roadblock_fid, "roadblocks") for lane in layers.lanes
    ]
    for connector in layers.lane_connectors:
        references += [
            ("lane connector", connector.fid, key, getattr(connector, key), target)
            for key, target in (
                ("roadblock_connector_fid", "roadblock_connectors"),
                ("source_lane_fid", "lanes"),
                ("target_lane_fid", "lanes"),
                ("intersection_fid", "intersections"),
            )
        ]
        references += [
            ("lane connector", connector.fid, "stop_line_fids", fid, "stop_lines")
            for fid in connector.stop_line_fids
        ]
    for block in layers.roadblock_connectors:
        references += [
            ("roadblock connector", block.fid, key, getattr(block, key), target)
            for key, target in (
                ("source_roadblock_fid", "roadblocks"),
                ("target_roadblock_fid", "roadblocks"),
                ("intersection_fid", "intersections"),
            )
        ]
    for what, fid, key, value, target in references:
        if value not in known[target]:
            raise DataError(
                f"{key!r} of {what} {fid} must name one of the {target}, got {value} (map {map_name!r})"
                "; add that object, or correct the id"
            )


def _to_degrees(tables: dict[str, _Table], crs: str) -> None:
    """Replace the geometries by those in (lon, lat), rows by ascending id; one call for all points."""
    for name, table in tables.items():
        table.rows.sort(key=lambda row: row[0])
        for fid, geometry, _ in table.rows:
            _check_geometry(geometry, table.geometry_type, f"feature {fid} of layer {name!r}")
    geometries = np.array([row[1] for table in tables.values() for row in table.rows], dtype=object)
    metres = shapely.get_coordinates(geometries)
    if not np.isfinite(metres).all():
        raise DataError(
            "the coordinates of a map must be finite, got "
            f"{int((~np.isfinite(metres)).any(axis=1).sum())} points that are not, in the layers "
            f"{sorted(tables)}; leave such features out"
        )
    lon, lat = pyproj.Transformer.from_crs(crs, GEOGRAPHIC_CRS, always_xy=True).transform(
        metres[:, 0], metres[:, 1]
    )
    if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
        raise DataError(
            f"the coordinates of a map must be metres in {crs}, got "
            f"{int((~np.isfinite(lon + lat)).sum())} points outside of it, in the layers "
            f"{sorted(tables)}; choose the map_name of the city they lie in"
        )
    geometries = shapely.set_coordinates(geometries, np.stack([lon, lat], axis=-1))
    start = 0
    for table in tables.values():
        stop = start + len(table.rows)
        moved = geometries[start:stop]
        table.rows = [(row[0], geometry, row[2]) for row, geometry in zip(table.rows, moved, strict=True)]
        start = stop


def _check_geometry(geometry: shapely.Geometry | None, geometry_type: str, where: str) -> None:
    """Refuse what the official scorer would stumble over when it intersects shapes."""
    if geometry is None or geometry.geom_type.upper() != geometry_type or geometry.is_empty:
        got = "nothing" if geometry is None or geometry.is_empty else geometry.geom_type
        raise DataError(
            f"expected a {geometry_type}, got {got}: {where}; write the parts as features of their own"
        )
    if not shapely.is_valid(geometry):
        raise DataError(
            f"a shape must be valid, got one with {shapely.is_valid_reason(geometry)}: {where}"
            "; repair it (shapely.make_valid), or leave it out"
        )


def _write_tables(connection: sqlite3.Connection, tables: dict[str, _Table], crs: str) -> None:
    connection.execute("PRAGMA page_size = 4096")
    connection.execute("PRAGMA application_id = 0x47504B47")  # "GPKG"
    connection.execute("PRAGMA user_version = 10300")  # GeoPackage 1.3
    connection.execute(
        "CREATE TABLE gpkg_spatial_ref_sys (srs_name TEXT NOT NULL, srs_id INTEGER NOT NULL PRIMARY KEY, "
        "organization TEXT NOT NULL, organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL, "
        "description TEXT)"
    )
    connection.execute(
        "CREATE TABLE gpkg_contents (table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL, "
        "identifier TEXT UNIQUE, description TEXT DEFAULT '', last_change DATETIME NOT NULL, min_x DOUBLE, "
        "min_y DOUBLE, max_x DOUBLE, max_y DOUBLE, srs_id INTEGER, CONSTRAINT fk_gc_r_srs_id "
        "FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys(srs_id))"
    )
    connection.execute(
        "CREATE TABLE gpkg_geometry_columns (table_name TEXT NOT NULL, column_name TEXT NOT NULL, "
        "geometry_type_name TEXT NOT NULL, srs_id INTEGER NOT NULL, z TINYINT NOT NULL, m TINYINT NOT NULL, "
        "CONSTRAINT pk_geom_cols PRIMARY KEY (table_name, column_name), "
        "CONSTRAINT uk_gc_table_name UNIQUE (table_name), "
        "CONSTRAINT fk_gc_tn FOREIGN KEY (table_name) REFERENCES gpkg_contents(table_name), "
        "CONSTRAINT fk_gc_srs FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys(srs_id))"
    )
    connection.executemany(
        "INSERT INTO gpkg_spatial_ref_sys VALUES (?, ?, ?, ?, ?, ?)",
        [
            (
                "Undefined Cartesian SRS",
                -1,
                "NONE",
                -1,
                "undefined",
                "undefined Cartesian coordinate reference system",
            ),
            (
                "Undefined geographic SRS",
                0,
                "NONE",
                0,
                "undefined",
                "undefined geographic coordinate reference system",
            ),
            (
                "WGS 84 geodetic",
                _SRS_ID,
                "EPSG",
                _SRS_ID,
                _WGS84_WKT,
                "longitude/latitude in degrees on WGS 84",
            ),
        ],
    )
    for name, table in tables.items():
        _write_layer(connection, name, table)
    connection.execute('CREATE TABLE "meta" ("fid" INTEGER PRIMARY KEY NOT NULL, "key" TEXT, "value" TEXT)')
    connection.executemany(
        'INSERT INTO "meta" VALUES (?, ?, ?)',
        [
            (1, "geographicCoordSystem", GEOGRAPHIC_CRS),
            (2, "projectedCoordSystem", crs),
            (3, "creator", _CREATOR),
        ],
    )
    connection.execute(
        "INSERT INTO gpkg_contents VALUES ('meta', 'attributes', 'meta', '', ?, NULL, NULL, NULL, NULL, 0)",
        (_TIMESTAMP,),
    )
    connection.commit()


def _write_layer(connection: sqlite3.Connection, name: str, table: _Table) -> None:
    columns = {**table.columns, "creator_id": "TEXT"}
    declared = "".join(f', "{column}" {sql_type}' for column, sql_type in columns.items())
    connection.execute(
        f'CREATE TABLE "{name}" ("fid" INTEGER PRIMARY KEY NOT NULL, "geom" {table.geometry_type}{declared})'
    )
    placeholders = ", ".join("?" * (2 + len(columns)))
    connection.executemany(
        f'INSERT INTO "{name}" VALUES ({placeholders})',
        [(fid, _geometry_blob(geometry), *cells, _CREATOR) for fid, geometry, cells in table.rows],
    )
    bounds: Sequence[float | None] = [None] * 4
    if table.rows:
        bounds = shapely.total_bounds(np.array([row[1] for row in table.rows], dtype=object)).tolist()
    connection.execute(
        "INSERT INTO gpkg_contents VALUES (?, 'features', ?, '', ?, ?, ?, ?, ?, ?)",
        (name, name, _TIMESTAMP, *bounds, _SRS_ID),
    )
    connection.execute(
        "INSERT INTO gpkg_geometry_columns VALUES (?, 'geom', ?, ?, 0, 0)",
        (name, table.geometry_type, _SRS_ID),
    )


def _geometry_blob(geometry: shapely.Geometry) -> bytes:
    """`GP`, version 0, flags (little-endian, envelope of x, y; none for a point), SRS id, envelope, WKB."""
    wkb = shapely.to_wkb(geometry, byte_order=1, output_dimension=2)
    if geometry.geom_type == "Point":
        return struct.pack("<2sBBi", b"GP", 0, 0b0001, _SRS_ID) + wkb
    min_x, min_y, max_x, max_y = geometry.bounds
    return struct.pack("<2sBBi4d", b"GP", 0, 0b0011, _SRS_ID, min_x, max_x, min_y, max_y) + wkb


def _line(vertices: ArrayLike) -> shapely.LineString:
    return shapely.LineString(np.asarray(vertices, dtype=np.float64))


def _fid(item: Any) -> int:
    return int(item.fid)


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def _joined(fids: Iterable[int]) -> str:
    return ",".join(str(int(fid)) for fid in fids)


_WGS84_WKT = (
    'GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563,AUTHORITY["EPSG","7030"]],'
    'AUTHORITY["EPSG","6326"]],PRIMEM["Greenwich",0,AUTHORITY["EPSG","8901"]],'
    'UNIT["degree",0.0174532925199433,AUTHORITY["EPSG","9122"]],AXIS["Latitude",NORTH],AXIS["Longitude",EAST],'
    'AUTHORITY["EPSG","4326"]]'
)
