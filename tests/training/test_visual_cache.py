"""Kept visual tokens: those the tower makes, of this tower and these images only."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drivefine_agent.planner import Planner
from drivefine_agent.training.config import TrainSFTConfig
from drivefine_agent.training.demonstrations import Demonstrations, load_demonstrations
from drivefine_agent.training.from_mapping import from_mapping
from drivefine_agent.training.model_choice import build_planner
from drivefine_agent.training.objectives import Instructions, generator_loss
from drivefine_agent.training.scenes import load_split_scenes
from drivefine_agent.training.seeds import generator_for
from drivefine_agent.training.sources import keep_visual


@pytest.fixture
def planner(debug_config: TrainSFTConfig) -> Planner:
    return build_planner(debug_config.model, seed=0)


@pytest.fixture
def scenes(debug_config: TrainSFTConfig, planner: Planner) -> Demonstrations:
    split = load_split_scenes(debug_config.paths, debug_config.train_test_split, 6, show_progress=False)
    return load_demonstrations(split, planner.prompts, None, show_progress=False)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2**-8)])
def test_kept_tokens_are_the_towers_own(
    debug_config: TrainSFTConfig,
    planner: Planner,
    scenes: Demonstrations,
    tmp_path: Path,
    dtype: Any,
    tolerance: float,
) -> None:
    data = replace(debug_config.data, visual_cache=dtype)
    (kept,) = keep_visual([scenes], data, planner.model, tmp_path, show_progress=False)
    index = np.array([4, 0, 3])
    plain, quick = scenes.batch(index), kept.batch(index)  # type: ignore[union-attr]
    assert plain.tiles is not None
    assert quick.tiles is None
    assert quick.visual is not None
    with torch.no_grad():
        own = planner.model.encode_images(plain.tiles)
    scale = own.abs().max().item()
    torch.testing.assert_close(quick.visual.float(), own, rtol=0, atol=tolerance * scale)
    predict = Instructions(planner.prompts, "cpu").predict
    losses = [
        generator_loss(
            planner.model, batch, predict, generator_for(0, "m", 0), train_vision=False
        ).total.item()
        for batch in (plain, quick)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=max(1e-5, tolerance))


def test_another_tower_or_another_image_never_meets_old_tokens(
    debug_config: TrainSFTConfig, planner: Planner, scenes: Demonstrations, tmp_path: Path
) -> None:
    data = replace(debug_config.data, visual_cache="float32")

    def files() -> set[str]:
        keep_visual([scenes], data, planner.model, tmp_path, show_progress=False)
        return {path.name for path in tmp_path.glob("*")}

    first = files()
    assert len(first) == 1
    assert files() == first  # made once
    with torch.no_grad():  # the language model does not matter, one weight of the projector does
        next(planner.model.backbone.parameters()).add_(1.0)
        assert files() == first
        planner.model.projector.layers[2].bias[3] += 1e-3
    second = files()
    assert len(second) == 2
    (newest,) = second - first
    assert newest.split("_")[1] != next(iter(first)).split("_")[1]
    assert newest.split("_")[2] == next(iter(first)).split("_")[2]
    assert scenes.images is not None
    image = scenes.images.root / scenes.images.paths[2]
    content = image.read_bytes()
    image.write_bytes(content + b"\n")
    try:
        assert len(files()) == 3
    finally:
        image.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, r"got generator\.train_vision=true: set it to false"),
        (
            {"generator": {"train_vision": False, "augmentation": {"light_jitter": 0.2}}},
            "got generator.augment",
        ),
        (
            {
                "generator": {"train_vision": False},
                "refiner": {"augmentation": {"mirror_probability": 0.5}},
            },
            r"got refiner\.augmentation with mirror_probability 0\.5",
        ),
    ],
)
def test_tokens_that_change_are_not_kept(change: dict[str, Any], message: str) -> None:
    settings = {"output_dir": "out", "data": {"visual_cache": "float32"}} | change
    with pytest.raises(ValueError, match=message):
        from_mapping(TrainSFTConfig, settings)
