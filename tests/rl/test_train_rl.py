"""Both scripts on a debug model: they run, stop, go on, and end where an unbroken run ends."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from drivefine_agent.agent import DriveFineAgent
from drivefine_agent.data.folder_lock import FolderLock
from drivefine_agent.errors import DataError
from drivefine_agent.planner import Planner
from drivefine_agent.provenance import all_training_data, as_record, describe, training_data, write_card
from drivefine_agent.training.from_mapping import from_mapping
from rl import train_grpo, train_hybrid
from rl.config import TrainGRPOConfig, TrainHybridConfig
from rl.rewards import InProcessScorer, Scores
from rl.setup import Run

ROOT = Path(__file__).parents[2]
NUM_SCENES = 4
SPLIT = "synth_one_stage"
SCRIPTS = [train_hybrid, train_grpo]
CONFIGS = {train_grpo: TrainGRPOConfig, train_hybrid: TrainHybridConfig}


@pytest.fixture
def settings(image_dataset: Path, scene_cache: Path, start: Path, tmp_path: Path) -> dict[str, Any]:
    """Two steps of two scenes, one at a time."""
    optimizer = {"learning_rate": 1e-3}
    return {
        "output_dir": str(tmp_path / "run"),
        "checkpoint_path": str(start),
        "metric_cache_path": str(scene_cache),
        "dataset_root": str(image_dataset),
        "train_test_split": SPLIT,
        "allow_test_split": True,  # its logs lie in the folder of test logs
        "i_train_on_test_tokens_of": SPLIT,
        "max_scenes": NUM_SCENES,
        "tile_cache_path": str(tmp_path.parent / "tiles"),
        "rollout": {"num_samples": 4, "num_refined": 2, "num_denoising_steps": 4},
        "objective": {"tau": 2},
        "generator_optimizer": dict(optimizer),
        "refiner_optimizer": dict(optimizer),
        "run": {"num_threads": 1, "checkpoint_every": 1, "batch_size": 2, "micro_batch_scenes": 1},
    }


def _for_script(script: ModuleType, settings: dict[str, Any]) -> dict[str, Any]:
    """Without the keys that only the hybrid script has."""
    if script is train_hybrid:
        return settings
    rollout = {k: v for k, v in settings["rollout"].items() if k != "num_refined"}
    return {k: v for k, v in settings.items() if k != "refiner_optimizer"} | {"rollout": rollout}


def _config(script: ModuleType, settings: dict[str, Any]) -> Any:
    return from_mapping(CONFIGS[script], _for_script(script, settings))


@pytest.fixture
def config(settings: dict[str, Any]) -> TrainHybridConfig:
    return from_mapping(TrainHybridConfig, settings)


def _weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return Planner.from_pretrained(Path(folder)).model.state_dict()


def _bytes(folder: str | Path) -> bytes:
    return (Path(folder) / "model" / "model.safetensors").read_bytes()


def _changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def _metrics(folder: str | Path) -> list[dict[str, float]]:
    """Numbers of the run by step, without those that depend on the clock."""
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "group" and not k.startswith("time/")} for line in lines]


# ------------------------------------------------------------------------------------------ what is trained


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_folder_in_which_another_run_works_is_refused(script: ModuleType, settings: dict[str, Any]) -> None:
    with FolderLock(settings["output_dir"]) as lock:
        with pytest.raises(DataError, match=r"one process at a time .*/run, .* in use by process \d+ on "):
            script.train(_config(script, settings))
        assert [path.name for path in lock.folder.iterdir()] == [".lock"]
    script.train(_config(script, settings))
    with FolderLock(settings["output_dir"]):  # given back
        pass


def test_a_hybrid_run_trains_both_experts_and_nothing_of_vision(
    config: TrainHybridConfig, start: Path
) -> None:
    train_hybrid.train(config)
    changed = _changed(_weights(start), _weights(Path(config.output_dir) / "model"))
    assert any("refine_layers" in name for name in changed)
    assert any(name.startswith("backbone.layers.0.") for name in changed)
    assert not any(name.startswith(("vision", "projector")) for name in changed)
    first, second = _metrics(config.output_dir)
    assert (first["step"], second["step"]) == (1, 2)
    assert first["generator/kl"] == 0.0
    assert second["generator/kl"] > 0.0  # the reference is the starting model
    for name in ("generator", "offline", "online"):
        assert first[f"{name}/clipped_share"] == second[f"{name}/clipped_share"] == 0.0
    assert 0.0 < first["generated/reward"] < 1.0
    assert first["generated/masked_share"] == first["refined/masked_share"] == 0.0
    assert first["group/reward_std"] > 0.0
    assert first["generator/grad_norm"] > 0.0
    assert first["refiner/grad_norm"] > 0.0
    assert first["offline/worse_target_log_prob"] < 0.0
    assert first["generator/entropy"] > 0.0
    card = json.loads((Path(config.output_dir) / "model" / "provenance.json").read_text())
    assert card["step"] == 2
    assert card["data"]["num_tokens"] == NUM_SCENES


def test_the_card_carries_over_what_the_parent_learned_from(
    settings: dict[str, Any], start: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SFT on 7 tokens of navtest, then GRPO: every later use of the result says so."""
    parent = tmp_path / "parent"
    shutil.copytree(start, parent)
    first = training_data("sft", "mine", list("abcdefg"), 7, {}, {"navtest": "7 of its tokens"}, ())
    write_card(parent, {"data": as_record(first), "parent": None})
    config = _config(train_grpo, settings | {"checkpoint_path": str(parent)})
    train_grpo.train(replace(config, run=replace(config.run, max_steps=1)))
    model = Path(config.output_dir) / "model"
    for folder in (model, model.parent / "checkpoints" / "0000001"):
        card = json.loads((folder / "provenance.json").read_text())
        sft, grpo = all_training_data(card)
        assert sft is not None
        assert (sft["split"], sft["num_tokens"]) == ("mine", 7)
        assert grpo is not None
        assert (grpo["stage"], grpo["split"], grpo["num_tokens"]) == ("grpo", SPLIT, NUM_SCENES)
        assert grpo["left_out"] == {"max_scenes": 20}
        assert len(card["parent"]["weights_sha256"]) == 64
    assert describe(all_training_data(card)) == (
        f"sft mine: 7 tokens; grpo {SPLIT}: 4 tokens of 24; "
        f"TRAINED ON TEST DATA: navtest, {SPLIT}, synth_two_stage"
    )
    caplog.clear()
    DriveFineAgent(checkpoint_path=str(model.parent)).initialize()
    (record,) = caplog.records
    assert "TRAINED ON TEST DATA (navtest" in record.message


@pytest.mark.parametrize("script", SCRIPTS)
def test_test_scenes_are_refused(script: ModuleType, settings: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="training must not see test data"):
        script.train(_config(script, settings | {"i_train_on_test_tokens_of": None}))
    assert not Path(settings["output_dir"]).exists()


def test_a_grpo_run_leaves_the_refiner_alone(settings: dict[str, Any], start: Path) -> None:
    train_grpo.train(_config(train_grpo, settings))
    changed = _changed(_weights(start), _weights(Path(settings["output_dir"]) / "model"))
    assert changed
    assert not any("refine_layers" in name for name in changed)
    assert [line["step"] for line in _metrics(settings["output_dir"])] == [1, 2]


def test_the_refiner_alone_leaves_everything_else_alone(config: TrainHybridConfig, start: Path) -> None:
    objective = replace(config.objective, generator=False)
    train_hybrid.train(replace(config, objective=objective, run=replace(config.run, max_steps=1)))
    before = _weights(start)
    changed = _changed(before, _weights(Path(config.output_dir) / "model"))
    assert changed
    assert changed <= {name for name in before if "refine_layers" in name}


def test_hybrid_and_grpo_train_the_generator_to_the_same_bits(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """The refiner's terms have no say in the generator's update, nor in its random numbers."""
    train_hybrid.train(_config(train_hybrid, settings))
    train_grpo.train(_config(train_grpo, settings | {"output_dir": str(tmp_path / "grpo")}))
    changed = _changed(_weights(tmp_path / "run" / "model"), _weights(tmp_path / "grpo" / "model"))
    assert changed
    assert all("refine_layers" in name for name in changed)


@pytest.mark.parametrize("part", ["offline", "online"])
def test_more_updates_greedy_anchor_and_single_terms(
    config: TrainHybridConfig, start: Path, part: str
) -> None:
    """Later updates of a step have ratios other than 1."""
    objective = replace(
        config.objective,
        **{"offline": False, "online": False, part: True},
        num_inner_updates=3,
        epsilon=0.001,
    )
    rollout = replace(config.rollout, greedy_anchor=True)
    run = replace(config.run, max_steps=1)
    train_hybrid.train(replace(config, objective=objective, rollout=rollout, run=run))
    (line,) = _metrics(config.output_dir)
    assert line["generator/clipped_share"] > 0.0
    assert line[f"{part}/clipped_share"] > 0.0
    other = "online" if part == "offline" else "offline"
    assert f"{other}/loss" not in line
    assert any(
        "refine_layers" in n for n in _changed(_weights(start), _weights(f"{config.output_dir}/model"))
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_trajectories_without_reward_do_not_stop_a_run(
    script: ModuleType, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sample of every scene, and all of one scene: means, losses and weights stay finite."""
    collect = InProcessScorer.collect

    def lossy(self: InProcessScorer, ticket: int) -> Scores:
        scores = collect(self, ticket)
        rewards = scores.rewards.copy()
        rewards[:, 0] = np.nan
        if ticket == 0:
            rewards[:] = np.nan
        return replace(scores, rewards=rewards)

    monkeypatch.setattr(InProcessScorer, "collect", lossy)
    script.train(_config(script, settings))
    lines = _metrics(settings["output_dir"])
    assert lines[1]["generated/masked_share"] == 0.25
    assert lines[0]["generated/masked_share"] == pytest.approx((1.0 + 0.25) / 2)
    assert all(np.isfinite(v) for line in lines for v in line.values())
    assert all(value.isfinite().all() for value in _weights(Path(settings["output_dir"]) / "model").values())


# ------------------------------------------------------------------------------------------ stop and go on


@pytest.mark.parametrize("script", SCRIPTS)
def test_resumed_run_equals_an_unbroken_one_bit_for_bit(
    script: ModuleType, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = _config(script, settings)
    script.train(config)
    broken = replace(config, output_dir=str(tmp_path / "broken"))
    update = Run.update

    def killed(self: Run, step: int) -> dict[str, float]:
        if step == 1:
            raise KeyboardInterrupt
        return update(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            script.train(broken)
    assert not (tmp_path / "broken" / "model").exists()
    script.train(broken)
    assert _bytes(broken.output_dir) == _bytes(config.output_dir)
    assert _metrics(broken.output_dir) == _metrics(config.output_dir)
    # A finished run is not trained again.
    monkeypatch.setattr(Run, "update", lambda *_: pytest.fail("trained again"))
    script.train(config)
    assert _bytes(broken.output_dir) == _bytes(config.output_dir)


def test_another_configuration_in_the_same_folder_is_refused(config: TrainHybridConfig) -> None:
    train_hybrid.train(replace(config, run=replace(config.run, max_steps=1)))
    with pytest.raises(DataError, match=r"run\.max_steps"):
        train_hybrid.train(config)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing(
    script: ModuleType, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = script.grpo_loss

    def broken(*arguments: Any) -> Any:
        result = loss(*arguments)
        return result._replace(total=result.total * float("nan"))

    monkeypatch.setattr(script, "grpo_loss", broken)
    with pytest.raises(FloatingPointError, match="step 0: loss and gradient must be finite"):
        script.train(_config(script, settings))
    output = Path(settings["output_dir"])
    assert not (output / "model").exists()
    assert not list((output / "checkpoints").glob("*"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_size_of_micro_batches_changes_nothing_beyond_rounding(
    script: ModuleType, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Three scenes as 1 + 1 + 1, as 2 + 1 and as 3: the same draws, losses, gradients."""
    runs = []
    for size in (1, 2, 3):
        run = settings["run"] | {"batch_size": 3, "micro_batch_scenes": size, "max_steps": 1}
        script.train(_config(script, settings | {"output_dir": str(tmp_path / f"{size}"), "run": run}))
        runs.append(_metrics(tmp_path / f"{size}")[0])
    assert runs[0]["generator/grad_norm"] > 1e-3
    for other in runs[1:]:
        assert other == pytest.approx(runs[0], rel=1e-4, abs=1e-6)


def _command(script: ModuleType, settings: dict[str, Any], **changes: Any) -> list[str]:
    flat = _for_script(script, settings) | changes
    groups = {k: v for k, v in flat.items() if isinstance(v, dict)}
    arguments = [f"{k}={v}" for k, v in flat.items() if not isinstance(v, dict)]
    arguments += [f"{g}.{k}={v}" for g, values in groups.items() for k, v in values.items()]
    return [sys.executable, f"rl/{script.__name__.split('.')[-1]}.py", *arguments]


@pytest.mark.slow
def test_killed_command_goes_on_where_it_was(settings: dict[str, Any], tmp_path: Path) -> None:
    """SIGKILL at a random time after a checkpoint, twice; then the command runs to its end."""
    settings["run"] |= {"num_epochs": 4}  # 8 steps
    subprocess.run(_command(train_hybrid, settings), cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    broken = tmp_path / "broken"
    command = _command(train_hybrid, settings, output_dir=broken)

    def newest() -> str:
        return max((path.name for path in (broken / "checkpoints").glob("0*")), default="")

    num_kills = 0
    for _ in range(2):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        before, deadline = newest(), time.monotonic() + 60
        while process.poll() is None and newest() == before and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(random.uniform(0.0, 0.4))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            num_kills += 1
        process.wait()
    assert num_kills > 0
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert _bytes(broken) == _bytes(settings["output_dir"])
    numbers = {line["step"]: line for line in _metrics(broken)}
    repeated = [line for line in _metrics(broken) if line != numbers[line["step"]]]
    assert not repeated  # steps that were done twice have equal numbers
    assert list(numbers.values()) == _metrics(settings["output_dir"])


@pytest.mark.slow
def test_grpo_runs_from_the_command_line(settings: dict[str, Any]) -> None:
    settings["run"]["max_steps"] = 1
    done = subprocess.run(
        _command(train_grpo, settings), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(_bytes(settings["output_dir"])) > 0


# --------------------------------------------------------------------------------------------------- errors


def test_scenes_that_cannot_be_scored_stop_the_run_before_anything_is_written(
    config: TrainHybridConfig,
) -> None:
    with pytest.raises(DataError, match=r"(?s)of 5 are not in .*tools/build_scene_cache\.py"):
        train_hybrid.train(replace(config, max_scenes=5))
    assert not Path(config.output_dir).exists()


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("key", ["checkpoint_path", "metric_cache_path"])
def test_what_is_missing_is_an_error_that_names_it(
    script: ModuleType, settings: dict[str, Any], key: str
) -> None:
    with pytest.raises(DataError, match="nowhere") as error:
        script.train(_config(script, settings | {key: "nowhere"}))
    assert "\n" not in str(error.value)
    assert not Path(settings["output_dir"]).exists()


def test_missing_checkpoint_is_one_line_on_the_command_line(settings: dict[str, Any]) -> None:
    done = subprocess.run(
        _command(train_grpo, settings, checkpoint_path="nowhere"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [done.stderr.strip()]
    assert done.stderr.startswith("error: no DriveFine checkpoint at nowhere")


@pytest.mark.parametrize(
    ("group", "change", "message"),
    [
        ("rollout", {"num_samples": 1}, "at least 2"),
        ("rollout", {"temperature": 0.0}, "temperature must be positive"),
        ("rollout", {"num_refined": 0}, "num_refined must be at least 1"),
        ("objective", {"tau": 5}, "must not exceed rollout.num_denoising_steps"),
        ("objective", {"generator": False, "offline": False, "online": False}, "at least one of"),
        ("objective", {"epsilon": 0.0}, "epsilon must be positive"),
        ("generator_optimizer", {"muon_learning_rate": 0.1}, "must be 0"),
        ("run", {"batch_size": 0}, "at least 1"),
        ("run", {"batchsize": 2}, "did you mean 'batch_size'"),
    ],
)
def test_impossible_settings_are_refused(
    settings: dict[str, Any], group: str, change: dict[str, Any], message: str
) -> None:
    settings[group] = settings.get(group, {}) | change
    with pytest.raises(ValueError, match=message):
        from_mapping(TrainHybridConfig, settings)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_yaml_files_hold_known_keys_and_the_papers_numbers(script: ModuleType) -> None:
    name = script.__name__.split(".")[-1]
    loaded = OmegaConf.load(ROOT / "navsim_configs" / f"{name}.yaml")
    loaded = OmegaConf.masked_copy(loaded, [k for k in loaded if k not in ("defaults", "hydra")])
    loaded.update({"checkpoint_path": "a", "metric_cache_path": "b", "output_dir": "c"})
    values: Any = OmegaConf.to_container(loaded, resolve=True)
    got = from_mapping(CONFIGS[script], values)
    wanted = CONFIGS[script](output_dir="c", checkpoint_path="a", metric_cache_path="b")
    assert (got.rollout, got.objective, got.reward) == (wanted.rollout, wanted.objective, wanted.reward)
    assert (got.rollout.num_samples, got.rollout.num_denoising_steps, got.run.batch_size) == (10, 12, 16)


# ----------------------------------------------------------------------------------------------- it learns


@pytest.mark.slow
def test_rewards_of_the_generator_rise(settings: dict[str, Any]) -> None:
    """GRPO from random weights on four scenes: samples are worth clearly more in the end."""
    settings["rollout"]["num_samples"] = 8
    settings["objective"] |= {"beta": 0.0, "tau": 1}
    settings["generator_optimizer"]["learning_rate"] = 3e-3
    settings["run"] |= {"num_epochs": 30, "batch_size": 4, "micro_batch_scenes": 4, "checkpoint_every": 100}
    train_grpo.train(_config(train_grpo, settings))
    rewards = [line["generated/reward"] for line in _metrics(settings["output_dir"])]
    first, last = np.mean(rewards[:5]), np.mean(rewards[-5:])
    assert last > first + 0.05, f"{first:.3f} -> {last:.3f}"


def _refinement_gain(settings: dict[str, Any], checkpoint: Path, output: Path) -> float:
    """What refinement is worth to the model of a checkpoint: mean over a run that hardly changes it."""
    still = settings | {
        "checkpoint_path": str(checkpoint),
        "output_dir": str(output),
        "rollout": settings["rollout"] | {"num_samples": 8, "num_refined": 8},
        "objective": settings["objective"] | {"offline": False, "online": True},
        "refiner_optimizer": {"learning_rate": 1e-12},
        "run": settings["run"] | {"num_epochs": 3, "seed": 1},
    }
    train_hybrid.train(_config(train_hybrid, still))
    return float(np.mean([line["refinement/gain"] for line in _metrics(output)]))


@pytest.mark.slow
@pytest.mark.parametrize("term", ["offline", "online"])
def test_the_refiner_learns_to_better_its_anchors(
    settings: dict[str, Any], start: Path, tmp_path: Path, term: str
) -> None:
    """Each term alone, on drafts that stay bad: fails if anchors and targets, or signs, are exchanged."""
    settings["rollout"] |= {"num_samples": 6, "num_refined": 4}
    settings["objective"] |= {"generator": False, "offline": False, "online": False, term: True}
    settings["refiner_optimizer"]["learning_rate"] = 1e-2
    settings["run"] |= {"num_epochs": 40, "batch_size": 4, "micro_batch_scenes": 4, "checkpoint_every": 100}
    train_hybrid.train(_config(train_hybrid, settings))
    before = _refinement_gain(settings, start, tmp_path / "before")
    after = _refinement_gain(settings, tmp_path / "run", tmp_path / "after")
    assert after > before + 0.05, f"{before:.3f} -> {after:.3f}"
