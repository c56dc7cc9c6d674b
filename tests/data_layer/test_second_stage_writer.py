"""Second-stage pickles written here: read back equal, with the names that the official classes have."""

import csv
import importlib.util
import pickle
import pickletools
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest

from drivefine_agent.data.nuplan_records import SECOND_STAGE_NAMES
from drivefine_agent.data.safe_pickle import load_pickle
from drivefine_agent.data.scenes import SceneFilter
from drivefine_agent.data.second_stage import load_second_stage, read_second_stage
from drivefine_agent.data.second_stage_writer import SceneAttributes, write_attributes, write_second_stage
from drivefine_agent.errors import DataError

TOKEN = "077349210a5821c26"  # a sample with agents and static objects


@pytest.fixture(scope="module")
def original(navsim_mini):
    return read_second_stage(navsim_mini / "navhard_two_stage" / "synthetic_scene_pickles" / f"{TOKEN}.pkl")


def _assert_equal(left, right):
    if is_dataclass(left):
        assert type(left) is type(right)
        for field in fields(left):
            if field.name != "log_path":
                _assert_equal(getattr(left, field.name), getattr(right, field.name))
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        _assert_equal(list(left.values()), list(right.values()))
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            _assert_equal(a, b)
    else:
        assert left == right


def _globals(content):
    return {argument for op, argument, _ in pickletools.genops(content) if op.name == "GLOBAL"}


def test_written_and_read_is_the_same_sample(original, tmp_path):
    path = write_second_stage(tmp_path, original)
    assert path == tmp_path / "synthetic_scene_pickles" / f"{TOKEN}.pkl"
    _assert_equal(read_second_stage(path), original)


def test_names_are_those_of_nuplan_and_of_numpy_1(original, tmp_path):
    state = "nuplan.common.actor_state"
    assert _globals(write_second_stage(tmp_path, original).read_bytes()) == {
        "nuplan.planning.simulation.observation.observation_type DetectionsTracks",
        f"{state}.tracked_objects TrackedObjects",
        f"{state}.agent Agent",
        f"{state}.static_object StaticObject",
        f"{state}.scene_object SceneObjectMetadata",
        f"{state}.oriented_box OrientedBox",
        f"{state}.state_representation StateSE2",
        f"{state}.state_representation StateVector2D",
        f"{state}.state_representation TimePoint",
        f"{state}.tracked_objects_types TrackedObjectType",
        "nuplan.common.maps.maps_datatypes TrafficLightStatuses",
        "nuplan.common.maps.maps_datatypes TrafficLightStatusData",
        "nuplan.common.maps.maps_datatypes TrafficLightStatusType",
        "numpy.core.multiarray _reconstruct",
        "numpy ndarray",
        "numpy dtype",
    }


def test_the_same_sample_gives_the_same_bytes(original, tmp_path):
    first = write_second_stage(tmp_path / "a", original).read_bytes()
    again = read_second_stage(tmp_path / "a" / "synthetic_scene_pickles" / f"{TOKEN}.pkl")
    assert write_second_stage(tmp_path / "b", again).read_bytes() == first


def test_future_times_are_half_seconds_after_the_last_frame(original, tmp_path):
    scene = load_pickle(write_second_stage(tmp_path, original), SECOND_STAGE_NAMES)
    now = original.current.timestamp_us
    for step in range(8):
        objects = (
            scene["extended_detections_tracks"][step].fields["tracked_objects"].fields["tracked_objects"]
        )
        lights = scene["extended_traffic_light_data"][step].fields["traffic_lights"]
        times = {item.fields["_metadata"].fields["timestamp_us"] for item in objects}
        times |= {light.fields["timestamp"].fields["time_us"] for light in lights}
        assert times == {now + (step + 1) * 500_000}


def test_two_files_with_one_sample_are_refused(original, tmp_path):
    write_second_stage(tmp_path, original)
    write_second_stage(tmp_path, replace(original, scene_token="f" * 17))
    wanted = SceneFilter(include_synthetic_scenes=True, synthetic_scene_tokens=(TOKEN,))
    with pytest.raises(DataError, match=f"got {TOKEN!r} in both"):
        load_second_stage(tmp_path / "synthetic_scene_pickles", wanted, [])


def test_what_navsim_would_refuse_is_not_written(original, tmp_path):
    stage = original.second_stage
    frames = original.frames
    short = replace(original, second_stage=replace(stage, future_objects=stage.future_objects[:7]))
    objects = stage.future_objects[0]
    order = np.arange(len(objects.names))[::-1]
    turned = replace(
        objects,
        names=objects.names[::-1],
        poses=objects.poses[order],
    )
    unsorted = replace(stage, future_objects=(turned, *stage.future_objects[1:]))
    first_stage_token = replace(frames[-1], token="0" * 16)
    bare = replace(frames[0], annotations=None)
    infinite = replace(frames[0], ego_pose=np.array([np.inf, 0.0, 0.0]))
    for window, message in (
        (short, "at least 8 future times, got 7"),
        (replace(original, second_stage=None), "is no second-stage sample"),
        (replace(original, second_stage=unsorted), "sorted by type"),
        (replace(original, frames=(*frames[:-1], first_stage_token)), "17 characters"),
        (replace(original, frames=(bare, *frames[1:])), "need annotations"),
        (replace(original, frames=(infinite, *frames[1:])), "must be finite"),
        (replace(original, frames=frames[1::-1] + frames[2:]), "increase strictly"),
        (replace(original, map_name="atlantis"), "map_name"),
    ):
        with pytest.raises(DataError, match=message):
            write_second_stage(tmp_path, window)
    assert not list(tmp_path.iterdir())


def test_attributes_hold_a_line_for_each_sample(original, tmp_path):
    path = write_attributes(
        tmp_path, [SceneAttributes(original, "pair-0"), SceneAttributes(original, "pair-1")]
    )
    assert path.name == "synthetic_scenes_attributes.csv"
    rows = list(csv.DictReader(path.open(newline="")))
    assert [row["pair_identifier"] for row in rows] == ["pair-0", "pair-1"]
    assert rows[0]["synthetic_scene_token"] == TOKEN
    assert rows[0]["corresponding_original_scene_token"] == original.second_stage.original_scene
    x, y, heading = (float(v) for v in rows[0]["viewpoint"].strip("()").split(","))
    assert [x, y, heading] == original.current.ego_pose.tolist()


@pytest.mark.navsim
@pytest.mark.skipif(importlib.util.find_spec("nuplan") is None, reason="nuplan-devkit is not importable")
def test_the_real_classes_take_what_was_written(original, tmp_path):
    scene = pickle.loads(write_second_stage(tmp_path, original).read_bytes())
    for objects, written in zip(
        scene["extended_detections_tracks"], original.second_stage.future_objects, strict=True
    ):
        assert type(objects).__module__ == "nuplan.planning.simulation.observation.observation_type"
        tracked = list(objects.tracked_objects)
        assert [item.tracked_object_type.fullname for item in tracked] == list(written.names)
        assert [item.track_token for item in tracked] == list(written.track_tokens)
        np.testing.assert_array_equal(
            [[item.center.x, item.center.y, item.center.heading] for item in tracked], written.poses
        )
        np.testing.assert_array_equal([item.velocity.array for item in tracked], written.velocities)
        for item in tracked:
            assert item.box.geometry.area == pytest.approx(item.box.length * item.box.width)
