"""A small model with sampled answers, and the dataset that training's own tests use."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from drivefine_agent.data.scenes import load_scenes
from drivefine_agent.data.splits import load_split
from drivefine_agent.diffusion.decoding import DenoisingTrace
from drivefine_agent.model.choices import IMAGE_PLACEHOLDER
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.drivefine_model import DriveFineModel
from drivefine_agent.scoring.cache_build import build_scene_cache, scene_refs
from drivefine_agent.training.config import ModelChoice
from drivefine_agent.training.model_choice import build_planner
from rl.config import HybridRolloutConfig
from rl.policy import PolicyBatch
from rl.rollout import SceneInputs, encode_scenes, sample_group, sample_refinements

_spec = importlib.util.spec_from_file_location(
    "training_conftest", Path(__file__).parents[1] / "training" / "conftest.py"
)
assert _spec is not None
assert _spec.loader is not None
_training = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_training)
image_dataset = _training.image_dataset
SPLIT = _training.SPLIT

NUM_SCENES = 4
"""In the scene cache."""


class Sampled(NamedTuple):
    """A model in double precision and what it sampled in two scenes: 3 answers, 2 refinements of each."""

    model: DriveFineModel
    scenes: SceneInputs
    predict_ids: torch.Tensor
    refine_ids: torch.Tensor
    config: HybridRolloutConfig
    trace: DenoisingTrace
    batch: PolicyBatch


@pytest.fixture
def sampled() -> Sampled:
    """The two experts differ, the two contexts are of different lengths."""
    torch.manual_seed(0)
    model = DriveFineModel(DriveFineConfig.debug(spatial_step_m=2.0, spatial_min_m=-64.0)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.add_(0.2 * torch.randn_like(parameter))
    spec = model.config.tiles
    tiles = torch.randint(0, 256, (2, spec.num_tiles, spec.size_px, spec.size_px, 3), dtype=torch.uint8)
    context_ids = torch.randint(0, 50, (2, 9))
    context_ids[:, 2] = IMAGE_PLACEHOLDER
    predict_ids, refine_ids = torch.randint(0, 50, (4,)), torch.randint(0, 50, (5,))
    scenes = SceneInputs(model.encode_images(tiles).detach(), context_ids, torch.tensor([9, 6]))
    config = HybridRolloutConfig(num_samples=3, num_denoising_steps=6, num_refined=2)
    context = encode_scenes(model, scenes)
    trace = sample_group(model, context, predict_ids, config, seed=3, visits=[0, 1])
    refined = sample_refinements(model, context, refine_ids, trace.actions, config, 3, [0, 1])
    targets = torch.cat([trace.actions[:, None].expand(-1, 3, -1, -1), refined], dim=2)  # (2, 3, 5, 24)
    batch = PolicyBatch(
        visual=scenes.visual,
        context_ids=scenes.context_ids,
        context_lengths=scenes.context_lengths,
        predict_ids=predict_ids,
        refine_ids=refine_ids,
        actions=trace.actions,
        step_map=trace.step_map,
        targets=targets,
    )
    return Sampled(model, scenes, predict_ids, refine_ids, config, trace, batch)


@pytest.fixture(scope="session")
def scene_cache(image_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene cache of those scenes that `max_scenes = NUM_SCENES` takes from the split."""
    folder = tmp_path_factory.mktemp("cache")
    split = load_split(SPLIT, [image_dataset / "splits"])
    windows = load_scenes(image_dataset / "navsim_logs" / split.data_split, split.scene_filter)
    chosen = [windows[i * len(windows) // NUM_SCENES] for i in range(NUM_SCENES)]
    result = build_scene_cache(scene_refs(chosen, image_dataset / "maps"), image_dataset / "maps", folder)
    assert not result.failures
    return folder


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that only knows places near the vehicle, so that rewards of samples differ."""
    overrides = {
        "spatial_step_m": 0.125,
        "spatial_min_m": -2.0,
        "pose_format": "text",
        "prompt_wording": "short",
    }
    folder = tmp_path_factory.mktemp("start")
    planner = build_planner(ModelChoice("debug", overrides), seed=0)
    other = build_planner(ModelChoice("debug", overrides), seed=1)
    planner.model.backbone.refine_layers.load_state_dict(other.model.backbone.refine_layers.state_dict())
    planner.save_pretrained(folder)
    return folder
