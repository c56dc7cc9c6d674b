"""Commands run once, in order; and a small table made by the real ones."""

from __future__ import annotations

import shlex
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import hydra
import pandas as pd
import pytest
from omegaconf import OmegaConf

from drivefine_agent.errors import DataError
from drivefine_agent.reproduction import job
from drivefine_agent.reproduction.arms import ARMS, with_parents
from drivefine_agent.reproduction.job import Reproduction, Settings, Step, run_once, run_steps
from drivefine_agent.reproduction.plans import PLANS
from drivefine_agent.reproduction.tables import TABLES, Row, Table, fitted
from drivefine_agent.training.from_mapping import from_mapping


def test_every_row_has_a_plan_and_every_plan_an_arm() -> None:
    for table in TABLES.values():
        for row in table.rows:
            arm = PLANS[row.plan].arm
            assert arm is None or arm in ARMS
            has_drafts = arm is not None and arm.startswith(("sft", "grpo", "hybrid"))
            assert has_drafts or not row.is_draft
    for arm in ARMS.values():
        assert set(arm.needs) <= set(ARMS)
        assert (Path(__file__).parents[2] / arm.script).is_file()


def test_parents_are_trained_first_and_once() -> None:
    assert with_parents(["hybrid_scored"]) == ["sft", "scorer_sft", "hybrid_scored"]
    assert with_parents(["hybrid_coarse_n3", "grpo"]) == ["sft", "sft_n3", "hybrid_coarse_n3", "grpo"]


def test_steps_wait_for_what_they_need_and_no_longer() -> None:
    """With two at a time, b and c meet at a barrier, which neither passes alone; a is before, d after."""
    order: list[str] = []
    barrier = threading.Barrier(2, timeout=10)

    def meet(name: str) -> None:
        barrier.wait()
        order.append(name)

    steps = {
        ("x", "d", 0): Step(lambda: order.append("d"), (("x", "b", 0), ("x", "c", 0))),
        ("x", "b", 0): Step(lambda: meet("b"), (("x", "a", 0),)),
        ("x", "c", 0): Step(lambda: meet("c"), (("x", "a", 0),)),
        ("x", "a", 0): Step(lambda: order.append("a")),
    }
    run_steps(steps, jobs=2)
    assert (order[0], sorted(order[1:3]), order[3]) == ("a", ["b", "c"], "d")


def test_a_failure_ends_the_rest() -> None:
    done: list[int] = []

    def fail() -> None:
        raise DataError("no such file")

    steps = {("x", "a", 0): Step(fail), ("x", "b", 0): Step(lambda: done.append(1), (("x", "a", 0),))}
    with pytest.raises(DataError, match="no such file"):
        run_steps(steps, jobs=1)
    assert done == []


def test_a_folder_belongs_to_one_command(tmp_path: Path) -> None:
    folder = tmp_path / "split"
    script = "tools/diff_scene_caches.py"  # --help writes nothing and ends well
    run_once(folder, script, "--help", log=tmp_path / "log")
    (tmp_path / "log").unlink()
    run_once(folder, script, "--help", log=tmp_path / "log")
    assert not (tmp_path / "log").exists()  # not run again
    with pytest.raises(DataError, match="made by another command"):
        run_once(folder, script, "-h", log=tmp_path / "log")
    (folder / "command.json").write_text('["what was written before commands were timed"]')
    with pytest.raises(DataError, match="cannot read what made"):
        run_once(folder, script, "--help", log=tmp_path / "log")


def test_what_was_made_from_an_earlier_input_is_refused(tmp_path: Path) -> None:
    """Data, a model, its evaluation; then the data are deleted and made by another command."""
    script, data, model = "tools/diff_scene_caches.py", tmp_path / "data", tmp_path / "model"
    evaluation, log = tmp_path / "model" / "evaluation", tmp_path / "log"

    def make(*options: str) -> None:
        run_once(data, script, *options, log=log)
        run_once(model, script, "--help", log=log, made_from=[data])
        run_once(evaluation, script, "--help", log=log, made_from=[model])

    make("--help")
    log.unlink()
    make("--help")
    assert not log.exists()  # nothing was run again
    shutil.rmtree(data)
    with pytest.raises(DataError, match=f"what is in {model} was made from other inputs"):
        make("-h")
    (model / "command.json").unlink()
    with pytest.raises(DataError, match="other inputs"):  # nor goes on what had only been begun
        make("-h")
    (model / "made_from.json").unlink()
    with pytest.raises(DataError, match=f"what is in {evaluation} was made from other inputs"):
        make("-h")


@pytest.mark.slow
def test_a_table_of_planners_without_training(navsim_mini: Path, tmp_path: Path) -> None:
    """Both benchmarks, by the real commands, on the sample dataset."""
    table = Table(
        "Planners",
        ("PDMS", "EPDMS"),
        (Row("human", "human", base=None), Row("constant velocity", "constant_velocity")),
        benchmarks=("navsim_v1", "navsim_v2"),
        metric="EPDMS",
    )
    data = {"dataset_root": str(navsim_mini), "train_test_split": "synth_one_stage"}
    settings = Settings(
        tables=(),
        output=str(tmp_path / "out"),
        results=str(tmp_path / "results"),
        seeds=(0, 1),
        jobs=1,
        world=None,
        test_world=None,
        two_stage_world=None,
        train=data,
        validation=data,
        test=data,
        two_stage=data,
        recipes={},
        evaluation=("num_workers=1",),
    )
    Reproduction(settings).run({0: [table], 1: [table]})
    folder = tmp_path / "out" / "untrained" / "evaluations"
    for plan in ("human", "constant_velocity"):
        for benchmark in ("navsim_v1", "navsim_v2"):
            assert len(pd.read_csv(folder / plan / benchmark / "results.csv")) > 1
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("results.csv")}
    Reproduction(replace(settings, jobs=2)).run({0: [table], 1: [table]})
    assert before == {file: file.stat().st_mtime_ns for file in folder.rglob("results.csv")}


@pytest.mark.parametrize("name", ["reproduce", "reproduce_8b"])
def test_configurations_fit_the_settings(name: str) -> None:
    with hydra.initialize_config_module("navsim_configs", version_base="1.3"):
        config = hydra.compose(name, ["tables=[table6]", "output=out"])
    settings = from_mapping(Settings, OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    table = fitted(TABLES["table6"], settings.same_as, settings.skip)
    shown = {"reproduce": [0, 1, 2, 3, 5], "reproduce_8b": [0, 1, 2, 4, 6, 8]}[name]
    assert [row.x for row in table.rows] == shown
    assert {arm.recipe for arm in ARMS.values()} <= set(settings.recipes)
    main = {"reproduce": 2, "reproduce_8b": 4}[name]
    assert [row.x for row in table.rows if row.plan == "hybrid_coarse"] == [main]


def test_pages_name_the_command_with_all_that_numbers_depend_on(reproduce: ModuleType) -> None:
    options = ["--config-name", "reproduce_8b", "tables=all", "seeds=[0,1]", "output=/data/x", "jobs=2"]
    options += ["recipes.rl=[run.max_steps=9]"]
    assert shlex.split(reproduce.told_command("table4", options)) == [
        *("python", "tools/reproduce.py", "tables=[table4]", "--config-name", "reproduce_8b", "seeds=[0,1]"),
        "recipes.rl=[run.max_steps=9]",
    ]


@pytest.mark.parametrize(
    ("name", "steps"), [("reproduce", ["agent.num_denoising_steps=2"]), ("reproduce_8b", [])]
)
def test_plans_are_decoded_as_their_models_were_trained(
    name: str, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny models of Table 4 draft in 2 steps; the 8B recipe trains with 12, the agent's default."""
    with hydra.initialize_config_module("navsim_configs", version_base="1.3"):
        config = hydra.compose(name, ["tables=[table4]", "output=out"])
    settings = from_mapping(Settings, OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(job, "run_once", lambda folder, *command, **_: commands.append(command))
    for row in TABLES["table4"].rows:
        Reproduction(settings).evaluate(row.plan, "navsim_v1", 0)
        assert [option for option in commands[-1] if "num_denoising_steps" in option] == steps
        assert not any("{" in option for option in commands[-1])
    trained_in_2 = "rollout.num_denoising_steps=2" in settings.recipes["rl_coarse"]
    assert trained_in_2 == bool(steps)
