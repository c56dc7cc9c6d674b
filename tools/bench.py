"""Measures what users wait for, on one core: preparing scenes, scoring, decoding, reinforcement learning.

    make bench                # or: OMP_NUM_THREADS=1 python tools/bench.py --scenes 40 --output runs/bench

Every figure is the median over scenes or repetitions of this run on this machine; ratios compare two ways
within it. Makes a small synthetic world of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from drivefine_agent.actions import MASKED
from drivefine_agent.commands import run_command
from drivefine_agent.data.dataset_paths import DatasetPaths
from drivefine_agent.data.maps import Map, load_map
from drivefine_agent.data.scenes import SceneFilter, future_poses, load_scenes
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.diffusion.decoding import DecodingOptions, decode
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.drivefine_model import IMAGE_PLACEHOLDER, DriveFineModel
from drivefine_agent.scoring.build import build_scoring_scene
from drivefine_agent.scoring.build_v2 import build_scoring_scene_v2
from drivefine_agent.scoring.cache import SceneCache, SceneCacheWriter
from drivefine_agent.scoring.cache_layout import RULES_V1, RULES_V2
from drivefine_agent.scoring.scorer import score_v1
from drivefine_agent.scoring.scorer_v2 import score_v2
from drivefine_agent.scoring.types import ScoringScene
from drivefine_agent.synthetic.dataset import WorldConfig, make_world
from rl.config import RolloutConfig
from rl.policy import PolicyBatch, policy_log_probs
from rl.rollout import SceneInputs, encode_scenes, sample_group

NUM_PROPOSALS = (1, 10, 70, 512)
LONG_PROMPT = 1800  # tokens, the 8B model's prompt


def median_seconds(call: Callable[[], object], repetitions: int) -> float:
    """Median wall time of a call [s], after one unmeasured call."""
    call()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def perturbed(poses: NDArray[np.float64], count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(count, 8, 3) the driver's trajectory at other speeds and with drifts, like a group of samples."""
    speed = rng.uniform(0.6, 1.3, (count, 1, 1))
    drift = rng.normal(0.0, 0.3, (count, 1, 1)) * np.linspace(0.125, 1.0, 8)[None, :, None]
    return poses[None] * speed + drift * np.array([0.0, 1.0, 0.02])


# ------------------------------------------------------------------------------------------ scoring


@dataclass(frozen=True)
class Rules:
    """A scorer to be measured."""

    name: str
    cache_rules: str
    build: Callable[[SceneWindow, Map], ScoringScene]
    score: Callable[[Any, NDArray[np.float64]], object]
    num_proposals: Sequence[int]


RULES = (
    Rules("NAVSIM 1.1 rules", RULES_V1, build_scoring_scene, score_v1, NUM_PROPOSALS),
    Rules("NAVSIM 2.2 rules", RULES_V2, build_scoring_scene_v2, score_v2, NUM_PROPOSALS),
    Rules(
        "NAVSIM 2.2 rules, reactive traffic",
        RULES_V2,
        build_scoring_scene_v2,
        lambda scene, poses: score_v2(scene, poses, traffic="reactive"),
        (1, 10),
    ),
)


def bench_scoring(windows: Sequence[SceneWindow], maps: dict[str, Map], folder: Path) -> None:
    """Scene preparation, cache, and the score of groups of trajectories."""
    for rules in RULES:
        _bench_rules(rules, windows, maps, folder / rules.name.replace(" ", "_"))


def _bench_rules(rules: Rules, windows: Sequence[SceneWindow], maps: dict[str, Map], folder: Path) -> None:
    rules.build(windows[0], maps[windows[0].map_name])  # compiles
    build_times = []
    with SceneCacheWriter(folder, rules=rules.cache_rules) as writer:
        for window in tqdm(windows, desc="preparing scenes", unit="scene"):
            start = time.perf_counter()
            scene = rules.build(window, maps[window.map_name])
            build_times.append(time.perf_counter() - start)
            writer.add(scene)
    cache = SceneCache(folder, rules.cache_rules)
    load_times = []
    for token in cache:
        start = time.perf_counter()
        cache[token]
        load_times.append(time.perf_counter() - start)
    num_bytes = sum(path.stat().st_size for path in folder.iterdir()) / len(cache)
    tracks = [cache[token].track_is_agent.size for token in cache]
    polygons = [cache[token].polygon_kind.size for token in cache]

    print(
        f"\nScoring, {rules.name}, {len(cache)} scenes (median {np.median(tracks):.0f} tracks, "
        f"{np.median(polygons):.0f} map polygons)"
    )
    print(f"  prepare a scene from log and map   {1e3 * np.median(build_times):8.2f} ms")
    size = f"({num_bytes / 1e3:.0f} kB a scene)"
    print(f"  load it from the cache             {1e3 * np.median(load_times):8.3f} ms   {size}")
    rng = np.random.default_rng(0)
    for count in rules.num_proposals:
        times = []
        for window in windows:
            scene = cache[window.token]
            poses = perturbed(future_poses(window), count, rng)
            times.append(median_seconds(lambda scene=scene, poses=poses: rules.score(scene, poses), 3))
        seconds = float(np.median(times))
        rate = f"({count / seconds:,.0f} trajectories/s)"
        print(f"  score {count:4d} trajectories            {1e3 * seconds:8.2f} ms   {rate}")


# ------------------------------------------------------------------------------------------ decoding


def bench_decoding(name: str, config: DriveFineConfig, num_text_tokens: int, num_steps: int = 12) -> None:
    """The same answer with the prompt computed once, and with everything computed anew in every step."""
    torch.manual_seed(0)
    model = DriveFineModel(config).eval()
    spec = config.tiles
    tiles = torch.randint(0, 256, (1, spec.num_tiles, spec.size_px, spec.size_px, 3), dtype=torch.uint8)
    text = torch.randint(3, config.base_vocab_size, (1, num_text_tokens))
    context = torch.cat([torch.tensor([[IMAGE_PLACEHOLDER]]), text], dim=1)
    instruction = torch.randint(3, config.base_vocab_size, (4,))
    options = DecodingOptions(num_steps=num_steps, refine=False)

    def cached() -> torch.Tensor:
        prompt = model.prefill(tiles, context, instruction)
        return decode(lambda actions: model.answer_logits(prompt, actions), 1, options).actions

    def uncached() -> torch.Tensor:
        return decode(
            lambda actions: model.one_pass_logits(tiles, context, instruction, actions), 1, options
        ).actions

    with torch.inference_mode():
        is_equal = torch.equal(cached(), uncached())
        slow, fast = median_seconds(uncached, 3), median_seconds(cached, 3)
    prompt_length = config.num_visual_tokens + num_text_tokens + len(instruction)
    print(
        f"  {name:22} prompt {prompt_length:5d}, {num_steps} steps: {1e3 * slow:8.1f} ms uncached, "
        f"{1e3 * fast:7.1f} ms cached, {slow / fast:4.1f} x; tokens {'equal' if is_equal else 'DIFFER'}"
    )


# ------------------------------------------------------------------------------------------ reinforcement


def bench_policy(config: DriveFineConfig, num_text_tokens: int, num_samples: int = 10, tau: int = 3) -> None:
    """Log-probabilities of a group of samples and their gradient: one prompt for all rows or one for each."""
    torch.manual_seed(0)
    model = DriveFineModel(config).eval()
    num_steps = 12
    context_ids = torch.randint(3, config.base_vocab_size, (1, num_text_tokens))
    context_ids[0, 0] = IMAGE_PLACEHOLDER
    instruction = torch.randint(3, config.base_vocab_size, (4,))
    spec = config.tiles
    tiles = torch.randint(0, 256, (1, spec.num_tiles, spec.size_px, spec.size_px, 3), dtype=torch.uint8)
    with torch.inference_mode():
        visual = model.encode_images(tiles)
        scenes = SceneInputs(visual, context_ids, None)
        rollout = RolloutConfig(num_samples=num_samples, num_denoising_steps=num_steps)
        trace = sample_group(model, encode_scenes(model, scenes), instruction, rollout, 0, [0])
    visual, actions, steps = visual.clone(), trace.actions.clone(), trace.step_map.clone()
    batch = PolicyBatch(context_ids, None, instruction, instruction, actions, steps, None, visual)

    def packed() -> Tensor:
        log_probs = policy_log_probs(model, batch, tau, num_steps).generator
        assert log_probs is not None
        if torch.is_grad_enabled():
            log_probs.sum().backward()  # type: ignore[no-untyped-call]
        return log_probs.detach()

    def one_prompt_per_row() -> Tensor:
        total = torch.zeros(actions.shape)
        for sample in range(num_samples):
            for first in range(0, num_steps, tau):
                own, step = actions[0, sample], steps[0, sample]
                row = torch.where(step < first, own, MASKED)
                logits = model(None, context_ids, instruction, row[None, None], visual=visual)
                is_scored = (step >= first) & (step < first + tau)
                log_probs = torch.where(is_scored, logits.log_probs(own[None, None])[0, 0], 0.0)
                if torch.is_grad_enabled():
                    log_probs.sum().backward()
                total[0, sample] += log_probs.detach()
        return total

    flops = []
    for call in (packed, one_prompt_per_row):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            call()
        flops.append(counter.get_total_flops())
    difference = (packed() - one_prompt_per_row()).abs().max().item()
    fast, slow = median_seconds(packed, 3), median_seconds(one_prompt_per_row, 1)
    prompt_length = config.num_visual_tokens + num_text_tokens - 1 + len(instruction)
    print(
        f"  prompt {prompt_length}, {num_samples} samples, tau {tau}, forward and backward: "
        f"{slow:.1f} s with a prompt for each row, {fast:.2f} s behind one prompt, {slow / fast:.1f} x; "
        f"forward FLOP {flops[1] / flops[0]:.1f} x; log-probabilities differ by at most {difference:.0e}"
    )


def bench_reinforcement(folder: Path, num_steps: int = 6) -> None:
    """Steps of the real script on a small world: how long one takes, and how long it waits for rewards."""
    shutil.rmtree(folder, ignore_errors=True)
    world, cache, sft, run = (folder / name for name in ("world", "cache", "sft", "run"))
    run_command("tools/make_world.py", f"output={world}", "num_train_logs=2", "num_test_logs=0")
    data = (f"dataset_root={world}", "train_test_split=world_train")
    run_command("tools/build_scene_cache.py", *data, f"metric_cache_path={cache}")
    short = ("perception.num_epochs=0", "generator.num_epochs=1", "refiner.num_epochs=1")
    run_command(
        "tools/train_sft.py", f"dataset_root={world}", f"output_dir={sft}", "run.num_threads=1", *short
    )
    run_command(
        "rl/train_hybrid.py",
        *data,
        f"metric_cache_path={cache}",
        f"checkpoint_path={sft}",
        f"output_dir={run}",
        "run.num_epochs=100",
        f"run.max_steps={num_steps}",
        "run.num_threads=1",
    )
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    entries = [entry for entry in entries if "time/step_s" in entry][1:]  # the first one compiles
    seconds = float(np.median([entry["time/step_s"] for entry in entries]))
    share = float(np.median([entry["time/reward_wait_share"] for entry in entries]))
    print(
        f"  a step of rl/train_hybrid.py (16 scenes, 10 samples, 6 refinements of each): {seconds:.2f} s, "
        f"{100 * share:.1f} % of it spent on rewards (1,120 trajectories)"
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--scenes", type=int, default=40, help="scenes to prepare and score (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/bench"), help="folder for the world and the cache"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # one core, so that figures compare between machines

    world = arguments.output / "world"
    make_world(
        WorldConfig(
            output=str(world), num_train_logs=0, num_val_logs=0, num_test_logs=4, images="none", num_workers=1
        )
    )
    paths = DatasetPaths.from_root(world)
    windows = load_scenes(paths.logs("test"), SceneFilter(frame_interval=4))[: arguments.scenes]
    maps = {name: load_map(paths.maps_root, name) for name in {window.map_name for window in windows}}
    bench_scoring(windows, maps, arguments.output / f"cache-{os.getpid()}")

    print("\nDecoding, one scene, one core")
    bench_decoding("tiny", DriveFineConfig.tiny(), 20)
    long_prompt = DriveFineConfig.tiny()
    long_prompt.text_config.max_position_embeddings = 4096
    bench_decoding("tiny, the 8B's prompt", long_prompt, LONG_PROMPT)

    print("\nReinforcement learning, one core")
    bench_policy(long_prompt, LONG_PROMPT)
    bench_reinforcement(arguments.output / "reinforcement")


if __name__ == "__main__":
    main()
