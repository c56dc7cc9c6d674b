"""Part of `tools/bench.py`: the scorer by group, scene and stage, beside its readable reference."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from bench_common import World, median_seconds, ms, perturbed, seconds_of, table
from bench_scenes import V1, V2, Rules, cache_of
from numpy.typing import NDArray

from drivefine_agent.scoring import scorer, scorer_v2
from drivefine_agent.scoring.batch import ScoringRules, score_many
from drivefine_agent.scoring.cache import SceneCache
from drivefine_agent.scoring.polygons import DrivablePolygons
from drivefine_agent.scoring.scorer import Surroundings
from drivefine_agent.scoring.scorer_v2 import score_v2
from drivefine_agent.scoring.trajectory import proposals_to_reference
from drivefine_agent.scoring.types import ScoringScene
from drivefine_agent.scoring.warm_up import warm_up

NUM_PROPOSALS = (1, 10, 70, 512)
NUM_SCENES = 12
REFERENCE = Path(__file__).resolve().parents[1] / "tests" / "scoring_kernels"

Poses = NDArray[np.float64]


def caches_of(world: World, folder: Path) -> list[tuple[Rules, SceneCache]]:
    """Scenes of a world, under both rules."""
    return [(rules, cache_of(rules, world, folder / rules.cache_rules)[0]) for rules in (V1, V2)]


def _group(scene: ScoringScene, count: int) -> Poses:
    return perturbed(scene.human_poses, count, np.random.default_rng(0))


def _median_over_scenes(cache: SceneCache, score: Callable[[Any, Poses], object], count: int) -> float:
    """Median time of scoring a group of trajectories, over scenes loaded before [s]."""
    scenes = [cache[token] for token in cache.tokens[:NUM_SCENES]]
    return float(np.median([median_seconds(lambda s=s: score(s, _group(s, count)), 3) for s in scenes]))  # type: ignore[misc]


def _fresh_seconds(cache: SceneCache, score: Callable[[Any, Poses], object], count: int) -> float:
    """Median time of loading a scene and scoring a group, with nothing kept from an earlier score [s]."""
    groups = {token: _group(cache[token], count) for token in cache.tokens[:NUM_SCENES]}
    return float(np.median([seconds_of(lambda t=t, p=p: score(cache[t], p)) for t, p in groups.items()]))  # type: ignore[misc]


def speed_report(caches: dict[str, list[tuple[Rules, SceneCache]]]) -> list[str]:
    """Groups of 1 to 512 trajectories on one core."""
    warm_up()
    rows = []
    for name, of_world in caches.items():
        for rules, cache in of_world:
            seconds = [_median_over_scenes(cache, rules.score, count) for count in NUM_PROPOSALS]
            fresh = [_fresh_seconds(cache, rules.score, count) for count in NUM_PROPOSALS]
            for label, times in ((f"{rules.name}, {name}", seconds), ("... and loading the scene", fresh)):
                rates = [_time_and_rate(s, n) for s, n in zip(times, NUM_PROPOSALS, strict=True)]
                rows.append([label, *rates])
    sparse = next(iter(caches))
    _, cache = caches[sparse][1]

    def score_reactively(scene: Any, poses: Poses) -> object:
        return score_v2(scene, poses, traffic="reactive")

    seconds = [_median_over_scenes(cache, score_reactively, count) for count in NUM_PROPOSALS[:2]]
    cells = [_time_and_rate(s, n) for s, n in zip(seconds, NUM_PROPOSALS[:2], strict=True)]
    rows.append([f"NAVSIM 2.2 in reactive traffic, {sparse}", *cells, "-", "-"])
    return [
        "Milliseconds for a group (trajectories per second and core):",
        "",
        *table(["", *(str(count) for count in NUM_PROPOSALS)], rows),
    ]


def _time_and_rate(seconds: float, count: int) -> str:
    return f"{ms(seconds)} ({count / seconds:,.0f}/s)"


def reference_report(cache: SceneCache) -> list[str]:
    """The kernels beside the readable implementation in tests/scoring_kernels that tests compare them with.

    The reference covers the simulation and the geometric sub-scores: areas, collisions, time to collision.
    """
    sys.path.insert(0, str(REFERENCE))
    import reference_scoring
    import reference_simulation

    scene = cache[cache.tokens[0]]
    surroundings = Surroundings.from_scene(scene)
    states = scorer.simulated(scene, _group(scene, 1))
    reference = proposals_to_reference(scene.initial_state, scene.timestamp_us, _group(scene, 1))
    areas = _areas(surroundings.polygons)

    def slow_score() -> None:
        reference_scoring.collisions(states[0], areas, surroundings.tracks)
        reference_scoring.time_to_collision(states[0], areas, surroundings.tracks)
        for state in states[0]:
            reference_scoring.areas_of(state, areas)

    slow_simulation = seconds_of(
        lambda: reference_simulation.simulate_one(reference[0, :, :3], scene.initial_state)
    )
    fast_simulation = median_seconds(lambda: scorer.simulate(reference, scene.initial_state), 5)
    slow = seconds_of(slow_score)
    fast = median_seconds(lambda: scorer.score_states(states, surroundings), 5)
    rows = [
        [
            "simulation",
            ms(slow_simulation),
            ms(fast_simulation),
            f"{slow_simulation / fast_simulation:,.0f} x",
        ],
        [
            "areas, collisions, time to collision",
            ms(slow),
            ms(fast) + " (all sub-scores)",
            f"{slow / fast:,.0f} x",
        ],
    ]
    return table(["one trajectory", "reference [ms]", "kernels [ms]", "ratio"], rows)


def _areas(polygons: DrivablePolygons) -> list[Any]:
    from types import SimpleNamespace

    columns = (polygons.shapely_polygons, polygons.kind, polygons.on_route)
    return [
        SimpleNamespace(polygon=polygon, kind=kind, on_route=on_route)
        for polygon, kind, on_route in zip(*columns, strict=True)
    ]


def workers_report(cache: SceneCache) -> list[str]:
    """`score_many` with threads and with processes."""
    rows = []
    for count in (1, 10, 70):
        poses = {token: _group(cache[token], count) for token in cache}
        num_rounds = max(1, 8000 // (count * len(poses)))
        rates = [
            num_rounds * count * len(poses) / _seconds_of_rounds(cache, poses, num_rounds, kind, num_workers)
            for kind, num_workers in (("threads", 1), ("threads", 2), ("processes", 2))
        ]
        rows.append([f"{count} trajectories a scene", *(f"{rate:,.0f}" for rate in rates)])
    return [
        "Trajectories per second; loading the scenes and starting the workers is included:",
        "",
        *table(["", "one thread", "two threads", "two processes"], rows),
    ]


def _seconds_of_rounds(
    cache: SceneCache, poses: dict[str, Poses], num_rounds: int, kind: Any, num_workers: int
) -> float:
    """Time of scoring the same scenes several times in one call [s]."""
    copies = _Copies(cache)
    many = {f"{token}/{number}": rows for number in range(num_rounds) for token, rows in poses.items()}
    rules = ScoringRules(cache.rules)
    return seconds_of(lambda: score_many(copies, many, rules, num_workers=num_workers, kind=kind))


class _Copies(dict[str, ScoringScene]):
    """A cache whose scenes have several tokens each: TOKEN/NUMBER."""

    def __init__(self, cache: SceneCache) -> None:
        super().__init__()
        self._cache = cache

    def __getitem__(self, token: str) -> ScoringScene:
        return self._cache[token.split("/")[0]]


def scaling_report(cache: SceneCache) -> list[str]:
    """How the time grows with trajectories, tracks and polygons, in the densest of some scenes."""
    scenes = [cache[token] for token in cache.tokens[:NUM_SCENES]]
    scene = max(scenes, key=lambda s: s.polygon_kind.size * s.track_is_agent.size)
    score = V2.score if cache.rules == V2.cache_rules else V1.score
    num_tracks, num_polygons = scene.track_is_agent.size, scene.polygon_kind.size
    shares = (0.25, 0.5, 1.0)
    lines = []
    for label, variants in {
        "trajectories": [(str(count), scene, count) for count in (1, 4, 16, 64, 256, 1024)],
        "road users": [
            (str(n), _with_tracks(scene, n), 64) for n in (0, *(round(s * num_tracks) for s in shares))
        ],
        "map polygons": [
            (str(n), _with_polygons(scene, n), 64) for n in (round(s * num_polygons) for s in shares)
        ],
    }.items():
        rows = []
        for name, variant, count in variants:
            poses = _group(scene, count)
            seconds = median_seconds(lambda v=variant, p=poses: score(v, p), 5)  # type: ignore[misc]
            rows.append([name, ms(seconds), f"{1e6 * seconds / count:,.1f}"])
        note = "" if label == "trajectories" else ", 64 trajectories"
        lines += [*table([f"{label}{note}", "[ms]", "[us] a trajectory"], rows), ""]
    return [
        f"A scene with {num_tracks} road users and {num_polygons} map polygons; fewer are the first of them.",
        "",
        *lines[:-1],
    ]


def _with_tracks(scene: ScoringScene, count: int) -> ScoringScene:
    per_sample = ("track_corners", "track_center", "track_exists", "track_poses")
    per_track = ("track_is_agent", "track_is_stopped", "track_type", "track_tokens", "track_sizes")
    v2_only = ("overlaps_at_start", "exists_in_frame")
    names = {field.name for field in fields(scene)}
    changes: dict[str, Any] = {name: getattr(scene, name)[:, :count] for name in per_sample}
    changes |= {name: getattr(scene, name)[:count] for name in (*per_track, *v2_only) if name in names}
    return replace(scene, **changes)


def _with_polygons(scene: ScoringScene, count: int) -> ScoringScene:
    rings = scene.polygon_part_offsets[count]
    return replace(
        scene,
        polygon_xy=scene.polygon_xy[: scene.polygon_ring_offsets[rings]],
        polygon_ring_offsets=scene.polygon_ring_offsets[: rings + 1],
        polygon_part_offsets=scene.polygon_part_offsets[: count + 1],
        polygon_kind=scene.polygon_kind[:count],
        polygon_on_route=scene.polygon_on_route[:count],
        polygon_ids=scene.polygon_ids[:count],
    )


STAGES = {
    "simulate": "simulation",
    "footprint_points": "corners of the ego",
    "ego_areas": "areas (drivable area, route, lanes)",
    "no_at_fault_collisions": "collisions",
    "time_to_collision_within_bound": "time to collision",
    "drivable_area_compliance": "drivable area compliance",
    "driving_direction_compliance": "driving direction",
    "traffic_light_compliance": "traffic lights",
    "raw_progress": "progress",
    "lane_keeping": "lane keeping",
    "comfort": "comfort",
    "history_comfort": "comfort with history",
}
"""Functions that the scorers call, by name, and what they compute."""


def stages_report(of_world: list[tuple[Rules, SceneCache]], count: int = 70) -> list[str]:
    """Where the time goes: stages timed inside real calls, by functions put around those of the scorers."""
    rows: dict[str, list[str]] = {}
    for rules, cache in of_world:
        spent, total = _time_stages(rules, [cache[token] for token in cache.tokens[:NUM_SCENES]], count)
        rest = total - sum(spent.values())
        for name, label in (*STAGES.items(), ("", "everything else")):
            share = (rest if not name else spent.get(name)) if not name or name in spent else None
            rows.setdefault(label, []).append("-" if share is None else f"{100 * share / total:.0f} %")
    header = [f"{count} trajectories", *(rules.name for rules, _ in of_world)]
    return table(header, [[label, *cells] for label, cells in rows.items()])


def _time_stages(rules: Rules, scenes: list[ScoringScene], count: int) -> tuple[dict[str, float], float]:
    """Seconds by stage, and altogether."""
    spent: dict[str, float] = {}
    originals: list[tuple[Any, str, Any]] = []

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            found: list[Any] = []
            seconds = seconds_of(lambda: found.append(function(*arguments, **keywords)))
            spent[name] = spent.get(name, 0.0) + seconds
            return found[0]

        return call

    for scene in scenes:
        rules.score(scene, _group(scene, count))  # compiled, and what is kept with a scene is there
    modules = (scorer,) if rules is V1 else (scorer, scorer_v2)
    for module in modules:
        for name in STAGES:
            if hasattr(module, name):
                originals.append((module, name, getattr(module, name)))
                setattr(module, name, timed(name, getattr(module, name)))
    try:
        total = sum(seconds_of(lambda s=s: rules.score(s, _group(s, count))) for s in scenes)  # type: ignore[misc]
    finally:
        for module, name, function in originals:
            setattr(module, name, function)
    return spent, total
