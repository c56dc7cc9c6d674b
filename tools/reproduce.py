"""The paper's tables and figures, each with one command, at whatever size the configuration says.

    python tools/reproduce.py tables=[table4]                    # the component ablation
    python tools/reproduce.py tables=all seeds=[0,1,2] jobs=2
    python tools/reproduce.py --config-name reproduce_8b tables=[table1] recipes.sft=[...]

Trains what the tables show (drivefine_agent/reproduction/arms.py), evaluates it with tools/evaluate.py
(plans.py), and writes for each table NAME.csv, NAME.md and NAME.png into `results`, with intervals and the
paper's numbers beside ours. What several tables show is trained once; every step is a command of its own and
is printed, `jobs` of them run at once; a stopped run goes on where it was. All keys:
navsim_configs/reproduce.yaml.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.data.folder_lock import FolderLock
from drivefine_agent.errors import DataError, DriveFineError
from drivefine_agent.evaluation.dataset import DatasetKeys, SplitScenes, load_split_scenes
from drivefine_agent.evaluation.job import BEFORE_NAME, PREDICTIONS_NAME, RESULTS_NAME
from drivefine_agent.evaluation.outcomes import FINAL, GENERATED, read_predictions
from drivefine_agent.evaluation.results_csv import read_csv
from drivefine_agent.reproduction.job import Reproduction, Settings
from drivefine_agent.reproduction.pages import draw, to_csv, to_markdown
from drivefine_agent.reproduction.pairs import Pair, draw_pairs, most_changed
from drivefine_agent.reproduction.plans import PLANS
from drivefine_agent.reproduction.results import read_evaluation, table_results
from drivefine_agent.reproduction.scores import TableScores, add_scores, read_scores
from drivefine_agent.reproduction.tables import TABLES, Table, fitted
from drivefine_agent.scoring.cache import SceneCache
from drivefine_agent.training.from_mapping import from_mapping

PAIRS_EACH = 2
"""Gains, and losses, in Figure 6."""


def reproduce(settings: Settings, options: Sequence[str] = ()) -> None:
    """Runs what is missing, then writes the pages, which name the command's `options`."""
    started = time.monotonic()
    unknown = sorted(set(settings.tables) - set(TABLES))
    if unknown:
        raise DataError(
            f"tables must be among {', '.join(TABLES)}, got {', '.join(unknown)}: choose of these, or "
            "tables=all"
        )
    tables = {name: fitted(TABLES[name], settings.same_as, settings.skip) for name in settings.tables}
    job = Reproduction(settings)
    kept = {
        name: read_scores(scores_file(settings, name), job.fingerprint(table))
        for name, table in tables.items()
    }
    job.run({s: [t for name, t in tables.items() if not kept[name].has(t, s)] for s in settings.seeds})
    minutes = (time.monotonic() - started) / 60
    for name, table in tables.items():
        if any(not kept[name].has(table, seed) for seed in settings.seeds):
            collect(table, job, kept[name])
            add_scores(scores_file(settings, name), kept[name])
        write_table(name, table, job, kept[name], options)
    print(f"\nDone; commands of this call took {minutes:.1f} minutes.")


def scores_file(settings: Settings, name: str) -> Path:
    """Where the scenes behind a table are kept."""
    return Path(settings.results) / "scores" / f"{name}.parquet"


def collect(table: Table, job: Reproduction, scores: TableScores) -> None:
    """Adds the seeds that were run here, from the evaluations."""
    for window in split_of(table, job.settings).windows:
        scores.log_of[window.token] = window.log_name
    for seed in job.settings.seeds:
        if scores.has(table, seed):
            continue
        for row in table.rows:
            folders = {b: job.evaluation_folder(row.plan, b, seed) for b in table.benchmarks}
            scores.add(row.title, seed, read_evaluation(folders, row.is_draft), table.columns)
        scores.minutes[seed] = job.minutes(table, seed)


def split_of(table: Table, settings: Settings) -> SplitScenes:
    """The held-out scenes of a table."""
    keys = settings.two_stage if table.benchmarks == ("navhard_two_stage",) else settings.test
    return load_split_scenes(from_mapping(DatasetKeys, keys))


def write_table(
    name: str, table: Table, job: Reproduction, scores: TableScores, options: Sequence[str]
) -> None:
    """NAME.csv, NAME.md, NAME.png in the folder of results."""
    settings = job.settings
    shown = [[scores.tables[row.title, seed] for seed in settings.seeds] for row in table.rows]
    results = table_results(table, shown, [PLANS[row.plan].note for row in table.rows], scores.log_of)
    latency_ms: list[float] = []
    if table.kind == "latency":
        known = job.latencies()
        latency_ms = [known[row.latency] for row in table.rows if row.latency is not None]
    folder = Path(settings.results)
    notes = folder / "notes" / f"{name}.md"
    took = ", ".join(f"{scores.minutes[seed]:.0f}" for seed in settings.seeds)
    took += " minutes by seed" if len(settings.seeds) > 1 else " minutes"
    facts = [
        f"Made by `{told_command(name, options)}` ({len(set(scores.log_of.values()))} logs).",
        f"Training and evaluating all rows took {took}, one command after another; what other tables show",
        f"too is counted again. By scene: [scores/{name}.parquet](scores/{name}.parquet).",
    ]
    text = to_markdown(
        name,
        table,
        results,
        settings.seeds,
        facts,
        notes.read_text(encoding="utf-8") if notes.is_file() else "",
        latency_ms,
    )
    write_bytes(folder / f"{name}.csv", to_csv(table, results, settings.seeds).encode())
    write_bytes(folder / f"{name}.md", text.encode())
    picture = folder / f"{name}.png"
    if table.kind != "pairs":
        draw(table, results, picture, latency_ms)
    elif plans_folder(table, job).is_dir() or not picture.is_file():  # else made elsewhere, and stays
        scenes = split_of(table, settings)
        draw_pairs(chosen_pairs(table, job, scenes), scenes, picture)
    print(f"\n{text}\n  {folder / name}.csv, .md, .png")


def plans_folder(table: Table, job: Reproduction) -> Path:
    """Where the plans that Figure 6 shows were made: those of the first seed."""
    return job.evaluation_folder(table.rows[1].plan, "navsim_v1", job.settings.seeds[0])


def chosen_pairs(table: Table, job: Reproduction, scenes: SplitScenes) -> list[Pair]:
    """The plans that refinement changed most."""
    folder = plans_folder(table, job)
    tokens = most_changed(read_csv(folder / BEFORE_NAME), read_csv(folder / RESULTS_NAME), PAIRS_EACH)
    plans = read_predictions(folder / PREDICTIONS_NAME)
    windows = {window.token: window for window in scenes.windows}
    cache = SceneCache(job.output / "cache_test")
    return [Pair(windows[t], cache[t], plans[GENERATED][t], plans[FINAL][t]) for t in tokens]


def told_command(name: str, options: Sequence[str]) -> str:
    """The command that makes one table, without what no number depends on: folders, and jobs at a time."""
    free = ("tables=", "output=", "results=", "jobs=")
    told = (option for option in options if not option.startswith(free))
    return shlex.join(["python", "tools/reproduce.py", f"tables=[{name}]", *told])


@hydra.main(version_base="1.3", config_path="../navsim_configs", config_name="reproduce")
def main(config: DictConfig) -> None:
    """Convert errors made for people into one line; everything else is a bug and keeps its traceback."""
    try:
        values: Any = OmegaConf.to_container(config, resolve=True)
        if values["tables"] == "all":
            values["tables"] = list(TABLES)
        job = HydraConfig.get()
        chosen = [] if job.job.config_name == "reproduce" else ["--config-name", str(job.job.config_name)]
        settings = from_mapping(Settings, values)
        with FolderLock(settings.output):
            reproduce(settings, [*chosen, *job.overrides.task])
    except (DriveFineError, ValueError, OmegaConfBaseException) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
