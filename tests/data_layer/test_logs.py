import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest

from drivefine_agent.constants import CAMERA_NAMES
from drivefine_agent.data.log_writer import write_log
from drivefine_agent.data.logs import navsim_heading, read_log
from drivefine_agent.errors import DataError

LOG = "2021.05.12.10.00.00_veh-35_00100_00160"


@pytest.fixture(scope="module")
def log_path(navsim_mini):
    return navsim_mini / "navsim_logs" / "test" / f"{LOG}.pkl"


@pytest.fixture(scope="module")
def records(log_path):
    """The log as a plain unpickler sees it; the file is our own."""
    return pickle.loads(log_path.read_bytes())


@pytest.fixture
def rewritten(tmp_path, records):
    """Writes the log again after a change of one frame."""

    def write(change, index=3):
        changed = copy.deepcopy(records[:6])
        change(changed[index])
        path = tmp_path / f"{LOG}.pkl"
        path.write_bytes(pickle.dumps(changed))
        return path

    return write


def test_frames_hold_what_the_pickle_holds(log_path, records):
    frames = read_log(log_path)
    assert len(frames) == len(records) == 60
    for frame, record in zip(frames, records, strict=True):
        assert frame.token == record["token"]
        assert frame.timestamp_us == record["timestamp"]
        assert frame.log_name == LOG
        assert frame.map_name == "us-ma-boston"
        assert frame.scene_token == record["scene_token"]
        assert list(frame.roadblock_ids) == record["roadblock_ids"]
        np.testing.assert_array_equal(frame.ego_pose[:2], record["ego2global_translation"][:2])
        np.testing.assert_array_equal(frame.driving_command, record["driving_command"])
        np.testing.assert_array_equal(frame.annotations.boxes, record["anns"]["gt_boxes"])
        assert list(frame.annotations.track_tokens) == record["anns"]["track_tokens"]
        assert tuple(frame.cameras) == CAMERA_NAMES
        assert frame.cameras["CAM_F0"].data_path == record["cams"]["CAM_F0"]["data_path"]


def test_equal_calibrations_of_a_log_are_kept_once(log_path):
    first, last = (read_log(log_path)[index].cameras["CAM_F0"] for index in (0, -1))
    assert not first.intrinsics.flags.writeable
    frames = read_log(log_path)
    assert frames[0].cameras["CAM_F0"].intrinsics is frames[-1].cameras["CAM_F0"].intrinsics
    np.testing.assert_array_equal(first.sensor2lidar_rotation, last.sensor2lidar_rotation)


def test_equal_names_and_lights_of_a_log_are_kept_once(log_path):
    """They were a third of a log's memory; an evaluation holds the frames of all its logs."""
    frames = read_log(log_path)
    for items in (
        [name for frame in frames for name in frame.annotations.names],
        [light for frame in frames for light in frame.traffic_lights],
    ):
        assert len(items) > 100
        assert len({id(item) for item in items}) == len(set(items))


def test_dynamics_are_rounded_to_float32_and_held_as_float64(log_path, records):
    frame = read_log(log_path)[0]
    vx = records[0]["ego_dynamic_state"][0]
    assert frame.ego_velocity.dtype == np.float64
    assert frame.ego_velocity[0] == np.float64(np.float32(vx)) != vx


def test_heading_is_navsims_and_not_the_textbook_yaw():
    # w, x, y, z of a turn by yaw 0.5 after pitch and roll; by hand:
    #   2 (w z - x y) = 2 (0.96 * 0.25 - 0.05 * 0.08),  1 - 2 (y^2 + z^2) = 1 - 2 (0.0064 + 0.0625)
    # where the products are first divided by n^2 = 0.9216 + 0.0025 + 0.0064 + 0.0625 = 0.993
    w, x, y, z = 0.96, 0.05, 0.08, 0.25
    expected = np.arctan2(2 * (w * z - x * y) / 0.993, 1 - 2 * (y * y + z * z) / 0.993)
    assert navsim_heading([w, x, y, z]) == pytest.approx(expected, abs=1e-15)
    textbook = np.arctan2(2 * (w * z + x * y) / 0.993, 1 - 2 * (y * y + z * z) / 0.993)
    assert abs(navsim_heading([w, x, y, z]) - textbook) > 0.01


def test_heading_of_a_planar_quaternion_is_the_yaw():
    for yaw in np.linspace(-3.1, 3.1, 13):
        assert navsim_heading([np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]) == pytest.approx(yaw, abs=1e-14)


def set_key(key, value):
    return lambda record: record.__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda r: r.pop("ego_dynamic_state"), "ego_dynamic_state", id="missing key"),
        pytest.param(set_key("log_name", "other"), "'log_name' must equal", id="log name is not the file's"),
        pytest.param(set_key("map_location", "us-ca-sf"), "'map_location' must be one of", id="unknown map"),
        pytest.param(set_key("token", 17), "'token' must be a text", id="token is no text"),
        pytest.param(set_key("timestamp", 1.5), "'timestamp' must be an integer", id="time is no integer"),
        pytest.param(set_key("timestamp", 0), "time stamps must increase strictly", id="time runs backwards"),
        pytest.param(
            set_key("ego2global_translation", [np.nan, 0, 0]),
            "'ego2global_translation' must be finite",
            id="NaN pose",
        ),
        pytest.param(set_key("ego2global_rotation", [0, 0, 0, 0]), "unit quaternion", id="zero quaternion"),
        pytest.param(
            set_key("ego_dynamic_state", [1.0, 2.0]), r"shape \(4,\), got \(2,\)", id="short dynamics"
        ),
        pytest.param(set_key("driving_command", [0, 1, 0]), r"shape \(4,\), got \(3,\)", id="three commands"),
        pytest.param(set_key("driving_command", [1, 1, 0, 0]), "must be one-hot", id="two commands at once"),
        pytest.param(
            set_key("traffic_lights", [(1, True, 2)]), r"must be \(id, is_red\)", id="foreign light"
        ),
        pytest.param(
            set_key("roadblock_ids", [1, 2]), "'roadblock_ids' must be a list of texts", id="route of ints"
        ),
        pytest.param(lambda r: r["cams"].pop("CAM_B0"), r"\['CAM_B0'\] are missing", id="missing camera"),
        pytest.param(
            lambda r: r["cams"]["CAM_L1"].pop("distortion"),
            r"'distortion'\].*camera CAM_L1",
            id="missing calibration",
        ),
        pytest.param(
            lambda r: r["anns"]["track_tokens"].pop(), "equal lengths", id="annotations of unequal length"
        ),
        pytest.param(lambda r: r["anns"].pop("gt_boxes"), "gt_boxes", id="no boxes"),
    ],
)
def test_a_broken_rule_is_named_with_file_and_frame(rewritten, change, message):
    path = rewritten(change)
    with pytest.raises(DataError, match=message) as error:
        read_log(path)
    assert str(path) in str(error.value)
    assert "3" in str(error.value)


def test_a_token_in_two_frames_is_refused(rewritten, records):
    path = rewritten(set_key("token", records[1]["token"]))
    with pytest.raises(DataError, match=rf"{records[1]['token']}.* in the frames 1 and 3"):
        read_log(path)


@pytest.mark.parametrize("content", [{"frames": []}, [1, 2], "text"], ids=["dict", "list of ints", "text"])
def test_a_pickle_that_is_no_log_is_refused(tmp_path, content):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="a log is a list of dicts"):
        read_log(path)


def test_a_log_without_annotations_is_read(rewritten):
    path = rewritten(lambda record: record.pop("anns"))
    frames = read_log(path)
    assert frames[3].annotations is None
    assert frames[2].annotations is not None


def frames_equal(one, other):
    for key in vars(one):
        a, b = getattr(one, key), getattr(other, key)
        if key == "ego_pose":
            np.testing.assert_allclose(a, b, atol=1e-15, rtol=0)  # a quaternion's way there and back
        elif key in ("annotations", "cameras"):
            np.testing.assert_equal(
                vars(a)
                if key == "annotations" and a is not None
                else {k: vars(v) for k, v in (a or {}).items()},
                vars(b)
                if key == "annotations" and b is not None
                else {k: vars(v) for k, v in (b or {}).items()},
            )
        else:
            np.testing.assert_equal(a, b)


def test_write_then_read_gives_the_same_frames(log_path, tmp_path):
    frames = read_log(log_path)
    frames[5] = replace(frames[5], annotations=None)
    write_log(tmp_path / f"{LOG}.pkl", frames)
    for one, other in zip(read_log(tmp_path / f"{LOG}.pkl"), frames, strict=True):
        frames_equal(one, other)


def test_the_same_frames_give_the_same_bytes_whatever_they_share(log_path, tmp_path):
    frames = read_log(log_path)
    write_log(tmp_path / "a" / f"{LOG}.pkl", frames)
    write_log(tmp_path / "b" / f"{LOG}.pkl", copy.deepcopy(frames))
    shared = [
        replace(frame, log_name="".join(list(LOG)), roadblock_ids=tuple(list(frame.roadblock_ids)))
        for frame in frames
    ]
    write_log(tmp_path / "c" / f"{LOG}.pkl", shared)
    contents = {(tmp_path / folder / f"{LOG}.pkl").read_bytes() for folder in "abc"}
    assert len(contents) == 1


def test_a_written_log_names_numpy_as_version_1_does_and_any_unpickler_reads_it(log_path, tmp_path):
    write_log(tmp_path / f"{LOG}.pkl", read_log(log_path))
    content = (tmp_path / f"{LOG}.pkl").read_bytes()
    assert b"numpy.core.multiarray" in content
    assert b"numpy._core" not in content
    records = pickle.loads(content)
    assert isinstance(records[0]["anns"]["gt_boxes"], np.ndarray)
    assert isinstance(records[0]["cams"]["CAM_F0"]["cam_intrinsic"], np.ndarray)


def test_cameras_that_a_frame_does_not_name_are_written_with_the_usual_path(log_path, tmp_path):
    frames = [replace(read_log(log_path)[0], cameras={}, lidar_path=None)]
    write_log(tmp_path / f"{LOG}.pkl", frames)
    (frame,) = read_log(tmp_path / f"{LOG}.pkl")
    assert tuple(frame.cameras) == CAMERA_NAMES
    assert frame.cameras["CAM_R2"].data_path == f"{LOG}/CAM_R2/{frame.token}.jpg"
    assert frame.lidar_path == f"{LOG}/MergedPointCloud/{frame.token}.pcd"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"log_name": "x"}, "'log_name' must equal"),
        ({"map_name": "mars"}, "'map_name' must be one of"),
        ({"scene_token": ""}, "'scene_token' must be set"),
        ({"ego_pose": np.array([np.nan, 0.0, 0.0])}, "must be finite"),
    ],
)
def test_frames_that_could_not_be_read_are_not_written(log_path, tmp_path, fields, message):
    frames = read_log(log_path)[:2]
    frames[1] = replace(frames[1], **fields)
    with pytest.raises(DataError, match=message):
        write_log(tmp_path / f"{LOG}.pkl", frames)
    assert list(tmp_path.iterdir()) == []
