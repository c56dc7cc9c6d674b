"""The main job on a world of its own: data, training, evaluation, report. Needs no data, no GPU, no NAVSIM.

    make demo                                  # or: python tools/demo.py output=runs/demo
    python tools/demo.py num_train_logs=200 "sft=[]" "hybrid=[]" output=runs/longer

Every step is one of the commands a user would type, and is printed before it runs. A stopped demo goes on
where it was.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import hydra
import numpy as np
import pandas as pd
from omegaconf import DictConfig

from drivefine_agent.commands import run_command
from drivefine_agent.data.folder_lock import FolderLock
from drivefine_agent.errors import DataError

# Name in the tables -> agent=... of tools/evaluate.py.
BASELINES = ("constant_velocity", "ego_status_mlp", "human", "pdm_closed")


def demo(config: DictConfig) -> None:
    """The steps, in order."""
    started = time.monotonic()
    output = Path(config.output)
    world, sft, hybrid, mlp = (output / name for name in ("world", "sft", "hybrid", "ego_status_mlp"))
    data = f"dataset_root={world}"
    train = (data, "train_test_split=world_train", f"metric_cache_path={output / 'scene_cache_train'}")
    test = (data, "train_test_split=world_test", f"metric_cache_path={output / 'scene_cache'}")

    # A world in NAVSIM's formats, its scenes prepared for scoring.
    run_command(
        "tools/make_world.py",
        f"output={world}",
        *(f"{key}={config[key]}" for key in ("seed", "num_train_logs", "num_val_logs", "num_test_logs")),
    )
    run_command("tools/build_scene_cache.py", *train)
    run_command("tools/build_scene_cache.py", *test)

    # DriveFine: masked diffusion on the drivers' trajectories, then the refiner's warm start; then hybrid
    # reinforcement learning of both against the PDM score. And a planner without eyes, on the same scenes.
    tiles = f"tile_cache_path={output / 'tiles'}"
    run_command("tools/train_sft.py", data, f"output_dir={sft}", tiles, *config.sft)
    start = (f"checkpoint_path={sft}", f"output_dir={hybrid}", tiles)
    run_command("rl/train_hybrid.py", *train, *start, *config.hybrid)
    run_command("tools/train_ego_status_mlp.py", data, f"output_dir={mlp}")

    # PDMS on roads never trained on.
    for name in BASELINES:
        checkpoint = (f"agent.checkpoint_path={mlp}",) if name == "ego_status_mlp" else ()
        run_command(
            "tools/evaluate.py", f"agent={name}", *checkpoint, *test, f"output_dir={output / 'eval' / name}"
        )
    run_command(
        "tools/evaluate.py",
        "agent=drivefine",
        f"agent.checkpoint_path={sft / 'model'}",
        *test,
        f"output_dir={output / 'eval' / 'drivefine_sft'}",
    )
    drivefine = ("agent=drivefine", f"agent.checkpoint_path={hybrid / 'model'}", *test)
    run_command("tools/evaluate.py", *drivefine, f"output_dir={output / 'eval' / 'drivefine'}")
    run_command(
        "tools/evaluate.py",
        *drivefine,
        "blank_image=true",
        f"output_dir={output / 'eval' / 'drivefine_blind'}",
    )

    # The same plans by NAVSIM 2's rules; then two stages, where the second asks for plans from near where the
    # first ones lead, by images rendered there. Their trajectories make a file for the leaderboard.
    epdms, two_stage = output / "eval" / "drivefine_epdms", output / "eval" / "drivefine_two_stage"
    run_command(
        "tools/evaluate.py",
        "benchmark=navsim_v2",
        "agent=none",
        f"predictions={output / 'eval' / 'drivefine' / 'predictions.parquet'}",
        f"metric_cache_path_v1={output / 'scene_cache'}",
        data,
        "train_test_split=world_test",
        f"output_dir={epdms}",
    )
    stages = ("benchmark=navhard_two_stage", data, "train_test_split=world_two_stage")
    run_command(
        "tools/evaluate.py",
        *stages,
        "agent=constant_velocity",
        f"output_dir={output / 'eval' / 'constant_velocity_two_stage'}",
    )
    run_command(
        "tools/evaluate.py",
        *stages,
        "agent=drivefine",
        f"agent.checkpoint_path={hybrid / 'model'}",
        f"output_dir={two_stage}",
    )
    submission = output / "submission" / "submission.pkl"
    run_command(
        "tools/create_submission.py",
        f"predictions={two_stage / 'predictions.parquet'}",
        *stages[1:],
        "team_name=DriveFine demo",
        "authors=Nobody",
        "email=nobody@example.org",
        "institution=None",
        "country=None",
        f"output={submission}",
    )

    # Tables and a page to look at.
    names = ("drivefine", "drivefine_sft", "drivefine_blind", *BASELINES)
    before = output / "eval" / "drivefine" / "results_before_refinement.csv"
    run_command(
        "tools/compare.py",
        f"drivefine={output / 'eval' / 'drivefine'}",
        f"before_refinement={before}",
        *(f"{name}={output / 'eval' / name}" for name in names[1:]),
    )
    report = output / "report.html"
    folders = ", ".join(f"{name}: {output / 'eval' / name}" for name in names)
    run_command(
        "tools/report.py",
        f"runs={{{folders}}}",
        f"training={{supervised: {sft}, hybrid: {hybrid}}}",
        f"output={report}",
        *test,
    )

    print("\nDriveFine by the three benchmarks:")
    for folder in (epdms, two_stage):
        for row in pd.read_csv(folder / "scores.csv").itertuples():
            if not np.isnan(row.score) and row.human_penalty_filter != "false":
                print(f"  {row.benchmark:18} {row.name:23} {100 * row.score:5.1f}   {row.num_valid} scenes")
    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes.")
    for what, path in (
        ("world", world),
        ("model", hybrid / "model"),
        ("results", output / "eval"),
        ("submission", submission),
        ("report", report),
    ):
        print(f"  {what:10} {path}")


@hydra.main(version_base="1.3", config_path="../navsim_configs", config_name="demo")
def main(config: DictConfig) -> None:
    """Entry point."""
    try:
        with FolderLock(config.output):
            demo(config)
    except DataError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
