"""Every way to break a submission has its own sentence, and all of them are found at once."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from drivefine_agent.data import submission as submissions
from drivefine_agent.data.pickle_names import rename_globals
from drivefine_agent.data.splits import load_split
from drivefine_agent.data.submission import PickledSampling, PickledTrajectory
from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.submission_check import (
    WantedTokens,
    check_submission,
    format_check,
    wanted_tokens,
)

FIRST = ("a" * 16, "b" * 16, "1" * 16)
SECOND = ("c" * 17, "d" * 17)
ONE_STAGE = WantedTokens("one", FIRST)
TWO_STAGE = WantedTokens("two", FIRST, SECOND)


def trajectory(**changes):
    sampling = {"num_poses": 8, "time_horizon": 4.0, "interval_length": 0.5}
    sampling |= {key: changes.pop(key) for key in list(changes) if key in sampling}
    state = {"poses": np.zeros((8, 3), np.float32), "trajectory_sampling": PickledSampling(**sampling)}
    return PickledTrajectory(**(state | changes))


def texts():
    keys = ("team_name", "authors", "institution", "country / region")
    return {**dict.fromkeys(keys, "text"), "email": "first.last@dept.uni.edu"}


def one_stage():
    return {**texts(), "predictions": [{token: trajectory() for token in FIRST}]}


def two_stage():
    return {
        **texts(),
        "first_stage_predictions": [{token: trajectory() for token in FIRST}],
        "second_stage_predictions": [{token: trajectory() for token in SECOND}],
    }


def write(path: Path, content: object) -> Path:
    """Any content, broken or not, under the official names."""
    official = submissions._official_name
    path.write_bytes(rename_globals(pickle.dumps(content, 3), official))
    return path


@pytest.mark.parametrize(("content", "wanted"), [(one_stage(), ONE_STAGE), (two_stage(), TWO_STAGE)])
def test_a_complete_submission_has_no_problem(tmp_path, content, wanted):
    check = check_submission(write(tmp_path / "submission.pkl", content), wanted)
    assert (check.problems, check.doubts) == ([], [])
    assert [sum(counts) for counts in check.counts.values()] == ([3] if wanted is ONE_STAGE else [3, 2])
    assert format_check(check).endswith("the submission is complete")


@pytest.mark.parametrize(
    "changes",
    [
        {"time_horizon": 4},
        {"num_poses": None},
        {"poses": np.zeros((8, 3))},
        {"time_horizon": np.float64(4), "num_poses": np.int64(8)},
    ],
    ids=["horizon int", "derived number", "float64", "numpy scalars"],
)
def test_harmless_variants_are_accepted(tmp_path, changes):
    content = one_stage()
    content["predictions"][0][FIRST[0]] = trajectory(**changes)
    assert check_submission(write(tmp_path / "submission.pkl", content), ONE_STAGE).problems == []


def change_one(key, change):
    def apply(content):
        change(content[key][0])

    return apply


def put(**changes):
    return change_one("predictions", lambda seed: seed.__setitem__(FIRST[1], trajectory(**changes)))


def nan_poses():
    poses = np.zeros((8, 3), np.float32)
    poses[3, 1] = np.nan
    return poses


BREAKS_ONE_STAGE = {
    "missing token": (
        change_one("predictions", lambda seed: seed.pop(FIRST[0])),
        f"predictions: 1 of the 3 tokens of 'one' are missing: '{FIRST[0]}'",
    ),
    "extra token": (
        change_one("predictions", lambda seed: seed.__setitem__("e" * 16, trajectory())),
        f"predictions: 1 tokens are not in the split 'one': '{'e' * 16}'",
    ),
    "number as token": (
        change_one("predictions", lambda seed: seed.__setitem__(7, trajectory())),
        "predictions: tokens must be texts, got 7",
    ),
    "40 poses": (put(poses=np.zeros((40, 3), np.float32)), "poses must have shape (8, 3), got (40, 3)"),
    "no headings": (put(poses=np.zeros((8, 2), np.float32)), "poses must have shape (8, 3), got (8, 2)"),
    "NaN": (put(poses=nan_poses()), "poses must be finite"),
    "integers": (put(poses=np.zeros((8, 3), int)), "poses must be float32 or float64, got int64"),
    "half precision": (put(poses=np.zeros((8, 3), np.float16)), "float32 or float64, got float16"),
    "objects": (put(poses=np.zeros((8, 3), object)), "poses must be float32 or float64, got object"),
    "list of poses": (put(poses=[[0.0] * 3] * 8), "poses must be a numpy array, got list"),
    "3.5 s": (
        put(time_horizon=3.5, num_poses=7),
        "8 poses, 0.5 s apart, up to 4.0 s, got num_poses=7, time_horizon=3.5, interval_length=0.5",
    ),
    "0.1 s apart": (put(interval_length=0.1, num_poses=40), "got num_poses=40, time_horizon=4.0"),
    "no sampling": (put(trajectory_sampling=None), "must be a TrajectorySampling of nuPlan, got NoneType"),
    "bare array": (
        change_one("predictions", lambda seed: seed.__setitem__(FIRST[1], np.zeros((8, 3)))),
        "a prediction must be a Trajectory of navsim, got ndarray",
    ),
    "foreign field": (put(extra=1), "got ['extra', 'poses', 'trajectory_sampling']"),
    "no team": (lambda content: content.pop("team_name"), "the text 'team_name' is missing"),
    "no country": (lambda content: content.pop("country / region"), "the text 'country / region' is missing"),
    "empty institution": (lambda c: c.update(institution=" "), "the text 'institution' is empty"),
    "list of authors": (lambda c: c.update(authors=["A"]), "'authors' must be a text (str), got list"),
    "no address": (lambda c: c.update(email="me at home"), "'email' must be an address like name@host.org"),
    "command's key": (lambda c: c.update(country="C"), "a submission has no key 'country'"),
    "no seed": (lambda c: c.update(predictions=[]), "one dict per seed, got an empty list"),
    "not in a list": (lambda c: c.update(predictions={}), "'predictions' must be a list, got dict"),
    "list of lists": (
        lambda c: c.update(predictions=[[]]),
        "must be a dict from token to trajectory, got list",
    ),
    "no predictions": (lambda c: c.pop("predictions"), "the predictions 'predictions' are missing"),
}


@pytest.mark.parametrize(("change", "sentence"), BREAKS_ONE_STAGE.values(), ids=BREAKS_ONE_STAGE)
def test_one_stage_each_fault_has_its_own_sentence(tmp_path, change, sentence):
    content = one_stage()
    change(content)
    check = check_submission(write(tmp_path / "submission.pkl", content), ONE_STAGE)
    assert len(check.problems) == 1, check.problems
    assert sentence in check.problems[0]


BREAKS_TWO_STAGE = {
    "two dicts": (
        lambda c: c["second_stage_predictions"].append(c["second_stage_predictions"][0]),
        ["'second_stage_predictions' must hold exactly one dict, got 2: NAVSIM 2 takes no seeds"],
    ),
    "no dict": (
        lambda c: c["first_stage_predictions"].clear(),
        ["'first_stage_predictions' must hold exactly one dict, got 0"],
    ),
    "wrong stage": (
        lambda c: c["first_stage_predictions"][0].update(
            {SECOND[0]: c["second_stage_predictions"][0].pop(SECOND[0])}
        ),
        [
            f"1 tokens belong to the other stage (second_stage_predictions): '{SECOND[0]}'",
            "second_stage_predictions: 1 of the 2 tokens of 'two' are missing",
        ],
    ),
    "second stage absent": (
        lambda c: c.pop("second_stage_predictions"),
        ["the predictions 'second_stage_predictions' are missing"],
    ),
    "both versions": (
        lambda c: c.update(one_stage()),
        ["'two' is a two-stage split (NAVSIM 2), whose submissions have 'first_stage_predictions' and"],
    ),
}


@pytest.mark.parametrize(("change", "sentences"), BREAKS_TWO_STAGE.values(), ids=BREAKS_TWO_STAGE)
def test_two_stages_each_fault_has_its_own_sentence(tmp_path, change, sentences):
    content = two_stage()
    change(content)
    check = check_submission(write(tmp_path / "submission.pkl", content), TWO_STAGE)
    assert len(check.problems) == len(sentences), check.problems
    for problem, sentence in zip(check.problems, sentences, strict=True):
        assert sentence in problem


def test_the_sentences_differ():
    sentences = [sentence for _, sentence in BREAKS_ONE_STAGE.values()]
    sentences += [sentence for _, several in BREAKS_TWO_STAGE.values() for sentence in several]
    assert len(set(sentences)) == len(sentences)


def test_the_other_versions_file_is_refused(tmp_path):
    (problem,) = check_submission(write(tmp_path / "submission.pkl", two_stage()), ONE_STAGE).problems
    assert "'one' is a one-stage split (NAVSIM 1), whose submissions have 'predictions'" in problem
    (problem,) = check_submission(write(tmp_path / "submission.pkl", one_stage()), TWO_STAGE).problems
    assert "'two' is a two-stage split (NAVSIM 2)" in problem
    assert "got 'predictions'" in problem


def test_all_faults_are_found_at_once_and_counted(tmp_path):
    content = one_stage()
    content["email"] = ""
    seed = content["predictions"][0]
    seed.pop(FIRST[2])
    seed["e" * 16] = seed["f" * 16] = trajectory(poses=nan_poses())
    check = check_submission(write(tmp_path / "my_submission.pkl", content), ONE_STAGE)
    assert check.counts == {"predictions": [4]}
    assert [problem.split(":")[0] for problem in check.problems] == [
        "the file must be called 'submission.pkl', got 'my_submission.pkl'",
        "the text 'email' is empty",
        "predictions",
        "predictions",
        "predictions",
    ]
    assert f"poses must be finite, got NaN or infinity (2: '{'e' * 16}', '{'f' * 16}')" in check.problems[-1]
    assert format_check(check).endswith("5 problems")


def test_foreign_classes_truncation_and_numpy_2_are_told_apart(tmp_path):
    path = tmp_path / "submission.pkl"
    path.write_bytes(pickle.dumps({"authors": Path("x")}))
    (problem,) = check_submission(path, ONE_STAGE).problems
    assert "names something besides trajectories and texts" in problem
    assert "pathlib" in problem

    whole = write(path, one_stage()).read_bytes()
    path.write_bytes(whole[:-20])
    (problem,) = check_submission(path, ONE_STAGE).problems
    assert problem.startswith("the file cannot be read: not a complete pickle")

    (problem,) = check_submission(tmp_path / "absent" / "submission.pkl", ONE_STAGE).problems
    assert "No such file" in problem

    path.write_bytes(pickle.dumps(["no dict"]))
    assert check_submission(path, ONE_STAGE).problems == ["a submission must be a dict, got list"]

    path.write_bytes(whole.replace(b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"))
    (problem,) = check_submission(path, ONE_STAGE).problems
    assert "numpy 1.23 cannot load" in problem


def test_doubts(tmp_path):
    content = one_stage()
    content["predictions"].append({token: trajectory() for token in FIRST})
    far = np.zeros((8, 3), np.float32)
    far[:, :2] = 331_000.0, 4_690_000.0  # global coordinates
    turned = np.zeros((8, 3), np.float32)
    turned[:, 2] = 90.0
    content["predictions"].append(
        {FIRST[0]: trajectory(poses=far)} | dict.fromkeys(FIRST[1:], trajectory(poses=turned))
    )
    check = check_submission(write(tmp_path / "submission.pkl", content), ONE_STAGE)
    assert check.problems == []
    assert check.counts == {"predictions": [3, 3, 3]}
    assert [doubt.split(" (")[0] for doubt in check.doubts] == [
        "predictions[2]: poses move faster than 50 m/s: they must be metres in the ego frame of now",
        "predictions[2]: headings exceed a full turn: they must be radians",
        "the seeds predictions[0] and [1] have equal trajectories",
    ]


def test_wanted_tokens_are_those_of_the_split_files(navsim_mini):
    one = wanted_tokens(load_split("synth_one_stage", [navsim_mini / "splits"]))
    two = wanted_tokens(load_split("synth_two_stage", [navsim_mini / "splits"]))
    assert (len(one.first_stage), one.second_stage) == (24, None)
    assert len(two.first_stage) == 12
    assert two.second_stage is not None
    assert len(two.second_stage) == 48
    assert {len(token) for token in two.first_stage} == {16}
    assert {len(token) for token in two.second_stage} == {17}


def test_a_split_without_tokens_or_with_one_twice_is_refused(tmp_path):
    (tmp_path / "scene_filter").mkdir()
    split = tmp_path / "s.yaml"
    split.write_text("defaults: [{scene_filter: f}]\ndata_split: test\n")
    (tmp_path / "scene_filter" / "f.yaml").write_text("tokens: null\n")
    with pytest.raises(DataError, match="lists no tokens"):
        wanted_tokens(load_split(split))
    (tmp_path / "scene_filter" / "f.yaml").write_text("tokens: [a, b, a]\n")
    with pytest.raises(DataError, match="must differ, got 'a' twice"):
        wanted_tokens(load_split(split))
