"""Makes one of everything that must not depend on the process that makes it, into the working directory.

    PYTHONHASHSEED=... python tests/determinism/products.py SETTINGS.json NUM_WORKERS

Called by test_fresh_processes.py, which compares what two such processes have made. Paths of inputs are in
the settings; those of outputs are relative, since some outputs tell where they lie.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from drivefine_agent.baselines.constant_velocity import ConstantVelocity  # noqa: E402
from drivefine_agent.data.sensors import read_image  # noqa: E402
from drivefine_agent.diffusion.decoding import DecodingOptions  # noqa: E402
from drivefine_agent.evaluation.dataset import DatasetKeys, SplitScenes, load_split_scenes  # noqa: E402
from drivefine_agent.evaluation.job import EvaluationSettings, run_evaluation  # noqa: E402
from drivefine_agent.evaluation.job_v2 import run_evaluation_v2  # noqa: E402
from drivefine_agent.features import DriveFineFeatureBuilder  # noqa: E402
from drivefine_agent.navsim_inputs import observation_from_window  # noqa: E402
from drivefine_agent.planner import Planner  # noqa: E402
from drivefine_agent.scoring.cache_build import build_scene_cache, scene_refs  # noqa: E402
from drivefine_agent.scoring.cache_layout import RULES_V1, RULES_V2  # noqa: E402
from drivefine_agent.synthetic.dataset import WorldConfig, make_world  # noqa: E402
from drivefine_agent.training.config import TrainSFTConfig  # noqa: E402
from drivefine_agent.training.from_mapping import from_mapping  # noqa: E402
from rl import train_diffusion, train_grpo, train_hybrid  # noqa: E402
from rl.config import TrainGRPOConfig, TrainHybridConfig  # noqa: E402
from rl.diffusion import TrainDiffusionConfig  # noqa: E402


def make_data(dataset: Path, num_workers: int) -> None:
    """A world and scene caches."""
    world = WorldConfig(
        "world",
        num_train_logs=1,
        num_val_logs=1,
        num_test_logs=1,
        log_duration_s=10.0,
        num_two_stage_groups=1,
        followups_per_group=1,
        num_workers=1,  # tests/synthetic compares one with two
    )
    make_world(world, show_progress=False)
    scenes = scenes_of(dataset, "synth_two_stage")
    windows = (*scenes.windows, *scenes.second_stage)
    for rules in (RULES_V1, RULES_V2):
        refs = scene_refs(
            windows, dataset / "maps"
        )  # some fail by the first rules: their future is too short
        workers = num_workers if rules == RULES_V1 else 1
        build_scene_cache(refs, dataset / "maps", Path(f"cache_{rules}"), rules=rules, num_workers=workers)


def make_evaluations(dataset: Path, num_workers: int) -> None:
    """Results under all rules, of a baseline."""
    for name, split, benchmark in (
        ("evaluation_v1", "synth_one_stage", "navsim_v1"),
        ("evaluation_v2", "synth_one_stage", "navsim_v2"),
        ("evaluation_two_stage", "synth_two_stage", "navhard_two_stage"),
    ):
        scenes = scenes_of(dataset, split)
        settings = EvaluationSettings(
            benchmark=benchmark,
            sensor_path=scenes.sensor_path,
            synthetic_sensor_path=scenes.synthetic_sensor_path,
            output_dir=Path(name),
            maps_root=scenes.maps_root,
            num_workers=num_workers if benchmark == "navsim_v1" else 1,
            show_progress=False,
        )
        planner, agent = ConstantVelocity(), {"_target_": "constant_velocity"}
        if benchmark == "navsim_v1":
            run_evaluation(planner, scenes.windows, settings, agent)
        else:
            windows = (*scenes.windows, *scenes.second_stage)
            run_evaluation_v2(planner, windows, settings, agent, scenes.groups)


def make_plans(dataset: Path, checkpoint: Path) -> None:
    """What the model reads and what it answers: greedily, sampled, and in batches of another size."""
    scenes = scenes_of(dataset, "synth_one_stage")
    planner = Planner.from_pretrained(checkpoint)
    observations = []
    features = DriveFineFeatureBuilder(planner.prompts)
    arrays: dict[str, Any] = {}
    for index, window in enumerate(scenes.windows[:3]):
        image = read_image(scenes.sensor_path, window.current.cameras["CAM_F0"].data_path)
        observations.append(observation_from_window(window, image))
        for name, value in features.from_observation(observations[-1]).items():
            arrays[f"{name}_{index}"] = value.numpy()
    sampled = DecodingOptions(num_steps=4, temperature=1.0, num_samples=3)
    for name, options in (("greedy", DecodingOptions(num_steps=4)), ("sampled", sampled)):
        result = planner.plan(observations, options, seed=5)
        arrays |= {f"{name}_generated": result.generated, f"{name}_refined": result.refined}
        arrays[f"{name}_log_probs"] = result.generated_log_probs
    np.savez("plans.npz", **arrays)


def make_trainings(settings: dict[str, Any]) -> None:
    """A run of each training."""
    train_sft = script("train_sft")
    train_sft.train(from_mapping(TrainSFTConfig, settings["sft"]))
    train_grpo.train(from_mapping(TrainGRPOConfig, settings["grpo"]))
    train_hybrid.train(from_mapping(TrainHybridConfig, settings["hybrid"]))
    train_diffusion.train(from_mapping(TrainDiffusionConfig, settings["diffusion"]))
    train_scorer = script("train_scorer")
    train_scorer.train(from_mapping(train_scorer.TrainScorerConfig, settings["scorer"]))


def scenes_of(dataset: Path, split: str) -> SplitScenes:
    """The scenes of a split."""
    return load_split_scenes(DatasetKeys(split, dataset_root=str(dataset)), environment={})


def script(name: str) -> ModuleType:
    """A module of the folder tools."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Everything, in order."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    num_workers = int(sys.argv[2])
    torch.set_num_threads(1)
    dataset = Path(settings["dataset"])
    make_data(dataset, num_workers)
    make_evaluations(dataset, num_workers)
    make_plans(dataset, Path(settings["start"]))
    make_trainings(settings)


if __name__ == "__main__":  # workers import this module again
    main()
