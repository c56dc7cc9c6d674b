"""How a scene lies in the scene cache: which arrays, in which order, of which type.

The arrays that scenes of all rules have are laid out by their counts. What NAVSIM 2's scenes have besides is
listed, with type and shape, in the shard's index. Map polygons are not here but in the shard's table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.scoring.observation import track_polygons
from drivefine_agent.scoring.types import FloatArray, ReactiveTraffic, ScoringScene, ScoringSceneV2

RULES_V1, RULES_V2 = "navsim_v1", "navsim_v2"
NUM_SAMPLES: Mapping[str, int] = {RULES_V1: 51, RULES_V2: 41}
"""Samples of the tracks, by rules."""

Fields = list[tuple[str, str, tuple[int, ...]]]
"""Name, type and shape of arrays that follow each other, wide types first so that all stay aligned."""

_ALIGNMENT = 8
_ARRAYS_V2 = (
    "overlaps_at_start",
    "exists_in_frame",
    "history_states",
    "red_light_xy",
    "red_light_ring_offsets",
    "red_light_part_offsets",
    "red_light_on",
    "human_zeros_log_replay",
    "human_zeros_idm",
)
_TRAFFIC_PREFIX = "traffic."


def rules_of(scene: ScoringScene) -> str:
    """The rules that a scene was prepared for."""
    return RULES_V2 if isinstance(scene, ScoringSceneV2) else RULES_V1


def scene_fields(
    rules: str, num_vertices: int, num_tracks: int, num_polygons: int, token_bytes: int
) -> Fields:
    """The arrays that scenes of all rules have."""
    num_samples = NUM_SAMPLES[rules]
    return [
        ("initial_state", "<f8", (11,)),
        ("human_poses", "<f8", (8, 3)),
        ("reference_poses", "<f8", (51, 3)),
        ("reference_states", "<f8", (41, 11)),
        ("reference_summary", "<f8", (2,)),
        ("centerline", "<f8", (num_vertices, 2)),
        ("track_poses", "<f8", (num_samples, num_tracks, 3)),
        ("track_sizes", "<f8", (num_tracks, 2)),
        ("polygon_rows", "<i4", (num_polygons,)),
        ("polygon_on_route", "|b1", (num_polygons,)),
        ("track_type", "|i1", (num_tracks,)),
        ("track_exists", "|b1", (num_samples, num_tracks)),
        ("track_is_agent", "|b1", (num_tracks,)),
        ("track_is_stopped", "|b1", (num_tracks,)),
        ("track_tokens", "|u1", (token_bytes,)),
    ]


def pack_scene(scene: ScoringScene, polygon_rows: NDArray[np.int32]) -> tuple[bytes, dict[str, Any]]:
    """The bytes of a scene, and what must be known to read them (for the index).

    Raises:
      ValueError: if the scene has no box poses (`track_poses`), as scenes made by hand.
    """
    if scene.track_poses is None or scene.track_sizes is None:
        raise ValueError(
            f"a scene needs track_poses and track_sizes to be cached, scene '{scene.token}' has none"
        )
    token_bytes = "\n".join(scene.track_tokens).encode()
    values = {
        "initial_state": scene.initial_state,
        "human_poses": scene.human_poses,
        "reference_poses": scene.reference_poses,
        "reference_states": scene.reference_states,
        "reference_summary": np.array([scene.reference_progress, scene.reference_multiplier]),
        "centerline": scene.centerline,
        "track_poses": scene.track_poses,
        "track_sizes": scene.track_sizes,
        "polygon_rows": polygon_rows,
        "polygon_on_route": scene.polygon_on_route,
        "track_type": scene.track_type,
        "track_exists": scene.track_exists,
        "track_is_agent": scene.track_is_agent,
        "track_is_stopped": scene.track_is_stopped,
        "track_tokens": np.frombuffer(token_bytes, dtype=np.uint8),
    }
    counts = [len(scene.centerline), len(scene.track_type), len(scene.polygon_kind), len(token_bytes)]
    blob = pack_arrays(values, scene_fields(rules_of(scene), *counts))
    if not isinstance(scene, ScoringSceneV2):
        return blob, {"counts": counts}
    extra = _extra_arrays(scene)
    layout: Fields = [(name, array.dtype.str, array.shape) for name, array in extra.items()]
    entry = {"counts": counts, "is_synthetic": scene.is_synthetic, "extra": layout}
    entry["traffic_error"] = scene.traffic_error
    return padded(blob) + pack_arrays(extra, layout), entry


def unpack_scene(
    buffer: NDArray[np.uint8], rules: str, entry: Mapping[str, Any], polygons: Mapping[str, Any]
) -> ScoringScene:
    """The scene in a buffer.

    Args:
      buffer: the bytes of `pack_scene`; the arrays become views of it.
      rules: of the shard.
      entry: the scene's entry in the index.
      polygons: by name, the fields of the scene that come from the table of polygons.
    """
    base = scene_fields(rules, *entry["counts"])
    arrays = unpack_arrays(buffer, base)
    corners, centers = track_polygons(arrays["track_poses"], arrays["track_sizes"], arrays["track_exists"])
    token_text = arrays["track_tokens"].tobytes().decode()
    common: dict[str, Any] = {
        "token": entry["token"],
        "log_name": entry["log_name"],
        "map_name": entry["map_name"],
        "timestamp_us": entry["timestamp_us"],
        **{
            name: arrays[name]
            for name in (
                "initial_state",
                "human_poses",
                "reference_poses",
                "reference_states",
                "centerline",
                "polygon_on_route",
                "track_exists",
                "track_is_agent",
                "track_is_stopped",
                "track_poses",
                "track_sizes",
            )
        },
        "reference_progress": float(arrays["reference_summary"][0]),
        "reference_multiplier": float(arrays["reference_summary"][1]),
        "track_corners": corners,
        "track_center": centers,
        "track_type": arrays["track_type"].astype(np.int64),
        "track_tokens": tuple(token_text.split("\n")) if token_text else (),
        **polygons,
    }
    if rules == RULES_V1:
        return ScoringScene(**common)
    start = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for _, dtype, shape in base)
    start += -start % _ALIGNMENT
    layout = [(name, dtype, tuple(shape)) for name, dtype, shape in entry["extra"]]
    extra = unpack_arrays(buffer[start:], layout)
    text = extra["red_light_ids"].tobytes().decode()
    traffic = {
        name.removeprefix(_TRAFFIC_PREFIX): array
        for name, array in extra.items()
        if name.startswith(_TRAFFIC_PREFIX)
    }
    common.update({name: extra[name] for name in _ARRAYS_V2})
    return ScoringSceneV2(
        **common,
        is_synthetic=entry["is_synthetic"],
        traffic_error=entry["traffic_error"],
        red_light_ids=tuple(text.split("\n")) if text else (),
        traffic=ReactiveTraffic(**traffic) if traffic else None,
    )


def _extra_arrays(scene: ScoringSceneV2) -> dict[str, NDArray[Any]]:
    """What scenes of NAVSIM 2 have besides, wide types first."""
    arrays = {name: np.asarray(getattr(scene, name)) for name in _ARRAYS_V2}
    arrays["red_light_ids"] = np.frombuffer("\n".join(scene.red_light_ids).encode(), dtype=np.uint8)
    if scene.traffic is not None:
        for field in fields(scene.traffic):
            arrays[_TRAFFIC_PREFIX + field.name] = np.asarray(getattr(scene.traffic, field.name))
    return dict(sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize))


def pack_arrays(values: Mapping[str, NDArray[Any]], layout: Fields) -> bytes:
    """The bytes of arrays, one after the other.

    Raises:
      ValueError: if an array has another shape than the layout says.
    """
    parts = []
    for name, dtype, shape in layout:
        array = np.ascontiguousarray(values[name], dtype=np.dtype(dtype))
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
        parts.append(array.tobytes())
    return b"".join(parts)


def unpack_arrays(buffer: NDArray[np.uint8], layout: Fields) -> dict[str, NDArray[Any]]:
    """Read-only views into a buffer."""
    arrays = {}
    position = 0
    for name, dtype, shape in layout:
        array: NDArray[Any] = np.ndarray(shape, dtype=dtype, buffer=buffer, offset=position)
        arrays[name] = array
        position += array.nbytes
    return arrays


def padded(data: bytes) -> bytes:
    """The bytes, filled up so that what follows is aligned."""
    return data + b"\0" * (-len(data) % _ALIGNMENT)


def polygon_views(
    table: Mapping[str, NDArray[Any]],
    ids: NDArray[np.object_],
    rows: NDArray[np.int32],
    taken: tuple[FloatArray, NDArray[np.int64], NDArray[np.int64]],
) -> dict[str, Any]:
    """The fields of a scene that come from the shard's table of polygons."""
    xy, ring_offsets, part_offsets = taken
    return {
        "polygon_xy": xy,
        "polygon_ring_offsets": ring_offsets,
        "polygon_part_offsets": part_offsets,
        "polygon_kind": table["kind"][rows],
        "polygon_ids": tuple(ids[rows]),
    }
