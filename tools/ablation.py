"""The component ablation of the paper (Table 4) on the synthetic world: SFT, + GRPO, + offline, + online.

    make ablation                              # or: python tools/ablation.py output=runs/ablation
    python tools/ablation.py "seeds=[0]" "rl=[run.max_steps=20]" "evaluation=[]" output=runs/quick

All runs of a seed start from its one SFT checkpoint and take equally many reinforcement steps; each row adds
a term to the objective of the row above. Rows 1 and 2 are scored as the generator drafts, rows 3 and 4 after
refinement; the last columns tell what refinement is worth to each row, that of rows 1 and 2 being the warm
start's, and what its term is worth where all rows are refined. Test scenes lie in a city whose roads
were never trained on. Writes table.md, table.json and learning_curves.png. Every step is a command of its
own and is printed; `jobs` of them run at once, on one thread each. A stopped ablation goes on where it was.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

import hydra
from omegaconf import DictConfig
from tqdm import tqdm

from drivefine_agent.commands import run_command, stop_commands
from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.evaluation.ablation import Row, ablation_table, learning_curves
from drivefine_agent.evaluation.results_csv import read_csv

# Name -> script, what it switches off, whether its rows are scored after refinement.
ROWS = {
    "sft": (None, (), False),
    "grpo": ("rl/train_grpo.py", (), False),
    "offline": ("rl/train_hybrid.py", ("objective.online=false",), True),
    "online": ("rl/train_hybrid.py", (), True),
}
TITLES = {"sft": "SFT", "grpo": "+ GRPO", "offline": "+ offline RFT", "online": "+ online RFT"}


def ablation(config: DictConfig) -> None:
    """Data, training of every row and seed, evaluation, table."""
    started = time.monotonic()
    output = Path(config.output)
    data = f"dataset_root={output / 'world'}"
    train = (data, "train_test_split=world_train", f"metric_cache_path={output / 'cache_train'}")
    test = (
        f"dataset_root={output / 'test_world'}",
        "train_test_split=world_test",
        f"metric_cache_path={output / 'cache_test'}",
    )
    for name in ("world", "test_world"):
        arguments = (f"{key}={value}" for key, value in config[name].items())
        run_command("tools/make_world.py", f"output={output / name}", *arguments)
    run_command("tools/build_scene_cache.py", *train)
    run_command("tools/build_scene_cache.py", *test)

    def run(seed: int, name: str) -> None:
        """Training and evaluation of one row of one seed."""
        script, terms, _ = ROWS[name]
        folder = output / f"seed{seed}"
        where = (f"output_dir={folder / name}", f"run.seed={seed}", f"tile_cache_path={output / 'tiles'}")
        if script is None:
            training = ("tools/train_sft.py", data, *where, *config.sft)
        else:
            start = f"checkpoint_path={folder / 'sft'}"
            training = (script, *train, start, *where, *terms, *config.rl)
        run_command(*training, log=folder / f"{name}_train.log")
        run_command(
            "tools/evaluate.py",
            "agent=drivefine",
            f"agent.checkpoint_path={folder / name / 'model'}",
            *config.evaluation,
            *test,
            f"output_dir={folder / name / 'eval'}",
            log=folder / f"{name}_evaluate.log",
        )

    def run_after(start: Future[None], seed: int, name: str) -> None:
        """The same, from a checkpoint that must be there first."""
        start.result()
        run(seed, name)

    with ThreadPoolExecutor(config.jobs) as pool:
        jobs = {seed: pool.submit(run, seed, "sft") for seed in config.seeds}
        later = [
            pool.submit(run_after, jobs[seed], seed, name) for seed in config.seeds for name in list(ROWS)[1:]
        ]
        waiting = [*jobs.values(), *later]
        try:
            for job in tqdm(as_completed(waiting), desc="Rows", total=len(waiting), unit="row"):
                job.result()
        # Whatever ends it, an interrupt or a failure, must end the other commands too; it is raised again.
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop_commands()
            raise

    rows = []
    for name, (_, _, is_refined) in ROWS.items():
        folders = [output / f"seed{seed}" / name / "eval" for seed in config.seeds]
        drafts = [read_csv(folder / "results_before_refinement.csv") for folder in folders]
        refined = [read_csv(folder / "results.csv") for folder in folders]
        rows.append(Row(TITLES[name], drafts, refined, is_refined))
    text, table = ablation_table(rows, list(config.seeds))
    write_bytes(output / "table.md", text.encode())
    write_bytes(output / "table.json", (json.dumps(table, indent=1) + "\n").encode())
    runs = {TITLES[n]: [output / f"seed{s}" / n for s in config.seeds] for n in list(ROWS)[1:]}
    learning_curves(runs, output / "learning_curves.png")
    print(f"\n{text}\nDone in {(time.monotonic() - started) / 60:.1f} minutes.")
    for file in ("table.md", "table.json", "learning_curves.png"):
        print(f"  {output / file}")


@hydra.main(version_base="1.3", config_path="../navsim_configs", config_name="ablation")
def main(config: DictConfig) -> None:
    """Entry point."""
    ablation(config)


if __name__ == "__main__":
    main()
