"""Part of `tools/bench.py`: reinforcement learning, a group's gradient and steps of the real script."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from bench_common import median_seconds
from bench_decoding import LONG_PROMPT, long_prompt_config
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from drivefine_agent.actions import MASKED
from drivefine_agent.commands import run_command
from drivefine_agent.model.choices import IMAGE_PLACEHOLDER
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.drivefine_model import DriveFineModel
from rl.config import RolloutConfig
from rl.policy import PolicyBatch, policy_log_probs
from rl.rollout import SceneInputs, encode_scenes, sample_group


def reinforcement_report(folder: Path) -> list[str]:
    """One line per measurement."""
    return [bench_policy(long_prompt_config(), LONG_PROMPT), bench_reinforcement(folder)]


def bench_policy(config: DriveFineConfig, num_text_tokens: int, num_samples: int = 10, tau: int = 3) -> str:
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
    return (
        f"  prompt {prompt_length}, {num_samples} samples, tau {tau}, forward and backward: "
        f"{slow:.1f} s with a prompt for each row, {fast:.2f} s behind one prompt, {slow / fast:.1f} x; "
        f"forward FLOP {flops[1] / flops[0]:.1f} x; log-probabilities differ by at most {difference:.0e}"
    )


def bench_reinforcement(folder: Path, num_steps: int = 6) -> str:
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
    return (
        f"  a step of rl/train_hybrid.py (16 scenes, 10 samples, 6 refinements of each): {seconds:.2f} s, "
        f"{100 * share:.1f} % of it spent on rewards (1,120 trajectories)"
    )
