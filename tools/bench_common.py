"""What the parts of `tools/bench.py` share: timing, trajectories, tables, the machine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.data.dataset_paths import DatasetPaths
from drivefine_agent.data.maps import Map, load_map
from drivefine_agent.data.scenes import SceneFilter, load_scenes
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.synthetic.dataset import WorldConfig, make_world

_PACKAGES = ("numpy", "numba", "shapely", "torch", "transformers")


@dataclass(frozen=True)
class World:
    """Scenes of a synthetic dataset, with their maps."""

    paths: DatasetPaths
    windows: list[SceneWindow]
    maps: dict[str, Map]

    def map_of(self, window: SceneWindow) -> Map:
        """The map of a scene's city."""
        return self.maps[window.map_name]


def world_of(folder: Path, num_scenes: int, *, is_dense: bool = False) -> World:
    """Some scenes, at most one in two seconds, of four drives; the dataset is made if it is not there."""
    make_world(
        WorldConfig(
            output=str(folder),
            num_train_logs=0,
            num_val_logs=0,
            num_test_logs=4,
            images="none",
            num_workers=1,
            is_dense=is_dense,
        )
    )
    paths = DatasetPaths.from_root(folder)
    windows = load_scenes(paths.logs("test"), SceneFilter(frame_interval=4))
    chosen = [windows[i * len(windows) // num_scenes] for i in range(min(num_scenes, len(windows)))]
    maps = {name: load_map(paths.maps_root, name) for name in {window.map_name for window in chosen}}
    return World(paths, chosen, maps)


def median_seconds(call: Callable[[], object], repetitions: int) -> float:
    """Median wall time of a call [s], after one unmeasured call."""
    call()
    return float(np.median([seconds_of(call) for _ in range(repetitions)]))


def seconds_of(call: Callable[[], object]) -> float:
    """Wall time of one call [s]."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def perturbed(poses: NDArray[np.float64], count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(count, 8, 3) the driver's trajectory at other speeds and with drifts, like a group of samples."""
    speed = rng.uniform(0.6, 1.3, (count, 1, 1))
    drift = rng.normal(0.0, 0.3, (count, 1, 1)) * np.linspace(0.125, 1.0, 8)[None, :, None]
    return poses[None] * speed + drift * np.array([0.0, 1.0, 0.02])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table with aligned columns; the first column is text, the others are numbers."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(aligned)} |"

    rule = [("-" * w) if i == 0 else ("-" * (w - 1) + ":") for i, w in enumerate(widths)]
    return [line(header), line(rule), *(line(row) for row in rows)]


def ms(seconds: float) -> str:
    """Milliseconds with three significant digits."""
    return f"{1e3 * seconds:.3g}" if seconds < 0.1 else f"{1e3 * seconds:,.0f}"


def machine_lines() -> list[str]:
    """Processor, cores, load and versions."""
    models = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    load = os.getloadavg()[1]
    cores = len(os.sched_getaffinity(0))
    return [
        f"* {models[0] if models else platform.processor()}, {cores} cores, of which one is used unless said"
        " otherwise",
        f"* {platform.system()} {platform.release()}, Python {platform.python_version()}, {versions}",
        f"* load average of the last five minutes at the end: {load:.1f}"
        + (" (other programs ran: times are too long, ratios less so)" if load > 1.5 * cores else ""),
    ]
