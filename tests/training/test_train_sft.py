"""The whole script on a debug model: runs, stops, goes on, and ends where an unbroken run ends."""

import hashlib
import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from drivefine_agent.data.recogdrive import Turn, question_record, write_records
from drivefine_agent.data.splits import load_split
from drivefine_agent.errors import DataError
from drivefine_agent.model.text_tokenizer import TextTokenizer
from drivefine_agent.planner import Planner
from drivefine_agent.training.config import (
    AugmentationConfig,
    DataConfig,
    ModelChoice,
    SourceConfig,
    TrainSFTConfig,
)
from drivefine_agent.training.from_mapping import from_mapping
from drivefine_agent.training.model_choice import build_planner
from drivefine_agent.training.phase import Phase, batch_order
from drivefine_agent.training.scenes import load_split_scenes


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / "train_sft.py"
    spec = importlib.util.spec_from_file_location("train_sft_script", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _weights(output_dir: str) -> bytes:
    return (Path(output_dir) / "model" / "model.safetensors").read_bytes()


def _checkpoints(output_dir: str) -> dict[str, bytes]:
    """Weights, averages and optimizer states, by file."""
    folder = Path(output_dir) / "checkpoints"
    files = {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))
    }
    assert any("optimizer" in name for name in files)
    return files


def _stop_before(monkeypatch: pytest.MonkeyPatch, phase_name: str, step: int) -> None:
    """As if the process were killed while it computes optimizer step `step` of a phase."""
    update = Phase.update

    def killed(self: Phase, loss: torch.Tensor) -> dict[str, float]:
        if self.name == phase_name and self.step == step:
            raise KeyboardInterrupt
        return update(self, loss)

    monkeypatch.setattr(Phase, "update", killed)


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_resumed_run_equals_an_unbroken_one_bit_for_bit(
    script: ModuleType, debug_config: TrainSFTConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script.train(debug_config)
    broken = replace(debug_config, output_dir=str(tmp_path / "broken"))
    stops = (("perception", 2), ("generator", 3), ("generator", 5), ("refiner", 1), ("refiner", 2))
    for phase_name, step in stops:
        with monkeypatch.context() as patch:
            _stop_before(patch, phase_name, step)
            with pytest.raises(KeyboardInterrupt):
                script.train(broken)
    with monkeypatch.context() as patch:
        patch.setattr(TextTokenizer, "save", _interrupted)  # the last of the model's files
        with pytest.raises(KeyboardInterrupt):
            script.train(broken)
    assert not (tmp_path / "broken" / "model").exists()
    # A run that is killed before it has removed the checkpoint before the last leaves it behind.
    (newest,) = (tmp_path / "broken" / "checkpoints").iterdir()
    shutil.copytree(newest, newest.with_name("1_generator_0000001"))
    script.train(broken)
    assert _weights(broken.output_dir) == _weights(debug_config.output_dir)
    assert _checkpoints(broken.output_dir) == _checkpoints(debug_config.output_dir)


@pytest.mark.slow
def test_resumed_run_with_mixed_sources_and_loader_processes_equals_an_unbroken_one(
    script: ModuleType,
    debug_config: TrainSFTConfig,
    image_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Logs and questions in words, kept visual tokens; stopped inside an epoch, two loader processes."""
    scenes = load_split_scenes(debug_config.paths, debug_config.train_test_split, show_progress=False)
    images = [window.current.cameras["CAM_F0"].data_path for window in scenes.windows]
    records = [
        question_record(i, image, [Turn("What?", "KEEP"), Turn("Where?", f"{i} m ahead, to the left.")])
        for i, image in enumerate(images)
    ]
    write_records(tmp_path / "qa.jsonl", records)
    qa = SourceConfig("recogdrive_qa", str(tmp_path / "qa.jsonl"), 0.5, str(scenes.sensor_root))
    plain = AugmentationConfig()
    unbroken = replace(
        debug_config,
        data=DataConfig((SourceConfig("navsim"), qa), visual_cache="float32"),
        generator=replace(debug_config.generator, num_epochs=1, augmentation=plain, train_vision=False),
        refiner=replace(debug_config.refiner, augmentation=plain),
    )
    script.train(unbroken)
    broken = replace(
        unbroken,
        output_dir=str(tmp_path / "broken"),
        data=replace(unbroken.data, num_workers=2),
    )
    for phase_name, step in (("generator", 3), ("refiner", 2)):
        with monkeypatch.context() as patch:
            _stop_before(patch, phase_name, step)
            with pytest.raises(KeyboardInterrupt):
                script.train(broken)
    script.train(broken)
    assert _weights(broken.output_dir) == _weights(unbroken.output_dir)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["text_nll"] for line in lines if "text_nll" in line]
    assert losses
    assert {line["group"] for line in lines if "text_nll" in line} == {"generator"}


def test_finished_run_is_not_trained_again(
    script: ModuleType, debug_config: TrainSFTConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(debug_config, refiner=replace(debug_config.refiner, num_epochs=0))
    script.train(config)
    before = _weights(config.output_dir)
    monkeypatch.setattr(Phase, "update", lambda *_: pytest.fail("trained again"))
    script.train(config)
    assert _weights(config.output_dir) == before


def test_run_writes_a_model_that_plans_and_the_numbers_of_all_phases(
    script: ModuleType, debug_config: TrainSFTConfig
) -> None:
    result = script.train(debug_config)
    folder = Path(debug_config.output_dir)
    planner = Planner.from_pretrained(folder / "model")
    assert planner.model.config.n_refine == 2
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    groups = {line["group"] for line in lines}
    phases = ("perception", "generator", "refiner")
    assert groups == {*phases, *(f"{name}_validation" for name in phases)}
    assert result.refined_displacement_m == lines[-1]["refined_displacement_m"]
    assert list((folder / "tensorboard").iterdir())


def test_every_checkpoint_says_which_tokens_it_learned_from(
    script: ModuleType, debug_config: TrainSFTConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    refiner = replace(debug_config.refiner, num_epochs=0)
    perception = replace(debug_config.perception, num_epochs=0)
    generator = replace(debug_config.generator, num_epochs=1, pairs_per_scene=1)
    config = replace(debug_config, refiner=refiner, perception=perception, generator=generator)
    with monkeypatch.context() as patch:
        _stop_before(patch, "generator", 2)
        with pytest.raises(KeyboardInterrupt):
            script.train(config)
    (half_way,) = (Path(config.output_dir) / "checkpoints").iterdir()
    cards = [json.loads((half_way / "provenance.json").read_text())]
    script.train(config)
    cards.append(json.loads((Path(config.output_dir) / "model" / "provenance.json").read_text()))
    split = load_split(config.train_test_split, [config.paths.splits])
    digest = hashlib.sha256("\n".join(sorted(split.scene_filter.tokens or ())).encode()).hexdigest()
    for card in cards:
        data = card["data"]
        assert (data["stage"], data["split"], data["num_tokens"]) == ("sft", "synth_one_stage", 24)
        assert data["tokens_sha256"] == digest
        assert list(data["test_data"]) == ["synth_one_stage", "synth_two_stage"]
        assert card["validation"]["num_tokens_in_training"] == card["validation"]["num_tokens"] == 6
        assert card["parent"] is None


def test_test_scenes_are_refused_before_anything_is_trained(
    script: ModuleType, debug_config: TrainSFTConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Phase, "update", lambda *_: pytest.fail("trained"))
    with pytest.raises(DataError, match="training must not see test data"):
        script.train(replace(debug_config, allow_test_split=False))
    assert not Path(debug_config.output_dir).exists()


def test_refiner_training_leaves_the_generator_alone(
    script: ModuleType, debug_config: TrainSFTConfig
) -> None:
    """The refiner's gradient is confined to its blocks: all other weights stay equal to the last bit."""
    script.train(replace(debug_config, refiner=replace(debug_config.refiner, num_epochs=0)))
    first = Planner.from_pretrained(Path(debug_config.output_dir) / "model").model.state_dict()
    for file in ("config.json", "model/config.json"):
        (Path(debug_config.output_dir) / file).unlink()
    script.train(debug_config)  # goes on where the first call ended
    second = Planner.from_pretrained(Path(debug_config.output_dir) / "model").model.state_dict()
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    refiner = {name for name in first if "refine_layers" in name}
    assert changed == refiner


def test_another_configuration_in_the_same_folder_is_refused(
    script: ModuleType, debug_config: TrainSFTConfig, debug_settings: dict[str, Any]
) -> None:
    config = replace(debug_config, refiner=replace(debug_config.refiner, num_epochs=0))
    script.train(config)
    other = replace(config, generator=replace(config.generator, batch_size=4))
    with pytest.raises(DataError, match=r"generator\.batch_size: 8 -> 4"):
        script.train(other)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(
    script: ModuleType, debug_config: TrainSFTConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = script.sft_loss

    def broken(*arguments: Any) -> Any:
        result = loss(*arguments)
        return result._replace(total=result.total * float("nan"))

    monkeypatch.setattr(script, "sft_loss", broken)
    with pytest.raises(FloatingPointError, match=r"generator, step 0: the loss must be finite"):
        script.train(debug_config)


def test_mistyped_settings_are_named(debug_settings: dict[str, Any]) -> None:
    debug_settings["generator"]["batchsize"] = 4
    with pytest.raises(ValueError, match=r"'generator\.batchsize'.*did you mean 'batch_size'"):
        from_mapping(TrainSFTConfig, debug_settings)


@pytest.mark.parametrize(
    ("group", "change", "message"),
    [
        ("generator", {"batch_size": "8"}, r"'generator\.batch_size' must be int"),
        ("generator", {"noise": "gaussian"}, r"'generator\.noise' must be one of bernoulli, count"),
        ("generator", {"num_epochs": -1}, "num_epochs must be at least 0"),
        ("refiner", {"min_temperature": 2.0}, "min_temperature <= max_temperature"),
        ("model", {"preset": "big"}, r"'model\.preset' must be one of"),
        ("run", {"seed": True}, r"'run\.seed' must be int"),
    ],
)
def test_impossible_settings_are_refused(
    debug_settings: dict[str, Any], group: str, change: dict[str, Any], message: str
) -> None:
    debug_settings[group] |= change
    with pytest.raises(ValueError, match=message):
        from_mapping(TrainSFTConfig, debug_settings)


def test_every_epoch_visits_every_scene_in_an_order_of_its_own() -> None:
    orders = [[batch_order(10, 4, 0, "order", epoch * 3 + i) for i in range(3)] for epoch in range(2)]
    for batches in orders:
        assert [len(batch) for batch in batches] == [4, 4, 4]
        assert set(range(10)) == {int(i) for batch in batches for i in batch}
    assert not all((a == b).all() for a, b in zip(*orders, strict=True))


@pytest.mark.parametrize("decoder", ["autoregressive", "diffusion_head"])
def test_a_baseline_is_trained_by_the_same_script(
    script: ModuleType, debug_settings: dict[str, Any], decoder: str, tmp_path: Path
) -> None:
    settings = debug_settings | {"model": debug_settings["model"] | {"decoder": decoder}}
    config = from_mapping(TrainSFTConfig, settings)
    assert script.train(config) is None  # there is no refiner to validate
    lines = [
        json.loads(line) for line in (Path(config.output_dir) / "metrics.jsonl").read_text().splitlines()
    ]
    assert {line["group"] for line in lines} == {
        "perception", "perception_validation", "generator", "generator_validation",
    }  # fmt: skip
    first, *_, last = (line for line in lines if line["group"] == "generator")
    assert last["loss"] < first["loss"]
    assert ("noise_mse" in last) == (decoder == "diffusion_head")
    validation = lines[-1]
    assert validation["displacement_m"] > 0.0
    model = Planner.from_pretrained(Path(config.output_dir) / "model").model
    assert model.config.decoder_type == decoder
    assert model.config.n_refine == 0

    # From there, and from a masked model, the other one can start; it takes over all that it has too.
    other = {"autoregressive": "diffusion_head", "diffusion_head": "autoregressive"}[decoder]
    start = ModelChoice(init_from=str(Path(config.output_dir) / "model"), decoder=other)
    changed = build_planner(start, seed=0).model
    before, after = model.state_dict(), changed.state_dict()
    assert {name.split(".")[0] for name in before.keys() ^ after.keys()} == {"pose_head"}
    assert all(torch.equal(before[name], after[name]) for name in before.keys() & after.keys())


def test_a_head_can_be_trained_over_a_frozen_language_model(
    script: ModuleType, debug_settings: dict[str, Any], tmp_path: Path
) -> None:
    masked = build_planner(from_mapping(TrainSFTConfig, debug_settings).model, seed=0)
    masked.save_pretrained(tmp_path / "masked")
    generator = debug_settings["generator"] | {
        "train_language": False,
        "train_vision": False,
        "num_epochs": 1,
    }
    settings = debug_settings | {
        "model": {"init_from": str(tmp_path / "masked"), "decoder": "diffusion_head"},
        "perception": {"num_epochs": 0},
        "generator": generator,
    }
    config = from_mapping(TrainSFTConfig, settings)
    script.train(config)
    before = masked.model.state_dict()
    after = Planner.from_pretrained(Path(config.output_dir) / "model").model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in after if not name.startswith("pose_head."))
    assert float(after["pose_head.pose_out.weight"].abs().max()) > 0.0  # it started at zero

    with pytest.raises(ValueError, match="leaves only a diffusion head to train"):
        from_mapping(TrainSFTConfig, settings | {"model": {"preset": "debug", "decoder": "autoregressive"}})


def test_an_mlp_refiner_is_trained_over_a_finished_generator(
    script: ModuleType, debug_settings: dict[str, Any], tmp_path: Path
) -> None:
    """The control: it reads the answer alone, whatever image and prompt are."""
    masked = build_planner(from_mapping(TrainSFTConfig, debug_settings).model, seed=0)
    masked.save_pretrained(tmp_path / "masked")
    settings = debug_settings | {
        "model": {
            "init_from": str(tmp_path / "masked"), "overrides": {"n_refine": 0, "mlp_refiner_width": 8},
        },
        "perception": {"num_epochs": 0},
        "generator": {"num_epochs": 0},
    }  # fmt: skip
    config = from_mapping(TrainSFTConfig, settings)
    validation = script.train(config)
    assert validation.refined_displacement_m is not None
    model = Planner.from_pretrained(Path(config.output_dir) / "model").model
    before, after = masked.model.state_dict(), model.state_dict()
    new = {name for name in after if name not in before}
    assert {name.split(".")[0] for name in new} == {"mlp_refiner"}
    assert all(torch.equal(before[name], after[name]) for name in after.keys() - new)
    logits = model.mlp_refined_logits(torch.full((1, 2, 24), 3))
    logits.spatial.sum().backward()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {
        "mlp_refiner"
    }
