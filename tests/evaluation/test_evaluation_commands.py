"""Evaluation and report on the small dataset, against the CSVs that the official NAVSIM 1.1 wrote."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from drivefine_agent.baselines.constant_velocity import ConstantVelocity
from drivefine_agent.baselines.human import Human
from drivefine_agent.baselines.pdm_closed import PDMClosed
from drivefine_agent.data.maps import load_map
from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.dataset import DatasetKeys, SplitScenes, load_split_scenes
from drivefine_agent.evaluation.job import EvaluationFiles, EvaluationSettings, run_evaluation
from drivefine_agent.evaluation.outcomes import FINAL, privileged_of, read_predictions
from drivefine_agent.evaluation.results_csv import METRICS_V1, read_csv
from drivefine_agent.evaluation.submission_job import read_prediction_files
from drivefine_agent.provenance import as_record, training_data, write_card
from drivefine_agent.scoring.build import build_scoring_scene
from drivefine_agent.scoring.cache import SceneCacheWriter
from drivefine_agent.training.config import ModelChoice
from drivefine_agent.training.model_choice import build_planner

ROOT = Path(__file__).parents[2]
PLANNERS = {"constant_velocity": ConstantVelocity, "human": Human, "pdm_closed": PDMClosed}


@pytest.fixture(scope="module")
def scenes(navsim_mini: Path) -> SplitScenes:
    return load_split_scenes(DatasetKeys("synth_one_stage", dataset_root=str(navsim_mini)), environment={})


@pytest.fixture(scope="module")
def scene_cache(scenes: SplitScenes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene_cache")
    with SceneCacheWriter(folder) as writer:
        for window in scenes.windows:
            writer.add(build_scoring_scene(window, load_map(scenes.maps_root, window.map_name)))
    return folder


def run(
    name: str, scenes: SplitScenes, output: Path, cache: Path | None = None, **changes: object
) -> EvaluationFiles:
    settings = EvaluationSettings(
        benchmark="navsim_v1",
        sensor_path=scenes.sensor_path,
        output_dir=output,
        maps_root=None if cache else scenes.maps_root,
        scene_cache_path=cache,
        show_progress=False,
        **changes,  # type: ignore[arg-type]
    )
    return run_evaluation(PLANNERS[name](), scenes.windows, settings, {"_target_": name})


def largest_differences(ours: Path, official: Path) -> dict[str, float]:
    pairs = read_csv(ours).merge(read_csv(official), on="token", suffixes=("", "_official"), validate="1:1")
    assert len(pairs) == 24
    return {name: float((pairs[name] - pairs[f"{name}_official"]).abs().max()) for name in METRICS_V1}


@pytest.mark.parametrize("name", ["constant_velocity", "human"])
def test_results_equal_the_official_csv(
    name: str, scenes: SplitScenes, goldens: Path, tmp_path: Path
) -> None:
    files = run(name, scenes, tmp_path)
    official = goldens / f"v11_pdms_{name}_agent.csv"
    differences = largest_differences(files.results, official)
    print(f"\nlargest differences to the official NAVSIM 1.1, {name}: {differences}")
    for metric, difference in differences.items():
        limit = 1e-6 if metric in ("ego_progress", "score") else 0.0
        assert difference <= limit, (metric, difference)
    own, other = (path.read_text().splitlines() for path in (files.results, official))
    assert own[0] == other[0]
    np.testing.assert_allclose(
        [float(value) for value in own[-1].split(",")[3:]],
        [float(value) for value in other[-1].split(",")[3:]],
        atol=1e-6,
    )
    assert own[-1].split(",")[:3] == other[-1].split(",")[:3] == ["24", "average", "True"]


def test_cached_scenes_give_the_same_numbers(scenes: SplitScenes, scene_cache: Path, tmp_path: Path) -> None:
    built = run("human", scenes, tmp_path / "built")
    cached = run("human", scenes, tmp_path / "cached", scene_cache)
    pd.testing.assert_frame_equal(built.table, cached.table, check_exact=True)
    assert json.loads(built.summary.read_text())["num_scenes_built"] == 24
    summary = json.loads(cached.summary.read_text())
    assert (summary["num_scenes_from_cache"], summary["num_scenes_built"]) == (24, 0)


def test_a_second_run_takes_everything_over(scenes: SplitScenes, scene_cache: Path, tmp_path: Path) -> None:
    first = run("pdm_closed", scenes, tmp_path, scene_cache)
    before = first.results.read_bytes()
    second = run("pdm_closed", scenes, tmp_path, scene_cache)
    assert json.loads(second.summary.read_text())["num_taken_over"] == 24
    assert second.results.read_bytes() == before
    third = run("pdm_closed", scenes, tmp_path, scene_cache, resume=False)
    assert json.loads(third.summary.read_text())["num_taken_over"] == 0


@pytest.mark.parametrize(("kind", "num_taken_over"), [("outcomes", 10), ("plans", 24)])
def test_a_stopped_run_goes_on_and_ends_like_an_uninterrupted_one(
    kind: str, num_taken_over: int, scenes: SplitScenes, scene_cache: Path, tmp_path: Path
) -> None:
    """Stopped while it scored, or while it planned (and then all plans turn out as before)."""
    whole = run("human", scenes, tmp_path / "whole", scene_cache)
    run("human", scenes, tmp_path / "stopped", scene_cache)
    (log,) = (tmp_path / "stopped" / "outcomes").glob(f"{kind}-*.jsonl")
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:10]) + lines[10][:50])
    resumed = run("human", scenes, tmp_path / "stopped", scene_cache)
    assert json.loads(resumed.summary.read_text())["num_taken_over"] == num_taken_over
    assert resumed.results.read_bytes() == whole.results.read_bytes()
    assert len(log.read_text().splitlines()) == 24


def test_scores_of_other_plans_are_not_taken_over(
    scenes: SplitScenes, scene_cache: Path, tmp_path: Path
) -> None:
    """A plan that changed under the scoring log is scored again."""
    first = run("human", scenes, tmp_path, scene_cache)
    (log,) = (tmp_path / "outcomes").glob("plans-*.jsonl")
    lines = log.read_text().splitlines()
    plan = json.loads(lines[0])
    plan["stages"]["final"]["poses"][0] += 1.0
    log.write_text("\n".join([json.dumps(plan), *lines[1:]]) + "\n")
    second = run("human", scenes, tmp_path, scene_cache)
    assert json.loads(second.summary.read_text())["num_taken_over"] == 23
    assert len(first.table) == len(second.table) == 24


def test_another_agent_or_image_in_the_same_folder_takes_nothing_over(
    scenes: SplitScenes, scene_cache: Path, tmp_path: Path
) -> None:
    run("human", scenes, tmp_path, scene_cache)
    other = run("constant_velocity", scenes, tmp_path, scene_cache)
    assert json.loads(other.summary.read_text())["num_taken_over"] == 0
    blank = run("human", scenes, tmp_path, scene_cache, blank_image=True)
    assert json.loads(blank.summary.read_text())["num_taken_over"] == 0


def test_a_retrained_checkpoint_is_evaluated_anew(
    scenes: SplitScenes, scene_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint's folder is named relative to the working directory, and its file changes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"1")
    settings = EvaluationSettings(
        "navsim_v1", scenes.sensor_path, tmp_path, None, scene_cache, show_progress=False
    )
    agent = {"_target_": "human", "checkpoint_path": "model"}
    taken_over = []
    for content in (b"1", b"1", b"22"):
        if (tmp_path / "model" / "weights").read_bytes() != content:
            (tmp_path / "model" / "weights").write_bytes(content)
        files = run_evaluation(Human(), scenes.windows[:4], settings, agent)
        taken_over.append(json.loads(files.summary.read_text())["num_taken_over"])
    assert taken_over == [0, 4, 0]


@pytest.mark.parametrize(
    ("test_data", "line"),
    [
        ({}, "trained on   sft navtrain: 85,109 tokens (as many as navtrain has in NAVSIM's train_logs"),
        ({"navtest": "3 of its tokens"}, "of 103,288; TRAINED ON TEST DATA: navtest\n"),
    ],
)
def test_an_evaluation_says_what_the_checkpoint_learned_from(
    scenes: SplitScenes,
    scene_cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    test_data: dict[str, str],
    line: str,
) -> None:
    """A card as a run on part of navtrain leaves it."""
    tokens = [f"{number:016x}" for number in range(85_109)]
    data = training_data("sft", "navtrain", tokens, 103_288, {}, test_data, ())
    write_card(tmp_path / "model", {"data": as_record(data)})
    agent = {"_target_": "human", "checkpoint_path": str(tmp_path / "model")}
    settings = EvaluationSettings(
        "navsim_v1", scenes.sensor_path, tmp_path, None, scene_cache, show_progress=False
    )
    files = run_evaluation(Human(), scenes.windows[:2], settings, agent)
    (record,) = json.loads(files.summary.read_text())["training_data"]
    assert (record["num_tokens"], record["test_data"]) == (85_109, test_data)
    evaluate_tool().print_results("human", files, has_checkpoint=True)
    assert line in capsys.readouterr().out
    (tmp_path / "model" / "provenance.json").unlink()
    files = run_evaluation(Human(), scenes.windows[:2], settings, agent)
    evaluate_tool().print_results("human", files, has_checkpoint=True)
    assert "trained on   not recorded" in capsys.readouterr().out


def test_predictions_hold_what_was_scored(
    scenes: SplitScenes, scene_cache: Path, goldens: Path, tmp_path: Path
) -> None:
    files = run("human", scenes, tmp_path, scene_cache)
    predictions = read_predictions(files.predictions)
    given = pd.read_parquet(goldens / "trajectories.parquet")
    human = given[given["trajectory_id"].astype(str) == "0"]
    for token, poses in zip(human["token"], human["poses"], strict=True):
        # the goldens' trajectories were rounded to six digits
        np.testing.assert_allclose(predictions[FINAL][token].ravel(), poses, atol=1e-6)


def test_scenes_that_fail_are_rows_with_their_reason(scenes: SplitScenes, tmp_path: Path) -> None:
    settings = EvaluationSettings("navsim_v1", scenes.sensor_path, tmp_path, show_progress=False)
    files = run_evaluation(Human(), scenes.windows, settings, {"_target_": "human"})
    table = read_csv(files.results)
    assert len(table) == 24
    assert not table["valid"].any()
    assert table[list(METRICS_V1)].isna().all().all()
    lines = [json.loads(line) for line in files.failures.read_text().splitlines()]
    assert [line["token"] for line in lines] == list(table["token"])
    assert "set NUPLAN_MAPS_ROOT" in lines[0]["error"]


def test_no_scenes_is_an_error(tmp_path: Path) -> None:
    settings = EvaluationSettings("navsim_v1", tmp_path, tmp_path)
    with pytest.raises(DataError, match="at least one scene"):
        run_evaluation(Human(), (), settings, {})


def test_single_folders_win_over_the_root_and_the_root_over_the_environment(navsim_mini: Path) -> None:
    logs = navsim_mini / "navsim_logs" / "test"
    keys = DatasetKeys(
        str(navsim_mini / "splits" / "train_test_split" / "synth_one_stage.yaml"),
        navsim_log_path=str(logs),
        original_sensor_path="sensors",
        max_scenes=3,
    )
    found = load_split_scenes(keys, environment={})
    assert (found.name, len(found.windows), found.sensor_path, found.maps_root) == (
        "synth_one_stage",
        3,
        Path("sensors"),
        None,
    )
    environment = {"OPENSCENE_DATA_ROOT": str(navsim_mini), "NUPLAN_MAPS_ROOT": str(navsim_mini / "maps")}
    by_variable = load_split_scenes(DatasetKeys("synth_one_stage"), environment)
    assert len(by_variable.windows) == 24
    assert by_variable.maps_root == navsim_mini / "maps"
    with pytest.raises(
        DataError, match="set dataset_root, navsim_log_path or the variable OPENSCENE_DATA_ROOT"
    ):
        load_split_scenes(DatasetKeys(keys.train_test_split), environment={})


def test_splits_of_a_navsim_checkout_are_found(navsim_mini: Path, tmp_path: Path) -> None:
    common = tmp_path / "navsim" / "planning" / "script" / "config" / "common"
    common.mkdir(parents=True)
    (common / "train_test_split").symlink_to(navsim_mini / "splits" / "train_test_split")
    keys = DatasetKeys(
        "synth_one_stage", navsim_log_path=str(navsim_mini / "navsim_logs" / "test"), original_sensor_path=""
    )
    assert len(load_split_scenes(keys, {"NAVSIM_DEVKIT_ROOT": str(tmp_path)}).windows) == 24


def evaluate_tool() -> ModuleType:
    """tools/evaluate.py as a module."""
    spec = importlib.util.spec_from_file_location("evaluate_tool", ROOT / "tools" / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_oracle_is_marked_in_every_output(
    navsim_mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Summary, what is printed, predictions, a second scoring of them, a submission, a comparison."""
    planner = build_planner(ModelChoice("debug", {"spatial_step_m": 0.125, "spatial_min_m": -2.0}), seed=0)
    planner.save_pretrained(tmp_path / "model")
    data = [
        "train_test_split=synth_one_stage",
        f"dataset_root={navsim_mini}",
        "max_scenes=3",
        "progress=false",
    ]
    best_of_n = [f"agent.checkpoint_path={tmp_path / 'model'}", "agent.num_samples=3", "agent.device=cpu"]
    files = {}
    for selection in ("first", "oracle"):
        folder = f"output_dir={tmp_path / selection}"
        agent = ["agent=drivefine_best_of_n", *best_of_n, f"agent.selection={selection}", folder]
        files[selection] = evaluated([*agent, *data])
        evaluate_tool().print_results("best_of_n", files[selection], False)
    first, oracle = (read_csv(files[selection].results)["score"] for selection in ("first", "oracle"))
    assert (oracle >= first).all()
    summaries = {name: json.loads(done.summary.read_text()) for name, done in files.items()}
    assert summaries["oracle"]["agent_name"] == "drivefine_best_of_3_oracle"
    assert summaries["oracle"]["privileged"] == "picked by the true score"
    assert summaries["first"]["privileged"] == ""
    assert summaries["first"]["planning"]["num_timed"] == 3
    assert 0.0 < summaries["first"]["planning"]["median_ms"] < 60_000
    printed = capsys.readouterr().out
    assert printed.count("PRIVILEGED   picked by the true score") == 1
    assert printed.count("ms per scene") == 2

    predictions = files["oracle"].predictions
    assert privileged_of(predictions) == "picked by the true score"
    assert privileged_of(files["first"].predictions) == ""
    again = evaluated([f"predictions={predictions}", "agent=none", f"output_dir={tmp_path / 'again'}", *data])
    assert json.loads(again.summary.read_text())["privileged"] == "picked by the true score"
    assert again.results.read_bytes() == files["oracle"].results.read_bytes()
    with pytest.raises(DataError, match="sees the past only"):
        read_prediction_files([predictions])
    assert len(read_prediction_files([files["first"].predictions])[0]) == 3

    done = subprocess.run(
        [
            sys.executable,
            ROOT / "tools" / "compare.py",
            f"one={tmp_path / 'first'}",
            f"best={tmp_path / 'oracle'}",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert "best (privileged)" in done.stdout
    assert "best is privileged (picked by the true score): a bound" in done.stdout
    assert "one (privileged)" not in done.stdout


def evaluated(overrides: list[str]) -> EvaluationFiles:
    """What tools/evaluate.py does with these overrides."""
    with initialize_config_dir(str(ROOT / "navsim_configs"), version_base="1.3"):
        return evaluate_tool().evaluate(compose("evaluate", overrides=overrides))


def command(script: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name in ("OPENSCENE_DATA_ROOT", "NUPLAN_MAPS_ROOT", "NAVSIM_EXP_ROOT", "NAVSIM_DEVKIT_ROOT"):
        environment.pop(name, None)
    whole = [sys.executable, str(ROOT / "tools" / script), *arguments, "progress=false"]
    return subprocess.run(whole, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


@pytest.mark.slow
def test_commands_evaluate_and_report(navsim_mini: Path, tmp_path: Path) -> None:
    data = ["train_test_split=synth_one_stage", f"dataset_root={navsim_mini}"]
    for agent in ("human", "constant_velocity"):
        done = command(
            "evaluate.py", f"agent={agent}", *data, f"output_dir={tmp_path / agent}", "max_scenes=14"
        )
        assert done.returncode == 0, done.stderr
        assert f"{agent}: 14 of 14 scenes valid" in done.stdout
        assert str(tmp_path / agent / "results.csv") in done.stdout
    runs = f"runs={{human: {tmp_path / 'human'}, cv: {tmp_path / 'constant_velocity'}}}"
    (tmp_path / "metrics.jsonl").write_text('{"group": "rl", "step": 1, "generated/score": 0.5}\n')
    training = f"training={{hybrid: {tmp_path}}}"
    done = command("report.py", runs, training, *data, f"output={tmp_path / 'report.html'}")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "report.html").read_text()
    assert len(re.findall(r'<script type="application/json" id="scene-\d+">', text)) == 14
    assert "PDM score of rollouts" in text
    assert len(text) < 5_000_000


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train_test_split=synth_one_stag"], "did you mean 'synth_one_stage'"),
        (["agent=humann"], "Could not find 'agent/humann'.*human"),
        (["benchmark=v9"], "Could not find 'benchmark/v9'.*navsim_v1"),
        (["batch_size=0"], "batch_size must be at least 1, got 0"),
        (["max_scenes=0"], "max_scenes must be at least 1 or null, got 0"),
        (["metric_cache_path=/nowhere"], "/nowhere"),
        (["dataset_root=/nowhere"], "no dataset folder at /nowhere"),
        (["batch_siz=3"], "batch_siz"),
        (["agent=ego_status_mlp", "agent.checkpoint_path=/nowhere"], "ego-status MLP.*in /nowhere"),
    ],
    ids=["split", "agent", "benchmark", "batch", "scenes", "cache", "dataset", "key", "checkpoint"],
)
def test_wrong_values_are_errors_that_name_them(
    overrides: list[str], message: str, navsim_mini: Path, tmp_path: Path
) -> None:
    base = [
        "agent=human",
        "train_test_split=synth_one_stage",
        f"dataset_root={navsim_mini}",
        f"output_dir={tmp_path}",
        "progress=false",
    ]
    replaced = {override.split("=")[0] for override in overrides}
    whole = [item for item in base if item.split("=")[0] not in replaced] + overrides
    with (
        initialize_config_dir(str(ROOT / "navsim_configs"), version_base="1.3"),
        pytest.raises((DataError, HydraException), match=re.compile(message, re.DOTALL)),
    ):
        evaluate_tool().evaluate(compose("evaluate", overrides=whole))


def test_the_command_answers_in_one_line_without_a_traceback(navsim_mini: Path, tmp_path: Path) -> None:
    arguments = ["agent=human", "train_test_split=x", f"dataset_root={navsim_mini}", f"output_dir={tmp_path}"]
    done = command("evaluate.py", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: unknown split 'x'")
    assert len(done.stderr.splitlines()) == 1


def test_a_report_of_a_folder_without_results_says_so(navsim_mini: Path, tmp_path: Path) -> None:
    done = command(
        "report.py",
        f"runs={{x: {tmp_path}}}",
        "train_test_split=synth_one_stage",
        f"dataset_root={navsim_mini}",
    )
    assert done.returncode != 0
    assert "must be an output folder of tools/evaluate.py" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_evaluation_needs_an_agent_or_predictions(navsim_mini: Path, tmp_path: Path) -> None:
    data = ["train_test_split=synth_one_stage", f"dataset_root={navsim_mini}", f"output_dir={tmp_path}"]
    with pytest.raises(DataError, match=r"got agent=none and no predictions: set one of the two \(agent="):
        evaluated(data)
    with pytest.raises(DataError, match=r"got an agent and old\.parquet: set one"):
        evaluated(["agent=human", "predictions=old.parquet", *data])
