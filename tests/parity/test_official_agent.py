"""`agent=drivefine*` inside the scripts of an unmodified NAVSIM, 1.1 or 2.2, beside our own tools.

Skipped where no NAVSIM can be imported, or this package is not installed beside it; see
`official_scripts.py`.
"""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from official_scripts import INTERPRETER, OfficialNavsim, find_official_navsim, need_our_agent, run_ours

from drivefine_agent.planner import Planner
from drivefine_agent.synthetic.dataset import WorldConfig, make_world
from drivefine_agent.training.config import ModelChoice
from drivefine_agent.training.model_choice import build_planner

AGENTS = ("drivefine", "drivefine_tiny", "drivefine_best_of_n")
TEAM = ("team_name=t", "authors=a", "email=e@x.org", "institution=i", "country=c")

pytestmark = [pytest.mark.navsim, pytest.mark.slow]


@pytest.fixture(scope="module")
def navsim() -> OfficialNavsim:
    navsim = find_official_navsim()
    need_our_agent()
    return navsim


@pytest.fixture(scope="module")
def dataset(navsim_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: nuplan-devkit makes a lock folder beside the maps."""
    return Path(shutil.copytree(navsim_mini, tmp_path_factory.mktemp("official") / "data"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic world with images in both stages."""
    folder = tmp_path_factory.mktemp("world") / "data"
    sizes = {"num_train_logs": 0, "num_val_logs": 0, "num_test_logs": 2, "num_two_stage_groups": 2}
    make_world(WorldConfig(output=str(folder), seed=5, num_workers=2, **sizes))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of random weights: it plans badly, but differently in every scene."""
    folder = tmp_path_factory.mktemp("run")
    build_planner(ModelChoice(preset="tiny"), seed=0).save_pretrained(folder / "model")
    return folder


def scores(path: Path) -> pd.DataFrame:
    """Rows of scenes by token, without the summaries."""
    rows = pd.read_csv(path, index_col=0).set_index("token")
    return rows[~rows.index.astype(str).str.contains("average|extended|final|stage")]


def assert_same_scores(theirs: pd.DataFrame, ours: pd.DataFrame) -> None:
    assert set(theirs.index) == set(ours.index)
    assert len(theirs) > 0
    assert theirs["valid"].all()
    columns = [c for c in ours.columns if c in theirs.columns and pd.api.types.is_numeric_dtype(theirs[c])]
    assert "score" in columns
    left, right = (table.loc[theirs.index, columns].to_numpy(dtype=np.float64) for table in (theirs, ours))
    np.testing.assert_allclose(left, right, rtol=0.0, atol=1e-9, equal_nan=True)


def rewritten(folder: Path, dataset: Path, split: str) -> Path:
    """NAVSIM's submission as its pinned numpy can load it: with numpy 2 it names classes that 1.23 lacks."""
    source, target = folder / "official" / "submission.pkl", folder / "portable" / "submission.pkl"
    arguments = (f"predictions={source}", f"dataset_root={dataset}", split, f"output={target}")
    run_ours("create_submission.py", *arguments, *TEAM)
    return target


@pytest.mark.parametrize("agent", AGENTS)
def test_every_script_that_takes_an_agent_knows_it(navsim: OfficialNavsim, dataset: Path, agent: str) -> None:
    takes_agent = [
        path.name
        for path in sorted(navsim.scripts.glob("run_*.py"))
        if "agent" in path.read_text() and "instantiate(cfg.agent" in path.read_text().replace(" ", "")
    ]
    assert {"run_pdm_score.py", "run_training.py", "run_dataset_caching.py"} <= set(takes_agent)
    for script in takes_agent:
        split = ("train_test_split=synth_one_stage", "experiment_name=x", "--cfg", "job")
        config = navsim.run(dataset, script, f"agent={agent}", *split)
        assert "_target_: drivefine_agent.agent.DriveFineAgent" in config, script
        assert config.count("navsim_log_path") > 0, script


@pytest.mark.parametrize("worker", ["sequential", "single_machine_thread_pool", "ray_distributed_no_torch"])
def test_one_stage_scores_are_those_of_our_evaluation(
    navsim: OfficialNavsim, dataset: Path, checkpoint: Path, tmp_path: Path, worker: str
) -> None:
    has_ray = (
        subprocess.run([INTERPRETER, "-c", "import ray"], capture_output=True, check=False).returncode == 0
    )
    if worker.startswith("ray") and not has_ray:
        pytest.skip(f"{INTERPRETER} has no ray, which NAVSIM's default worker needs")
    common = ("train_test_split=synth_one_stage", "experiment_name=x")
    cache = dataset.parent / f"cache_one_{navsim.version}"
    if not cache.exists():
        key = "metric_cache_path" if navsim.is_2 else "cache.cache_path"
        navsim.run(dataset, "run_metric_caching.py", common[0], f"{key}={cache}")
    script = "run_pdm_score_one_stage.py" if navsim.is_2 else "run_pdm_score.py"
    mine = ("agent=drivefine_tiny", f"agent.checkpoint_path={checkpoint}")
    traffic = ("traffic_agents=non_reactive",) if navsim.is_2 else ()
    ray = ("worker.threads_per_node=2",) if worker.startswith("ray") else ()
    output = (f"metric_cache_path={cache}", f"output_dir={tmp_path / 'official'}")
    printed = navsim.run(dataset, script, *mine, *common, *traffic, *output, *ray, worker=worker)
    assert "falls back" not in printed
    (path,) = (tmp_path / "official").glob("*.csv")
    rules = ("benchmark=navsim_v2", "pdms=false") if navsim.is_2 else ("benchmark=navsim_v1",)
    ours = (f"dataset_root={dataset}", f"output_dir={tmp_path / 'ours'}", "batch_size=1")
    run_ours("evaluate.py", *mine, *rules, common[0], *ours)
    assert_same_scores(scores(path), scores(tmp_path / "ours" / "results.csv"))


def test_two_stages_and_their_submission(
    navsim: OfficialNavsim, world: Path, checkpoint: Path, tmp_path: Path
) -> None:
    if not navsim.is_2:
        pytest.skip("NAVSIM 1.1 knows one stage only")
    split = "train_test_split=world_two_stage"
    mine = ("agent=drivefine_tiny", f"agent.checkpoint_path={checkpoint}")
    stage = world / "navhard_two_stage"
    second = (
        f"synthetic_scenes_path={stage / 'synthetic_scene_pickles'}",
        f"synthetic_sensor_path={stage / 'sensor_blobs'}",
    )
    cache = f"metric_cache_path={tmp_path / 'cache'}"
    navsim.run(world, "run_metric_caching.py", split, cache, *second)
    official = (split, "experiment_name=x", *second, f"output_dir={tmp_path / 'official'}")
    navsim.run(world, "run_pdm_score.py", *mine, *official, cache)
    (path,) = (tmp_path / "official").glob("*.csv")
    ours = (f"dataset_root={world}", split, f"output_dir={tmp_path / 'ours'}", "batch_size=1")
    run_ours("evaluate.py", *mine, "benchmark=navhard_two_stage", *ours)
    assert_same_scores(scores(path), scores(tmp_path / "ours" / "results.csv"))

    navsim.run(world, "run_create_submission_pickle.py", *mine, *official, *TEAM)
    portable = rewritten(tmp_path, world, split)
    submission = f"submission={portable}"
    run_ours("check_submission.py", submission, f"dataset_root={world}", split)
    scored = (f"dataset_root={world}", f"output_dir={tmp_path / 'scored'}")
    run_ours("score_submission.py", submission, split, *scored)
    assert_same_scores(scores(path), scores(tmp_path / "scored" / "results.csv"))


def test_a_submission_of_one_stage(
    navsim: OfficialNavsim, dataset: Path, checkpoint: Path, tmp_path: Path
) -> None:
    if navsim.is_2:
        pytest.skip("NAVSIM 2 makes submissions of two stages")
    split = "train_test_split=synth_one_stage"
    mine = ("agent=drivefine_tiny", f"agent.checkpoint_path={checkpoint}", "experiment_name=x")
    navsim.run(
        dataset, "run_create_submission_pickle.py", *mine, split, *TEAM, f"output_dir={tmp_path / 'official'}"
    )
    submission = f"submission={rewritten(tmp_path, dataset, split)}"
    run_ours("check_submission.py", submission, f"dataset_root={dataset}", split)


def test_two_epochs_of_its_training_leave_a_checkpoint_that_our_tools_load(
    navsim: OfficialNavsim, dataset: Path, tmp_path: Path
) -> None:
    logs = sorted(path.stem for path in (dataset / "navsim_logs" / "test").glob("*.pkl"))
    split = ("train_test_split=synth_one_stage", "experiment_name=x", f"cache_path={tmp_path / 'features'}")
    chosen = (f"train_logs=[{logs[0]},{logs[1]}]", f"val_logs=[{logs[2]}]", "agent=drivefine_tiny")
    navsim.run(dataset, "run_dataset_caching.py", *chosen, *split)
    cached = [path for path in (tmp_path / "features").rglob("*.gz")]
    assert len(cached) == 2 * 24  # features and targets of all samples: the cache ignores the lists of logs
    assert sum(path.stat().st_size for path in cached) / 24 < 60_000  # uint8 tiles: 147 kB before compression
    trainer = {"max_epochs": 2, "accelerator": "cpu", "strategy": "auto", "precision": 32}
    consent = ("agent.allow_test_split=true", "agent.i_train_on_test_tokens_of=synth_one_stage")
    navsim.run(
        dataset,
        "run_training.py",
        *chosen,
        *consent,
        *split,
        "use_cache_without_dataset=true",
        "force_cache_computation=false",
        "dataloader.params.batch_size=2",
        "dataloader.params.num_workers=1",
        f"output_dir={tmp_path / 'run'}",
        *(f"trainer.params.{key}={value}" for key, value in trainer.items()),
    )
    (metrics,) = (tmp_path / "run").rglob("metrics.csv")
    losses = pd.read_csv(metrics)["train/loss_epoch"].dropna().to_list()
    assert len(losses) == 2
    assert losses[1] < losses[0]
    assert Planner.from_pretrained(tmp_path / "run" / "model").model.config.n_refine > 0
    card = json.loads((tmp_path / "run" / "model" / "provenance.json").read_text())
    assert card["data"]["num_tokens"] == 12  # two logs
    assert "synth_one_stage" in card["data"]["test_data"]
    run_ours(
        "evaluate.py",
        "agent=drivefine",
        f"agent.checkpoint_path={tmp_path / 'run'}",
        split[0],
        f"dataset_root={dataset}",
        f"output_dir={tmp_path / 'ours'}",
    )
    assert scores(tmp_path / "ours" / "results.csv")["valid"].all()
