"""Sources of examples: files say the same as their logs; loader processes change nothing."""

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from drivefine_agent.data.driving_text import trajectory_text
from drivefine_agent.errors import DataError
from drivefine_agent.planner import Planner
from drivefine_agent.training.config import AugmentationConfig, SourceConfig, TrainSFTConfig
from drivefine_agent.training.demonstrations import Demonstrations, load_demonstrations
from drivefine_agent.training.from_mapping import from_mapping
from drivefine_agent.training.loader import Part, StepBatches
from drivefine_agent.training.model_choice import build_planner
from drivefine_agent.training.questions import Questions
from drivefine_agent.training.scenes import load_split_scenes
from drivefine_agent.training.sources import (
    load_sources,
    load_trajectories,
    open_file,
    open_sources,
    scenes_seen,
)
from drivefine_agent.training.split_guard import check_sources
from drivefine_agent.training.tile_cache import load_tiles

SPLIT = "synth_one_stage"


@pytest.fixture(scope="module")
def exporter() -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / "export_sft_jsonl.py"
    spec = importlib.util.spec_from_file_location("export_script", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def export(exporter: ModuleType, image_dataset: Path, tmp_path: Path) -> Any:
    """(content, prompt_type) -> the file, written by the command's own function."""

    def write(content: str, prompt_type: str = "vel_and_acc") -> Path:
        output = tmp_path / f"{content}.jsonl"
        keys = {"train_test_split": SPLIT, "dataset_root": str(image_dataset), "splits_path": None}
        rest = {"content": content, "prompt_type": prompt_type, "output": str(output), "max_scenes": None}
        exporter.export(OmegaConf.create(keys | rest))
        return output

    return write


@pytest.fixture
def planner(debug_config: TrainSFTConfig) -> Planner:
    overrides = dict(debug_config.model.overrides) | {"prompt_type": "vel_and_acc"}
    return build_planner(replace(debug_config.model, overrides=overrides), seed=0)


@pytest.fixture
def direct(debug_config: TrainSFTConfig, planner: Planner) -> Demonstrations:
    scenes = load_split_scenes(debug_config.paths, SPLIT, show_progress=False)
    return load_demonstrations(scenes, planner.prompts, None, show_progress=False)


def _image_root(dataset: Path) -> str:
    (split,) = (dataset / "sensor_blobs").iterdir()
    return str(split)


def test_exported_trajectories_are_the_logs_but_for_rounding(
    export: Any, image_dataset: Path, planner: Planner, direct: Demonstrations
) -> None:
    """Prompts are equal to the last token where they hold numbers as text: they are rounded there anyway."""
    source = SourceConfig(
        "recogdrive_trajectories",
        str(export("trajectories")),
        1.0,
        _image_root(image_dataset),
        spread_rounding=False,
    )
    read = load_trajectories(open_file(source, False), planner.prompts, None, show_progress=False)
    assert read.tokens == direct.tokens
    error = np.abs(read.poses - direct.poses)
    # Half a hundredth, or a number up to 0.015 that is written as 0.0.
    is_small = np.abs(direct.poses) < 0.0151
    assert error[~is_small].max() <= 0.005 + 1e-9
    assert error.max() < 0.0151
    np.testing.assert_array_equal(read.context_ids, direct.context_ids)
    np.testing.assert_array_equal(read.tiles[np.arange(3)], direct.tiles[np.arange(3)])


def test_numbers_of_texts_are_spread_over_what_was_rounded_to_them(
    export: Any, image_dataset: Path, planner: Planner
) -> None:
    """Written again they are the same text, yet headings no longer keep to every sixth row of their table."""
    rounded = SourceConfig(
        "recogdrive_trajectories",
        str(export("trajectories")),
        1.0,
        _image_root(image_dataset),
        spread_rounding=False,
    )
    sources = (rounded, replace(rounded, spread_rounding=True), replace(rounded, spread_rounding=True))
    before, spread, again = (
        load_trajectories(open_file(source, False), planner.prompts, None, show_progress=False)
        for source in sources
    )
    for old, new in zip(before.poses[:, 0], spread.poses[:, 0], strict=True):
        assert trajectory_text(new) == trajectory_text(old)
    np.testing.assert_array_equal(spread.context_ids, before.context_ids)  # text, in this model's prompts
    hundredths = 100 * before.poses[:, 0, :, 2]
    np.testing.assert_allclose(hundredths, np.round(hundredths), atol=1e-9)
    moved = 100 * spread.poses[:, 0, :, 2]
    assert np.abs(moved - np.round(moved)).max() > 0.4
    np.testing.assert_array_equal(spread.poses, again.poses)


def test_base_questions_are_refused_by_a_model_that_reads_velocities(
    export: Any, image_dataset: Path, planner: Planner
) -> None:
    path = export("trajectories", "base")
    source = SourceConfig("recogdrive_trajectories", str(path), 1.0, _image_root(image_dataset))
    with pytest.raises(DataError, match=r"trajectories\.jsonl, line 1: expected velocity and acceleration"):
        load_trajectories(open_file(source, False), planner.prompts, None, show_progress=False)


def test_questions_are_no_trajectories_and_bad_lines_are_named(
    export: Any, image_dataset: Path, planner: Planner
) -> None:
    root = _image_root(image_dataset)
    source = SourceConfig("recogdrive_trajectories", str(export("questions")), 1.0, root)
    with pytest.raises(
        DataError, match=r"questions\.jsonl, line 1: expected one question .* found 2: is this"
    ):
        load_trajectories(open_file(source, False), planner.prompts, None, show_progress=False)
    file = export("trajectories")
    lines = file.read_text().splitlines()
    lines[4] = lines[4].replace("[PT, ", "[PT, (")
    file.write_text("\n".join(lines))
    source = replace(source, path=str(file))
    with pytest.raises(DataError, match=r"trajectories\.jsonl, line 5: expected 8 triples"):
        load_trajectories(open_file(source, False), planner.prompts, None, show_progress=False)
    lines[4] = lines[5].replace("CAM_F0/", "CAM_F0/gone")
    file.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"cannot read image .*gone.* image_root"):
        load_trajectories(open_file(source, False), planner.prompts, None, show_progress=False)


def _mixed(config: TrainSFTConfig, export: Any, dataset: Path) -> TrainSFTConfig:
    """All three kinds of sources."""
    root = _image_root(dataset)
    sources = (
        SourceConfig("navsim", ratio=1.0),
        SourceConfig("recogdrive_trajectories", str(export("trajectories")), 0.5, root),
        SourceConfig("recogdrive_qa", str(export("questions")), 0.5, root),
    )
    return replace(config, data=replace(config.data, sources=sources, answer_lengths=(16, 48)))


def _bytes(parts: Sequence[Part]) -> list[bytes]:
    return [
        np.asarray(value).tobytes()
        for part in parts
        for value in part
        if isinstance(value, torch.Tensor | np.ndarray)
    ]


def test_loader_processes_and_resumption_change_no_bit(
    export: Any, image_dataset: Path, debug_config: TrainSFTConfig, planner: Planner, direct: Demonstrations
) -> None:
    config = _mixed(debug_config, export, image_dataset)
    tiles = Path(str(debug_config.tile_cache_path))  # decoding full-size images takes long
    assert direct.images is not None
    direct = replace(direct, tiles=load_tiles(tiles, direct.images, show_progress=False))
    split = load_split_scenes(config.paths, SPLIT, show_progress=False)
    opened = open_sources(config, split, show_progress=False)
    sources = load_sources(opened, planner.prompts, tiles, (16, 48), direct, show_progress=False)
    augmentation = AugmentationConfig(mirror_probability=0.5, light_jitter=0.2)
    batches = StepBatches(sources, config.data.ratios, 8, 0, "generator", augmentation)
    assert batches.mixture.visits == (24, 12, 12)
    stop = 2 * batches.num_epoch_steps
    plain = [_bytes(parts) for parts in batches.steps(0, stop)]
    assert [_bytes(parts) for parts in batches.steps(0, stop, num_workers=2)] == plain
    assert [_bytes(parts) for parts in batches.steps(5, stop, num_workers=1, prefetch=1)] == plain[5:]
    assert len({str(step) for step in plain}) == stop
    state = torch.get_rng_state()
    next(batches.steps(0, 1, num_workers=1))
    assert torch.equal(torch.get_rng_state(), state)  # global random numbers are not touched


def test_questions_alone_are_refused(debug_settings: dict[str, Any]) -> None:
    qa = {"kind": "recogdrive_qa", "path": "qa.jsonl", "image_root": "images"}
    with pytest.raises(ValueError, match="needs trajectories, got questions in words only"):
        from_mapping(TrainSFTConfig, debug_settings | {"data": {"sources": [qa]}})
    with pytest.raises(ValueError, match="needs path and image_root, got a"):
        SourceConfig("recogdrive_trajectories", "a.jsonl")
    with pytest.raises(ValueError, match="ratio must be positive, got 0"):
        SourceConfig("navsim", ratio=0.0)
    with pytest.raises(ValueError, match="leave image_root and image_prefix out"):
        SourceConfig("navsim", image_root="images")


def test_sources_of_a_configuration_in_order(
    export: Any, image_dataset: Path, debug_config: TrainSFTConfig, planner: Planner, direct: Demonstrations
) -> None:
    config = _mixed(debug_config, export, image_dataset)
    split = load_split_scenes(config.paths, SPLIT, show_progress=False)
    opened = open_sources(config, split, show_progress=False)
    first, second, third = load_sources(opened, planner.prompts, None, (16,), direct, show_progress=False)
    assert first is direct
    assert isinstance(second, Demonstrations)
    assert isinstance(third, Questions)
    assert config.data.uses_split
    assert not replace(config.data, sources=config.data.sources[1:]).uses_split
    assert open_sources(debug_config, split) == [split]


def test_files_are_compared_with_test_data_too(
    export: Any, image_dataset: Path, debug_config: TrainSFTConfig, tmp_path: Path
) -> None:
    """By tokens where a file has them, and by the logs that its images' folders name."""
    config = _mixed(debug_config, export, image_dataset)
    split = load_split_scenes(config.paths, SPLIT, show_progress=False)
    seen = scenes_seen(open_sources(config, split, show_progress=False), split)
    assert [scenes.name for scenes in seen] == [SPLIT, "trajectories.jsonl", "questions.jsonl"]
    assert seen[1].tokens == seen[0].tokens
    assert seen[1].logs == seen[2].logs == seen[0].logs
    assert len(seen[2].tokens) == len(split.windows)
    only_files = replace(config, data=replace(config.data, sources=config.data.sources[1:]))
    assert len(scenes_seen(open_sources(only_files, None, show_progress=False), None)) == 2
    logs = sorted(seen[0].logs)
    folder = tmp_path / "splits" / "train_test_split"
    folder.mkdir(parents=True)
    (folder / "navtest.yaml").write_text(
        f"data_split: test\nscene_filter:\n  log_names: [{logs[0]}]\n  num_history_frames: 4\n"
        "  num_future_frames: 10\n  has_route: true\n"
    )
    nowhere = replace(config.paths, navsim_log_path=tmp_path, splits=tmp_path / "none")
    listed = replace(nowhere, splits=tmp_path / "splits")
    elsewhere = replace(split, name="other", data_split="trainval", windows=())
    with pytest.raises(
        DataError, match=r"questions\.jsonl' has some: navtest \(0 of its tokens, 1 of its logs"
    ):
        check_sources(seen[1:], elsewhere, listed, config)
    data = check_sources(seen[1:], elsewhere, nowhere, config).training_data("sft")
    assert data.split == "trajectories.jsonl + questions.jsonl"
    assert data.test_data == {}
    # Trajectories and questions are of the split's scenes, each counted once; nothing was left out.
    assert data.num_tokens == data.num_split_tokens == len(split.tokens)
    assert not any(data.left_out.values())
