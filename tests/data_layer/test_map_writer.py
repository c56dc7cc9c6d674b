import json
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
import shapely

from drivefine_agent.constants import MAP_CRS, MAP_VERSIONS
from drivefine_agent.data.map_writer import (
    Area,
    Boundary,
    Lane,
    LaneConnector,
    MapLayers,
    Roadblock,
    RoadblockConnector,
    StopLine,
    TrafficLight,
    map_path,
    write_map,
    write_maps_index,
)
from drivefine_agent.data.maps import load_map, read_map
from drivefine_agent.errors import DataError

CITY = "us-pa-pittsburgh-hazelwood"
X, Y = 585_000.0, 4_475_000.0  # in Pittsburgh's UTM zone


def box(x_0, y_0, x_1, y_1):
    return shapely.box(X + x_0, Y + y_0, X + x_1, Y + y_1)


def line(*vertices):
    return np.array(vertices) + np.array([X, Y])


BOW_TIE = shapely.Polygon(line((0, 0), (1, 1), (1, 0), (0, 1)))
TWO_PARTS = shapely.union(box(0, 0, 1, 1), box(2, 0, 3, 1))


def crossing():
    """Two lanes to the east that meet lane 3 behind an intersection, given in no particular order of ids.

    y  4 |  lane 2  ====.....
       0 |  lane 1  ====.....==== lane 3
         0          50   70      120  x
    """
    return MapLayers(
        lanes=[
            Lane(3, box(70, -2, 120, 2), line((70, 0), (120, 0)), 6, 0, None),
            Lane(2, box(0, 2, 50, 6), line((0, 4), (25, 4), (50, 4)), 5, 0, 13.5),
            Lane(
                1,
                box(0, -2, 50, 2),
                line((0, 0), (50, 0)),
                5,
                1,
                13.5,
                line((0, 2), (50, 2)),
                line((0, -2), (50, -2)),
            ),
        ],
        lane_connectors=[
            LaneConnector(11, box(50, -2, 70, 2), line((50, 0), (70, 0)), 9, 1, 3, 20, 8.0, (30,)),
            LaneConnector(10, box(50, -2, 70, 6), line((50, 4), (70, 0)), 9, 2, 3, 20),
        ],
        roadblocks=[Roadblock(6, box(70, -2, 120, 2)), Roadblock(5, box(0, -2, 50, 6))],
        roadblock_connectors=[RoadblockConnector(9, box(50, -2, 70, 6), 5, 6, 20)],
        intersections=[Area(20, box(50, -4, 70, 8))],
        stop_lines=[StopLine(30, box(47, -2, 50, 6), lane_fids=(1, 2), traffic_light_fids=(40,))],
        crosswalks=[Area(50, box(51, -4, 53, 8))],
        walkways=[Area(51, box(0, 8, 120, 10))],
        carparks=[Area(52, box(90, 2, 110, 12))],
        generic_drivable_areas=[Area(53, box(0, 12, 5, 15))],
        boundaries=[Boundary(60, line((0, 20), (10, 20)))],
        traffic_lights=[TrafficLight(40, (X + 60, Y), np.pi)],
    )


@pytest.fixture
def written(tmp_path):
    write_map(map_path(tmp_path, CITY), CITY, crossing())
    return load_map(tmp_path, CITY)


def test_what_was_written_is_read_within_a_hundredth_of_a_micrometre(written):
    layers = crossing()
    for lane in [*layers.lanes, *layers.lane_connectors]:
        record = written.lane(str(lane.fid))
        np.testing.assert_allclose(record.baseline, lane.baseline, rtol=0, atol=1e-8)
        assert shapely.hausdorff_distance(record.polygon, lane.polygon) < 1e-8
        assert record.speed_limit == lane.speed_limit_mps
    for name in ("intersections", "stop_lines", "crosswalks", "walkways", "carparks"):
        (area,) = getattr(layers, name)
        assert shapely.hausdorff_distance(getattr(written, name)[str(area.fid)], area.polygon) < 1e-8


def test_the_graph_is_the_one_that_was_meant(written):
    assert list(written.lanes) == ["1", "2", "3"]  # by id, whatever the order in the layers
    assert written.lanes["1"].successors == ("11",)
    assert written.lanes["3"].predecessors == ("10", "11")
    assert written.lane_connectors["10"].predecessors == ("2",)
    assert written.lane_connectors["10"].successors == ("3",)
    assert written.lane_connectors["11"].stop_line_ids == ("30",)
    assert written.lane_connectors["10"].stop_line_ids == ()
    assert written.roadblocks["5"].interior == ("1", "2")
    assert written.roadblocks["5"].successors == ("9",)
    assert written.roadblock_connectors["9"].interior == ("10", "11")
    assert written.roadblock_connectors["9"].intersection_id == "20"
    assert written.lanes["2"].lane_index == 0


def test_the_same_layers_give_the_same_bytes_in_any_order(tmp_path):
    layers = crossing()
    reverse = MapLayers(**{name: list(reversed(items)) for name, items in vars(layers).items()})
    write_map(tmp_path / "a.gpkg", CITY, layers)
    write_map(tmp_path / "deeper" / "b.gpkg", CITY, reverse)
    write_map(tmp_path / "a_again.gpkg", CITY, layers)
    contents = {path.read_bytes() for path in tmp_path.rglob("*.gpkg")}
    assert len(contents) == 1


def test_an_empty_map_is_a_map(tmp_path):
    write_map(tmp_path / "map.gpkg", CITY, MapLayers())
    city = read_map(tmp_path / "map.gpkg", CITY)
    assert not city.lanes
    assert city.query("roadblocks", (X, Y), 100.0) == []
    assert city.nearest("roadblocks", (X, Y)) is None


def test_every_layer_is_registered_as_a_geopackage_wants_it(tmp_path):
    write_map(tmp_path / "map.gpkg", CITY, crossing())
    connection = sqlite3.connect(tmp_path / "map.gpkg")
    assert connection.execute("PRAGMA application_id").fetchone() == (0x47504B47,)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    contents = dict(connection.execute("SELECT table_name, data_type FROM gpkg_contents"))
    assert contents.pop("meta") == "attributes"
    assert set(contents.values()) == {"features"}
    assert tables == set(contents) | {
        "meta",
        "gpkg_contents",
        "gpkg_geometry_columns",
        "gpkg_spatial_ref_sys",
    }
    geometry = dict(connection.execute("SELECT table_name, srs_id FROM gpkg_geometry_columns"))
    assert geometry == dict.fromkeys(contents, 4326)
    meta = dict(connection.execute("SELECT key, value FROM meta"))
    assert meta["projectedCoordSystem"] == MAP_CRS[CITY]
    # Pittsburgh lies at about 80 degrees west and 40 degrees north: the order is lon, lat
    (min_x, max_x, min_y, max_y) = connection.execute(
        "SELECT min_x, max_x, min_y, max_y FROM gpkg_contents WHERE table_name = 'lanes_polygons'"
    ).fetchone()
    assert -80.1 < min_x < max_x < -79.9
    assert 40.3 < min_y < max_y < 40.5
    connection.close()


def test_join_keys_are_numbers_and_lists_of_ids_are_texts(tmp_path):
    write_map(tmp_path / "map.gpkg", CITY, crossing())
    connection = sqlite3.connect(tmp_path / "map.gpkg")
    types = {
        column: kind
        for (name,) in connection.execute("SELECT table_name FROM gpkg_geometry_columns").fetchall()
        for _, column, kind, *_ in connection.execute(f'PRAGMA table_info("{name}")')
        if column.endswith(("_fid", "_fids"))
    }
    for column, kind in types.items():
        assert kind == "TEXT" if column.endswith("_fids") else kind in ("INTEGER", "REAL"), column
    empty = connection.execute(
        "SELECT traffic_light_stop_line_fids FROM lane_connectors WHERE fid = 10"
    ).fetchone()
    assert empty == ("",)
    connection.close()


def test_geopandas_reads_what_we_write(tmp_path):
    pyogrio = pytest.importorskip("pyogrio", reason="pyogrio (nuplan-devkit's reader) is not installed")
    pytest.importorskip("geopandas", reason="geopandas (nuplan-devkit's reader) is not installed")
    write_map(tmp_path / "map.gpkg", CITY, crossing())
    frame = pyogrio.read_dataframe(tmp_path / "map.gpkg", layer="lanes_polygons", fid_as_index=True)
    assert list(frame.index) == [1, 2, 3]
    assert str(frame.crs).upper() == "EPSG:4326"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"roadblocks": [Roadblock(5, box(0, 0, 1, 1))]}, r"'roadblock_fid' of lane 3 must name .*, got 6"),
        (
            {"intersections": []},
            r"'intersection_fid' of lane connector 1\d must name one of the intersections, got 20",
        ),
        ({"stop_lines": []}, r"'stop_line_fids' of lane connector 11"),
        ({"walkways": [Area(0, box(0, 0, 1, 1))]}, "positive integers"),
        ({"crosswalks": [Area(7, box(0, 0, 1, 1))] * 2}, r"differ within crosswalks, got \[7\]"),
        ({"carparks": [Area(7, shapely.box(np.nan, 0, 1, 1))]}, "expected a POLYGON, got nothing: feature 7"),
        ({"carparks": [Area(7, BOW_TIE)]}, "must be valid, got one with Self-intersection.*'carpark_areas'"),
        ({"carparks": [Area(7, TWO_PARTS)]}, "expected a POLYGON, got MultiPolygon"),
    ],
    ids=["roadblock", "intersection", "stop line", "id 0", "id twice", "NaN", "bow tie", "two parts"],
)
def test_layers_that_do_not_fit_together_are_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        write_map(tmp_path / "map.gpkg", CITY, replace(crossing(), **changes))
    assert not (tmp_path / "map.gpkg").exists()


def test_a_roadblock_and_a_connector_may_not_share_an_id(tmp_path):
    layers = crossing()
    same = [replace(layers.roadblock_connectors[0], fid=5)]
    with pytest.raises(DataError, match="roadblocks and roadblock_connectors"):
        write_map(tmp_path / "map.gpkg", CITY, replace(layers, roadblock_connectors=same))


def test_an_unknown_city_is_refused(tmp_path):
    with pytest.raises(DataError, match="unknown map 'mars'"):
        write_map(tmp_path / "map.gpkg", "mars", MapLayers())
    with pytest.raises(DataError, match="unknown map 'mars'"):
        map_path(tmp_path, "mars")


def test_the_index_names_all_four_versions(tmp_path):
    write_maps_index(tmp_path)
    index = json.loads((tmp_path / "nuplan-maps-v1.0.json").read_text())
    assert {name: entry["version"] for name, entry in index.items()} == MAP_VERSIONS
