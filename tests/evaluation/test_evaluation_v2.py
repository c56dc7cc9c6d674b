"""tools/evaluate.py by NAVSIM 2's rules on the small dataset, against what the official scripts wrote."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drivefine_agent.baselines.base import PlanningCase
from drivefine_agent.baselines.constant_velocity import ConstantVelocity
from drivefine_agent.baselines.human import Human
from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.dataset import DatasetKeys, SplitScenes, load_split_scenes
from drivefine_agent.evaluation.job import EvaluationFiles, EvaluationSettings, identify, run_evaluation
from drivefine_agent.evaluation.job_v2 import run_evaluation_v2, score_and_write
from drivefine_agent.evaluation.outcomes import plans_of, read_predictions
from drivefine_agent.evaluation.results_csv_v2 import (
    SUMMARY_TOKENS,
    groups_path,
    read_groups,
    read_one_stage,
    read_two_stage,
)
from drivefine_agent.evaluation.scored_frames import METRICS_V2

ROOT = Path(__file__).parents[2]
PLANNERS = {"constant_velocity": ConstantVelocity, "human": Human}
TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def one_stage(navsim_mini: Path) -> SplitScenes:
    return load_split_scenes(DatasetKeys("synth_one_stage", dataset_root=str(navsim_mini)), environment={})


@pytest.fixture(scope="module")
def two_stage(navsim_mini: Path) -> SplitScenes:
    return load_split_scenes(DatasetKeys("synth_two_stage", dataset_root=str(navsim_mini)), environment={})


def run(
    planner: ConstantVelocity | Human, scenes: SplitScenes, output: Path, **changes: object
) -> EvaluationFiles:
    settings = settings_of(scenes, output, **changes)
    windows = (*scenes.windows, *scenes.second_stage)
    return run_evaluation_v2(planner, windows, settings, {"_target_": planner.name()}, scenes.groups)


def settings_of(scenes: SplitScenes, output: Path, **changes: object) -> EvaluationSettings:
    values = {
        "benchmark": "navhard_two_stage" if scenes.groups else "navsim_v2",
        "sensor_path": scenes.sensor_path,
        "synthetic_sensor_path": scenes.synthetic_sensor_path,
        "output_dir": output,
        "maps_root": scenes.maps_root,
        "num_workers": 1,
        "show_progress": False,
        **changes,
    }
    return EvaluationSettings(**values)


def check_equal(ours: pd.DataFrame, official: pd.DataFrame) -> None:
    """Discrete columns to the last bit, the others within TOLERANCE; the order of rows is free."""
    a, b = (table.set_index("token").sort_index() for table in (ours, official))
    assert list(a.index) == list(b.index)
    np.testing.assert_array_equal(a["valid"], b["valid"])
    for name in METRICS_V2:
        limit = TOLERANCE if name in ("ego_progress", "score") else 0.0
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=limit, err_msg=name)


def summary_of(files: EvaluationFiles) -> dict:
    return json.loads(files.summary.read_text())


@pytest.mark.parametrize("traffic", ["non_reactive", "reactive"])
@pytest.mark.parametrize("name", list(PLANNERS))
def test_one_stage_results_equal_the_official_file(
    name: str, traffic: str, one_stage: SplitScenes, goldens: Path, tmp_path: Path
) -> None:
    files = run(PLANNERS[name](), one_stage, tmp_path, traffic=traffic)
    official = goldens / f"v22_one_{traffic}_{name}_agent.csv"
    check_equal(read_one_stage(files.results), read_one_stage(official))
    own, other = (path.read_text().splitlines() for path in (files.results, official))
    assert own[0] == other[0]
    assert own[-1].split(",")[:3] == other[-1].split(",")[:3] == ["24", "average_all_frames", "True"]
    summary = summary_of(files)
    assert summary["traffic"] == traffic
    assert summary["navsim_would_say"] == []
    assert summary["scores"]["EPDMS"] == pytest.approx(float(other[-1].split(",")[-1]), abs=TOLERANCE)


@pytest.mark.slow
def test_two_stage_results_equal_the_official_file_and_follow_ups_are_always_reactive(
    two_stage: SplitScenes, goldens: Path, tmp_path: Path
) -> None:
    files = run(ConstantVelocity(), two_stage, tmp_path, traffic="non_reactive")
    ours, our_summaries = read_two_stage(files.results)
    official, summaries = read_two_stage(goldens / "v22_two_cv.csv")
    check_equal(ours, official)
    for token in SUMMARY_TOKENS:
        assert our_summaries[token] == pytest.approx(summaries[token], abs=TOLERANCE)
    own, other = (path.read_text().splitlines() for path in (files.results, goldens / "v22_two_cv.csv"))
    assert own[0] == other[0]
    for ours_line, official_line in zip(own[-3:], other[-3:], strict=True):
        a, b = ours_line.split(","), official_line.split(",")
        assert a[:3] == b[:3]
        assert [cell == "" for cell in a] == [cell == "" for cell in b]
        numbers = [(float(x), float(y)) for x, y in zip(a[3:], b[3:], strict=True) if x]
        np.testing.assert_allclose(*zip(*numbers, strict=True), rtol=0, atol=TOLERANCE)
    summary = summary_of(files)
    assert summary["traffic"] == "reactive"
    assert (summary["num_groups"], summary["groups_left_out"]) == (6, {})


def test_all_rules_stand_side_by_side_from_one_scoring(
    one_stage: SplitScenes, goldens: Path, tmp_path: Path
) -> None:
    """PDMS and EPDMS are the official averages of the human, and the filter's three rules are told apart."""
    files = run(Human(), one_stage, tmp_path)
    scores = pd.read_csv(files.scores, keep_default_na=False).set_index("name")
    official = {
        "PDMS": "v11_pdms_human_agent.csv",
        "EPDMS": "v22_one_non_reactive_human_agent.csv",
    }
    for name, file in official.items():
        expected = float((goldens / file).read_text().splitlines()[-1].split(",")[-1])
        assert float(scores.loc[name, "score"]) == pytest.approx(expected, abs=TOLERANCE)
    lifted, legacy, off = (
        float(scores.loc[name, "score"]) for name in ("EPDMS", "EPDMS (legacy filter)", "EPDMS (no filter)")
    )
    assert legacy == off < lifted
    assert set(scores["num_valid"].astype(int)) == {24}
    assert set(scores["traffic"]) == {"non_reactive"}


@pytest.mark.parametrize("rule", ["legacy", "false"])
def test_columns_follow_the_rule_that_was_asked_for(
    rule: str, one_stage: SplitScenes, goldens: Path, tmp_path: Path
) -> None:
    """`legacy` shows what `true` shows in every column but the score."""
    table = read_one_stage(run(Human(), one_stage, tmp_path, human_penalty_filter=rule).results)
    official = read_one_stage(goldens / "v22_one_non_reactive_human_agent.csv")
    shown = [name for name in METRICS_V2 if name not in ("score", "ego_progress")]
    a, b = (frame.set_index("token").sort_index()[shown] for frame in (table, official))
    assert a.equals(b) == (rule == "legacy")
    scenes = json.loads((goldens / "aggregates_v22.json").read_text())["scenes"]
    zero = {
        scene["scene"] for scene in scenes if scene["human_unfiltered"]["multiplicative_metrics_prod"] == 0
    }
    assert zero
    assert set(table.loc[table["score"] == 0.0, "token"]) == zero
    assert not set(official.loc[official["score"] == 0.0, "token"]) & zero


class Failing(ConstantVelocity):
    """Cannot plan two of the scenes."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = set(tokens)

    def plan(self, cases: Sequence[PlanningCase]) -> np.ndarray:
        for case in cases:
            if case.window.token in self.tokens:
                raise DataError("the camera is dirty")
        return super().plan(cases)


def test_a_failed_scene_is_listed_and_the_average_is_over_the_rest(
    one_stage: SplitScenes, goldens: Path, tmp_path: Path
) -> None:
    official = read_one_stage(goldens / "v22_one_non_reactive_constant_velocity_agent.csv")
    # of scenes without a successor in the split, nothing else changes
    last = official.loc[official["two_frame_extended_comfort"].notna(), "token"].iloc[0]
    files = run(Failing([last]), one_stage, tmp_path)
    table = read_one_stage(files.results).set_index("token")
    assert not table.loc[last, "valid"]
    assert table.loc[last, list(METRICS_V2)].isna().all()
    rest = official[official["token"] != last].set_index("token").sort_index()
    ours = table.drop(index=last).sort_index()
    np.testing.assert_allclose(ours["score"], rest["score"], rtol=0, atol=TOLERANCE)
    summary = summary_of(files)
    assert summary["scores"]["EPDMS"] == pytest.approx(rest["score"].mean(), abs=TOLERANCE)
    assert (summary["num_valid"], summary["num_failed"]) == (23, 1)
    assert "would have written no CSV at all" in summary["navsim_would_say"][0]
    (line,) = files.failures.read_text().splitlines()
    assert json.loads(line) == {
        "token": last,
        "trajectory_id": "final",
        "error": "DataError: the camera is dirty",
    }


@pytest.mark.slow
def test_a_failed_follow_up_leaves_its_group_out(
    two_stage: SplitScenes, goldens: Path, tmp_path: Path
) -> None:
    """What is left is the official mean over the other five groups' own products."""
    group = two_stage.groups[0]
    files = run(Failing([group.pairs[0][0]]), two_stage, tmp_path)
    whole = run(ConstantVelocity(), two_stage, tmp_path / "whole")
    summary = summary_of(files)
    assert list(summary["groups_left_out"]) == [group.token]
    assert summary["num_groups"] == 5
    groups, all_groups = (read_groups(groups_path(run.results)) for run in (files, whole))
    official = read_two_stage(goldens / "v22_two_cv.csv")[1][SUMMARY_TOKENS[-1]]
    assert all_groups["score"].mean() == pytest.approx(official, abs=TOLERANCE)
    assert list(groups["valid"]) == [False] + [True] * 5
    rest = all_groups["score"][1:]
    np.testing.assert_allclose(groups["score"][1:], rest, rtol=0, atol=1e-15)
    assert summary["scores"]["EPDMS"] == pytest.approx(rest.mean(), abs=1e-15)
    table, _ = read_two_stage(files.results)
    assert int((~table["valid"]).sum()) == 1
    assert "1 of 6 mapping groups are incomplete" in summary["navsim_would_say"][0]


@pytest.mark.slow
def test_a_run_that_was_killed_while_scoring_goes_on(one_stage: SplitScenes, tmp_path: Path) -> None:
    whole = run(ConstantVelocity(), one_stage, tmp_path / "whole", traffic="reactive")
    run(ConstantVelocity(), one_stage, tmp_path / "stopped", traffic="reactive")
    for log in (tmp_path / "stopped" / "outcomes").glob("outcomes-*.jsonl"):
        lines = log.read_bytes().splitlines(keepends=True)
        log.write_bytes(b"".join(lines[:7]) + lines[7][:900])
    resumed = run(ConstantVelocity(), one_stage, tmp_path / "stopped", traffic="reactive")
    assert summary_of(resumed)["num_taken_over"] == 7
    assert resumed.results.read_bytes() == whole.results.read_bytes()


def test_plans_serve_every_benchmark_and_scores_only_their_own(
    one_stage: SplitScenes, tmp_path: Path
) -> None:
    """In one folder: planned once, scored anew for another traffic and another benchmark."""

    class Counting(ConstantVelocity):
        num_asked = 0

        def plan(self, cases: Sequence[PlanningCase]) -> np.ndarray:
            self.num_asked += len(cases)
            return super().plan(cases)

    planner = Counting()
    taken_over = [
        summary_of(run(planner, one_stage, tmp_path, traffic=traffic))["num_taken_over"]
        for traffic in ("non_reactive", "reactive", "reactive")
    ]
    settings = settings_of(one_stage, tmp_path, benchmark="navsim_v1")
    run_evaluation(planner, one_stage.windows, settings, {"_target_": planner.name()})
    assert taken_over == [0, 0, 24]
    assert planner.num_asked == 24


@pytest.mark.slow
def test_worker_processes_give_the_same_files(one_stage: SplitScenes, tmp_path: Path) -> None:
    alone = run(ConstantVelocity(), one_stage, tmp_path / "alone")
    together = run(ConstantVelocity(), one_stage, tmp_path / "together", num_workers=2)
    assert together.results.read_bytes() == alone.results.read_bytes()
    assert summary_of(together)["num_scenes_built"] == 24


def test_predictions_from_a_file_score_as_the_planner_that_made_them(
    one_stage: SplitScenes, tmp_path: Path
) -> None:
    planned = run(Human(), one_stage, tmp_path / "planned")
    settings = settings_of(one_stage, tmp_path / "scored")
    plans = plans_of(planned.predictions, [window.token for window in one_stage.windows])
    identity = identify(settings, {"predictions": str(planned.predictions)}, one_stage.windows)
    scored = score_and_write(plans, "file", one_stage.windows, settings, identity, {"privileged": ""})
    assert scored.results.read_bytes() == planned.results.read_bytes()


def test_a_scene_without_a_prediction_is_a_failure(one_stage: SplitScenes, tmp_path: Path) -> None:
    planned = run(Human(), one_stage, tmp_path / "planned")
    table = pd.read_parquet(planned.predictions)
    table.iloc[1:].to_parquet(tmp_path / "less.parquet")
    plans = plans_of(tmp_path / "less.parquet", list(table["token"]))
    assert [token for token, plan in plans.items() if not plan.is_valid] == [table["token"].iloc[0]]


def test_the_summary_says_by_which_rules_and_versions(one_stage: SplitScenes, tmp_path: Path) -> None:
    summary = summary_of(run(ConstantVelocity(), one_stage, tmp_path))
    assert summary["benchmark"] == "navsim_v2"
    assert "v2.2" in summary["rule_set"]
    assert summary["human_penalty_filter"] == "true"
    assert set(summary["versions"]) >= {"drivefine", "numpy", "shapely", "numba"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"traffic": "idm"}, "traffic must be one of .*'idm'"),
        ({"human_penalty_filter": "on"}, "human_penalty_filter must be one of .*'on'"),
        ({"benchmark": "navsim_v3"}, "benchmark must be one of .*'navsim_v3'"),
        ({"num_workers": 0}, "num_workers must be at least 1 or null, got 0"),
    ],
)
def test_wrong_settings_are_named(changes: dict, message: str, one_stage: SplitScenes) -> None:
    with pytest.raises(ValueError, match=message):
        settings_of(one_stage, Path(), **changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("benchmark", "split", "text"),
    [
        ("navsim_v2", "synth_one_stage", "constant_velocity: 24 of 24 scenes valid"),
        ("navhard_two_stage", "synth_two_stage", "constant_velocity: 60 of 60 scenes valid"),
        ("navhard_two_stage", "synth_one_stage", "needs a split with two stages"),
        ("navsim_v1", "synth_two_stage", "has two stages, navsim_v1 has one"),
    ],
)
def test_the_command(benchmark: str, split: str, text: str, navsim_mini: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name in ("OPENSCENE_DATA_ROOT", "NUPLAN_MAPS_ROOT", "NAVSIM_EXP_ROOT", "NAVSIM_DEVKIT_ROOT"):
        environment.pop(name, None)
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "tools" / "evaluate.py"),
            f"benchmark={benchmark}",
            f"train_test_split={split}",
            "agent=constant_velocity",
            f"dataset_root={navsim_mini}",
            f"output_dir={tmp_path}",
            "progress=false",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    assert text in done.stdout + done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert (done.returncode == 0) == ("valid" in text)


def run_evaluate(*overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "evaluate.py"), *overrides, "progress=false"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_command_prints_the_combined_score_and_refuses_what_makes_no_sense(
    navsim_mini: Path, goldens: Path, tmp_path: Path
) -> None:
    """The printed EPDMS is that of the summary row, not a mean over the samples of both stages."""
    data = ("benchmark=navhard_two_stage", f"dataset_root={navsim_mini}", "train_test_split=synth_two_stage")
    done = run_evaluate(*data, "agent=constant_velocity", f"output_dir={tmp_path / 'cv'}")
    assert done.returncode == 0, done.stderr
    combined = read_two_stage(goldens / "v22_two_cv.csv")[1]["extended_pdm_score_combined"]
    assert f"EPDMS {100 * combined:.2f}" in done.stdout.splitlines()[2]

    one_stage = ("benchmark=navsim_v2", *data[1:])
    for overrides, message in (
        ((*one_stage, "agent=constant_velocity"), "has two stages, navsim_v2 has one"),
        ((*data, "agent=none"), "agent=none and predictions=FILE"),
        ((*data, "agent=human", f"predictions={tmp_path / 'cv' / 'predictions.parquet'}"), "one of the two"),
        (
            (*data, "agent=none", f"predictions={tmp_path / 'cv' / 'predictions.parquet'}"),
            "output_dir must be another folder",
        ),
        ((*data, "agent=constant_velocity", "max_scenes=1"), "leaves no whole mapping group"),
        ((*data, "agent=constant_velocity", "metric_cache_path=nowhere"), "a scene cache needs the file"),
    ):
        failed = run_evaluate(*overrides, f"output_dir={tmp_path / 'cv'}")
        assert failed.returncode == 1, message
        assert message in failed.stderr, failed.stderr
        assert "Traceback" not in failed.stderr


def test_repeated_predictions_are_refused(tmp_path: Path) -> None:
    rows = [{"token": "a", "trajectory_id": "final", "poses": [0.0] * 24}] * 2
    pd.DataFrame(rows).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(DataError, match="several 'final' for token 'a'"):
        read_predictions(tmp_path / "p.parquet")


def test_the_second_stage_is_found_in_a_folder_of_the_splits_name(navsim_mini: Path, tmp_path: Path) -> None:
    """As warmup_two_stage/ beside navhard_two_stage/ in the published data."""
    for name in ("navsim_logs", "sensor_blobs", "maps", "splits"):
        (tmp_path / name).symlink_to(navsim_mini / name)
    (tmp_path / "synth_two_stage").symlink_to(navsim_mini / "navhard_two_stage")
    scenes = load_split_scenes(DatasetKeys("synth_two_stage", dataset_root=str(tmp_path)), environment={})
    assert len(scenes.second_stage) == 48
    assert scenes.synthetic_sensor_path == tmp_path / "synth_two_stage" / "sensor_blobs"
