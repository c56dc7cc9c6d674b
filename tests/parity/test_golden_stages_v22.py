"""What the official NAVSIM 2.2 made of many scenes: frame pairs, mapping groups, result files.

`pytest tests/parity/test_golden_stages_v22.py -s` prints the largest differences.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from drivefine_agent.baselines.base import PlanningCase
from drivefine_agent.baselines.constant_velocity import ConstantVelocity
from drivefine_agent.baselines.human import Human
from drivefine_agent.data.maps import load_map
from drivefine_agent.data.scenes import load_scenes
from drivefine_agent.data.second_stage import load_second_stage
from drivefine_agent.data.splits import Split, StageGroup, load_split
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.evaluation.one_stage import one_stage_comfort
from drivefine_agent.evaluation.outcomes import FINAL
from drivefine_agent.evaluation.score import score_stages_v2
from drivefine_agent.evaluation.scored_frames import METRICS_V2, ScoredFrame, frame_table, scored_frame
from drivefine_agent.evaluation.two_stage import TwoStageResult, two_stage_result
from drivefine_agent.scoring.build_v2 import build_scoring_scene_v2
from drivefine_agent.scoring.frame_scores import FrameScores
from drivefine_agent.scoring.scorer_v2 import Traffic
from drivefine_agent.scoring.types import ScoringSceneV2

TOLERANCE = 1e-9
DISCRETE = [name for name in METRICS_V2 if name not in ("ego_progress", "score")]


@pytest.fixture(scope="module")
def facts(goldens: Path) -> dict[str, Any]:
    return json.loads((goldens / "aggregates_v22.json").read_text())


@pytest.fixture(scope="module")
def two_stage_rows(goldens: Path) -> pd.DataFrame:
    return pd.read_parquet(goldens / "two_stage_v22.parquet")


@pytest.fixture(scope="module")
def one_stage_windows(navsim_mini: Path) -> dict[str, SceneWindow]:
    split = load_split("synth_one_stage", [navsim_mini / "splits"])
    windows = load_scenes(navsim_mini / "navsim_logs" / split.data_split, split.scene_filter)
    return {window.token: window for window in windows}


@pytest.fixture(scope="module")
def two_stage_split(navsim_mini: Path) -> Split:
    return load_split("synth_two_stage", [navsim_mini / "splits"])


@pytest.fixture(scope="module")
def two_stage_windows(navsim_mini: Path, two_stage_split: Split) -> dict[str, SceneWindow]:
    """First-stage windows, then second-stage ones."""
    split = two_stage_split
    first = load_scenes(navsim_mini / "navsim_logs" / split.data_split, split.scene_filter)
    folder = navsim_mini / "navhard_two_stage" / "synthetic_scene_pickles"
    second = load_second_stage(folder, split.scene_filter, first)
    return {window.token: window for window in (*first, *second)}


def build(windows: dict[str, SceneWindow], root: Path) -> dict[str, ScoringSceneV2]:
    return {
        token: build_scoring_scene_v2(window, load_map(root / "maps", window.map_name))
        for token, window in windows.items()
    }


@pytest.fixture(scope="module")
def one_stage_scenes(one_stage_windows: dict[str, SceneWindow], navsim_mini: Path) -> dict[str, Any]:
    return build(one_stage_windows, navsim_mini)


@pytest.fixture(scope="module")
def two_stage_scenes(two_stage_windows: dict[str, SceneWindow], navsim_mini: Path) -> dict[str, Any]:
    return build(two_stage_windows, navsim_mini)


def frames_of(
    poses: dict[str, np.ndarray],
    windows: dict[str, SceneWindow],
    scenes: dict[str, ScoringSceneV2],
    traffic: Traffic,
) -> dict[str, ScoredFrame]:
    """Trajectories (8, 3) by token, scored."""
    frames = {}
    for token, trajectory in poses.items():
        outcome = score_stages_v2(scenes[token], {FINAL: trajectory}, traffic)
        frame = scored_frame(windows[token], outcome.stages[FINAL])
        assert frame is not None, outcome.stages[FINAL].error
        frames[token] = frame
    return frames


def plans(planner: ConstantVelocity | Human, windows: dict[str, SceneWindow]) -> dict[str, np.ndarray]:
    answers = planner.plan([PlanningCase(window) for window in windows.values()])
    return dict(zip(windows, answers, strict=True))


def largest_differences(ours: pd.DataFrame, official: pd.DataFrame) -> dict[str, float]:
    """By metric, over rows of the same tokens; NaN must meet NaN."""
    assert set(ours["token"]) == set(official["token"])
    pairs = ours.merge(official, on="token", suffixes=("", "_official"), validate="one_to_one")
    differences = {}
    for name in METRICS_V2:
        a, b = pairs[name].to_numpy(), pairs[f"{name}_official"].to_numpy()
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b), err_msg=name)
        differences[name] = float(np.nanmax(np.abs(a - b)))
    return differences


def check(differences: dict[str, float]) -> None:
    print(differences)
    for name, difference in differences.items():
        assert difference <= (0.0 if name in DISCRETE else TOLERANCE), (name, difference)


def test_every_pair_of_frames_has_the_official_comfort_and_score(
    facts: dict[str, Any],
    goldens: Path,
    one_stage_windows: dict[str, SceneWindow],
    one_stage_scenes: dict[str, ScoringSceneV2],
) -> None:
    """24 scenes in 30 runs; half of the frames have a predecessor."""
    given = pd.read_parquet(goldens / "trajectories.parquet").astype({"trajectory_id": str})
    official = pd.DataFrame(facts["one_stage_pairs"]).astype(
        {"run": str, "two_frame_extended_comfort": float}
    )
    count, worst = 0, 0.0
    for run, expected in official.groupby("run"):
        rows = given[given["trajectory_id"] == run]
        poses = {row.token: np.reshape(row.poses, (8, 3)) for row in rows.itertuples()}
        frames = frames_of(poses, one_stage_windows, one_stage_scenes, "non_reactive")
        comfort = one_stage_comfort(frames.values())
        table = frame_table(list(frames), frames, comfort, "true").set_index("token")
        expected = expected.set_index("scene").loc[table.index]
        assert list(expected["previous"].notna()) == [token in comfort for token in table.index]
        np.testing.assert_array_equal(
            table["two_frame_extended_comfort"], expected["two_frame_extended_comfort"]
        )
        worst = max(worst, float((table["score"] - expected["score"]).abs().max()))
        count += len(table)
    print(f"\n{count} scores, largest difference {worst}")
    assert count == 720
    assert worst <= TOLERANCE


def result_of_official_rows(
    rows: pd.DataFrame, windows: dict[str, SceneWindow], groups: tuple[StageGroup, ...]
) -> TwoStageResult:
    """Our aggregation of the official sub-scores, comforts, starts and ends of one run."""
    frames = {}
    for row in rows.itertuples():
        window = windows[row.token]
        frames[row.token] = ScoredFrame(
            token=row.token,
            log_name=window.log_name,
            timestamp_us=window.current.timestamp_us,
            is_second_stage=window.second_stage is not None,
            scores=FrameScores.from_mapping({name: getattr(row, name) for name in FrameScores.names()}),
            human_zeros=(),
            motion=np.zeros((2, 41)),
            start_xy=np.array(row.start),
            endpoint_xy=np.array(row.endpoint),
        )
    comfort = dict(zip(rows["token"], rows["two_frame_extended_comfort"], strict=True))
    return two_stage_result(*tokens_by_stage(windows), groups, frames, "true", comfort)


def tokens_by_stage(windows: dict[str, SceneWindow]) -> tuple[list[str], list[str]]:
    first = [token for token, window in windows.items() if window.second_stage is None]
    return first, [token for token in windows if token not in first]


def check_two_stage(result: TwoStageResult, rows: pd.DataFrame, official: dict[str, Any]) -> None:
    """Rows, weights and the three summaries of a run."""
    assert result.is_complete
    check(largest_differences(pd.concat([result.first, result.second]), rows))
    weights = {**dict.fromkeys(result.first["token"], 1.0), **result.weights}
    np.testing.assert_allclose(
        [weights[token] for token in rows["token"]], rows["weight"], rtol=0, atol=TOLERANCE
    )
    for name, means in (("stage_one", result.means.stage_one), ("stage_two", result.means.stage_two)):
        expected = [official[name][metric] for metric in METRICS_V2]
        np.testing.assert_allclose(means, expected, rtol=0, atol=TOLERANCE)
    assert result.means.combined[-1] == pytest.approx(official["combined"]["score"], abs=TOLERANCE)


@pytest.mark.parametrize("run", range(4))
def test_official_rows_give_the_official_summaries(
    run: int,
    facts: dict[str, Any],
    two_stage_rows: pd.DataFrame,
    two_stage_windows: dict[str, SceneWindow],
    two_stage_split: Split,
) -> None:
    """The aggregation alone: everything before it is NAVSIM's."""
    rows = two_stage_rows[two_stage_rows["run"] == run]
    result = result_of_official_rows(rows, two_stage_windows, two_stage_split.reactive_all_mapping or ())
    check_two_stage(result, rows, facts["runs"][run])


@pytest.mark.slow
def test_four_two_stage_runs_from_logs_to_the_summaries(
    facts: dict[str, Any],
    two_stage_rows: pd.DataFrame,
    two_stage_windows: dict[str, SceneWindow],
    two_stage_scenes: dict[str, ScoringSceneV2],
    two_stage_split: Split,
) -> None:
    """4 x (12 + 48) trajectories in reactive traffic."""
    for run, rows in two_stage_rows.groupby("run"):
        poses = {row.token: np.reshape(row.poses, (8, 3)) for row in rows.itertuples()}
        frames = frames_of(poses, two_stage_windows, two_stage_scenes, "reactive")
        groups = two_stage_split.reactive_all_mapping or ()
        result = two_stage_result(*tokens_by_stage(two_stage_windows), groups, frames, "true")
        check_two_stage(result, rows, facts["runs"][run])


@pytest.mark.parametrize("traffic", ["non_reactive", "reactive"])
@pytest.mark.parametrize("planner", [ConstantVelocity(), Human()], ids=lambda planner: planner.name())
def test_one_stage_files_of_the_official_script(
    planner: ConstantVelocity | Human,
    traffic: Traffic,
    goldens: Path,
    one_stage_windows: dict[str, SceneWindow],
    one_stage_scenes: dict[str, ScoringSceneV2],
) -> None:
    frames = frames_of(plans(planner, one_stage_windows), one_stage_windows, one_stage_scenes, traffic)
    table = frame_table(list(frames), frames, one_stage_comfort(frames.values()), "true")
    official = pd.read_csv(
        goldens / f"v22_one_{traffic}_{planner.name()}_agent.csv", index_col=0, dtype={"token": str}
    )
    assert len(official) == 25
    check(largest_differences(table, official.iloc[:-1]))
    means = table[list(METRICS_V2)].mean()
    np.testing.assert_allclose(
        means, official.iloc[-1][list(METRICS_V2)].astype(float), rtol=0, atol=TOLERANCE
    )


def test_two_stage_file_of_the_official_script(
    goldens: Path,
    two_stage_windows: dict[str, SceneWindow],
    two_stage_scenes: dict[str, ScoringSceneV2],
    two_stage_split: Split,
) -> None:
    windows = two_stage_windows
    frames = frames_of(plans(ConstantVelocity(), windows), windows, two_stage_scenes, "reactive")
    groups = two_stage_split.reactive_all_mapping or ()
    result = two_stage_result(*tokens_by_stage(windows), groups, frames, "true")
    official = pd.read_csv(goldens / "v22_two_cv.csv", index_col=0, dtype={"token": str})
    assert len(official) == 63
    for stage, table in (("stage_one", result.first), ("stage_two", result.second)):
        plain = official.rename(columns=lambda name, stage=stage: name.removesuffix(f"_{stage}"))
        check(largest_differences(table, plain[plain["token"].isin(table["token"])]))
    summaries = [result.means.stage_one[-1], result.means.stage_two[-1], result.means.combined[-1]]
    np.testing.assert_allclose(summaries, official.iloc[-3:]["score"].astype(float), rtol=0, atol=TOLERANCE)
