"""Where two preparations of the same scene differ, field by field.

For example scenes converted from NAVSIM's metric caches and scenes prepared from logs and maps. Tracks, red
lights and map polygons are matched by their ids, so that another order is told once and not as a difference
of every number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drivefine_agent.data.types import FloatArray
from drivefine_agent.geometry.indices import StateIndex
from drivefine_agent.geometry.se2 import wrap_angle
from drivefine_agent.scoring.types import ScoringScene, ScoringSceneV2

DEFAULT_TOLERANCE = 1e-6
"""Larger differences count. Doubles at UTM magnitudes are 5e-10 m apart, headings of boxes found from their
corners about as many radians."""

_POSE_FIELDS = ("initial_state", "human_poses", "reference_poses", "reference_states")
_PLAIN_FIELDS = ("reference_progress", "reference_multiplier", "centerline")
_TRACK_FIELDS = ("track_is_agent", "track_is_stopped", "track_type", "track_sizes")
_PLAIN_FIELDS_V2 = ("is_synthetic", "human_zeros_log_replay")


@dataclass(frozen=True)
class Difference:
    """How far one field of one scene differs."""

    token: str
    field: str
    largest: float
    """Largest absolute difference; inf where the two cannot be compared (other shapes, other ids), NaN where
    only one of them knows the field."""
    note: str = ""

    def counts(self, tolerance: float) -> bool:
        """Whether it is more than rounding. What one side does not know is no difference."""
        return self.largest > tolerance


def diff_scenes(a: ScoringScene, b: ScoringScene) -> list[Difference]:
    """Compare two preparations of one scene.

    Args:
      a: one scene.
      b: the other, of the same token and rules.

    Returns:
      One entry per field, equal ones with 0.

    Raises:
      ValueError: if they are scenes of different tokens or rules.
    """
    if a.token != b.token or type(a) is not type(b):
        raise ValueError(
            f"two scenes of one token and the same rules can be compared, got {type(a).__name__} '{a.token}'"
            f" and {type(b).__name__} '{b.token}'"
        )
    found = [*_common(a, b), *_polygons(a, b), *_tracks(a, b)]
    if isinstance(a, ScoringSceneV2) and isinstance(b, ScoringSceneV2):
        found += [*_only_v2(a, b), *_red_lights(a, b), *_traffic(a, b)]
    return [Difference(a.token, field, largest, note) for field, largest, note in found]


_Found = tuple[str, float, str]


def _common(a: ScoringScene, b: ScoringScene) -> Iterator[_Found]:
    yield "timestamp_us", float(abs(a.timestamp_us - b.timestamp_us)), ""
    for name in ("log_name", "map_name"):
        yield _texts(name, getattr(a, name), getattr(b, name))
    for name in _POSE_FIELDS:
        yield _numbers(name, getattr(a, name), getattr(b, name), has_heading=True)
    for name in _PLAIN_FIELDS:
        yield _numbers(name, getattr(a, name), getattr(b, name))


def _polygons(a: ScoringScene, b: ScoringScene) -> Iterator[_Found]:
    ids_a, ids_b = (list(zip(s.polygon_kind.tolist(), s.polygon_ids, strict=True)) for s in (a, b))
    if ids_a != ids_b:
        yield _ids("polygon_ids", ids_a, ids_b)
        return
    yield "polygon_ids", 0.0, ""
    rings_a, rings_b = a.polygon_ring_offsets.tolist(), b.polygon_ring_offsets.tolist()
    if rings_a != rings_b or a.polygon_part_offsets.tolist() != b.polygon_part_offsets.tolist():
        yield "polygon_xy", np.inf, "other numbers of vertices"
    else:
        yield _numbers("polygon_xy", a.polygon_xy, b.polygon_xy)
    yield _numbers("polygon_on_route", a.polygon_on_route, b.polygon_on_route)


def _tracks(a: ScoringScene, b: ScoringScene) -> Iterator[_Found]:
    yield _ids("track_tokens", a.track_tokens, b.track_tokens)
    rows_a, rows_b = _matched(a.track_tokens, b.track_tokens)
    for name in _TRACK_FIELDS:
        x, y = getattr(a, name), getattr(b, name)
        if x is not None and y is not None:
            yield _numbers(name, x[rows_a], y[rows_b])
    for name in ("track_exists", "track_corners", "track_center"):
        yield _numbers(name, getattr(a, name)[:, rows_a], getattr(b, name)[:, rows_b])
    if a.track_poses is not None and b.track_poses is not None:
        poses = a.track_poses[:, rows_a], b.track_poses[:, rows_b]
        yield _numbers("track_poses", *poses, has_heading=True)


def _only_v2(a: ScoringSceneV2, b: ScoringSceneV2) -> Iterator[_Found]:
    yield _numbers("history_states", a.history_states, b.history_states, has_heading=True)
    for name in _PLAIN_FIELDS_V2:
        yield _numbers(name, getattr(a, name), getattr(b, name))
    rows_a, rows_b = _matched(a.track_tokens, b.track_tokens)
    for name in ("overlaps_at_start", "exists_in_frame"):
        yield _numbers(name, getattr(a, name)[rows_a], getattr(b, name)[rows_b])


def _red_lights(a: ScoringSceneV2, b: ScoringSceneV2) -> Iterator[_Found]:
    yield _ids("red_light_ids", a.red_light_ids, b.red_light_ids)
    rows_a, rows_b = _matched(a.red_light_ids, b.red_light_ids)
    yield _numbers("red_light_on", a.red_light_on[:, rows_a], b.red_light_on[:, rows_b])
    if len(rows_a):
        parts = [(_light_xy(a, i), _light_xy(b, j)) for i, j in zip(rows_a, rows_b, strict=True)]
        worst = [_numbers("red_light_xy", x, y) for x, y in parts]
        yield max(worst, key=lambda found: found[1])


def _light_xy(scene: ScoringSceneV2, light: int) -> FloatArray:
    first, last = scene.red_light_part_offsets[light : light + 2]
    rings = scene.red_light_ring_offsets
    return scene.red_light_xy[rings[first] : rings[last]]


def _traffic(a: ScoringSceneV2, b: ScoringSceneV2) -> Iterator[_Found]:
    if a.traffic is None or b.traffic is None:
        if a.traffic is not b.traffic:
            yield "traffic", np.nan, f"unknown to {'the first' if a.traffic is None else 'the second'}"
        return
    vehicles_a = [a.track_tokens[track] for track in a.traffic.vehicle_track]
    vehicles_b = [b.track_tokens[track] for track in b.traffic.vehicle_track]
    yield _ids("traffic.vehicles", vehicles_a, vehicles_b, in_order=True)
    for field in fields(a.traffic):
        if field.name != "vehicle_track":
            x, y = getattr(a.traffic, field.name), getattr(b.traffic, field.name)
            yield _numbers(f"traffic.{field.name}", x, y, has_heading=field.name.endswith("_poses"))


def _numbers(name: str, a: ArrayLike, b: ArrayLike, has_heading: bool = False) -> _Found:
    """Largest absolute difference of two arrays; with `has_heading`, column 2 is an angle."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape:
        return name, np.inf, f"shape {x.shape} or {y.shape}"
    if x.size == 0:
        return name, 0.0, ""
    unknown_x, unknown_y = np.isnan(x), np.isnan(y)
    if unknown_x.all() != unknown_y.all():
        return name, np.nan, f"unknown to {'the first' if unknown_x.all() else 'the second'}"
    if (unknown_x != unknown_y).any():
        return name, np.inf, "not numbers in other places"
    difference = x - y
    if has_heading:
        difference[..., StateIndex.HEADING] = wrap_angle(difference[..., StateIndex.HEADING])
    return name, float(np.where(unknown_x, 0.0, np.abs(difference)).max()), ""


def _texts(name: str, a: str, b: str) -> _Found:
    if not a or not b:
        return (name, 0.0, "") if a == b else (name, np.nan, f"unknown to the {'second' if a else 'first'}")
    return (name, 0.0, "") if a == b else (name, np.inf, f"'{a}' or '{b}'")


def _ids(name: str, a: Sequence[object], b: Sequence[object], in_order: bool = False) -> _Found:
    """Ids that only one has; another order alone is noted, but is no difference unless `in_order`."""
    if list(a) == list(b):
        return name, 0.0, ""
    only_a, only_b = set(a) - set(b), set(b) - set(a)
    if not only_a and not only_b:
        return name, np.inf if in_order else 0.0, "other order"
    return name, np.inf, f"{len(only_a)} only in the first, {len(only_b)} only in the second"


def _matched(a: Sequence[str], b: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the ids that both have, in the order of the first."""
    row_of = {id_: row for row, id_ in enumerate(b)}
    rows = [(row, row_of[id_]) for row, id_ in enumerate(a) if id_ in row_of]
    array = np.array(rows, dtype=np.int64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def format_summary(differences: Sequence[Difference], tolerance: float) -> str:
    """A table with one line per field: scenes, how many differ, the largest difference and where it is."""
    by_field: dict[str, list[Difference]] = {}
    for item in differences:
        by_field.setdefault(item.field, []).append(item)
    lines = [f"{'field':<30} {'scenes':>7} {'differ':>7} {'largest':>10}  scene with the largest difference"]
    for field, items in by_field.items():
        known = [item for item in items if not np.isnan(item.largest)]
        num_differ = sum(item.counts(tolerance) for item in items)
        if known:
            worst = max(known, key=lambda item: item.largest)
            place = f"{worst.token} {worst.note}".rstrip() if worst.largest > 0 or worst.note else ""
            largest = f"{worst.largest:.3g}"
        else:
            place, largest = items[0].note, "-"
        lines.append(f"{field:<30} {len(known):>7} {num_differ:>7} {largest:>10}  {place}".rstrip())
    return "\n".join(lines)
