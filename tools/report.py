r"""Write the HTML report of one or more finished evaluations: one file, no network, for any browser.

    python tools/report.py 'runs={drivefine: runs/a}' output=report.html train_test_split=test \
        dataset_root=DATASET
    python tools/report.py 'runs={drivefine: runs/a, human: runs/b}' 'training={hybrid: runs/hybrid}' ...

Each run is an output folder of tools/evaluate.py on the same split, by the same rules (PDMS, EPDMS, two
stages). Scores with intervals, failures by rule, distributions, what refinement changed, training curves, and
every scene: camera, bird's-eye view over time, which rule failed, when and against what. Keys:
navsim_configs/report.yaml.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.errors import DataError, DriveFineError
from drivefine_agent.evaluation.dataset import DatasetKeys, load_split_scenes
from drivefine_agent.evaluation.job import BENCHMARKS
from drivefine_agent.evaluation.report import render_report
from drivefine_agent.evaluation.report_job import build_report, check_runs
from drivefine_agent.evaluation.report_runs import read_metrics, read_run
from drivefine_agent.evaluation.run import SceneSource
from drivefine_agent.scoring.cache import SceneCache


def report(config: DictConfig) -> Path:
    """Read the runs, prepare the scenes, write the page."""
    if not isinstance(config.runs, DictConfig):
        raise DataError(f"runs must name folders, got {config.runs!r}: set runs={{name: folder, ...}}")
    runs = {str(name): read_run(str(name), Path(str(folder))) for name, folder in config.runs.items()}
    logs = {} if config.training is None else config.training
    training = {str(name): read_metrics(Path(str(folder))) for name, folder in logs.items()}
    rules = BENCHMARKS[runs[check_runs(runs, config.main)].benchmark]
    keys = DatasetKeys(
        train_test_split=str(config.train_test_split),
        dataset_root=config.dataset_root,
        navsim_log_path=config.navsim_log_path,
        original_sensor_path=config.original_sensor_path,
        maps_root=config.maps_root,
        splits_path=config.splits_path,
        synthetic_scenes_path=config.synthetic_scenes_path,
        synthetic_sensor_path=config.synthetic_sensor_path,
    )
    scenes = load_split_scenes(keys, show_progress=config.progress)
    cache = None if config.metric_cache_path is None else SceneCache(config.metric_cache_path, rules)
    with tqdm(unit="scene", desc="explaining", disable=not config.progress) as bar:
        content = build_report(
            scenes,
            runs,
            SceneSource(cache, scenes.maps_root, rules),
            main=config.main,
            title=config.title,
            num_scenes=config.num_scenes,
            image_width_px=config.image_width_px,
            training=training,
            on_progress=bar.update,
        )
    output = Path(config.output)
    write_bytes(output, render_report(content).encode("utf-8"))
    return output


@hydra.main(version_base="1.3", config_path="../navsim_configs", config_name="report")
def main(config: DictConfig) -> None:
    """Convert errors made for people into one line; everything else is a bug and keeps its traceback."""
    try:
        output = report(config)
    except (DriveFineError, OmegaConfBaseException) as error:
        sys.exit(f"error: {error}")
    print(f"report: {output} ({output.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
