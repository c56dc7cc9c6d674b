import pickle
import pickletools
import sys
import types

import numpy as np
import pytest

from drivefine_agent.data.submission import (
    PickledSampling,
    Submission,
    TeamInfo,
    read_contents,
    read_submission,
    trajectory_problem,
    write_submission,
)
from drivefine_agent.errors import DataError, UnsafePickleError

TEAM = TeamInfo("Team <a href=https://x.org>M</a>", "A, B", "a@x.org", "University", "Country")
TRAJECTORY = "navsim.common.dataclasses Trajectory"
SAMPLING = "nuplan.planning.simulation.trajectory.trajectory_sampling TrajectorySampling"
NUMPY_1 = {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}


def straight(speed_mps: float) -> np.ndarray:
    poses = np.zeros((8, 3))
    poses[:, 0] = speed_mps * 0.5 * np.arange(1, 9)
    return poses


ONE_STAGE = Submission(
    TEAM, ({"0123456789012345": straight(2), "b" * 16: straight(3)}, {"c" * 16: straight(4)})
)
TWO_STAGE = Submission(TEAM, first_stage={"a" * 16: straight(5)}, second_stage={"b" * 17: straight(6)})


def register_stand_ins_for_navsim(monkeypatch):
    """What unpickles a submission on the leaderboard: classes of these names, with nothing but the fields."""
    names = ["navsim.common.dataclasses", "nuplan.planning.simulation.trajectory.trajectory_sampling"]
    for name in names:
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            package = ".".join(parts[:end])
            monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    trajectory = type("Trajectory", (), {"__module__": names[0]})
    sampling = type("TrajectorySampling", (), {"__module__": names[1]})
    sys.modules[names[0]].Trajectory = trajectory
    sys.modules[names[1]].TrajectorySampling = sampling
    return trajectory, sampling


def test_the_pickle_names_only_the_official_classes_and_numpy_1(tmp_path):
    write_submission(tmp_path / "submission.pkl", TWO_STAGE)
    content = (tmp_path / "submission.pkl").read_bytes()
    opcodes = list(pickletools.genops(content))
    assert {argument for opcode, argument, _ in opcodes if opcode.name == "GLOBAL"} == {
        TRAJECTORY,
        SAMPLING,
        *NUMPY_1,
    }
    assert max(opcode.proto for opcode, _, _ in opcodes) <= 4  # Python 3.9 reads up to 5
    assert b"numpy._core" not in content
    assert b"drivefine" not in content


def test_plain_pickle_finds_what_navsims_own_script_would_have_written(tmp_path, monkeypatch):
    write_submission(tmp_path / "submission.pkl", ONE_STAGE)
    trajectory, sampling = register_stand_ins_for_navsim(monkeypatch)
    content = pickle.loads((tmp_path / "submission.pkl").read_bytes())
    assert list(content) == [
        "team_name",
        "authors",
        "email",
        "institution",
        "country / region",
        "predictions",
    ]
    assert (content["authors"], content["country / region"]) == ("A, B", "Country")
    assert [list(seed) for seed in content["predictions"]] == [["0123456789012345", "b" * 16], ["c" * 16]]
    value = content["predictions"][0]["b" * 16]
    assert type(value) is trajectory
    assert set(vars(value)) == {"poses", "trajectory_sampling"}
    assert value.poses.dtype == np.float32
    assert type(value.poses) is np.ndarray
    np.testing.assert_array_equal(value.poses[:, 0], [1.5, 3.0, 4.5, 6.0, 7.5, 9.0, 10.5, 12.0])
    assert type(value.trajectory_sampling) is sampling
    assert vars(value.trajectory_sampling) == {
        "num_poses": 8,
        "time_horizon": 4.0,
        "interval_length": 0.5,
    }


def test_equal_content_gives_equal_bytes_whoever_shares_its_texts(tmp_path):
    for name, copies in (("shared.pkl", False), ("copied.pkl", True)):
        words = [("".join(list("long enough")) if copies else "long enough") for _ in range(5)]
        seeds = tuple({("".join(["a"] * 16) if copies else "a" * 16): straight(1)} for _ in range(2))
        write_submission(tmp_path / name, Submission(TeamInfo(*words), seeds))
    assert (tmp_path / "shared.pkl").read_bytes() == (tmp_path / "copied.pkl").read_bytes()


def test_two_stages_are_lists_of_one_dict(tmp_path, monkeypatch):
    write_submission(tmp_path / "submission.pkl", TWO_STAGE)
    register_stand_ins_for_navsim(monkeypatch)
    content = pickle.loads((tmp_path / "submission.pkl").read_bytes())
    assert "predictions" not in content
    assert [list(seed) for seed in content["first_stage_predictions"]] == [["a" * 16]]
    assert [list(seed) for seed in content["second_stage_predictions"]] == [["b" * 17]]


def test_writing_touches_no_module_even_if_navsim_is_importable(tmp_path, monkeypatch):
    modules = dict(sys.modules)
    write_submission(tmp_path / "without.pkl", ONE_STAGE)
    assert dict(sys.modules) == modules
    trajectory, _ = register_stand_ins_for_navsim(monkeypatch)
    before = dict(sys.modules)
    write_submission(tmp_path / "with.pkl", ONE_STAGE)
    assert dict(sys.modules) == before
    assert sys.modules["navsim.common.dataclasses"].Trajectory is trajectory
    assert (tmp_path / "with.pkl").read_bytes() == (tmp_path / "without.pkl").read_bytes()


@pytest.mark.parametrize("submission", [ONE_STAGE, TWO_STAGE], ids=["one stage", "two stages"])
def test_it_comes_back_as_it_was(tmp_path, submission):
    write_submission(tmp_path / "submission.pkl", submission)
    back = read_submission(tmp_path / "submission.pkl")
    assert back.team == submission.team
    assert back.is_two_stage == submission.is_two_stage
    pairs = [
        *zip(back.predictions, submission.predictions, strict=True),
        (back.first_stage, submission.first_stage),
        (back.second_stage, submission.second_stage),
    ]
    for read, written in pairs:
        assert list(read) == list(written)
        for token, poses in written.items():
            assert type(read[token]) is np.ndarray
            np.testing.assert_array_equal(read[token], poses)  # these are exact in float32


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_files_of_navsims_own_scripts_are_read(tmp_path, monkeypatch, protocol):
    trajectory, sampling = register_stand_ins_for_navsim(monkeypatch)
    one, of = trajectory(), sampling()
    vars(of).update(num_poses=8, time_horizon=4.0, interval_length=0.5)
    vars(one).update(poses=straight(2) + 1e-9, trajectory_sampling=of)
    texts = dict.fromkeys(["team_name", "authors", "institution", "country / region"], "x") | {
        "email": "a@x.org"
    }
    path = tmp_path / "submission.pkl"
    path.write_bytes(pickle.dumps({**texts, "predictions": [{"t": one}]}, protocol))
    poses = read_submission(path).predictions[0]["t"]
    assert poses.dtype == np.float64
    np.testing.assert_array_equal(poses, straight(2) + 1e-9)


class Evil:
    def __reduce__(self):
        return (eval, ("open('evil', 'w')",))


def test_nothing_else_is_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "submission.pkl").write_bytes(pickle.dumps({"team_name": Evil()}))
    with pytest.raises(UnsafePickleError, match=r"builtins\.eval"):
        read_contents("submission.pkl")
    assert not (tmp_path / "evil").exists()


def test_a_class_in_place_of_a_trajectory_is_refused(tmp_path):
    content = b"\x80\x03}X\x01\x00\x00\x00tcnavsim.common.dataclasses\nTrajectory\ns."
    (tmp_path / "submission.pkl").write_bytes(content)
    with pytest.raises(UnsafePickleError, match="function or class instead of data"):
        read_contents(tmp_path / "submission.pkl")


def test_a_pickle_cannot_change_the_class_that_stands_for_navsims(tmp_path):
    name = b"cnuplan.planning.simulation.trajectory.trajectory_sampling\nTrajectorySampling\n"
    (tmp_path / "submission.pkl").write_bytes(b"\x80\x03" + name + b"}X\x05\x00\x00\x00stateK\x01sb.")
    with pytest.raises(DataError):
        read_contents(tmp_path / "submission.pkl")
    assert PickledSampling.state == {}


@pytest.mark.parametrize("part", [0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path, part):
    write_submission(tmp_path / "submission.pkl", ONE_STAGE)
    content = (tmp_path / "submission.pkl").read_bytes()
    (tmp_path / "submission.pkl").write_bytes(content[: int(part * len(content))])
    with pytest.raises(DataError, match="not a complete pickle"):
        read_submission(tmp_path / "submission.pkl")


def test_what_is_no_trajectory_is_not_written(tmp_path):
    for poses in (np.zeros((8, 2)), np.zeros((40, 3)), np.full((8, 3), np.nan)):
        with pytest.raises(DataError, match="finite poses of shape"):
            write_submission(tmp_path / "submission.pkl", Submission(TEAM, ({"t": poses},)))
    with pytest.raises(DataError, match="tokens of a submission must be texts"):
        write_submission(tmp_path / "submission.pkl", Submission(TEAM, ({7: straight(1)},)))
    assert not list(tmp_path.iterdir())


def test_a_submission_is_of_one_version_and_says_who_made_it():
    with pytest.raises(DataError, match="got neither"):
        Submission(TEAM)
    with pytest.raises(DataError, match="got both"):
        Submission(TEAM, ({"t": straight(1)},), {"t": straight(1)})
    with pytest.raises(DataError, match="'email' of a submission must be a text"):
        TeamInfo("T", "A", "", "I", "C")
    with pytest.raises(DataError, match=r"'authors' of a submission must be a text.*\['A', 'B'\]"):
        TeamInfo("T", ["A", "B"], "a@x.org", "I", "C")


def test_objects_without_any_state_are_no_trajectories(tmp_path):
    """NEWOBJ without BUILD: the file makes a Trajectory and never sets its fields."""
    path = tmp_path / "submission.pkl"
    path.write_bytes(b"\x80\x03cnavsim.common.dataclasses\nTrajectory\n)\x81.")
    made = read_contents(path)
    assert trajectory_problem(made) == (
        "a Trajectory must have the fields poses and trajectory_sampling, got []"
    )
