import json
import shutil
import sqlite3

import numpy as np
import pytest
import shapely

from drivefine_agent.constants import MAP_VERSIONS
from drivefine_agent.data.maps import Layer, load_map
from drivefine_agent.errors import DataError

CITY = "us-ma-boston"


@pytest.fixture(scope="module")
def boston(navsim_mini):
    return load_map(navsim_mini / "maps", CITY)


@pytest.fixture
def copied_maps(navsim_mini, tmp_path):
    """A copy of the map folder of one city, to be damaged."""
    shutil.copytree(navsim_mini / "maps" / CITY, tmp_path / CITY)
    return tmp_path


def gpkg(root):
    return root / CITY / MAP_VERSIONS[CITY] / "map.gpkg"


def edit(path, *statements):
    """Run SQL on a map. Triggers of the writer call functions that plain SQLite lacks, so they go first."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN")
    for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f'DROP TRIGGER "{trigger}"')
    for statement in statements:
        connection.execute(statement)
    connection.execute("COMMIT")
    connection.close()


def table(path, name):
    """Rows of a layer as dicts, in file order, by nothing but SQLite."""
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    rows = [dict(row) for row in connection.execute(f'SELECT * FROM "{name}"')]
    connection.close()
    return rows


def test_all_four_cities_load_with_the_same_network(navsim_mini):
    for name in MAP_VERSIONS:
        city = load_map(navsim_mini / "maps", name)
        sizes = [
            len(x) for x in (city.lanes, city.lane_connectors, city.roadblocks, city.roadblock_connectors)
        ]
        assert sizes == [24, 36, 18, 30]
        assert [len(city.intersections), len(city.carparks), len(city.crosswalks)] == [5, 1, 4]


def test_a_map_is_read_once_per_process(navsim_mini, boston):
    assert load_map(navsim_mini / "maps", CITY) is boston
    assert load_map(navsim_mini / "maps" / ".." / "maps", CITY) is boston


def test_the_lane_graph_follows_the_connector_table(navsim_mini, boston):
    rows = table(gpkg(navsim_mini / "maps"), "lane_connectors")
    for lane_id, lane in boston.lanes.items():
        # "exit_lane" is the lane that a connector leaves, "entry_lane" the one it enters
        assert list(lane.successors) == [str(r["fid"]) for r in rows if str(r["exit_lane_fid"]) == lane_id]
        assert list(lane.predecessors) == [str(r["fid"]) for r in rows if str(r["entry_lane_fid"]) == lane_id]
    for row in rows:
        connector = boston.lane_connectors[str(row["fid"])]
        assert connector.predecessors == (str(row["exit_lane_fid"]),)
        assert connector.successors == (str(row["entry_lane_fid"]),)
        assert connector.roadblock_id == str(row["lane_group_connector_fid"])
        assert ",".join(connector.stop_line_ids) == row["traffic_light_stop_line_fids"]


def test_the_roadblock_graph_follows_the_group_tables(navsim_mini, boston):
    path = gpkg(navsim_mini / "maps")
    lanes, connectors = table(path, "lanes_polygons"), table(path, "lane_connectors")
    groups = table(path, "lane_group_connectors")
    for block_id, block in boston.roadblocks.items():
        assert list(block.interior) == [str(r["fid"]) for r in lanes if str(r["lane_group_fid"]) == block_id]
        assert list(block.successors) == [
            str(r["fid"]) for r in groups if str(r["from_lane_group_fid"]) == block_id
        ]
        assert list(block.predecessors) == [
            str(r["fid"]) for r in groups if str(r["to_lane_group_fid"]) == block_id
        ]
    for row in groups:
        block = boston.roadblock_connectors[str(row["fid"])]
        assert block.predecessors == (str(row["from_lane_group_fid"]),)
        assert block.successors == (str(row["to_lane_group_fid"]),)
        assert block.intersection_id == str(row["intersection_fid"])
        inside = [str(r["fid"]) for r in connectors if str(r["lane_group_connector_fid"]) == block.id]
        assert list(block.interior) == inside


def test_baselines_meet_and_lie_inside_their_lanes(boston):
    for lane in boston.lanes.values():
        assert lane.polygon.buffer(0.01).contains(lane.linestring)
        assert lane.length == pytest.approx(np.linalg.norm(np.diff(lane.baseline, axis=0), axis=1).sum())
        assert lane.headings.shape == (len(lane.baseline),)
        assert lane.headings[-1] == lane.headings[-2]
    for connector in boston.lane_connectors.values():
        source = boston.lanes[connector.predecessors[0]]
        target = boston.lanes[connector.successors[0]]
        np.testing.assert_allclose(connector.baseline[0], source.baseline[-1], atol=1e-6)
        np.testing.assert_allclose(connector.baseline[-1], target.baseline[0], atol=1e-6)


def test_speed_limits_are_numbers_or_none(copied_maps, boston):
    first, second = list(boston.lanes)[:2]
    edit(
        gpkg(copied_maps),
        f"UPDATE lanes_polygons SET speed_limit_mps = NULL WHERE fid = {first}",
        f"UPDATE lanes_polygons SET speed_limit_mps = 11.5 WHERE fid = {second}",
    )
    city = load_map(copied_maps, CITY)
    assert city.lanes[first].speed_limit is None
    assert city.lanes[second].speed_limit == 11.5


@pytest.mark.parametrize("layer", list(Layer))
@pytest.mark.parametrize("half_side", [1.0, 30.0, 100.0])
def test_a_query_finds_what_touches_the_square_in_file_order(boston, layer, half_side):
    # independent of the tree: every object of the layer against the square, in the dictionary's (file) order
    objects = getattr(boston, layer.value)
    corner = next(iter(boston.lanes.values())).baseline[-1]
    for xy in (corner, corner + np.array([37.0, -11.0])):
        x, y = xy
        square = shapely.Polygon(
            [(x + dx * half_side, y + dy * half_side) for dx, dy in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        )
        expected = []
        for object_id, value in objects.items():
            shape = value if isinstance(value, shapely.Geometry) else value.polygon
            if layer is Layer.LANE_CONNECTORS:
                shape = value.linestring  # nuPlan compares the connector's line
            if shape.intersects(square):
                expected.append(object_id)
        assert boston.query(layer, xy, half_side) == expected
        assert boston.query_many(layer.value, [xy, xy], half_side) == [expected, expected]


def test_the_nearest_object_and_its_distance(boston):
    lane = next(iter(boston.lanes.values()))
    inside = lane.polygon.representative_point()
    found, distance = boston.nearest(Layer.ROADBLOCKS, (inside.x, inside.y))
    assert (found, distance) == (lane.roadblock_id, 0.0)
    min_x, min_y, *_ = shapely.total_bounds([value.polygon for value in boston.roadblocks.values()])
    _, distance = boston.nearest("roadblocks", (min_x - 10.0, min_y))
    assert distance >= 10.0


def test_lookups_of_either_kind_and_of_none(boston):
    assert boston.lane(next(iter(boston.lane_connectors))).is_connector
    assert not boston.roadblock(next(iter(boston.roadblocks))).is_connector
    with pytest.raises(DataError, match=r"no roadblock or roadblock connector '17': .*map\.gpkg"):
        boston.roadblock("17")
    with pytest.raises(DataError, match="no lane or lane connector '17'"):
        boston.lanes["17"]
    assert "17" not in boston.lanes
    assert boston.lanes.get("17") is None


def test_an_unknown_map_name_lists_the_four(navsim_mini):
    with pytest.raises(DataError, match=r"unknown map 'us-ca-sf'.*'sg-one-north'"):
        load_map(navsim_mini / "maps", "us-ca-sf")


def test_a_missing_file_names_the_variable_to_set(tmp_path):
    with pytest.raises(DataError, match=r"no map 'us-ma-boston' at .*NUPLAN_MAPS_ROOT"):
        load_map(tmp_path, CITY)


@pytest.mark.parametrize("layer", ["meta", "carpark_areas", "baseline_paths", "stop_polygons"])
def test_a_missing_layer_is_named(copied_maps, layer):
    edit(gpkg(copied_maps), f'DROP TABLE "{layer}"')
    with pytest.raises(DataError, match=rf"layer '{layer}'") as error:
        load_map(copied_maps, CITY)
    assert str(copied_maps) in str(error.value)


def test_keys_of_several_types_are_listed_where_the_one_that_counts_is_missing(copied_maps):
    """A key that is bytes, beside texts, as a damaged file may hold."""
    edit(gpkg(copied_maps), """UPDATE meta SET "key" = x'ff00' WHERE "key" = 'projectedCoordSystem'""")
    with pytest.raises(DataError, match=r"the key 'projectedCoordSystem', got .*b'.xff.x00'.*map\.gpkg"):
        load_map(copied_maps, CITY)


def test_a_missing_column_is_named(copied_maps):
    edit(gpkg(copied_maps), "ALTER TABLE lane_connectors RENAME COLUMN exit_lane_fid TO from_lane_fid")
    with pytest.raises(DataError, match="column 'exit_lane_fid'"):
        load_map(copied_maps, CITY)


@pytest.mark.parametrize("content", [b"", b"no database", None], ids=["empty", "text", "truncated"])
def test_a_damaged_file_is_named(copied_maps, content):
    path = gpkg(copied_maps)
    path.write_bytes(path.read_bytes()[:50_000] if content is None else content)
    with pytest.raises(DataError, match=r"map\.gpkg"):
        load_map(copied_maps, CITY)


def test_a_lane_without_baseline_fails_when_it_is_asked_for_and_not_before(copied_maps, boston):
    lane = next(iter(boston.lanes))
    edit(gpkg(copied_maps), f"DELETE FROM baseline_paths WHERE lane_fid = {lane}")
    city = load_map(copied_maps, CITY)
    assert len(city.lanes) == 23
    with pytest.raises(DataError, match=r"incomplete, it has 0 rows in 'baseline_paths'"):
        city.lanes[lane]
    with pytest.raises(DataError, match=r"incomplete, it has 0 rows in 'baseline_paths'"):
        city.lane(lane)


def test_an_index_that_lacks_the_city_is_named(copied_maps):
    (copied_maps / "nuplan-maps-v1.0.json").write_text(json.dumps({"sg-one-north": {"version": "1"}}))
    with pytest.raises(DataError, match=r"does not list 'us-ma-boston'"):
        load_map(copied_maps, CITY)


def test_geometries_are_those_that_geopandas_reads(navsim_mini, boston):
    pyogrio = pytest.importorskip("pyogrio", reason="pyogrio (nuplan-devkit's reader) is not installed")
    pytest.importorskip("geopandas", reason="geopandas (nuplan-devkit's reader) is not installed")
    frame = pyogrio.read_dataframe(gpkg(navsim_mini / "maps"), layer="lanes_polygons", fid_as_index=True)
    frame = frame.to_crs("EPSG:32619")
    assert [str(fid) for fid in frame.index] == list(boston.lanes)
    for geometry, lane in zip(frame.geometry, boston.lanes.values(), strict=True):
        assert geometry.wkb == lane.polygon.wkb
