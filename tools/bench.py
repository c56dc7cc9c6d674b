"""Measures what users wait for, on one core: preparing scenes, scoring, decoding with and without cache.

    make bench                # or: OMP_NUM_THREADS=1 python tools/bench.py --scenes 40 --output runs/bench

Every figure is the median over scenes or repetitions of this run on this machine; ratios compare two ways
within it. Makes a small synthetic world of its own.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from drivefine_agent.data.dataset_paths import DatasetPaths
from drivefine_agent.data.maps import Map, load_map
from drivefine_agent.data.scenes import SceneFilter, future_poses, load_scenes
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.diffusion.decoding import DecodingOptions, decode
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.drivefine_model import IMAGE_PLACEHOLDER, DriveFineModel
from drivefine_agent.scoring.build import build_scoring_scene
from drivefine_agent.scoring.cache import SceneCache, SceneCacheWriter
from drivefine_agent.scoring.scorer import score_v1
from drivefine_agent.synthetic.dataset import WorldConfig, make_world

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


def bench_scoring(windows: Sequence[SceneWindow], maps: dict[str, Map], folder: Path) -> None:
    """Scene preparation, cache, and the score of groups of trajectories."""
    build_scoring_scene(windows[0], maps[windows[0].map_name])  # compiles
    build_times = []
    with SceneCacheWriter(folder) as writer:
        for window in tqdm(windows, desc="preparing scenes", unit="scene"):
            start = time.perf_counter()
            scene = build_scoring_scene(window, maps[window.map_name])
            build_times.append(time.perf_counter() - start)
            writer.add(scene)
    cache = SceneCache(folder)
    load_times = []
    for token in cache:
        start = time.perf_counter()
        cache[token]
        load_times.append(time.perf_counter() - start)
    num_bytes = sum(path.stat().st_size for path in folder.iterdir()) / len(cache)
    tracks = [cache[token].track_is_agent.size for token in cache]
    polygons = [cache[token].polygon_kind.size for token in cache]

    print(
        f"\nScoring, NAVSIM 1.1 rules, {len(cache)} scenes (median {np.median(tracks):.0f} tracks, "
        f"{np.median(polygons):.0f} map polygons)"
    )
    print(f"  prepare a scene from log and map   {1e3 * np.median(build_times):8.2f} ms")
    size = f"({num_bytes / 1e3:.0f} kB a scene)"
    print(f"  load it from the cache             {1e3 * np.median(load_times):8.3f} ms   {size}")
    rng = np.random.default_rng(0)
    for count in NUM_PROPOSALS:
        times = []
        for window in windows:
            scene = cache[window.token]
            poses = perturbed(future_poses(window), count, rng)
            times.append(median_seconds(lambda scene=scene, poses=poses: score_v1(scene, poses), 3))
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


if __name__ == "__main__":
    main()
