"""Two processes with other hash seeds, one with two workers, make the same bytes; docs/determinism.md.

That a resumed training equals an unbroken one is tested beside the trainings (tests/training, tests/rl), the
independence of decoding of batch and order in tests/agent and tests/model_side.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from drivefine_agent.training.config import ModelChoice
from drivefine_agent.training.model_choice import build_planner

ROOT = Path(__file__).parents[2]
SPLIT = "synth_one_stage"
CLOCK = re.compile(r'"(time/[^"]*|planning_ms|mean_ms|median_ms|[a-z_]*seconds|finished|created)": [^,}\n]+')
"""What tells how long something took, in JSON."""
NOT_PROMISED = {"tensorboard", "outcomes"}
"""Event files have times in their names; logs of outcomes are in the order in which workers finished."""

pytestmark = pytest.mark.slow


def settings_of(dataset: Path, cache: Path, start: Path, diffusion_start: Path) -> dict[str, Any]:
    """Trainings of two or three steps."""
    data = {
        "dataset_root": str(dataset),
        "train_test_split": SPLIT,
        "allow_test_split": True,  # its logs lie in the folder of test logs
        "i_train_on_test_tokens_of": SPLIT,
        "tile_cache_path": "tiles",
        "max_scenes": 4,
    }
    optimizer = {"learning_rate": 1e-3}
    sft = {
        **data,
        "output_dir": "sft",
        "validation_split": SPLIT,
        "max_validation_scenes": 4,
        "model": {"preset": "debug", "overrides": {"spatial_step_m": 2.0, "spatial_min_m": -64.0}},
        "generator": {
            "num_epochs": 1,
            "batch_size": 2,
            "optimizer": {**optimizer, "muon_learning_rate": 1e-2},
            "augmentation": {"mirror_probability": 0.5, "light_jitter": 0.2},
        },
        "refiner": {"num_epochs": 1, "batch_size": 2, "num_denoising_steps": 3, "optimizer": optimizer},
        "run": {"num_threads": 1, "checkpoint_every": 1, "num_denoising_steps": 4},
    }
    run = {"num_threads": 1, "checkpoint_every": 1, "batch_size": 2}
    from_start = {**data, "checkpoint_path": str(start), "metric_cache_path": str(cache)}
    grpo = {
        **from_start,
        "output_dir": "grpo",
        "rollout": {"num_samples": 4, "num_denoising_steps": 4},
        "objective": {"tau": 2},
        "generator_optimizer": optimizer,
        "run": {**run, "max_steps": 2},
    }
    hybrid = {
        **grpo,
        "output_dir": "hybrid",
        "rollout": {"num_samples": 4, "num_refined": 2, "num_denoising_steps": 4},
        "refiner_optimizer": optimizer,
    }
    diffusion = {
        **from_start,
        "output_dir": "diffusion",
        "checkpoint_path": str(diffusion_start),
        "rollout": {"num_samples": 4, "num_imitated": 2},
        "reward": {"progress_weight": 10.0},
        "head_optimizer": optimizer,
        "run": {**run, "max_steps": 2},
    }
    scorer = {
        **from_start,
        "output_dir": "scorer",
        "num_threads": 1,
        "validation_split": SPLIT,
        "max_validation_scenes": 4,
        "candidates": {
            "temperatures": [1.0],
            "num_samples": 3,
            "num_spoilt": 3,
            "num_denoising_steps": 4,
        },
        "head": {"slot_width": 4, "width": 8, "num_epochs": 2, "batch_size": 4, "num_candidates": 6},
    }
    return {
        "dataset": str(dataset),
        "start": str(start),
        "sft": sft,
        "grpo": grpo,
        "hybrid": hybrid,
        "diffusion": diffusion,
        "scorer": scorer,
    }


def make_diffusion_start(folder: Path) -> None:
    """A diffusion head whose samples differ; a new one says that there is no noise."""
    overrides = {"pose_format": "text", "prompt_wording": "short"}
    planner = build_planner(ModelChoice("debug", overrides, decoder="diffusion_head"), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in planner.model.named_parameters():
            if name.startswith("pose_head"):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    planner.save_pretrained(folder)


@pytest.fixture(scope="module")
def made(
    navsim_mini: Path,
    image_dataset: Path,
    scene_cache: Path,
    start: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """What the two processes made; they run at the same time."""
    folder = tmp_path_factory.mktemp("determinism")
    second_stage = image_dataset / "navhard_two_stage"
    if not second_stage.exists():
        shutil.copytree(navsim_mini / "navhard_two_stage", second_stage)
    make_diffusion_start(folder / "diffusion_start")
    settings = settings_of(image_dataset, scene_cache, start, folder / "diffusion_start")
    (folder / "settings.json").write_text(json.dumps(settings))
    processes = []
    for name, hash_seed, num_workers in (("one", "1", "1"), ("two", "2", "2")):
        (folder / name).mkdir()
        environment = {
            **os.environ,
            "PYTHONHASHSEED": hash_seed,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        command = [
            sys.executable,
            str(Path(__file__).with_name("products.py")),
            str(folder / "settings.json"),
            num_workers,
        ]
        with (folder / f"{name}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    command, stdout=log, stderr=subprocess.STDOUT, cwd=folder / name, env=environment
                )
            )
    for process, name in zip(processes, ("one", "two"), strict=True):
        assert process.wait() == 0, (folder / f"{name}.log").read_text(errors="replace")[-3000:]
    return folder / "one", folder / "two"


def contents(folder: Path) -> dict[str, str]:
    """Hashes of all files that are promised to be the same, of JSON without what the clock said."""
    found = {}
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        if NOT_PROMISED & set(path.relative_to(folder).parts):
            continue
        content = path.read_bytes()
        if path.suffix in (".json", ".jsonl"):
            content = CLOCK.sub("", content.decode()).encode()
        found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("world", "navsim_logs/test"),
        ("cache_navsim_v1", "scenes.pack"),
        ("cache_navsim_v2", "scenes.pack"),
        ("evaluation_v1", "results.csv"),
        ("evaluation_v2", "results.csv"),
        ("evaluation_two_stage", "results.csv"),
        ("tiles", ""),
        ("sft", "checkpoints"),
        ("grpo", "checkpoints"),
        ("hybrid", "checkpoints"),
        ("diffusion", "model/model.safetensors"),
        ("scorer", "scorer/model.safetensors"),
    ],
)
def test_two_processes_make_the_same_files(made: tuple[Path, Path], name: str, expected: str) -> None:
    one, two = (contents(folder / name) for folder in made)
    assert any(path.startswith(expected) for path in one)
    assert {path for path in one.keys() | two.keys() if one.get(path) != two.get(path)} == set()


def test_two_processes_read_and_decode_the_same(made: tuple[Path, Path]) -> None:
    assert (made[0] / "plans.npz").read_bytes() == (made[1] / "plans.npz").read_bytes()


def test_the_comparison_sees_a_difference_but_not_the_clock(tmp_path: Path) -> None:
    for name, seconds, loss in (("a", 1.5, 0.1), ("b", 2.5, 0.1), ("c", 1.5, 0.2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps({"time/step": seconds, "loss": loss}))
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert a != c
