"""Part of `tools/bench.py`: scenes prepared, kept and loaded, beside the real NAVSIM where there is one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_common import World, ms, perturbed, seconds_of, table
from numpy.typing import NDArray
from tqdm import tqdm

from drivefine_agent.data.maps import Map
from drivefine_agent.data.scenes import future_poses
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.scoring.build import build_scoring_scene
from drivefine_agent.scoring.build_v2 import build_scoring_scene_v2
from drivefine_agent.scoring.cache import PACK_NAME, SceneCache, SceneCacheWriter
from drivefine_agent.scoring.cache_layout import RULES_V1, RULES_V2
from drivefine_agent.scoring.cache_pack import Pack
from drivefine_agent.scoring.scorer import score_v1
from drivefine_agent.scoring.scorer_v2 import score_v2
from drivefine_agent.scoring.types import ScoringScene

NUM_OFFICIAL_SCENES = 8
RUNNER = Path(__file__).with_name("bench_official.py")


@dataclass(frozen=True)
class Rules:
    """Rules by which scenes are prepared and trajectories scored."""

    name: str
    cache_rules: str
    build: Callable[[SceneWindow, Map], ScoringScene]
    score: Callable[[Any, NDArray[np.float64]], Any]


V1 = Rules("NAVSIM 1.1", RULES_V1, build_scoring_scene, score_v1)
V2 = Rules("NAVSIM 2.2", RULES_V2, build_scoring_scene_v2, score_v2)


def cache_of(rules: Rules, world: World, folder: Path) -> tuple[SceneCache, list[float]]:
    """A new scene cache of a world, and how long each of its scenes took to prepare [s]."""
    shutil.rmtree(folder, ignore_errors=True)
    rules.build(world.windows[0], world.map_of(world.windows[0]))  # compiles
    seconds = []
    with SceneCacheWriter(folder, rules=rules.cache_rules) as writer:
        for window in tqdm(world.windows, desc=f"scenes for {rules.name}", unit="scene", leave=False):
            seconds.append(
                seconds_of(lambda window=window: writer.add(rules.build(window, world.map_of(window))))  # type: ignore[misc]
            )
    return SceneCache(folder, rules.cache_rules), seconds


def _load_seconds(cache: SceneCache, token: str) -> float:
    return seconds_of(lambda: cache[token])


def scenes_report(world: World, folder: Path) -> list[str]:
    """Preparing, keeping and loading scenes."""
    rows = []
    for rules in (V1, V2):
        cache, seconds = cache_of(rules, world, folder / rules.cache_rules)
        list(cache.values())  # roads inflated, kernels compiled
        load = [_load_seconds(cache, token) for token in cache for _ in range(3)]
        pack = Pack(cache.folder / PACK_NAME)
        own = float(np.mean([len(pack.blob(token)) for token in pack.tokens]))
        total = pack.path.stat().st_size / len(pack)
        open_s = seconds_of(lambda: SceneCache(cache.folder, cache.rules))  # noqa: B023
        tracks = np.median([cache[token].track_is_agent.size for token in cache])
        polygons = np.median([cache[token].polygon_kind.size for token in cache])
        rows.append(
            [
                rules.name,
                str(len(cache)),
                f"{tracks:.0f}",
                f"{polygons:.0f}",
                ms(float(np.median(seconds))),
                ms(float(np.median(load))),
                f"{own:,.0f}",
                f"{total - own:,.0f}",
                ms(open_s),
            ]
        )
    header = [
        "rules",
        "scenes",
        "tracks",
        "polygons",
        "prepare [ms]",
        "load [ms]",
        "bytes a scene",
        "shared bytes a scene",
        "open the cache [ms]",
    ]
    return [
        *table(header, rows),
        "",
        "Shared are the roads, each stored once: the more scenes of a place, the fewer bytes a scene.",
    ]


def official_report(world: World, folder: Path, checkouts: list[Path]) -> list[str]:
    """Our times and NAVSIM's own for the same scenes and trajectories, one after the other on one core."""
    interpreter = os.environ.get("DRIVEFINE_NAVSIM_PYTHON", sys.executable)
    lines: list[str] = []
    for checkout in checkouts or [None]:  # type: ignore[list-item]
        answer = _run_official(interpreter, checkout, world, folder)
        if isinstance(answer, str):
            lines += [f"Not measured: {answer}", ""]
        else:
            lines += [*_comparison(answer, world, folder), ""]
    return lines[:-1]


def _chosen(world: World) -> list[SceneWindow]:
    return world.windows[:: max(1, len(world.windows) // NUM_OFFICIAL_SCENES)][:NUM_OFFICIAL_SCENES]


def _proposals(window: SceneWindow) -> NDArray[np.float64]:
    return perturbed(future_poses(window), 3, np.random.default_rng(int(window.token, 16) % 2**32))


def _run_official(
    interpreter: str, checkout: Path | None, world: World, folder: Path
) -> dict[str, Any] | str:
    """What the official program answers, or why it cannot be run."""
    windows = _chosen(world)
    scratch = folder / "official"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    request = {
        "log_dir": str(world.paths.logs("test")),
        "maps_root": str(world.paths.maps_root),
        "cache_dir": str(scratch / "cache"),
        "num_history_frames": windows[0].num_history_frames,
        "num_future_frames": windows[0].num_future_frames,
        "trajectories": {w.token: _proposals(w).reshape(-1, 24).tolist() for w in windows},
    }
    (scratch / "request.json").write_text(json.dumps(request))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if checkout is not None:
        environment["PYTHONPATH"] = str(checkout)
    arguments = [interpreter, str(RUNNER), str(scratch / "request.json"), str(scratch / "response.json")]
    process = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        last_line = (process.stderr.strip().splitlines() or ["no message"])[-1]
        return (
            f"{interpreter} cannot run NAVSIM ({last_line}); name an interpreter in DRIVEFINE_NAVSIM_PYTHON,"
            " and checkouts with --navsim"
        )
    answer: dict[str, Any] = json.loads((scratch / "response.json").read_text())
    return answer


def _comparison(answer: dict[str, Any], world: World, folder: Path) -> list[str]:
    rules = V1 if answer["version"] == "1.1" else V2
    official = answer["scenes"]
    windows = [window for window in _chosen(world) if window.token in official]
    same_scenes = World(world.paths, windows, world.maps)
    cache, seconds = cache_of(rules, same_scenes, folder / f"official-{rules.cache_rules}")
    list(cache.values())
    load = [_load_seconds(cache, window.token) for window in windows for _ in range(3)]
    score, differences = [], []
    for window in windows:
        scene, poses = cache[window.token], _proposals(window)
        rules.score(scene, poses[:1])
        for row, expected in enumerate(official[window.token]["scores"]):
            score.append(seconds_of(lambda s=scene, p=poses, r=row: rules.score(s, p[r : r + 1])))  # type: ignore[misc]
            found = rules.score(scene, poses[row : row + 1])
            total = found.score if rules is V1 else found.pdm_score
            differences.append(abs(float(total[0]) - expected))
    together_s = [_per_trajectory(rules, cache[window.token], window, count=70) for window in windows]
    pack = Pack(cache.folder / PACK_NAME)
    own_bytes = float(np.mean([len(pack.blob(token)) for token in pack.tokens]))
    road_bytes = pack.path.stat().st_size - own_bytes * len(pack)
    theirs = {
        key: [scene[key] for scene in official.values()]
        for key in ("caching_s", "load_s", "num_bytes", "score_s")
    }
    score_s = np.concatenate(theirs["score_s"])
    official_bytes = float(np.mean(theirs["num_bytes"]))
    num_logs = len({window.log_name for window in windows})
    num_scenes = int(np.ceil(road_bytes / (official_bytes / 5.0 - own_bytes)))

    def row(name: str, official_value: float, own_value: float, scale: float = 1e3) -> list[str]:
        return [
            name,
            f"{scale * official_value:,.3g}"
            if scale * official_value < 1e3
            else f"{scale * official_value:,.0f}",
            f"{scale * own_value:,.3g}" if scale * own_value < 1e3 else f"{scale * own_value:,.0f}",
            f"{official_value / own_value:,.1f} x",
        ]

    rows = [
        row("prepare a scene [ms]", float(np.median(theirs["caching_s"])), float(np.median(seconds))),
        row("load a scene [ms]", float(np.median(theirs["load_s"])), float(np.median(load))),
        row("bytes a scene, without roads that scenes share", official_bytes, own_bytes, 1.0),
        row("score a trajectory, alone [ms]", float(np.median(score_s)), float(np.median(score))),
        row("the same, 70 at once [ms]", float(np.median(score_s)), float(np.median(together_s))),
    ]
    return [
        f"NAVSIM {answer['version']}, {len(windows)} scenes, {len(score)} trajectories; scores differ by at"
        f" most {max(differences):.0e}.",
        "",
        *table(["", "NAVSIM", "ours", "ratio"], rows),
        "",
        f"The roads of these {num_logs} drives take {road_bytes / 1e3:,.0f} kB in our cache, once:"
        f" from {num_scenes} scenes on, a scene takes less than a fifth of NAVSIM's bytes, roads included.",
    ]


def _per_trajectory(rules: Rules, scene: ScoringScene, window: SceneWindow, count: int) -> float:
    poses = perturbed(future_poses(window), count, np.random.default_rng(0))
    return seconds_of(lambda: rules.score(scene, poses)) / count
