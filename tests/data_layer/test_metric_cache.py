"""Official metric caches: what is in them, and that nothing in them can run.

The three caches in tests/data were written by NAVSIM 1.1 and 2.2.
"""

import lzma
import pickle
import pickletools
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely

from drivefine_agent.data.metric_cache import read_metric_cache
from drivefine_agent.data.metric_cache_index import list_metric_caches
from drivefine_agent.errors import DataError, UnsafePickleError

V11, V22, SYNTHETIC = "7683c164bbbee212", "a50e813fc265dc31", "d1c765150304875d6"


@pytest.fixture(scope="module")
def caches(goldens: Path) -> Path:
    return goldens / "official_metric_caches"


@pytest.fixture(scope="module")
def v11(caches: Path) -> Path:
    return list_metric_caches(caches / "v11")[V11]


@pytest.fixture(scope="module")
def v22(caches: Path) -> Path:
    return list_metric_caches(caches / "v22")[V22]


@pytest.fixture(scope="module")
def synthetic(caches: Path) -> Path:
    return list_metric_caches(caches / "v22_two_stage")[SYNTHETIC]


def written(folder: Path, content: bytes) -> Path:
    path = folder / "metric_cache.pkl"
    path.write_bytes(lzma.compress(content, preset=0))
    return path


# --- content -----------------------------------------------------------------------------------------------


def test_a_cache_of_navsim_1_holds_what_navsim_prepared(v11: Path, goldens: Path) -> None:
    cache = read_metric_cache(v11)
    facts = pd.read_parquet(goldens / "scene_facts_v11.parquet").set_index("token").loc[V11]
    assert (cache.version, cache.token, cache.map_name) == ("1.1", V11, "")
    assert cache.log_name == "2021.05.12.10.00.00_veh-35_00100_00160"
    np.testing.assert_array_equal(cache.trajectory_poses, np.reshape(facts["reference_poses"], (51, 3)))
    np.testing.assert_array_equal(cache.centerline[:, :2], np.reshape(facts["centerline"], (-1, 2)))
    assert set(cache.route_lane_ids) == set(facts["route_lane_ids"])
    assert list(cache.map_ids) == list(facts["polygon_ids"])
    assert {polygon.geom_type for polygon in cache.map_polygons} == {"Polygon"}
    assert cache.trajectory_us[0] == cache.timestamp_us
    assert set(np.diff(cache.trajectory_us)) == {100_000}
    assert len(cache.samples) == 51
    assert not any(sample.red_light_ids for sample in cache.samples)
    assert (cache.human_poses, cache.history_states, cache.current_objects, cache.tracks) == (
        None, None, None, (),
    )  # fmt: skip


def test_boxes_have_the_corners_of_their_objects(v11: Path) -> None:
    cache = read_metric_cache(v11)
    objects = cache.unique_objects
    assert set(objects.names) == {"vehicle", "pedestrian", "bicycle", "generic_object", "czone_sign"}
    row = objects.track_tokens.index(cache.samples[0].tokens[0])
    x, y, heading = objects.poses[row]
    length, width = objects.sizes[row]
    ahead = np.array([np.cos(heading), np.sin(heading)]) * length / 2
    left = np.array([-np.sin(heading), np.cos(heading)]) * width / 2
    expected = np.array([x, y]) + np.stack([ahead + left, left - ahead, -ahead - left, ahead - left])
    np.testing.assert_allclose(cache.samples[0].corners[0], expected, rtol=0, atol=1e-8)


def test_a_cache_of_navsim_2_has_past_map_and_lights_besides(v22: Path, goldens: Path) -> None:
    cache = read_metric_cache(v22)
    assert (cache.version, cache.token, cache.is_synthetic) == ("2.2", V22, False)
    assert (cache.map_name, cache.map_version) == ("sg-one-north", "nuplan-maps-v1.0")
    trajectories = pd.read_parquet(goldens / "trajectories.parquet").set_index(["token", "trajectory_id"])
    human = np.reshape(trajectories.loc[(V22, "0"), "poses"], (8, 3))  # NAVSIM's human agent
    assert cache.human_poses is not None
    np.testing.assert_allclose(cache.human_poses, human, rtol=0, atol=1e-5)  # it answers in float32
    assert len(cache.samples) == len(cache.tracks) == 41
    assert [len(cache.past_objects), len(cache.future_objects)] == [3, 40]
    assert cache.history_us is not None
    assert cache.history_states is not None
    assert cache.history_us[-1] == cache.timestamp_us
    np.testing.assert_array_equal(cache.history_states[-1], cache.ego_state)
    lights = [sample.red_light_ids for sample in cache.samples]
    assert any(lights)
    assert not any(token.startswith("red_light") for sample in cache.samples for token in sample.tokens)
    for sample, objects in zip(cache.samples, cache.tracks, strict=True):
        assert sample.tokens == objects.track_tokens


def test_a_second_stage_sample_has_no_human(synthetic: Path) -> None:
    cache = read_metric_cache(synthetic)
    assert (cache.version, cache.token, cache.is_synthetic) == ("2.2", SYNTHETIC, True)
    assert cache.human_poses is None


# --- nothing runs ------------------------------------------------------------------------------------------


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _bytes(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def _int(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _named(module: str, name: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode()


def _call(module: str, name: str, *arguments: bytes) -> bytes:
    return _named(module, name) + b"(" + b"".join(arguments) + b"tR"


def _attacks(marker: Path) -> dict[str, bytes]:
    """Opcodes, without the memo, that leave a file behind when an ordinary unpickler runs them."""
    code = _text(f"open({str(marker)!r}, 'w').close()")
    command = b"]" + b"(" + _text("touch") + _text(str(marker)) + b"e"
    return {
        "os.system": _call("os", "system", _text(f"touch {marker}")),
        "builtins.eval": _call("builtins", "eval", code),
        "subprocess.check_output": _call("subprocess", "check_output", command),
        "pathlib.Path.touch": _call(
            "pathlib", "Path.touch", _call("pathlib", "PosixPath", _text(str(marker)))
        ),
    }


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "subprocess.check_output", "pathlib.Path.touch"]
)
@pytest.mark.parametrize("version", ["v11", "v22"])
def test_a_foreign_name_inside_a_real_cache_is_refused_and_never_runs(
    name: str, version: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    attack = _attacks(marker)[name]
    pickle.loads(b"\x80\x05" + attack + b".")  # so the attack is a real one
    assert marker.exists()
    marker.unlink()

    content = lzma.decompress(request.getfixturevalue(version).read_bytes())
    assert content[:2] == b"\x80\x05"
    path = written(tmp_path, content[:2] + attack + b"0" + content[2:])
    with pytest.raises(UnsafePickleError, match=name.replace(".", r"\.")) as refused:
        read_metric_cache(path)
    assert str(path) in str(refused.value)
    assert not marker.exists()


PDM = "navsim.planning.simulation.planner.pdm_planner"
STATE = "nuplan.common.actor_state"
SE2 = (f"{STATE}.state_representation", "StateSE2")
NEW_SE2 = _named(*SE2) + b")\x81"  # NEWOBJ without arguments

MISUSES = {
    "a path of numbers": _call("pathlib", "PosixPath", _int(1)),
    "a geometry from text": _call("shapely.io", "from_wkb", _text("POINT (0 0)")),
    "a geometry with options": _call("shapely.io", "from_wkb", _bytes(b""), _text("fix")),
    "a centreline without vertices": _call(f"{PDM}.utils.pdm_path", "PDMPath"),
    "an occupancy map of texts": _call(
        f"{PDM}.observation.pdm_occupancy_map", "PDMOccupancyMap", _text("a"), b"]", _int(10)
    ),
    "a flag for a number": _call("navsim.common.enums", "SceneFrameType", b"\x88"),
    "an unknown type of object": _call(f"{STATE}.tracked_objects_types", "TrackedObjectType", _int(99)),
    "a vehicle of three numbers": _call(f"{STATE}.vehicle_parameters", "VehicleParameters", *[_int(1)] * 3),
    "a record called with arguments": _call(*SE2, _int(1), _int(2), _int(3)),
    "a record made with arguments": _named(*SE2) + b"(" + _int(1) + b"t\x81",
    "a state that is no dict": NEW_SE2 + _text("x") + b"b",
    "a state with numbers as names": NEW_SE2 + b"}" + _int(1) + _int(1) + b"s" + b"b",
    "a state set twice": NEW_SE2 + (b"}" + _text("x") + _int(1) + b"s" + b"b") * 2,
    "the state of a function": _named("shapely.io", "from_wkb") + b"}" + b"b",
}


@pytest.mark.parametrize("opcodes", MISUSES.values(), ids=MISUSES.keys())
def test_known_names_are_refused_with_arguments_that_navsim_does_not_write(
    opcodes: bytes, v11: Path, tmp_path: Path
) -> None:
    content = lzma.decompress(v11.read_bytes())
    with pytest.raises(UnsafePickleError):
        read_metric_cache(written(tmp_path, content[:2] + opcodes + b"0" + content[2:]))
    # the opcodes alone are what is refused: without them the same content is read
    assert read_metric_cache(written(tmp_path, content[:2] + b"N0" + content[2:])).token == V11


def _wkb(geometry: shapely.Geometry) -> bytes:
    return bytes(shapely.to_wkb(geometry))


SQUARE = shapely.box(0, 0, 1, 1)
GEOMETRIES = {
    "nothing": (b"", "no WKB header"),
    "cut off": (_wkb(SQUARE)[:-9], "damaged"),
    "a point": (_wkb(shapely.Point(0, 0)), "must be polygons"),
    "an empty polygon": (_wkb(shapely.Polygon()), "with vertices"),
    "two areas": (_wkb(shapely.MultiPolygon([SQUARE, shapely.box(2, 2, 3, 3)])), "2 parts"),
    "a deeply nested collection": (struct.pack("<BII", 1, 7, 1) * 100_000 + _wkb(SQUARE), "must be polygons"),
    "deeply nested areas": (struct.pack("<BII", 1, 6, 1) * 100_000 + _wkb(SQUARE), "must be polygons"),
}


@pytest.mark.parametrize(("content", "message"), GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_geometries_must_be_single_polygons(content: bytes, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, b"\x80\x05" + _call("shapely.io", "from_wkb", _bytes(content)) + b".")
    with pytest.raises(DataError, match=message) as refused:
        read_metric_cache(path)
    assert str(path) in str(refused.value)


# --- damage ------------------------------------------------------------------------------------------------


def test_a_truncated_file_is_told_from_a_foreign_one(v11: Path, tmp_path: Path) -> None:
    path = tmp_path / "metric_cache.pkl"
    whole = v11.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 20):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="truncated"):
            read_metric_cache(path)
    path.write_bytes(lzma.decompress(whole))
    with pytest.raises(DataError, match="is an xz file"):
        read_metric_cache(path)
    path.write_bytes(whole + whole)
    with pytest.raises(DataError, match="single xz stream"):
        read_metric_cache(path)
    with pytest.raises(DataError, match=r"cannot read .*none"):
        read_metric_cache(tmp_path / "none")


def test_flipped_bits_are_noticed(v11: Path, tmp_path: Path) -> None:
    content = bytearray(v11.read_bytes())
    content[len(content) // 2] ^= 0x10
    path = tmp_path / "metric_cache.pkl"
    path.write_bytes(content)
    with pytest.raises(DataError):
        read_metric_cache(path)


def test_another_object_is_no_metric_cache(v11: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one MetricCache object, got dict"):
        read_metric_cache(written(tmp_path, pickle.dumps({"token": "a"})))
    with pytest.raises(DataError, match="one MetricCache object, got StateSE2"):
        read_metric_cache(written(tmp_path, b"\x80\x05" + NEW_SE2 + b"."))
    content = lzma.decompress(v11.read_bytes())
    with pytest.raises(DataError, match="not a complete pickle"):
        read_metric_cache(written(tmp_path, content[:-100]))


@pytest.mark.parametrize("name", ["route_lane_ids", "_unique_objects", "_rear_axle_velocity_2d", "heading"])
def test_a_missing_attribute_is_named(name: str, v11: Path, tmp_path: Path) -> None:
    content = lzma.decompress(v11.read_bytes())
    renamed = content.replace(name.encode(), name[:-1].encode() + b"X")
    assert renamed != content
    with pytest.raises(DataError, match=name):
        read_metric_cache(written(tmp_path, renamed))


def _foreign_attributes() -> dict[str, bytes]:
    """Attributes of a metric cache with values that cannot become arrays."""
    pdm = "navsim.planning.simulation.planner.pdm_planner.observation.pdm_occupancy_map"
    layer = _call("nuplan.common.maps.maps_datatypes", "SemanticMapLayer", pickle.dumps(10**30, 3)[2:-1])
    box = _call("shapely.io", "from_wkb", _bytes(shapely.to_wkb(shapely.box(0, 0, 1, 1))))
    lists = [b"](" + item + b"e" for item in (_text("1"), layer, box)]
    return {
        "route_lane_ids": _int(5),
        "drivable_area_map": _call(pdm, "PDMDrivableMap", *lists, _int(10)),
    }


@pytest.mark.parametrize("name", ["route_lane_ids", "drivable_area_map"])
def test_an_attribute_that_cannot_become_an_array_is_a_clear_error(
    name: str, v11: Path, tmp_path: Path
) -> None:
    """Then a conversion of thousands of caches lists the file as failed and goes on."""
    content = lzma.decompress(v11.read_bytes())
    frames = [place for opcode, _, place in pickletools.genops(content) if opcode.name == "FRAME"]
    for place in reversed([place for place in frames if place is not None]):
        content = content[:place] + content[place + 9 :]  # without them, lengths may change
    assert content.endswith(b"b.")  # the state of the whole object is set last
    changed = content[:-2] + _text(name) + _foreign_attributes()[name] + b"s" + b"b."
    with pytest.raises(DataError, match=r"not as NAVSIM writes.*metric_cache\.pkl"):
        read_metric_cache(written(tmp_path, changed))


def test_a_bomb_is_refused_without_being_unpacked(tmp_path: Path) -> None:
    path = written(tmp_path, bytes(64 * 1024**2))
    assert path.stat().st_size < 64 * 1024
    with pytest.raises(DataError, match="at most 1048576 bytes when decompressed"):
        read_metric_cache(path, max_bytes=1024**2)


def test_a_decoder_that_wants_much_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metric_cache.pkl"
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 128 * 1024**2}]
    path.write_bytes(lzma.compress(b"N.", filters=filters))
    with pytest.raises(DataError, match=r"[Mm]emory"):
        read_metric_cache(path)


# --- folders -----------------------------------------------------------------------------------------------


def test_listed_paths_count_by_their_last_parts(caches: Path) -> None:
    listed = (caches / "v11" / "metadata" / "metric_cache_metadata_node_0.csv").read_text()
    assert "/elsewhere/exp/" in listed  # the list was written on another machine
    log = "2021.05.12.10.00.00_veh-35_00100_00160"
    assert list_metric_caches(caches / "v11") == {
        V11: caches / "v11" / log / "unknown" / V11 / "metric_cache.pkl"
    }


def _folder(root: Path, *places: str, lists: dict[str, str] | None = None) -> Path:
    for place in places:
        path = root / place / "metric_cache.pkl"
        path.parent.mkdir(parents=True)
        path.touch()
    for name, text in (lists or {}).items():
        (root / "metadata").mkdir(parents=True, exist_ok=True)
        (root / "metadata" / name).write_text(text)
    return root


def test_without_lists_the_tree_is_searched(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "log_b/unknown/2", "log_a/unknown/1")
    assert list(list_metric_caches(folder)) == ["1", "2"]


def test_all_lists_of_several_machines_are_read(tmp_path: Path) -> None:
    lists = {
        "m_node_0.csv": "file_name\n/x/log/unknown/2/metric_cache.pkl\n",
        "m_node_1.csv": "file_name\nlog/unknown/1/metric_cache.pkl\n",
    }
    folder = _folder(tmp_path, "log/unknown/1", "log/unknown/2", "log/unknown/3", lists=lists)
    assert list(list_metric_caches(folder)) == ["2", "1"]


def test_mistakes_in_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        list_metric_caches(tmp_path / "none")
    with pytest.raises(DataError, match="has none"):
        list_metric_caches(tmp_path)
    lists = {"l.csv": "file_name\nlog/unknown/2/metric_cache.pkl\n"}
    missing = _folder(tmp_path / "b", "log/unknown/1", lists=lists)
    with pytest.raises(DataError, match=r"missing.*unknown/2"):
        list_metric_caches(missing)
    twice = _folder(tmp_path / "c", "log_a/unknown/1", "log_b/unknown/1")
    with pytest.raises(DataError, match="'1' has two"):
        list_metric_caches(twice)
    no_header = _folder(tmp_path / "d", lists={"l.csv": "log/unknown/2/metric_cache.pkl\n"})
    with pytest.raises(DataError, match="header"):
        list_metric_caches(no_header)
    outside = _folder(tmp_path / "e", lists={"l.csv": "file_name\nx/../../1/metric_cache.pkl\n"})
    with pytest.raises(DataError, match="ends in log/type/token"):
        list_metric_caches(outside)
