"""What two new processes on one device make alike, and how far apart the rest is; docs/determinism.md.

    python tests/determinism/gpu_check.py                  # on a GPU: minutes
    python tests/determinism/gpu_check.py --device cpu

Makes a small world. Then, for float32 and bfloat16, with and without run.deterministic=true (which is
torch.use_deterministic_algorithms), two processes each train a tiny model of random weights by SFT and by
GRPO and plan with it, greedily and sampled. Prints a Markdown table. Where torch refuses deterministic
algorithms, the row says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from products import scenes_of, script  # noqa: E402

from drivefine_agent.data.sensors import read_image  # noqa: E402
from drivefine_agent.diffusion.decoding import DecodingOptions  # noqa: E402
from drivefine_agent.navsim_inputs import observation_from_window  # noqa: E402
from drivefine_agent.planner import Planner  # noqa: E402
from drivefine_agent.scoring.cache_build import build_scene_cache, scene_refs  # noqa: E402
from drivefine_agent.synthetic.dataset import WorldConfig, make_world  # noqa: E402
from drivefine_agent.training.config import ModelChoice, TrainSFTConfig  # noqa: E402
from drivefine_agent.training.from_mapping import from_mapping  # noqa: E402
from drivefine_agent.training.model_choice import build_planner  # noqa: E402
from rl import train_grpo  # noqa: E402
from rl.config import TrainGRPOConfig  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NUM_PLANNED = 16
TRAIN, VALIDATION = "world_train", "world_val"


def make_inputs(folder: Path) -> None:
    """A world, the scene cache of its training scenes, and a model whose samples earn different rewards."""
    world = folder / "world"
    config = WorldConfig(str(world), num_train_logs=3, num_val_logs=1, num_test_logs=0, log_duration_s=20.0)
    make_world(config, show_progress=False)
    scenes = scenes_of(world, TRAIN)
    built = build_scene_cache(scene_refs(scenes.windows, world / "maps"), world / "maps", folder / "cache")
    if built.failures:
        raise SystemExit(f"scenes could not be prepared: {dict(built.failures)}")
    overrides = {"spatial_step_m": 0.125, "spatial_min_m": -2.0}
    build_planner(ModelChoice("tiny", overrides), seed=0).save_pretrained(folder / "start")


def run_settings() -> dict[str, Any]:
    return {"num_threads": 1, "deterministic": torch.are_deterministic_algorithms_enabled()}


def train_by_sft(inputs: Path, output: Path, device: str, precision: str) -> None:
    """Four epochs of the generator, two of the refiner; float32 weights, in bfloat16 under autocast."""
    settings = {
        "output_dir": str(output / "sft"),
        "dataset_root": str(inputs / "world"),
        "train_test_split": TRAIN,
        "validation_split": VALIDATION,
        "model": {"preset": "tiny"},
        "generator": {"num_epochs": 4, "batch_size": 8, "optimizer": {"learning_rate": 1e-3}},
        "refiner": {"num_epochs": 2, "batch_size": 8, "optimizer": {"learning_rate": 1e-3}},
        "run": {"device": device} | run_settings(),
    }
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16)
    with autocast if precision == "bfloat16" else contextlib.nullcontext():
        script("train_sft").train(from_mapping(TrainSFTConfig, settings))


def train_by_grpo(inputs: Path, output: Path, device: str, precision: str) -> None:
    """Four steps."""
    settings = {
        "output_dir": str(output / "grpo"),
        "dataset_root": str(inputs / "world"),
        "train_test_split": TRAIN,
        "metric_cache_path": str(inputs / "cache"),
        "checkpoint_path": str(inputs / "start"),
        "rollout": {"num_samples": 8},
        "generator_optimizer": {"learning_rate": 1e-3},
        "engine": {"device": device, "precision": precision},
        "run": {"batch_size": 8, "max_steps": 4, "num_epochs": 4} | run_settings(),
    }
    train_grpo.train(from_mapping(TrainGRPOConfig, settings))


def plan(inputs: Path, output: Path, device: str, precision: str) -> None:
    """Answers of the model of random weights, in a batch and one at a time."""
    scenes = scenes_of(inputs / "world", TRAIN)
    planner = Planner.from_pretrained(inputs / "start", device=device, dtype=DTYPES[precision])
    observations = [
        observation_from_window(
            window, read_image(scenes.sensor_path, window.current.cameras["CAM_F0"].data_path)
        )
        for window in scenes.windows[:NUM_PLANNED]
    ]
    sampled = DecodingOptions(num_steps=12, temperature=1.0, num_samples=8)
    for name, options in (("greedy", DecodingOptions(num_steps=12)), ("sampled", sampled)):
        whole = planner.plan(observations, options, seed=0)
        single = [planner.plan([observation], options, seed=0) for observation in observations]
        np.savez(
            output / f"{name}.npz",
            tokens=whole.generated_actions,
            log_probs=whole.generated_log_probs,
            single_tokens=np.concatenate([one.generated_actions for one in single]),
            single_log_probs=np.concatenate([one.generated_log_probs for one in single]),
        )


PARTS: dict[str, Callable[[Path, Path, str, str], None]] = {
    "sft": train_by_sft,
    "grpo": train_by_grpo,
    "plans": plan,
}


def make_all(inputs: Path, output: Path, device: str, precision: str, is_deterministic: bool) -> None:
    """One process's work. What torch refuses to do deterministically is written to `refused.json`."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(is_deterministic)
    refused, seconds = {}, {}
    for name, make in PARTS.items():
        started = time.perf_counter()
        try:
            make(inputs, output, device, precision)
        except RuntimeError as error:
            if "deterministic" not in str(error):
                raise
            refused[name] = str(error).split(". ")[0]
        seconds[name] = time.perf_counter() - started
    (output / "seconds.json").write_text(json.dumps(seconds))
    (output / "refused.json").write_text(json.dumps(refused))


def start(
    inputs: Path, output: Path, device: str, precision: str, is_deterministic: bool
) -> subprocess.Popen:
    """A new process that does it; its messages go to `log.txt`."""
    output.mkdir(parents=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if is_deterministic:
        environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # torch asks for it
    command = [sys.executable, __file__, f"--device={device}", f"--child={output}", f"--output={inputs}"]
    command += [f"--precision={precision}", *(["--deterministic"] if is_deterministic else [])]
    with (output / "log.txt").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


Arrays = dict[str, NDArray[Any]]


def made_by(folder: Path) -> dict[str, Arrays]:
    """Everything a process made, in float64, by what the table calls it; without what torch refused."""
    found: dict[str, Arrays] = {}
    for name in ("sft", "grpo"):
        file = folder / name / "model/model.safetensors"
        if file.is_file():
            found[f"{name}: weights"] = {
                key: value.double().numpy() for key, value in load_file(file).items()
            }
    for name in ("greedy", "sampled"):
        file = folder / f"{name}.npz"
        if file.is_file():
            for key, value in np.load(file).items():
                found[f"{name}: {key}"] = {key: value.astype(np.float64)}
    return found


def compared(one: Arrays, two: Arrays) -> str:
    """Two columns of the table: how many numbers differ, and by how much at most."""
    names = sorted(one)
    numbers = sum(one[name].size for name in names)
    different = sum(int((one[name] != two[name]).sum()) for name in names)
    largest = max(float(np.abs(one[name] - two[name]).max()) for name in names)
    return "equal | 0" if different == 0 else f"{different:,} of {numbers:,} differ | {largest:.2g}"


def table_rows(one: Path, two: Path) -> list[str]:
    """Rows of one pair of processes, without the first two columns."""
    rows = [
        f"{part} | refused: {why} |" for part, why in json.loads((one / "refused.json").read_text()).items()
    ]
    times = [json.loads((folder / "seconds.json").read_text()) for folder in (one, two)]
    rows += [f"{part}: seconds | {times[0][part]:.1f} and {times[1][part]:.1f} |" for part in times[0]]
    first, second = made_by(one), made_by(two)
    for name in first:
        if "single" not in name:
            rows.append(f"{name} | {compared(first[name], second[name])}")
    for name in ("greedy", "sampled"):
        for key in ("tokens", "log_probs"):
            batch, single = first.get(f"{name}: {key}"), first.get(f"{name}: single_{key}")
            if batch is not None and single is not None:
                text = compared(batch, {key: single[f"single_{key}"]})
                rows.append(f"{name}: {key}, batch {NUM_PLANNED} and 1 in one process | {text}")
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, help="a new folder; default: a temporary one")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--precision", choices=sorted(DTYPES), help=argparse.SUPPRESS)
    parser.add_argument("--deterministic", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        make_all(given.output, given.child, given.device, given.precision, given.deterministic)
        return
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.output or Path(temporary)
        make_inputs(folder)
        seconds = time.perf_counter() - started
        print(f"inputs: {seconds:.0f} s", flush=True)
        name = torch.cuda.get_device_name() if given.device.startswith("cuda") else given.device
        print(f"\n{name}, torch {torch.__version__}\n", flush=True)
        print("| precision | deterministic algorithms | what | two processes | largest difference |")
        print("| --- | --- | --- | --- | ---: |", flush=True)
        for precision in ("float32", "bfloat16"):
            for is_deterministic in (False, True):
                word = "yes" if is_deterministic else "no"
                outputs = [folder / f"{precision}_{word}_{number}" for number in (1, 2)]
                pair = [
                    start(folder, output, given.device, precision, is_deterministic) for output in outputs
                ]
                codes = [process.wait() for process in pair]
                for output, code in zip(outputs, codes, strict=True):
                    if code:
                        text = (output / "log.txt").read_text(errors="replace")[-3000:]
                        sys.exit(f"a process ended with exit code {code}: {text}")
                for row in table_rows(*outputs):
                    print(f"| {precision} | {word} | {row} |", flush=True)
    print(f"\n{time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":  # workers import this module again
    main()
