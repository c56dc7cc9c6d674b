"""Making, checking and scoring submissions of the small dataset, against official numbers."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from drivefine_agent.baselines.constant_velocity import ConstantVelocity
from drivefine_agent.baselines.human import Human
from drivefine_agent.data.submission import Submission, TeamInfo, read_submission, write_submission
from drivefine_agent.errors import DataError, SceneError
from drivefine_agent.evaluation.dataset import DatasetKeys, SplitScenes, load_split_scenes
from drivefine_agent.evaluation.job import EvaluationSettings
from drivefine_agent.evaluation.outcomes import predictions_table
from drivefine_agent.evaluation.results_csv import METRICS_V1, read_csv
from drivefine_agent.evaluation.results_csv_v2 import read_two_stage
from drivefine_agent.evaluation.scored_frames import METRICS_V2
from drivefine_agent.evaluation.submission_check import WantedTokens, check_submission
from drivefine_agent.evaluation.submission_job import arrange, complete, plan_samples, read_prediction_files
from drivefine_agent.evaluation.submission_score import seed_summary

ROOT = Path(__file__).parents[2]
TEAM = ["team_name=T", "authors='A, B'", "email=a@x.org", "institution=I", "country=C"]
INFO = TeamInfo("T", "A, B", "a@x.org", "I", "C")


def tool(name: str) -> ModuleType:
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(f"{name}_tool", ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(name: str, function: str, *overrides: str) -> object:
    with initialize_config_dir(str(ROOT / "navsim_configs"), version_base="1.3"):
        return getattr(tool(name), function)(compose(name, overrides=list(overrides)))


def data(navsim_mini: Path, split: str) -> list[str]:
    return [f"train_test_split={split}", f"dataset_root={navsim_mini}"]


@pytest.fixture(scope="module")
def one_stage(navsim_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one") / "submission.pkl"
    options = [*data(navsim_mini, "synth_one_stage"), *TEAM, f"output={path}", "progress=false"]
    check = call("create_submission", "create", "agent=constant_velocity", *options)
    assert check.problems == check.doubts == []
    assert check.counts == {"predictions": [24]}
    return path


@pytest.fixture(scope="module")
def stages(navsim_mini: Path) -> SplitScenes:
    return load_split_scenes(DatasetKeys("synth_two_stage", dataset_root=str(navsim_mini)), environment={})


def settings(folder: Path, batch_size: int = 16) -> EvaluationSettings:
    """For planners that do not look."""
    return EvaluationSettings("navsim_v1", folder, folder, batch_size=batch_size, show_progress=False)


class StumblesOnce(ConstantVelocity):
    """Fails on the given samples, on the first try or always."""

    def __init__(self, tokens: set[str], is_lasting: bool = False) -> None:
        self.tokens = tokens
        self.is_lasting = is_lasting
        self.num_planned = 0

    def plan(self, cases):
        bad = [case.window.token for case in cases if case.window.token in self.tokens]
        if bad:
            if len(cases) == 1 and not self.is_lasting:
                self.tokens = self.tokens - set(bad)
            raise SceneError(f"no way out of {bad[0]}")
        self.num_planned += len(cases)
        return super().plan(cases)


def test_its_score_is_that_of_the_agent_run_directly_by_the_official_navsim(
    one_stage: Path, navsim_mini: Path, goldens: Path, tmp_path: Path
) -> None:
    options = [*data(navsim_mini, "synth_one_stage"), f"output_dir={tmp_path}", "progress=false"]
    (path,) = call("score_submission", "score", f"submission={one_stage}", *options)
    official = read_csv(goldens / "v11_pdms_constant_velocity_agent.csv")
    pairs = read_csv(path).merge(official, on="token", suffixes=("", "_official"), validate="1:1")
    assert len(pairs) == len(official) == 24
    for name in METRICS_V1:
        limit = 1e-6 if name in ("ego_progress", "score") else 0.0
        assert (pairs[name] - pairs[f"{name}_official"]).abs().max() <= limit, name


@pytest.mark.slow
def test_the_two_stage_score_is_that_of_the_official_navsim(
    navsim_mini: Path, goldens: Path, tmp_path: Path
) -> None:
    path = tmp_path / "submission.pkl"
    options = [*data(navsim_mini, "synth_two_stage"), "progress=false"]
    call("create_submission", "create", "agent=constant_velocity", *options, *TEAM, f"output={path}")
    (csv,) = call("score_submission", "score", f"submission={path}", *options, f"output_dir={tmp_path}")
    ours, summaries = read_two_stage(csv)
    official, official_summaries = read_two_stage(goldens / "v22_two_cv.csv")
    pairs = ours.merge(official, on="token", suffixes=("", "_official"), validate="1:1")
    assert len(pairs) == len(official) == 60
    for name in METRICS_V2:
        limit = 1e-6 if name in ("ego_progress", "score") else 0.0
        np.testing.assert_allclose(pairs[name], pairs[f"{name}_official"], rtol=0.0, atol=limit, err_msg=name)
    for token, score in official_summaries.items():
        assert summaries[token] == pytest.approx(score, abs=1e-6)


def test_texts_reach_the_file_as_they_were_given(one_stage: Path) -> None:
    assert read_submission(one_stage).team == INFO


def test_two_stages_of_the_small_dataset(navsim_mini: Path, stages: SplitScenes, tmp_path: Path) -> None:
    path = tmp_path / "submission.pkl"
    options = [*data(navsim_mini, "synth_two_stage"), *TEAM, f"output={path}", "progress=false"]
    check = call("create_submission", "create", "agent=constant_velocity", *options)
    assert check.problems == check.doubts == []
    assert check.counts == {"first_stage_predictions": [12], "second_stage_predictions": [48]}
    second = read_submission(path).second_stage
    for window in stages.second_stage:
        speed = np.linalg.norm(window.current.ego_velocity)
        np.testing.assert_allclose(second[window.token][-1], [4.0 * speed, 0.0, 0.0], atol=1e-5)


def test_a_failed_sample_is_tried_again_and_the_others_are_taken_over(
    stages: SplitScenes, tmp_path: Path
) -> None:
    windows = stages.windows[:10]
    bad = windows[4].token
    planner = StumblesOnce({bad})
    plans = plan_samples(planner, windows, settings(tmp_path, batch_size=4), {})
    assert [plan.is_valid for plan in plans.values()] == [True] * 4 + [False] + [True] * 5
    with pytest.raises(
        DataError, match=f"1 of 10 samples could not be planned; nothing was written.*\n  {bad}: "
    ):
        complete(plans, windows, None)

    again = StumblesOnce(set())
    plans = plan_samples(again, windows, settings(tmp_path), {})
    assert again.num_planned == 1
    assert complete(plans, windows, None).filled == {}


def test_the_fallback_is_explicit_and_counted(stages: SplitScenes, tmp_path: Path) -> None:
    windows = stages.windows[:3]
    planner = StumblesOnce({windows[1].token}, is_lasting=True)
    plans = plan_samples(planner, windows, settings(tmp_path), {})
    planned = complete(plans, windows, "constant_velocity")
    assert planned.filled == {windows[1].token: f"SceneError: no way out of {windows[1].token}"}
    speed = np.linalg.norm(windows[1].current.ego_velocity)
    np.testing.assert_allclose(planned.predictions[windows[1].token][-1, 0], 4.0 * speed, rtol=1e-6)
    with pytest.raises(DataError, match="fallback must be one of"):
        complete(plans, windows, "stand_still")


def test_a_planner_that_knows_the_future_is_refused(stages: SplitScenes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sees the past only, got 'human'"):
        plan_samples(Human(), stages.windows, settings(tmp_path), {})


def test_finished_predictions_of_several_seeds_are_merged(
    one_stage: Path, navsim_mini: Path, tmp_path: Path
) -> None:
    windows = load_split_scenes(
        DatasetKeys("synth_one_stage", dataset_root=str(navsim_mini)), environment={}
    ).windows
    table = predictions_table(
        list(plan_samples(ConstantVelocity(), windows, settings(tmp_path), {}).values())
    )
    table.to_parquet(tmp_path / "seed.parquet", index=False)
    path = tmp_path / "submission.pkl"
    options = [*data(navsim_mini, "synth_one_stage"), *TEAM, f"output={path}", "progress=false"]
    files = f"predictions=[{tmp_path / 'seed.parquet'},{one_stage}]"
    check = call("create_submission", "create", files, *options)
    assert check.problems == []
    assert check.doubts == ["the seeds predictions[0] and [1] have equal trajectories"]
    assert check.counts == {"predictions": [24, 24]}

    table.iloc[1:].to_parquet(tmp_path / "short.parquet", index=False)
    path.unlink()
    with pytest.raises(DataError, match=f"lacks 1 .*{table['token'][0]}"):
        call("create_submission", "create", f"predictions={tmp_path / 'short.parquet'}", *options)
    assert not path.exists()


def test_what_does_not_fit_the_split_is_no_submission(tmp_path: Path) -> None:
    poses = np.zeros((8, 3))
    two = WantedTokens("two", ("a",), ("b",))
    with pytest.raises(DataError, match=r"number 1 lacks 1 \['b'\] and has 1 others \['c'\]"):
        arrange(INFO, [{"a": poses, "c": poses}], two)
    with pytest.raises(DataError, match="needs one file, got 2"):
        arrange(INFO, [{"a": poses, "b": poses}] * 2, two)
    submission = arrange(INFO, [{"b": poses, "a": poses}], two)
    assert (list(submission.first_stage), list(submission.second_stage)) == (["a"], ["b"])
    write_submission(tmp_path / "submission.pkl", submission)
    assert check_submission(tmp_path / "submission.pkl", two).is_good
    (both,) = read_prediction_files([tmp_path / "submission.pkl"])
    assert set(both) == {"a", "b"}


def test_summary_of_seeds_is_maximum_mean_and_sample_deviation() -> None:
    tables = [pd.DataFrame({name: [score, score] for name in METRICS_V1}) for score in (0.6, 0.7, 0.8)]
    summary = seed_summary(tables)["score"]
    np.testing.assert_allclose(summary[["max", "mean", "std"]], [0.8, 0.7, 0.1])
    assert np.isnan(seed_summary(tables[:1])["score"]["std"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["authors=[A,B]"], "'authors' must be one text"),
        (["institution=''"], "'institution' of a submission must be a text and not empty"),
        ([], "give either agent=NAME"),
        (["agent=constant_velocity", "predictions=x.parquet"], "give either agent=NAME"),
        (["agent=human"], "sees the past only"),
        (["predictions=/nowhere.parquet"], "/nowhere.parquet"),
    ],
    ids=["list", "empty", "nothing", "both", "human", "absent"],
)
def test_wrong_values_are_errors_that_name_them(
    overrides: list[str], message: str, navsim_mini: Path, tmp_path: Path
) -> None:
    given = {override.split("=")[0] for override in overrides}
    team = [item for item in TEAM if item.split("=")[0] not in given]
    output = f"output={tmp_path / 'submission.pkl'}"
    options = [*data(navsim_mini, "synth_one_stage"), *team, output, "progress=false"]
    with pytest.raises(DataError, match=message):
        call("create_submission", "create", *options, *overrides)
    assert not (tmp_path / "submission.pkl").exists()


def test_the_check_command_lists_the_problems_and_exits_with_1(
    one_stage: Path, navsim_mini: Path, tmp_path: Path
) -> None:
    whole = read_submission(one_stage).predictions[0]
    token, *others = whole
    path = tmp_path / "mine.pkl"
    write_submission(path, Submission(INFO, ({other: whole[other] for other in others},)))
    results = []
    for submission in (path, one_stage):
        arguments = [f"submission={submission}", *data(navsim_mini, "synth_one_stage")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        script = [sys.executable, str(ROOT / "tools" / "check_submission.py"), *arguments]
        results.append(
            subprocess.run(script, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
        )
    bad, good = results
    assert bad.returncode == 1
    assert "predictions: 23 trajectories" in bad.stdout
    assert "problem: the file must be called 'submission.pkl', got 'mine.pkl'" in bad.stdout
    assert f"1 of the 24 tokens of 'synth_one_stage' are missing: '{token}'" in bad.stdout
    assert "2 problems" in bad.stdout
    assert good.returncode == 0, good.stderr
    assert "the submission is complete" in good.stdout


def test_a_file_with_problems_is_scored_only_on_demand(
    one_stage: Path, navsim_mini: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.pkl"
    path.write_bytes(one_stage.read_bytes())
    options = [*data(navsim_mini, "synth_one_stage"), f"output_dir={tmp_path}", "progress=false"]
    with pytest.raises(DataError, match="or set score_anyway=true"):
        call("score_submission", "score", f"submission={path}", *options)
    (csv,) = call("score_submission", "score", f"submission={path}", *options, "score_anyway=true")
    assert len(read_csv(csv)) == 24
