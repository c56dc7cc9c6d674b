"""Second-stage pickles against what the official NAVSIM 2.2 made of them, and files that must be refused."""

import json
import os
import pickle
import pickletools
from dataclasses import replace

import numpy as np
import pytest

from drivefine_agent.data.nuplan_records import SECOND_STAGE_NAMES, light_states
from drivefine_agent.data.scenes import history_poses, load_scenes
from drivefine_agent.data.second_stage import load_second_stage, read_second_stage
from drivefine_agent.data.sensors import read_image
from drivefine_agent.data.splits import load_split
from drivefine_agent.errors import DataError, UnsafePickleError

TOKEN, PREVIOUS = "02ee236dd4d555d7b", "1f118fbee06d162d9"


@pytest.fixture(scope="module")
def folder(navsim_mini):
    return navsim_mini / "navhard_two_stage" / "synthetic_scene_pickles"


@pytest.fixture(scope="module")
def split(navsim_mini):
    return load_split("synth_two_stage", [navsim_mini / "splits"])


@pytest.fixture(scope="module")
def first_stage(navsim_mini, split):
    return load_scenes(navsim_mini / "navsim_logs" / "test", split.scene_filter)


@pytest.fixture(scope="module")
def facts(goldens):
    return json.loads((goldens / "second_stage_facts_v22.json").read_text())


@pytest.fixture(scope="module")
def windows(folder, split, first_stage):
    return {w.token: w for w in load_second_stage(folder, split.scene_filter, first_stage)}


def _objects_row(objects, index):
    return [
        objects.names[index],
        objects.track_tokens[index],
        *objects.poses[index],
        *objects.sizes[index],
        *objects.velocities[index],
    ]


def test_the_split_has_all_its_pairs(windows, split):
    wanted = {t for group in split.reactive_all_mapping for pair in group.pairs for t in pair}
    assert len(windows) == 48
    assert set(windows) == wanted


def test_ego_state_and_origin_are_the_official_ones_bit_by_bit(windows, facts):
    assert set(windows) == set(facts)
    for token, fact in facts.items():
        window = windows[token]
        assert (window.log_name, window.map_name) == (fact["log_name"], fact["map_name"])
        assert window.second_stage.original_scene == fact["original_scene"]
        assert window.second_stage.original_token == fact["original_token"]
        now = window.current
        assert (now.token, now.timestamp_us) == (token, fact["time_us"])
        assert now.ego_pose.tolist() == fact["rear_axle"]
        assert now.ego_velocity.tolist() == fact["velocity"]
        assert now.ego_acceleration.tolist() == fact["acceleration"]
        assert now.ego_velocity.dtype == np.float64


def test_future_objects_and_lights_are_the_official_ones_bit_by_bit(windows, facts):
    for token, fact in facts.items():
        stage = windows[token].second_stage
        assert [len(o.names) for o in stage.future_objects] == fact["num_objects"][1:]
        assert len(windows[token].current.annotations.names) == fact["num_objects"][0]
        assert _objects_row(stage.future_objects[0], 0) == fact["first_object"][1]
        assert _objects_row(stage.future_objects[7], -1) == fact["last_object"][0]
        now = [connector for connector, is_red in windows[token].current.traffic_lights if is_red]
        last = [connector for connector, is_red in stage.future_lights[7] if is_red]
        assert [now, last] == fact["red"]


def test_window_is_four_frames_of_history_with_rendered_cameras_only(windows, navsim_mini):
    window = windows[TOKEN]
    assert (window.num_history_frames, window.num_future_frames, len(window.frames)) == (4, 0, 4)
    assert len(window.token) == 17
    assert window.scene_token == TOKEN
    assert set(window.current.cameras) == {"CAM_F0", "CAM_L0", "CAM_R0"}
    assert window.current.lidar_path is None
    poses = history_poses(window)
    assert poses.shape == (4, 3)
    assert (np.diff(poses[:, 0]) > 0).all()
    assert not poses[3].any()
    sensors = navsim_mini / "navhard_two_stage" / "sensor_blobs"
    image = read_image(sensors, window.current.cameras["CAM_F0"].data_path)
    assert image.shape == (270, 480, 3)


def test_only_what_follows_the_loaded_first_stage_is_chosen(folder, split, first_stage):
    group = split.reactive_all_mapping[1]
    some = [w for w in first_stage if w.token == group.token]
    chosen = load_second_stage(folder, split.scene_filter, some)
    assert {w.token for w in chosen} == {now for now, _ in group.pairs}


def test_wanted_tokens_are_insisted_on(folder, split, first_stage):
    pair = [TOKEN, PREVIOUS]
    chosen = load_second_stage(folder, split.scene_filter, first_stage, tokens=pair)
    assert {w.token for w in chosen} == set(pair)
    group = next(g for g in split.reactive_all_mapping if (TOKEN, PREVIOUS) in g.pairs)
    some = [w for w in first_stage if w.token == group.token]
    with pytest.raises(DataError, match=f"1 of the 2 .*'{PREVIOUS}'.*not the last frame"):
        load_second_stage(folder, split.scene_filter, some, tokens=pair)


def test_synthetic_scene_tokens_replace_the_test_of_the_origin(folder, split):
    explicit = replace(split.scene_filter, synthetic_scene_tokens=(TOKEN,))
    assert [w.token for w in load_second_stage(folder, explicit, [])] == [TOKEN]
    other_log = replace(explicit, log_names=("2021.05.12.10.00.00_veh-35_00100_00160",))
    with pytest.raises(DataError, match="no second-stage sample"):
        load_second_stage(folder, other_log, [])


def test_an_absent_file_is_an_error_that_names_the_token(folder, split, first_stage, tmp_path):
    for path in folder.glob("*.pkl"):
        if path.stem != TOKEN:
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(DataError, match=f"1 of the 48 second-stage tokens give no sample: '{TOKEN}'"):
        load_second_stage(tmp_path, split.scene_filter, first_stage)


def test_folders_and_filters_without_second_stage_are_named(folder, split, first_stage, tmp_path):
    with pytest.raises(DataError, match="no second-stage sample"):
        load_second_stage(tmp_path, split.scene_filter, first_stage)
    with pytest.raises(DataError, match="synthetic_scenes_path"):
        load_second_stage(tmp_path / "nowhere", split.scene_filter, first_stage)
    plain = replace(split.scene_filter, include_synthetic_scenes=False)
    with pytest.raises(DataError, match="include_synthetic_scenes"):
        load_second_stage(folder, plain, first_stage)


def test_renamed_and_incomplete_files_are_refused(folder, split, first_stage, tmp_path):
    content = (folder / f"{TOKEN}.pkl").read_bytes()
    (tmp_path / "renamed.pkl").write_bytes(content)
    with pytest.raises(DataError, match="'scene_token' must equal the file's name"):
        load_second_stage(tmp_path, split.scene_filter, first_stage)
    changed = content.replace(b"num_future_frames", b"num_future_framex")
    assert changed != content
    (tmp_path / f"{TOKEN}.pkl").write_bytes(changed)
    with pytest.raises(DataError, match=r"needs the keys \['num_future_frames'\]"):
        read_second_stage(tmp_path / f"{TOKEN}.pkl")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(folder, tmp_path, share):
    content = (folder / f"{TOKEN}.pkl").read_bytes()
    path = tmp_path / f"{TOKEN}.pkl"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match="truncated"):
        read_second_stage(path)


class _Foreign:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_foreign_calls_are_refused_before_anything_ran(tmp_path):
    path, trace = tmp_path / f"{TOKEN}.pkl", tmp_path / "executed"
    path.write_bytes(pickle.dumps({"scene_metadata": _Foreign(str(trace))}))
    with pytest.raises(UnsafePickleError, match=r"names posix\.mkdir"):
        read_second_stage(path)
    assert not trace.exists()


def _with_global(module, name, rest):
    """A pickle of protocol 2 that looks a name up and goes on with `rest`."""
    content = b"\x80\x02c" + module.encode() + b"\n" + name.encode() + b"\n" + rest + b"."
    pickletools.dis(content, out=open(os.devnull, "w"))
    return content


STATE = "nuplan.common.actor_state"


@pytest.mark.parametrize(
    ("module", "name", "rest", "message"),
    [
        ("nuplan.common.actor_state.agent", "AgentState", b"", "names"),
        (f"{STATE}.agent", "Agent", b"", "function or class instead of data|must be a dict"),
        (
            f"{STATE}.agent",
            "Agent",
            b"}X\x01\x00\x00\x00aK\x01sb",
            "not a complete pickle",
        ),  # BUILD on the class itself
        (
            f"{STATE}.agent",
            "Agent",
            b"N}X\x01\x00\x00\x00aK\x01s\x86b",
            "not a complete pickle",
        ),  # the same with slots
        (f"{STATE}.agent", "Agent", b"(X\x01\x00\x00\x00atR", "without arguments"),
        (f"{STATE}.agent", "Agent", b")\x81K\x01b", "must be fields by name"),
        (f"{STATE}.tracked_objects_types", "TrackedObjectType", b"K\x09\x85R", "has the values 0 ... 7"),
        (
            f"{STATE}.tracked_objects_types",
            "TrackedObjectType",
            b"}X\x01\x00\x00\x00aK\x01sb",
            "set the state",
        ),
        ("pathlib", "PosixPath", b"K\x01\x85R", "made of texts"),
        ("shapely.io", "from_wkb", b"K\x01\x85R", "made of bytes"),
    ],
)
def test_misuse_of_allowed_names_is_refused(tmp_path, module, name, rest, message):
    path = tmp_path / f"{TOKEN}.pkl"
    path.write_bytes(_with_global(module, name, rest))
    with pytest.raises(DataError, match=message):
        read_second_stage(path)
    assert not hasattr(SECOND_STAGE_NAMES[f"{STATE}.agent", "Agent"], "a")  # the classes are as they were


def _record(module, name, **fields):
    record = SECOND_STAGE_NAMES[module, name]()
    record.__setstate__(fields)
    return record


def test_only_red_is_red():
    """nuPlan's values: 0 green, 1 yellow, 2 red, 3 unknown."""
    maps = "nuplan.common.maps.maps_datatypes"
    state = SECOND_STAGE_NAMES[maps, "TrafficLightStatusType"]
    lights = [
        _record(maps, "TrafficLightStatusData", status=state(value), lane_connector_id=10 + value)
        for value in range(4)
    ]
    statuses = _record(maps, "TrafficLightStatuses", traffic_lights=lights)
    assert light_states(statuses, "here") == ((10, False), (11, False), (12, True), (13, False))
    with pytest.raises(DataError, match="needs the field 'status'"):
        light_states(
            _record(
                maps,
                "TrafficLightStatuses",
                traffic_lights=[_record(maps, "TrafficLightStatusData", lane_connector_id=1)],
            ),
            "here",
        )
