"""nuPlan map GeoPackages -> lanes, roadblocks and areas in metres, with their graph and proximity queries.

A GeoPackage is an SQLite file whose geometry columns hold WKB behind a short header, so the standard
library, shapely and pyproj read it. All rules (file order, which column joins what, what a proximity query
compares) are nuPlan's; see nuplan/common/maps/nuplan_map and nuplan/database/maps_db/gpkg_mapsdb.py.
"""

from __future__ import annotations

import functools
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

import numpy as np
import pyproj
import shapely
from numpy.typing import ArrayLike, NDArray

from drivefine_agent.constants import MAP_VERSIONS
from drivefine_agent.data.json_text import read_json_object
from drivefine_agent.data.wkb import check_wkb
from drivefine_agent.errors import DataError
from drivefine_agent.geometry.se2 import FloatArray, polyline_headings

_AGAIN = "fetch or write the map again"

MAPS_INDEX_NAME = "nuplan-maps-v1.0.json"
GEOGRAPHIC_CRS = "EPSG:4326"

_ALIASES = {"las_vegas": "us-nv-las-vegas-strip"}  # nuPlan's old name of this city
_ENVELOPE_BYTES = {0: 0, 1: 32, 2: 48, 3: 48, 4: 64}  # by the envelope code of a GeoPackage geometry header


class Layer(StrEnum):
    """Kinds of map objects; each is also the name of a dictionary of `Map`."""

    LANES = "lanes"
    LANE_CONNECTORS = "lane_connectors"
    ROADBLOCKS = "roadblocks"
    ROADBLOCK_CONNECTORS = "roadblock_connectors"
    INTERSECTIONS = "intersections"
    CARPARKS = "carparks"
    CROSSWALKS = "crosswalks"
    WALKWAYS = "walkways"
    STOP_LINES = "stop_lines"


# Layer -> table of the GeoPackage that holds its ids and the geometry that proximity queries compare.
_TABLES = {
    Layer.LANES: "lanes_polygons",
    Layer.LANE_CONNECTORS: "lane_connectors",
    Layer.ROADBLOCKS: "lane_groups_polygons",
    Layer.ROADBLOCK_CONNECTORS: "lane_group_connectors",
    Layer.INTERSECTIONS: "intersections",
    Layer.CARPARKS: "carpark_areas",
    Layer.CROSSWALKS: "crosswalks",
    Layer.WALKWAYS: "walkways",
    Layer.STOP_LINES: "stop_polygons",
}
_CONNECTOR_POLYGONS = "gen_lane_connectors_scaled_width_polygons"
_BASELINES = "baseline_paths"
_STEPS_PER_CALL = 10_000  # of SQLite's machine; reading takes less than one step per byte of the file


@dataclass(frozen=True)
class LaneRecord:
    """A lane or a lane connector."""

    id: str
    is_connector: bool
    polygon: shapely.Polygon
    baseline: FloatArray
    """(N, 2) centre line, in driving direction [m]."""
    headings: FloatArray
    """(N,) heading of each baseline vertex towards the next, the last repeated [rad]."""
    length: float
    """Length of the baseline [m]."""
    linestring: shapely.LineString
    """The baseline as a shapely object."""
    speed_limit: float | None
    """[m/s]; None where the map has none."""
    roadblock_id: str
    """The roadblock (or roadblock connector) it belongs to."""
    successors: tuple[str, ...]
    """A lane's successors are lane connectors, a connector's is one lane."""
    predecessors: tuple[str, ...]
    lane_index: int | None = None
    """Position within the roadblock, 0 is leftmost; None for connectors."""
    stop_line_ids: tuple[str, ...] = ()
    """Of a connector with traffic lights."""


@dataclass(frozen=True)
class RoadblockRecord:
    """A roadblock (lanes of one direction between intersections) or a roadblock connector."""

    id: str
    is_connector: bool
    polygon: shapely.Polygon
    interior: tuple[str, ...]
    """Ids of its lanes (of its lane connectors), in file order."""
    successors: tuple[str, ...]
    """A roadblock's successors are roadblock connectors, a connector's is one roadblock."""
    predecessors: tuple[str, ...]
    intersection_id: str | None = None
    """Of a roadblock connector."""


Record = TypeVar("Record")


class Objects(dict[str, Record], Generic[Record]):
    """Id -> object, in file order. An unknown or incomplete id raises a DataError with the reason."""

    def __init__(
        self, items: Mapping[str, Record], what: str, where: str, faults: Mapping[str, str] | None = None
    ):
        super().__init__(items)
        self._what = what
        self._where = where
        self._faults = dict(faults or {})

    def is_incomplete(self, key: str) -> bool:
        """Whether the file names this id but lacks a part of the object."""
        return key in self._faults

    def __missing__(self, key: str) -> Record:
        fault = self._faults.get(key)
        if fault is not None:
            raise DataError(
                f"{self._what} {key!r} is incomplete, {fault}: {self._where}; fetch or write the map again"
            )
        raise DataError(f"no {self._what} {key!r}: {self._where}; does the log belong to this map?")


@dataclass(frozen=True)
class _Table:
    """Rows of one layer, in file order."""

    ids: tuple[str, ...]
    geometries: NDArray[Any]
    """(n,) shapely geometries in the projected CRS."""
    columns: dict[str, list[Any]]


class Map:
    """The vector map of one city in UTM metres.

    Attributes:
      name: one of constants.MAP_VERSIONS.
      path: the file it was read from.
      lanes, lane_connectors: id -> LaneRecord.
      roadblocks, roadblock_connectors: id -> RoadblockRecord.
      intersections, carparks, crosswalks, walkways, stop_lines: id -> polygon.

    All dictionaries are in file order.
    """

    def __init__(self, name: str, path: Path, tables: Mapping[str, _Table]) -> None:
        self.name = name
        self.path = path
        self.lanes, self.lane_connectors = _lanes(tables, path)
        self.roadblocks, self.roadblock_connectors = _roadblocks(tables, path)
        self.intersections = _areas(tables, Layer.INTERSECTIONS, path)
        self.carparks = _areas(tables, Layer.CARPARKS, path)
        self.crosswalks = _areas(tables, Layer.CROSSWALKS, path)
        self.walkways = _areas(tables, Layer.WALKWAYS, path)
        self.stop_lines = _areas(tables, Layer.STOP_LINES, path)
        self._ids = {layer: tables[table].ids for layer, table in _TABLES.items()}
        self._geometries = {layer: tables[table].geometries for layer, table in _TABLES.items()}
        areas = tables[_CONNECTOR_POLYGONS]
        self._connector_area_ids = tuple(_ids(areas, "lane_connector_fid", path))
        self._connector_areas = areas.geometries

    def lane(self, lane_id: str) -> LaneRecord:
        """The lane of this id, else the lane connector. Raises DataError if there is neither."""
        is_connector = lane_id in self.lane_connectors or self.lane_connectors.is_incomplete(lane_id)
        return self.lane_connectors[lane_id] if is_connector else self.lanes[lane_id]

    def roadblock(self, roadblock_id: str) -> RoadblockRecord:
        """The roadblock of this id, else the roadblock connector. Raises DataError if there is neither."""
        is_roadblock = roadblock_id in self.roadblocks
        return self.roadblocks[roadblock_id] if is_roadblock else self.roadblock_connectors[roadblock_id]

    def query(self, layer: Layer | str, xy: ArrayLike, half_side: float) -> list[str]:
        """Ids of the objects that intersect a square, in file order.

        Args:
          layer: what to look for. As in nuPlan, a lane connector is compared by its line, all else by its
            polygon.
          xy: (2,) centre of the axis-aligned square [m].
          half_side: half its side [m].
        """
        x, y = np.asarray(xy, dtype=np.float64)[:2]
        square = shapely.box(x - half_side, y - half_side, x + half_side, y + half_side)
        layer = Layer(layer)
        hits = np.sort(self._tree(layer).query(square, predicate="intersects"))
        return [self._ids[layer][index] for index in hits]

    def query_many(self, layer: Layer | str, xy: ArrayLike, half_side: float) -> list[list[str]]:
        """`query` for many centres (n, 2) at once."""
        centers = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
        low, high = centers - half_side, centers + half_side
        layer = Layer(layer)
        squares = shapely.box(low[:, 0], low[:, 1], high[:, 0], high[:, 1])
        found: list[list[str]] = [[] for _ in centers]
        for square, index in sorted(self._tree(layer).query(squares, predicate="intersects").T.tolist()):
            found[square].append(self._ids[layer][index])
        return found

    def containing(self, layer: Layer | str, xy: ArrayLike) -> list[list[str]]:
        """Per point (n, 2), ids of the polygons that contain it (a boundary point is outside), in file order.

        A lane connector counts by its polygon, in the file order of those polygons.
        """
        layer = Layer(layer)
        ids: tuple[str | None, ...] = self._ids[layer]
        tree = self._tree(layer)
        if layer == Layer.LANE_CONNECTORS:
            ids, tree = self._connector_area_ids, self._connector_area_tree
        points = shapely.points(np.asarray(xy, dtype=np.float64).reshape(-1, 2))
        found: list[list[str]] = [[] for _ in points]
        for point, index in sorted(tree.query(points, predicate="within").T.tolist()):
            found[point].append(str(ids[index]))
        return found

    def nearest(self, layer: Layer | str, xy: ArrayLike) -> tuple[str, float] | None:
        """Id and distance [m] of the object nearest to a point, first in file order on ties; None if none."""
        layer = Layer(layer)
        if not self._ids[layer]:
            return None
        x, y = np.asarray(xy, dtype=np.float64)[:2]
        distances = shapely.distance(self._geometries[layer], shapely.Point(x, y))
        index = int(np.argmin(distances))
        return self._ids[layer][index], float(distances[index])

    @functools.cached_property
    def _connector_area_tree(self) -> shapely.STRtree:
        return shapely.STRtree(self._connector_areas)

    @functools.cached_property
    def _trees(self) -> dict[Layer, shapely.STRtree]:
        return {}

    def _tree(self, layer: Layer) -> shapely.STRtree:
        if layer not in self._trees:
            self._trees[layer] = shapely.STRtree(self._geometries[layer])
        return self._trees[layer]


def load_map(maps_root: str | Path, map_name: str) -> Map:
    """The map of a city, read once per process and file.

    Args:
      maps_root: NUPLAN_MAPS_ROOT, the folder with `<map name>/<version>/map.gpkg`.
      map_name: one of constants.MAP_VERSIONS.

    Raises:
      DataError: unknown name, missing or damaged file, missing layer or column.
    """
    path = map_path(maps_root, map_name)
    map_name = _ALIASES.get(map_name, map_name)
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(
            f"no map {map_name!r} at {path}: set NUPLAN_MAPS_ROOT to the folder that holds "
            "<map name>/<version>/map.gpkg"
        ) from error
    return _load_cached(map_name, path.resolve(), stat.st_mtime_ns, stat.st_size)


def map_path(maps_root: str | Path, map_name: str) -> Path:
    """Where the GeoPackage of a city should lie.

    Raises:
      DataError: unknown name, or the maps' index is damaged or lacks it.
    """
    map_name = _ALIASES.get(map_name, map_name)
    if map_name not in MAP_VERSIONS:
        raise DataError(f"unknown map {map_name!r}: nuPlan has {sorted(MAP_VERSIONS)}; choose one of them")
    return Path(maps_root) / map_name / _map_version(Path(maps_root), map_name) / "map.gpkg"


@functools.lru_cache(maxsize=16)
def _load_cached(map_name: str, path: Path, _mtime_ns: int, _size: int) -> Map:
    return read_map(path, map_name)


def read_map(path: str | Path, map_name: str) -> Map:
    """The map in a GeoPackage, not cached. See `load_map`."""
    path = Path(path)
    # immutable: the file may lie on a read-only disk, where SQLite could not create its lock
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
        try:
            _limit_work(connection, path)
            crs = _projected_crs(connection, path)
            tables = {
                name: _rows(connection, name, path)
                for name in (*_TABLES.values(), _CONNECTOR_POLYGONS, _BASELINES)
            }
        finally:
            connection.close()
    except DataError:
        raise
    except (
        sqlite3.Error,
        OSError,
        ValueError,
        OverflowError,
        MemoryError,
    ) as error:  # also texts not in UTF-8
        raise DataError(
            f"not a readable GeoPackage ({error}): {path}; fetch or write the map again"
        ) from error
    return Map(map_name, path, _project(tables, crs, path))


def _map_version(maps_root: Path, map_name: str) -> str:
    """The version that the maps' index names, else the one of nuPlan's release."""
    index_path = maps_root / MAPS_INDEX_NAME
    if not index_path.is_file():
        return MAP_VERSIONS[map_name]
    entry = read_json_object(index_path).get(map_name)
    version = entry.get("version") if isinstance(entry, dict) else None
    if not isinstance(version, str):
        raise DataError(
            f"the index of the maps does not list {map_name!r} with its 'version': {index_path}; "
            "fetch it again"
        )
    if version in ("", "..") or PurePosixPath(version).name != version or "\0" in version:
        raise DataError(
            f"a map's version must be the name of a folder, got {version!r:.80}: {index_path}; fetch it again"
        )
    return version


def _projected_crs(connection: sqlite3.Connection, path: Path) -> pyproj.CRS:
    if not _has_table(connection, "meta"):
        raise DataError(
            f"a nuPlan map needs the layer 'meta' with 'projectedCoordSystem', missing in {path}; {_AGAIN}"
        )
    values = dict(connection.execute('SELECT "key", "value" FROM "meta"').fetchall())
    name = values.get("projectedCoordSystem")
    if not isinstance(name, str):
        keys = ", ".join(sorted(map(repr, values))[:20])
        raise DataError(
            f"the layer 'meta' needs the key 'projectedCoordSystem', got {keys} in {path}; {_AGAIN}"
        )
    try:
        return pyproj.CRS(name)
    except pyproj.exceptions.CRSError as error:
        raise DataError(
            f"'projectedCoordSystem' names no coordinate system, got {name!r} in {path}; {_AGAIN}"
        ) from error


def _has_table(connection: sqlite3.Connection, name: str) -> bool:
    """Whether there is a plain table; a view or virtual table of that name is a program, and none."""
    query = "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?"
    row = connection.execute(query, (name,)).fetchone()
    return (
        row is not None and isinstance(row[0], str) and re.match(r"CREATE\s+TABLE", row[0], re.I) is not None
    )


def _limit_work(connection: sqlite3.Connection, path: Path) -> None:
    """A database may compute what it seems to hold (generated columns): a limit for its size."""
    size = path.stat().st_size
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, max(size, 1000))
    calls_left = 10 + size // _STEPS_PER_CALL

    def is_too_much() -> bool:
        nonlocal calls_left
        calls_left -= 1
        return calls_left < 0

    connection.set_progress_handler(is_too_much, _STEPS_PER_CALL)
    connection.execute("PRAGMA trusted_schema = OFF")


def _rows(connection: sqlite3.Connection, name: str, path: Path) -> _Table:
    """All rows of a layer in the order of their feature ids, with geometries as stored (lon, lat)."""
    if not _has_table(connection, name):
        raise DataError(
            f"the map has no layer {name!r}: {path}; every layer of the nuPlan maps is needed, {_AGAIN}"
        )
    info = connection.execute(f'PRAGMA table_info("{name}")').fetchall()
    key = next((column for _, column, _, _, _, is_key in info if is_key), None)
    if key is None or "geom" not in {column for _, column, *_ in info}:
        raise DataError(f"the layer {name!r} needs a primary key and a column 'geom': {path}; {_AGAIN}")
    quoted = key.replace('"', '""')
    cursor = connection.execute(f'SELECT * FROM "{name}" ORDER BY "{quoted}"')
    names = [description[0] for description in cursor.description]
    rows = cursor.fetchall()
    columns = {column: [row[index] for row in rows] for index, column in enumerate(names)}
    ids = tuple(str(fid) for fid in columns.pop(key))
    wkb = [
        _wkb(blob, f"feature {fid} of layer {name!r} in {path}")
        for fid, blob in zip(ids, columns.pop("geom"), strict=True)
    ]
    array = np.empty(len(wkb), dtype=object)
    array[:] = wkb
    try:
        geometries = shapely.from_wkb(array)
    except shapely.errors.ShapelyError as error:
        raise DataError(f"a geometry of the layer {name!r} is damaged ({error}): {path}; {_AGAIN}") from error
    return _Table(ids, geometries, columns)


def _wkb(blob: Any, where: str) -> bytes:
    """The WKB in a GeoPackage geometry: after `GP`, version, flags, int32 SRS id and an optional envelope."""
    if not isinstance(blob, bytes) or blob[:2] != b"GP" or len(blob) < 8:
        raise DataError(f"not a GeoPackage geometry: {where}; {_AGAIN}")
    envelope_code = (blob[3] >> 1) & 0b111
    if envelope_code not in _ENVELOPE_BYTES:
        raise DataError(
            f"a GeoPackage geometry has an envelope code of 0 to 4, got {envelope_code}: {where}; {_AGAIN}"
        )
    wkb = blob[8 + _ENVELOPE_BYTES[envelope_code] :]
    check_wkb(wkb, where)
    return wkb


def _project(tables: Mapping[str, _Table], crs: pyproj.CRS, path: Path) -> dict[str, _Table]:
    """All geometries from (lon, lat) to metres, in one call, since each call costs more than its points."""
    transformer = pyproj.Transformer.from_crs(GEOGRAPHIC_CRS, crs, always_xy=True)
    geometries = np.concatenate([table.geometries for table in tables.values()])
    degrees = shapely.get_coordinates(geometries)
    x, y = transformer.transform(degrees[:, 0], degrees[:, 1])
    metres = np.stack([x, y], axis=-1)
    if not np.isfinite(metres).all():
        raise DataError(
            f"{crs.to_string()} cannot hold all coordinates of {path}: are they lon, lat in degrees?"
        )
    geometries = shapely.set_coordinates(geometries, metres)
    projected = {}
    start = 0
    for name, table in tables.items():
        stop = start + len(table.ids)
        projected[name] = _Table(table.ids, geometries[start:stop], table.columns)
        start = stop
    return projected


def _lanes(tables: Mapping[str, _Table], path: Path) -> tuple[Objects[LaneRecord], Objects[LaneRecord]]:
    lanes, connectors = tables[_TABLES[Layer.LANES]], tables[_TABLES[Layer.LANE_CONNECTORS]]
    sources = _ids(connectors, "exit_lane_fid", path)  # the lane being left
    targets = _ids(connectors, "entry_lane_fid", path)
    leaving, arriving = _group(sources, connectors.ids), _group(targets, connectors.ids)

    baselines = tables[_BASELINES]
    lane_lines = _by_key(baselines, "lane_fid", path)
    connector_lines = _by_key(baselines, "lane_connector_fid", path)
    connector_polygons = _by_key(tables[_CONNECTOR_POLYGONS], "lane_connector_fid", path)

    lane_records, lane_faults = {}, {}
    groups = _ids(lanes, "lane_group_fid", path)
    limits = _speed_limits(lanes, path)
    indices = _column(lanes, "lane_index", path)
    for row, lane_id in enumerate(lanes.ids):
        fault = _baseline_fault(lane_lines.get(lane_id, []))
        if fault or groups[row] is None:
            lane_faults[lane_id] = fault or "it has no 'lane_group_fid'"
            continue
        lane_records[lane_id] = _lane_record(
            lane_id,
            is_connector=False,
            polygon=lanes.geometries[row],
            line=lane_lines[lane_id][0],
            speed_limit=limits[row],
            roadblock_id=str(groups[row]),
            successors=leaving.get(lane_id, ()),
            predecessors=arriving.get(lane_id, ()),
            lane_index=None if indices[row] is None else int(indices[row]),
        )

    connector_records, connector_faults = {}, {}
    groups = _ids(connectors, "lane_group_connector_fid", path)
    limits = _speed_limits(connectors, path)
    stop_lines = _column(connectors, "traffic_light_stop_line_fids", path)
    for row, connector_id in enumerate(connectors.ids):
        polygons = connector_polygons.get(connector_id, [])
        fault = _baseline_fault(connector_lines.get(connector_id, []))
        if not fault and len(polygons) != 1:
            fault = f"it has {len(polygons)} rows in {_CONNECTOR_POLYGONS!r} instead of one"
        if fault or groups[row] is None:
            connector_faults[connector_id] = fault or "it has no 'lane_group_connector_fid'"
            continue
        source, target = sources[row], targets[row]
        connector_records[connector_id] = _lane_record(
            connector_id,
            is_connector=True,
            polygon=polygons[0],
            line=connector_lines[connector_id][0],
            speed_limit=limits[row],
            roadblock_id=str(groups[row]),
            successors=() if target is None else (target,),
            predecessors=() if source is None else (source,),
            stop_line_ids=_id_list(stop_lines[row]),
        )
    return (
        Objects(lane_records, "lane or lane connector", str(path), lane_faults),
        Objects(connector_records, "lane connector", str(path), connector_faults),
    )


def _lane_record(lane_id: str, line: shapely.LineString, **fields: Any) -> LaneRecord:
    baseline = shapely.get_coordinates(line)
    return LaneRecord(
        id=lane_id,
        baseline=baseline,
        headings=polyline_headings(baseline),
        length=float(line.length),
        linestring=line,
        **fields,
    )


def _baseline_fault(lines: list[Any]) -> str | None:
    if len(lines) != 1:
        return f"it has {len(lines)} rows in {_BASELINES!r} instead of one"
    if lines[0].geom_type != "LineString" or not lines[0].length > 0.0:
        return "its baseline is no line of positive length"
    return None


def _roadblocks(
    tables: Mapping[str, _Table], path: Path
) -> tuple[Objects[RoadblockRecord], Objects[RoadblockRecord]]:
    blocks, connectors = tables[_TABLES[Layer.ROADBLOCKS]], tables[_TABLES[Layer.ROADBLOCK_CONNECTORS]]
    lanes, lane_connectors = tables[_TABLES[Layer.LANES]], tables[_TABLES[Layer.LANE_CONNECTORS]]
    sources = _ids(connectors, "from_lane_group_fid", path)
    targets = _ids(connectors, "to_lane_group_fid", path)
    leaving, arriving = _group(sources, connectors.ids), _group(targets, connectors.ids)

    interior = _group(_ids(lanes, "lane_group_fid", path), lanes.ids)
    block_records = {
        block_id: RoadblockRecord(
            id=block_id,
            is_connector=False,
            polygon=blocks.geometries[row],
            interior=interior.get(block_id, ()),
            successors=leaving.get(block_id, ()),
            predecessors=arriving.get(block_id, ()),
        )
        for row, block_id in enumerate(blocks.ids)
    }

    interior = _group(_ids(lane_connectors, "lane_group_connector_fid", path), lane_connectors.ids)
    intersections = _ids(connectors, "intersection_fid", path)
    connector_records = {
        connector_id: RoadblockRecord(
            id=connector_id,
            is_connector=True,
            polygon=connectors.geometries[row],
            interior=interior.get(connector_id, ()),
            successors=() if target is None else (target,),
            predecessors=() if source is None else (source,),
            intersection_id=intersections[row],
        )
        for row, (connector_id, source, target) in enumerate(
            zip(connectors.ids, sources, targets, strict=True)
        )
    }
    return (
        Objects(block_records, "roadblock", str(path)),
        Objects(connector_records, "roadblock or roadblock connector", str(path)),
    )


def _areas(tables: Mapping[str, _Table], layer: Layer, path: Path) -> Objects[shapely.Polygon]:
    table = tables[_TABLES[layer]]
    return Objects(dict(zip(table.ids, table.geometries, strict=True)), layer.value, str(path))


def _column(table: _Table, name: str, path: Path) -> list[Any]:
    if name not in table.columns:
        raise DataError(f"the map lacks the column {name!r} beside {sorted(table.columns)}: {path}; {_AGAIN}")
    return table.columns[name]


def _ids(table: _Table, name: str, path: Path) -> list[str | None]:
    """A join column as ids. Numbers may be stored as 17, 17.0 or '17'; null and NaN join nothing."""
    ids: list[str | None] = []
    for value in _column(table, name, path):
        try:
            ids.append(None if value is None or value == "" or value != value else str(int(float(value))))
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"the column {name!r} must hold feature ids, got {value!r}: {path}; {_AGAIN}"
            ) from error
    return ids


def _id_list(value: Any) -> tuple[str, ...]:
    """Ids in a comma-separated text; an empty or null text has none."""
    return tuple(part for part in str(value if value is not None else "").replace(" ", "").split(",") if part)


def _speed_limits(table: _Table, path: Path) -> list[float | None]:
    values = _column(table, "speed_limit_mps", path)
    return [None if value is None or value != value else float(value) for value in values]


def _group(keys: Iterable[str | None], members: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Members by key, in file order."""
    groups: dict[str, list[str]] = defaultdict(list)
    for key, member in zip(keys, members, strict=True):
        if key is not None:
            groups[key].append(member)
    return {key: tuple(found) for key, found in groups.items()}


def _by_key(table: _Table, name: str, path: Path) -> dict[str, list[Any]]:
    """Geometries of a table by a join column, in file order."""
    groups: dict[str, list[Any]] = defaultdict(list)
    for key, geometry in zip(_ids(table, name, path), table.geometries, strict=True):
        if key is not None:
            groups[key].append(geometry)
    return dict(groups)
