"""tools/score_trajectories.py, tools/build_scene_cache.py, and the files they read and write."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drivefine_agent.data.maps import load_map
from drivefine_agent.data.scenes import SceneFilter, load_scenes
from drivefine_agent.errors import DataError, SceneError
from drivefine_agent.evaluation.trajectory_file import (
    ROWS_PER_PORTION,
    TrajectoryFile,
    parse_poses,
    score_file,
    score_trajectories,
)
from drivefine_agent.scoring.build import build_scoring_scene
from drivefine_agent.scoring.cache import PACK_NAME, finish_cache
from drivefine_agent.scoring.cache_layout import RULES_V1
from drivefine_agent.scoring.cache_pack import PackWriter
from drivefine_agent.scoring.types import ScoringScene

ROOT = Path(__file__).parents[2]
COLUMNS = [
    "token",
    "trajectory_id",
    "error",
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "driving_direction_compliance",
    "ego_progress",
    "time_to_collision_within_bound",
    "comfort",
    "score",
]
STRAIGHT = np.stack([np.arange(1, 9) * 2.0, np.zeros(8), np.zeros(8)], axis=-1).ravel()


@pytest.fixture(scope="module")
def scene(navsim_mini: Path) -> ScoringScene:
    window = load_scenes(navsim_mini / "navsim_logs" / "test", SceneFilter())[0]
    return build_scoring_scene(window, load_map(navsim_mini / "maps", window.map_name))


def table(*rows: tuple[str, str, object]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["token", "trajectory_id", "poses"], dtype=object)


def with_value(value: float) -> np.ndarray:
    poses = STRAIGHT.copy()
    poses[4] = value
    return poses


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "24 numbers, got null"),
        ([1.0] * 23, "24 numbers.*got 23 numbers"),
        ([], "got 0 numbers"),
        (["x"] * 24, "24 numbers, got something else"),
        (np.zeros((4, 3)), r"got shape \(4, 3\)"),
        ([None] * 24, "24 numbers, got something else|must be finite, got nan"),
        (with_value(np.nan), "finite, got nan for y of pose 1"),
        (with_value(-np.inf), "finite, got -inf for y of pose 1"),
    ],
)
def test_bad_poses_say_what_they_are(values: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_poses(values)


def test_a_bad_row_costs_no_other_its_score(scene: ScoringScene) -> None:
    rows = table(
        (scene.token, "good", STRAIGHT),
        (scene.token, "short", STRAIGHT[:9]),
        ("feed", "unknown", STRAIGHT),
        (scene.token, "nan", with_value(np.nan)),
        ("dead", "unprepared", STRAIGHT),
        (scene.token, "same", STRAIGHT.tolist()),
    )

    def find(token: str) -> ScoringScene:
        if token == "dead":
            raise SceneError("scene 'dead' has no route")
        return {scene.token: scene}[token]

    scores = score_trajectories(rows, find)
    assert list(scores.columns) == COLUMNS
    assert list(scores["trajectory_id"]) == list(rows["trajectory_id"])
    is_good = scores["error"].isna()
    assert list(scores["trajectory_id"][is_good]) == ["good", "same"]
    assert scores["score"].notna().equals(is_good)
    assert scores["score"][0] == scores["score"][5]
    assert "9 numbers" in scores["error"][1]
    assert "feed" in scores["error"][2]
    assert "nan for y" in scores["error"][3]
    assert scores["error"][4] == "scene 'dead' has no route"


def test_result_file_has_the_columns_of_the_contract(scene: ScoringScene, tmp_path: Path) -> None:
    rows = table((scene.token, "a", STRAIGHT), (scene.token, "b", None))
    path = tmp_path / "deep" / "out.parquet"
    rows.to_parquet(tmp_path / "in.parquet")
    score_file(TrajectoryFile(tmp_path / "in.parquet"), lambda _: scene, path)
    scores = pd.read_parquet(path)
    assert list(scores.columns) == COLUMNS
    assert pq.read_table(path)["error"].null_count == 1
    assert scores.iloc[1, 3:].isna().all()
    assert [p.name for p in path.parent.iterdir()] == ["out.parquet"]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got no file .*none.parquet"):
        TrajectoryFile(tmp_path / "none.parquet")
    text = tmp_path / "text.parquet"
    text.write_text("token,poses")
    with pytest.raises(DataError, match=r"must be a Parquet file: .*text.parquet"):
        TrajectoryFile(text)
    incomplete = tmp_path / "incomplete.parquet"
    pd.DataFrame({"token": ["a"]}).to_parquet(incomplete)
    with pytest.raises(DataError, match=r"incomplete.parquet lacks \['trajectory_id', 'poses'\]"):
        TrajectoryFile(incomplete)
    nameless = tmp_path / "nameless.parquet"
    rows = {"token": ["a", None], "trajectory_id": ["0", "1"], "poses": [[0.0] * 24] * 2}
    pd.DataFrame(rows).to_parquet(nameless)
    with pytest.raises(DataError, match=r"got None in row 1: .*nameless"):
        TrajectoryFile(nameless).tokens()


def test_a_file_scored_in_portions_has_the_numbers_of_one_scored_at_once(
    scene: ScoringScene, tmp_path: Path
) -> None:
    """Rows of a scene, good and bad, lie in every portion."""
    number = ROWS_PER_PORTION * 2 + 5
    poses: list[object] = [STRAIGHT * (row % 97) / 97 for row in range(number)]
    poses[3], poses[ROWS_PER_PORTION], poses[-1] = None, STRAIGHT[:5], with_value(np.nan)
    rows = table(*((f"{row % 3}", str(row), poses[row]) for row in range(number)))
    rows.to_parquet(tmp_path / "in.parquet")

    def find(token: str) -> ScoringScene:
        return {"0": scene, "1": scene}[token]

    file = TrajectoryFile(tmp_path / "in.parquet")
    assert len(file) == number
    assert file.tokens() == ["0", "1", "2"]
    summary = score_file(file, find, tmp_path / "out.parquet", num_workers=2)
    expected = score_trajectories(rows, find)
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "out.parquet"), expected, check_exact=True, check_dtype=False
    )
    is_scored = expected["error"].isna()
    assert (summary.num_rows, summary.num_scored) == (number, is_scored.sum())
    assert summary.means["score"] == pytest.approx(expected.loc[is_scored, "score"].mean(), rel=1e-12)
    assert sum(summary.reasons.values()) == (~is_scored).sum()
    assert summary.reasons["poses must be 24 numbers, got null"] == 1


def test_a_damaged_row_group_leaves_no_output(scene: ScoringScene, tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    rows = table(*((scene.token, str(row), STRAIGHT * (row % 97)) for row in range(ROWS_PER_PORTION * 2)))
    rows.to_parquet(path, row_group_size=ROWS_PER_PORTION)
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size * 6 // 10)
        stream.write(b"\xff" * 5000)
    with pytest.raises(DataError, match=r"must be a Parquet file: .*in.parquet"):
        score_file(TrajectoryFile(path), lambda _: scene, tmp_path / "out" / "scores.parquet")
    assert not list((tmp_path / "out").iterdir())


PEAK = """
import sys
from pathlib import Path
from drivefine_agent.evaluation import trajectory_file
from drivefine_agent.evaluation.trajectory_file import TrajectoryFile, score_file
from drivefine_agent.scoring.cache import SceneCache
trajectory_file.ROWS_PER_PORTION = 1024
file = TrajectoryFile(Path(sys.argv[1]))
file.tokens()
print(score_file(file, SceneCache(sys.argv[2]), Path(sys.argv[3]), num_workers=2).num_scored)
# Not ru_maxrss, which counts what the parent had when it started this process.
print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_rows(scene: ScoringScene, tmp_path: Path) -> None:
    """All rows in one row group, as pandas writes them; the portions are small, so that few rows suffice."""
    (tmp_path / "cache").mkdir()
    with PackWriter(tmp_path / "cache" / PACK_NAME, RULES_V1) as writer:
        writer.add(scene)
    finish_cache(tmp_path / "cache", {})
    peaks = []
    for number in (15_000, 150_000):
        poses = STRAIGHT * np.random.default_rng(0).uniform(0, 1, (number, 1))
        columns = {
            "token": pa.array([scene.token] * number),
            "trajectory_id": pa.array(np.arange(number).astype(str)),
            "poses": pa.ListArray.from_arrays(np.arange(number + 1, dtype=np.int32) * 24, poses.ravel()),
        }
        pq.write_table(pa.table(columns), tmp_path / "in.parquet", row_group_size=number)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *(str(tmp_path / name) for name in ("in.parquet", "cache", "out"))],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        num_scored, peak_mb = map(int, done.stdout.split())
        assert num_scored == number
        peaks.append(peak_mb)
    assert peaks[1] < peaks[0] + 60, peaks


def run_tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / name), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_both_tools_reproduce_the_official_results(navsim_mini: Path, goldens: Path, tmp_path: Path) -> None:
    cache, output = tmp_path / "cache", tmp_path / "out.parquet"
    built = run_tool(
        "build_scene_cache.py",
        "train_test_split=synth_one_stage",
        f"dataset_root={navsim_mini}",
        f"metric_cache_path={cache}",
        "num_workers=1",
        "progress=false",
    )
    assert built.returncode == 0, built.stderr
    assert "24 scenes built, 0 kept, 0 could not be prepared" in built.stdout
    scored = run_tool(
        "score_trajectories.py",
        "benchmark=navsim_v1",
        f"trajectories={goldens / 'trajectories.parquet'}",
        f"output={output}",
        f"metric_cache_path={cache}",
        "progress=false",
    )
    assert scored.returncode == 0, scored.stderr
    ours = pd.read_parquet(output)
    assert list(ours.columns) == COLUMNS
    assert ours["error"].isna().all()
    both = ours.merge(
        pd.read_parquet(goldens / "pdms_v11.parquet"),
        on=["token", "trajectory_id"],
        suffixes=("", "_official"),
    )
    assert len(both) == 720
    for name in COLUMNS[3:]:
        difference = (both[name] - both[f"{name}_official"]).abs().max()
        assert difference <= (1e-9 if name in ("ego_progress", "score") else 0.0), name


@pytest.mark.slow
def test_scenes_are_found_in_logs_without_a_split(navsim_mini: Path, goldens: Path, tmp_path: Path) -> None:
    rows = pd.read_parquet(goldens / "trajectories.parquet").iloc[::100]
    extra = pd.DataFrame({"token": ["feed"], "trajectory_id": ["x"], "poses": [STRAIGHT.tolist()]})
    pd.concat([rows, extra]).to_parquet(tmp_path / "in.parquet")
    scored = run_tool(
        "score_trajectories.py",
        f"trajectories={tmp_path / 'in.parquet'}",
        f"output={tmp_path / 'out.parquet'}",
        f"navsim_log_path={navsim_mini / 'navsim_logs' / 'test'}",
        f"maps_root={navsim_mini / 'maps'}",
        "progress=false",
    )
    assert scored.returncode == 0, scored.stderr
    result = pd.read_parquet(tmp_path / "out.parquet")
    assert result["error"].isna().sum() == len(rows)
    assert "'feed' is not in the logs" in result["error"].iloc[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        (
            "score_trajectories.py",
            ["benchmark=navsim_v9", "trajectories=a", "output=b"],
            "navsim_v9.*navsim_v1",
        ),
        (
            "score_trajectories.py",
            ["trajectories=none.parquet", "output=b"],
            "error: trajectories must exist, got no file",
        ),
        ("score_trajectories.py", ["output=b"], "trajectories"),
        (
            "build_scene_cache.py",
            ["train_test_split=mini9", "metric_cache_path=c", "dataset_root={mini}"],
            "error: unknown split 'mini9'.*synth_one_stage",
        ),
        ("build_scene_cache.py", ["train_test_split=a", "metric_cache_path=c"], "error: unknown split 'a'"),
    ],
)
def test_mistakes_get_one_clear_line(
    tool: str, arguments: list[str], message: str, navsim_mini: Path, tmp_path: Path
) -> None:
    result = run_tool(tool, *(argument.format(mini=navsim_mini) for argument in arguments))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert re.search(message, result.stderr, re.DOTALL), result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["score_trajectories.py", "build_scene_cache.py"])
def test_help_lists_the_keys(tool: str) -> None:
    result = run_tool(tool, "--help")
    assert result.returncode == 0
    assert "metric_cache_path" in result.stdout
