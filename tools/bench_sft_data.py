"""How long an epoch of the generator takes by where its images come from, on the machine at hand.

    python tools/bench_sft_data.py --dataset-root runs/world --split world_train --scenes 256

Three ways, same model, scenes, orders and masks, vision frozen, one thread: images decoded when needed
(`data.cache_tiles=false`), tiles from disk, visual tokens from disk (`data.visual_cache=float32`). They take
turns in one process, step by step; printed are medians of the steps' CPU seconds, which other programs on the
machine disturb less than the clock, and their ratio to the last way. What is made once (tiles, tokens)
is printed apart.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from drivefine_agent.training.config import DataConfig, GeneratorConfig, ModelChoice, dataset_paths
from drivefine_agent.training.demonstrations import load_demonstrations
from drivefine_agent.training.loader import StepBatches
from drivefine_agent.training.model_choice import build_planner
from drivefine_agent.training.objectives import Instructions, sft_loss
from drivefine_agent.training.scenes import load_split_scenes
from drivefine_agent.training.seeds import generator_for
from drivefine_agent.training.sources import keep_visual

SETTINGS = GeneratorConfig(train_vision=False, label_smoothing_bins=10.0)


def measure(dataset_root: str, split: str, num_scenes: int, batch_size: int, folder: Path) -> None:
    """Prints the table."""
    planner = build_planner(ModelChoice("tiny"), seed=0)
    scenes = load_split_scenes(dataset_paths(dataset_root, None), split, num_scenes, show_progress=False)
    decoded = load_demonstrations(scenes, planner.prompts, None, show_progress=False)
    start = time.process_time()
    tiles = load_demonstrations(scenes, planner.prompts, folder, show_progress=False)
    tiles_made = time.process_time() - start
    start = time.process_time()
    kept = keep_visual(
        [tiles], DataConfig(visual_cache="float32"), planner.model, folder, show_progress=False
    )
    kept_made = time.process_time() - start
    ways = {
        "images decoded when needed": StepBatches([decoded], (1.0,), batch_size, 0, "bench"),
        "tiles from disk": StepBatches([tiles], (1.0,), batch_size, 0, "bench"),
        "visual tokens from disk": StepBatches(kept, (1.0,), batch_size, 0, "bench"),
    }
    instructions = Instructions(planner.prompts, "cpu")
    for part in ("vision", "projector"):
        for parameter in planner.model.parameters_of(part):
            parameter.requires_grad_(False)
    planner.model.train()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    num_steps = next(iter(ways.values())).num_epoch_steps
    for step in range(num_steps):
        for name, batches in ways.items():
            start = time.process_time()
            masks = generator_for(0, "bench masks", step)
            loss = sft_loss(planner.model, batches[step], instructions, masks, SETTINGS)
            loss.total.backward()
            planner.model.zero_grad()
            seconds[name].append(time.process_time() - start)
    best = median(seconds["visual tokens from disk"])
    print(f"tiny model, {len(scenes.windows)} scenes, {num_steps} steps of {batch_size}, one thread")
    print(f"made once: tiles {tiles_made:.1f} s, visual tokens {kept_made:.1f} s")
    for name, times in seconds.items():
        print(f"  {name:28} {median(times) * num_steps:7.2f} s per epoch, {median(times) / best:5.2f} times")


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset-root", required=True)
    parser.add_argument("--split", default="world_train")
    parser.add_argument("--scenes", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments.dataset_root, arguments.split, arguments.scenes, arguments.batch_size, Path(folder))


if __name__ == "__main__":
    main()
