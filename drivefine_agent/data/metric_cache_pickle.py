"""The pickle inside an official `metric_cache.pkl`, read without NAVSIM, nuPlan or anything of theirs.

Every class name that NAVSIM writes is mapped onto an inert record: its name and its attributes, without any
behaviour. Names that reduce to a call (paths, enumerations, polygons, the big containers) get a function that
checks the arguments and keeps them. Every other name is refused before anything foreign runs
(`safe_pickle`). What the records mean is `metric_cache`'s business.

Source: navsim-formats 4.1; written by NAVSIM v1.1 and v2.2, navsim/planning/metric_caching.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from drivefine_agent.constants import TRACK_TYPES
from drivefine_agent.data.nuplan_records import Record, member_of, path_text, record_class
from drivefine_agent.data.safe_pickle import NUMPY_AND_BUILTINS, Guard, load_pickle_bytes
from drivefine_agent.errors import DataError, UnsafePickleError

MAX_CACHE_BYTES = 64 * 1024**2
"""Decompressed size above which a cache is refused. A real one has a few megabytes."""

_MAX_DECODER_BYTES = 64 * 1024**2  # NAVSIM's preset needs less than 1 MiB
_WKB_POLYGON, _WKB_MULTI_POLYGON = 3, 6


# Calls: class name -> the types of the arguments with which NAVSIM's classes are written.
_CALLS: dict[str, tuple[type | tuple[type, ...], ...]] = {
    "PDMPath": (list,),
    "PDMOccupancyMap": (list, (list, np.ndarray), int),
    "PDMDrivableMap": (list, list, list, int),
    "InterpolatedTrajectory": (list,),
    "VehicleParameters": (float, float, float, float, float, str, str, float),
    "SemanticMapLayer": (int,),
    "SceneFrameType": (int,),
}


_CALL_CLASSES = {name: record_class(name) for name in _CALLS}


def _call(name: str, *args: Any) -> Record:
    """A call of a known class, accepted with the arguments that NAVSIM writes and no others."""
    types = _CALLS[name]
    if len(args) != len(types) or not all(map(_is_argument, args, types)):
        raise UnsafePickleError(
            f"{name} is called in a metric cache with arguments that NAVSIM does not write"
        )
    record = _CALL_CLASSES[name]()
    record.fields["args"] = args
    return record


def _is_argument(value: Any, allowed: type | tuple[type, ...]) -> bool:
    if allowed is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, allowed) and not isinstance(value, bool)


def _from_wkb(*args: Any) -> shapely.Polygon:
    """A single polygon in WKB; the one part of a multi-polygon is unwrapped.

    Collections are never handed to GEOS, whose reader would follow any nesting.
    """
    if len(args) != 1 or not isinstance(args[0], bytes):
        raise UnsafePickleError(
            "a geometry in a metric cache must be made from bytes"
            f", got {len(args)} arguments of {[type(arg).__name__ for arg in args[:3]]}"
        )
    content = args[0]
    kind, after_header = _wkb_kind(content)
    if kind == _WKB_MULTI_POLYGON:
        (num_parts,) = struct.unpack_from("<I" if content[0] else ">I", content, after_header)
        if num_parts != 1:
            raise DataError(f"areas must be single polygons, got a multi-polygon of {num_parts} parts")
        content = content[after_header + 4 :]
        kind, _ = _wkb_kind(content)
    if kind != _WKB_POLYGON:
        raise DataError(f"geometries of a metric cache must be polygons, got WKB of type {kind}")
    try:
        polygon = shapely.from_wkb(content)
    except shapely.errors.GEOSException as error:
        raise DataError(f"a polygon is damaged: {error}") from error
    if polygon.is_empty:
        raise DataError("areas must be polygons with vertices, got an empty one")
    return polygon


def _wkb_kind(content: bytes) -> tuple[int, int]:
    """Type number of a WKB geometry and the length of its header; 2D without or with an SRID only."""
    if len(content) < 5 or content[0] not in (0, 1):
        raise DataError("a polygon is damaged: it has no WKB header")
    (kind,) = struct.unpack_from("<I" if content[0] else ">I", content, 1)
    return kind & ~0x20000000, 9 if kind & 0x20000000 else 5


_PDM = "navsim.planning.simulation.planner.pdm_planner"
_STATE = "nuplan.common.actor_state"

_RECORDS = (
    ("navsim.planning.metric_caching.metric_cache", "MetricCache"),
    ("navsim.planning.metric_caching.metric_cache", "MapParameters"),
    ("navsim.common.dataclasses", "Trajectory"),
    (f"{_PDM}.observation.pdm_observation", "PDMObservation"),
    (f"{_STATE}.agent", "Agent"),
    (f"{_STATE}.static_object", "StaticObject"),
    (f"{_STATE}.scene_object", "SceneObjectMetadata"),
    (f"{_STATE}.tracked_objects", "TrackedObjects"),
    (f"{_STATE}.oriented_box", "OrientedBox"),
    (f"{_STATE}.car_footprint", "CarFootprint"),
    (f"{_STATE}.dynamic_car_state", "DynamicCarState"),
    (f"{_STATE}.ego_state", "EgoState"),
    (f"{_STATE}.state_representation", "StateSE2"),
    (f"{_STATE}.state_representation", "StateVector2D"),
    (f"{_STATE}.state_representation", "TimePoint"),
    ("nuplan.planning.simulation.observation.observation_type", "DetectionsTracks"),
    ("nuplan.planning.simulation.trajectory.trajectory_sampling", "TrajectorySampling"),
)
_CALLED = (
    (f"{_PDM}.utils.pdm_path", "PDMPath"),
    (f"{_PDM}.observation.pdm_occupancy_map", "PDMOccupancyMap"),
    (f"{_PDM}.observation.pdm_occupancy_map", "PDMDrivableMap"),
    ("nuplan.planning.simulation.trajectory.interpolated_trajectory", "InterpolatedTrajectory"),
    (f"{_STATE}.vehicle_parameters", "VehicleParameters"),
    ("nuplan.common.maps.maps_datatypes", "SemanticMapLayer"),
    ("navsim.common.enums", "SceneFrameType"),
)


def _known_names() -> dict[tuple[str, str], Any]:
    names: dict[tuple[str, str], Any] = dict(NUMPY_AND_BUILTINS)
    names.update({(module, name): record_class(name) for module, name in _RECORDS})
    functions: dict[tuple[str, str], Callable[..., Any]] = {
        (module, name): partial(_call, name) for module, name in _CALLED
    }
    functions[f"{_STATE}.tracked_objects_types", "TrackedObjectType"] = member_of(
        "TrackedObjectType", (*TRACK_TYPES, "ego")
    )
    for module in ("pathlib", "pathlib._local"):
        functions[module, "PosixPath"] = path_text
    functions["shapely.io", "from_wkb"] = _from_wkb
    names.update({key: Guard(function) for key, function in functions.items()})
    return names


METRIC_CACHE_NAMES: Mapping[tuple[str, str], Any] = _known_names()
"""(module, name) -> what a metric cache's pickle gets instead."""


def load_metric_cache_pickle(path: Path, max_bytes: int = MAX_CACHE_BYTES) -> Record:
    """The `MetricCache` object of a file, as an inert record.

    Args:
      path: a `metric_cache.pkl`.
      max_bytes: of the decompressed content; more is refused, and never held in memory.

    Raises:
      UnsafePickleError: the pickle names something that NAVSIM does not write, or misuses what it does.
      DataError: the file is missing, too large, truncated, not xz, no pickle, or not of a metric cache.
    """
    value = load_pickle_bytes(_decompress(path, max_bytes), str(path), METRIC_CACHE_NAMES)
    if not isinstance(value, Record) or value.kind != "MetricCache":
        found = value.kind if isinstance(value, Record) else type(value).__name__
        raise DataError(f"a metric cache holds one MetricCache object, got {found}: {path}")
    return value


def _decompress(path: Path, max_bytes: int) -> bytes:
    try:
        if path.stat().st_size > max_bytes:
            raise DataError(f"a metric cache may have at most {max_bytes} bytes, got more: {path}")
        packed = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the metric cache {path}: {error.strerror or error}") from error
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_MAX_DECODER_BYTES)
    try:
        content = decoder.decompress(packed, max_length=max_bytes + 1)
    except lzma.LZMAError as error:
        raise DataError(
            f"a metric cache is an xz file ({error}): {path}, {len(packed)} bytes; copy it again, or build it"
            " again with NAVSIM's run_metric_caching.py"
        ) from error
    if len(content) > max_bytes:
        raise DataError(
            f"a metric cache may have at most {max_bytes} bytes when decompressed, got more: {path}; this is"
            " no cache that NAVSIM wrote"
        )
    if not decoder.eof:
        raise DataError(
            f"a metric cache is truncated: {path}, {len(packed)} bytes; copy it again, or build it again with"
            " NAVSIM's run_metric_caching.py"
        )
    if decoder.unused_data:
        raise DataError(f"a metric cache is a single xz stream, got more after its end: {path}")
    return content
