"""How a scene lies in the scene cache.

    head | references | body

The head has the time stamp and the counts from which all shapes follow. The references are numbers of what
scenes share: log, map, polygons, pieces of lines (cache_roads). The body holds the rest: small arrays, texts,
and the floating-point arrays (cache_codec). References and body are deflated.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.constants import TRACK_TYPES
from drivefine_agent.scoring.cache_codec import (
    Guess,
    Part,
    check_numbers,
    decode_floats,
    deflate,
    encode_floats,
    inflate,
)
from drivefine_agent.scoring.cache_roads import (
    Polygons,
    RoadReader,
    RoadWriter,
    Rows,
    check_rows,
)
from drivefine_agent.scoring.observation import track_polygons
from drivefine_agent.scoring.types import (
    HUMAN_FILTERED,
    FloatArray,
    PolygonKind,
    ReactiveTraffic,
    ScoringScene,
    ScoringSceneV2,
)

RULES_V1, RULES_V2 = "navsim_v1", "navsim_v2"
NUM_SAMPLES: Mapping[str, int] = {RULES_V1: 51, RULES_V2: 41}
"""Samples of the tracks, by rules."""

_HEAD = struct.Struct("<q13I")
_HEX_TOKENS = re.compile(r"([0-9a-f]{16}\n)*")
_REFERENCE_GROUPS = 5
_FLAGS_V2 = ("overlaps_at_start", "exists_in_frame", "red_light_on", "human_zeros_log_replay")


class _Head(NamedTuple):
    timestamp_us: int
    references_size: int
    num_polygons: int
    num_line_pieces: int
    num_lights: int
    num_path_pieces: int
    num_tracks: int
    num_history: int
    num_vehicles: int
    num_agents: int
    token_bytes: int
    tokens_are_hex: int
    is_synthetic: int
    has_traffic: int


class Names:
    """Texts that scenes share, numbered in the order of their first use."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}

    def row(self, name: str) -> int:
        """Number of a text, which is taken in if it is new."""
        return self._rows.setdefault(name, len(self._rows))

    def list(self) -> list[str]:
        """All texts."""
        return list(self._rows)


class SharedWriter:
    """What the scenes of a pack share, while they are written."""

    def __init__(self) -> None:
        self.names = Names()
        self.roads = RoadWriter()


class SharedReader(NamedTuple):
    """What the scenes of a pack share."""

    names: tuple[str, ...]
    roads: RoadReader


class _References(NamedTuple):
    """What a scene refers to, by number."""

    names: Rows
    """(2,) log, map."""
    polygons: Rows
    centerline: Rows
    lights: Rows
    paths: Rows


def rules_of(scene: ScoringScene) -> str:
    """The rules that a scene was prepared for."""
    return RULES_V2 if isinstance(scene, ScoringSceneV2) else RULES_V1


def pack_scene(scene: ScoringScene, shared: SharedWriter) -> bytes:
    """The bytes of a scene; what it shares with others goes to `shared`.

    Raises:
      ValueError: if the scene has no box poses (`track_poses`), as scenes made by hand.
    """
    if scene.track_poses is None or scene.track_sizes is None:
        raise ValueError(
            f"a scene needs track_poses and track_sizes to be cached, scene '{scene.token}' has none"
        )
    lights, paths, pieces_per_path = Rows0, Rows0, Rows0
    if isinstance(scene, ScoringSceneV2):
        lights = shared.roads.polygons.add(_lights_of(scene))
        if scene.traffic is not None:
            found = [shared.roads.paths.add_line(path) for path in _paths_of(scene.traffic)]
            paths = np.concatenate([Rows0, *found])
            pieces_per_path = np.array([len(rows) for rows in found], dtype=np.int32)
    polygons = Polygons(
        scene.polygon_xy,
        scene.polygon_ring_offsets,
        scene.polygon_part_offsets,
        scene.polygon_kind,
        scene.polygon_ids,
    )
    names = [shared.names.row(scene.log_name), shared.names.row(scene.map_name)]
    references = _References(
        np.array(names, dtype=np.int32),
        shared.roads.polygons.add(polygons),
        shared.roads.lines.add_line(scene.centerline),
        lights,
        paths,
    )
    token_bytes, is_hex = _pack_tokens(scene.track_tokens)
    values: dict[str, NDArray[Any]] = {
        "polygon_on_route": scene.polygon_on_route,
        "track_type": scene.track_type,
        "track_exists": scene.track_exists,
        "track_is_agent": scene.track_is_agent,
        "track_is_stopped": scene.track_is_stopped,
        "track_tokens": np.frombuffer(token_bytes, dtype=np.uint8),
        "initial_state": scene.initial_state[None],
        "human_poses": scene.human_poses,
        "reference_poses": scene.reference_poses,
        "reference_states": scene.reference_states,
        "reference_summary": np.array([[scene.reference_progress, scene.reference_multiplier]]),
        "track_poses": scene.track_poses.reshape(len(scene.track_exists), -1),
        "track_sizes": scene.track_sizes,
    }
    head = _Head(
        timestamp_us=int(scene.timestamp_us),
        references_size=0,
        num_polygons=len(references.polygons),
        num_line_pieces=len(references.centerline),
        num_lights=len(lights),
        num_path_pieces=len(paths),
        num_tracks=len(scene.track_type),
        num_history=0,
        num_vehicles=0,
        num_agents=0,
        token_bytes=len(token_bytes),
        tokens_are_hex=int(is_hex),
        is_synthetic=0,
        has_traffic=0,
    )
    if isinstance(scene, ScoringSceneV2):
        for name in (*_FLAGS_V2, "history_states"):
            values[name] = getattr(scene, name)
        head = head._replace(
            num_history=len(scene.history_states),
            is_synthetic=int(scene.is_synthetic),
            has_traffic=int(scene.traffic is not None),
        )
        if scene.traffic is not None:
            values |= _traffic_values(scene.traffic, scene.track_poses[0], scene.track_sizes)
            values["pieces_per_path"] = pieces_per_path
            head = head._replace(
                num_vehicles=len(scene.traffic.vehicle_track), num_agents=len(scene.traffic.agent_vehicle)
            )
    rules = rules_of(scene)
    parts = _float_parts(rules, head)
    body = _pack_arrays(values, _small_fields(rules, head)) + encode_floats(
        [values[name] for name in parts], list(parts.values()), scene.track_exists
    )
    return _joined(head, references, deflate(body))


def unpack_scene(token: str, blob: NDArray[np.uint8], rules: str, shared: SharedReader) -> ScoringScene:
    """The scene in the bytes of `pack_scene`.

    Raises:
      ValueError: if the bytes, whatever their checksum says, are not those of a scene.
    """
    head, references, body = _split(blob)
    log_name, map_name = _names(shared, references)
    fields, parts = _small_fields(rules, head), _float_parts(rules, head)
    num_floats = sum(part.num_rows * part.num_columns for part in parts.values())
    data = inflate(body, _num_bytes(fields) + 8 * num_floats)
    values, position = _unpack_arrays(data, fields)
    exists = values["track_exists"]
    floats = decode_floats(data[position:], list(parts.values()), exists)
    values |= dict(zip(parts, floats, strict=True))
    _check_floats(values, parts)
    check_rows(values["track_type"], len(TRACK_TYPES), "types")
    track_tokens = _unpack_tokens(values["track_tokens"].tobytes(), bool(head.tokens_are_hex))
    if len(track_tokens) not in (0, head.num_tracks):
        raise ValueError(f"{head.num_tracks} tracks need as many tokens, got {len(track_tokens)}")
    poses = values["track_poses"].reshape(NUM_SAMPLES[rules], head.num_tracks, 3)
    corners, centers = track_polygons(poses, values["track_sizes"], exists)
    polygons = shared.roads.polygons.take(references.polygons)
    centerline = shared.roads.lines.line(references.centerline)
    if len(centerline) < 2:
        raise ValueError(f"a centreline needs at least 2 vertices, got {len(centerline)}")
    common: dict[str, Any] = {
        "token": token,
        "log_name": log_name,
        "map_name": map_name,
        "timestamp_us": head.timestamp_us,
        "initial_state": values["initial_state"][0],
        "human_poses": values["human_poses"],
        "reference_poses": values["reference_poses"],
        "reference_states": values["reference_states"],
        "reference_progress": float(values["reference_summary"][0, 0]),
        "reference_multiplier": float(values["reference_summary"][0, 1]),
        "centerline": centerline,
        "polygon_xy": polygons.xy,
        "polygon_ring_offsets": polygons.ring_offsets,
        "polygon_part_offsets": polygons.part_offsets,
        "polygon_kind": polygons.kind,
        "polygon_ids": polygons.ids,
        "polygon_on_route": values["polygon_on_route"],
        "track_corners": corners,
        "track_center": centers,
        "track_exists": exists,
        "track_is_agent": values["track_is_agent"],
        "track_is_stopped": values["track_is_stopped"],
        "track_type": values["track_type"].astype(np.int64),
        "track_tokens": track_tokens,
        "track_poses": poses,
        "track_sizes": values["track_sizes"],
    }
    if rules == RULES_V1:
        return ScoringScene(**common)
    lights = shared.roads.polygons.take(references.lights)
    traffic = None
    if head.has_traffic:
        paths, pieces = shared.roads.paths.lines(references.paths)
        traffic = _traffic_of(values, poses[0], paths, pieces)
    return ScoringSceneV2(
        **common,
        is_synthetic=bool(head.is_synthetic),
        overlaps_at_start=values["overlaps_at_start"],
        exists_in_frame=values["exists_in_frame"],
        history_states=values["history_states"],
        red_light_xy=lights.xy,
        red_light_ring_offsets=lights.ring_offsets,
        red_light_part_offsets=lights.part_offsets,
        red_light_on=values["red_light_on"],
        red_light_ids=lights.ids,
        traffic=traffic,
        human_zeros_log_replay=values["human_zeros_log_replay"],
    )


def log_and_time(blob: NDArray[np.uint8], shared: SharedReader) -> tuple[str, int]:
    """Name of the log of a scene, and its time stamp [us].

    Raises:
      ValueError: as `unpack_scene`.
    """
    head, references, _ = _split(blob)
    return _names(shared, references)[0], head.timestamp_us


class Remapping:
    """Moves scenes, in their compact form, to another pack: only their references change."""

    def __init__(self, source: SharedReader, target: SharedWriter) -> None:
        self._source, roads = source, source.roads
        self._name = _Memo(lambda row: target.names.row(source.names[row]))
        self._line = _Memo(lambda row: target.roads.lines.add_piece(roads.lines.line(_row(row))))
        self._path = _Memo(lambda row: target.roads.paths.add_piece(roads.paths.line(_row(row))))
        self._polygon = _Memo(lambda row: int(target.roads.polygons.add(roads.polygons.take(_row(row)))[0]))

    def moved(self, blob: NDArray[np.uint8]) -> bytes:
        """The bytes of a scene for the target.

        Raises:
          ValueError: as `unpack_scene`.
        """
        head, old, body = _split(blob)
        _names(self._source, old)
        lights = self._polygon.rows(
            old.lights
        )  # in the order of pack_scene, so that the tables come out alike
        paths = self._path.rows(old.paths)
        names = self._name.rows(old.names)
        polygons = self._polygon.rows(old.polygons)
        new = _References(names, polygons, self._line.rows(old.centerline), lights, paths)
        return _joined(head, new, body.tobytes())


class _Memo:
    """Numbers in the target by those in the source."""

    def __init__(self, add: Callable[[int], int]) -> None:
        self._add = add
        self._known: dict[int, int] = {}

    def rows(self, rows: Rows) -> Rows:
        for row in rows.tolist():
            if row not in self._known:
                self._known[row] = self._add(row)
        return np.array([self._known[row] for row in rows.tolist()], dtype=np.int32)


def _row(row: int) -> Rows:
    return np.array([row], dtype=np.int32)


Rows0: Rows = np.zeros(0, dtype=np.int32)


def _joined(head: _Head, references: _References, body: bytes) -> bytes:
    steps = np.diff(np.concatenate(references), prepend=np.int32(0)).astype(np.int32)
    packed = deflate(np.ascontiguousarray(steps.view(np.uint8).reshape(-1, 4).T).tobytes())
    return _HEAD.pack(*head._replace(references_size=len(packed))) + packed + body


def _split(blob: NDArray[np.uint8]) -> tuple[_Head, _References, NDArray[np.uint8]]:
    if len(blob) < _HEAD.size:
        raise ValueError(f"a scene has at least {_HEAD.size} bytes, got {len(blob)}")
    head = _Head(*_HEAD.unpack_from(blob.data))
    start = _HEAD.size + head.references_size
    counts = (2, head.num_polygons, head.num_line_pieces, head.num_lights, head.num_path_pieces)
    planes = inflate(blob[_HEAD.size : start], 4 * sum(counts)).reshape(4, -1)
    steps = np.ascontiguousarray(planes.T).reshape(-1).view(np.int32)
    rows = np.cumsum(steps, dtype=np.int32)
    groups = np.split(rows, np.cumsum(counts)[:-1])
    assert len(groups) == _REFERENCE_GROUPS
    return head, _References(*groups), blob[start:]


def _names(shared: SharedReader, references: _References) -> tuple[str, str]:
    """Log and map."""
    check_rows(references.names, len(shared.names), "names")
    log, map_ = references.names.tolist()
    return shared.names[log], shared.names[map_]


def _check_floats(values: Mapping[str, NDArray[Any]], parts: Iterable[str]) -> None:
    """All are finite, except that the human poses may be unknown."""
    for name in parts:
        check_numbers(values[name], name, may_be_nan=name == "human_poses")


_Fields = list[tuple[str, str, tuple[int, ...]]]


def _small_fields(rules: str, head: _Head) -> _Fields:
    """Name, type and shape of the arrays that are not of floating point, wide types first."""
    num_samples, num_tracks = NUM_SAMPLES[rules], head.num_tracks
    fields: _Fields = [
        ("polygon_on_route", "|b1", (head.num_polygons,)),
        ("track_type", "|i1", (num_tracks,)),
        ("track_exists", "|b1", (num_samples, num_tracks)),
        ("track_is_agent", "|b1", (num_tracks,)),
        ("track_is_stopped", "|b1", (num_tracks,)),
        ("track_tokens", "|u1", (head.token_bytes,)),
    ]
    if rules == RULES_V1:
        return fields
    traffic: _Fields = []
    if head.has_traffic:
        traffic = [
            ("vehicle_boxes", "<i8", (head.num_vehicles, 5)),
            ("vehicle_track", "<i4", (head.num_vehicles,)),
            ("agent_vehicle", "<i4", (head.num_agents,)),
            ("pieces_per_path", "<i4", (head.num_agents,)),
            ("may_freeze", "|b1", (head.num_vehicles,)),
        ]
    return [
        *traffic,
        *fields,
        ("overlaps_at_start", "|b1", (num_tracks,)),
        ("exists_in_frame", "|b1", (num_tracks,)),
        ("red_light_on", "|b1", (num_samples, head.num_lights)),
        ("human_zeros_log_replay", "|b1", (len(HUMAN_FILTERED),)),
    ]


def _float_parts(rules: str, head: _Head) -> dict[str, Part]:
    """The arrays of floating point."""
    parts = {
        "initial_state": Part(1, 11, Guess.NONE),
        "human_poses": Part(8, 3, Guess.LINE),
        "reference_poses": Part(51, 3, Guess.LINE),
        "reference_states": Part(41, 11, Guess.STATES),
        "reference_summary": Part(1, 2, Guess.NONE),
        "track_poses": Part(NUM_SAMPLES[rules], 3 * head.num_tracks, Guess.TRACKS),
        "track_sizes": Part(head.num_tracks, 2, Guess.NONE),
    }
    if rules == RULES_V2:
        parts["history_states"] = Part(head.num_history, 11, Guess.LINE)
    if head.has_traffic:
        parts["vehicle_speed"] = Part(head.num_vehicles, 1, Guess.NONE)
        parts["agent_poses"] = Part(head.num_agents, 3, Guess.NONE)
        parts["agent_progress"] = Part(head.num_agents, 1, Guess.NONE)
        parts["agent_target_speed"] = Part(head.num_agents, 1, Guess.SAME)
    return parts


def _lights_of(scene: ScoringSceneV2) -> Polygons:
    kinds = np.full(len(scene.red_light_ids), PolygonKind.LANE_CONNECTOR, dtype=np.int64)
    return Polygons(
        scene.red_light_xy,
        scene.red_light_ring_offsets,
        scene.red_light_part_offsets,
        kinds,
        scene.red_light_ids,
    )


def _paths_of(traffic: ReactiveTraffic) -> list[FloatArray]:
    """(n, 4) x, y, heading, progress of each path."""
    vertices = np.column_stack([traffic.path_xy, traffic.path_heading, traffic.path_progress])
    return np.split(vertices, traffic.path_offsets[1:-1]) if len(traffic.path_offsets) > 1 else []


def _traffic_values(
    traffic: ReactiveTraffic, poses: FloatArray, sizes: FloatArray
) -> dict[str, NDArray[Any]]:
    """The arrays of reactive traffic. Boxes are kept by their difference to those of the tracks, mostly 0."""
    boxes = np.concatenate([traffic.vehicle_poses, traffic.vehicle_sizes], axis=1)
    expected = np.concatenate([poses, sizes], axis=1)[traffic.vehicle_track]
    return {
        "vehicle_boxes": boxes.view(np.int64) - expected.view(np.int64),
        "vehicle_track": traffic.vehicle_track,
        "agent_vehicle": traffic.agent_vehicle,
        "may_freeze": traffic.may_freeze,
        "vehicle_speed": traffic.vehicle_speed[:, None],
        "agent_poses": traffic.agent_poses,
        "agent_progress": traffic.agent_progress[:, None],
        "agent_target_speed": traffic.agent_target_speed[:, None],
    }


def _traffic_of(
    values: Mapping[str, NDArray[Any]], poses: FloatArray, paths: FloatArray, pieces: NDArray[np.int64]
) -> ReactiveTraffic:
    """The reverse of `_traffic_values`, with the vertices (n, 4) of the paths and where pieces start."""
    vehicle_track, pieces_per_path = values["vehicle_track"].astype(np.int64), values["pieces_per_path"]
    check_rows(vehicle_track, len(values["track_sizes"]), "vehicles' tracks")
    check_rows(values["agent_vehicle"], len(vehicle_track), "agents' vehicles")
    if pieces_per_path.min(initial=1) < 1 or pieces_per_path.sum(dtype=np.int64) != len(pieces) - 1:
        raise ValueError(f"paths must have all {len(pieces) - 1} pieces, and each some")
    expected = np.concatenate([poses, values["track_sizes"]], axis=1)[vehicle_track]
    boxes = (values["vehicle_boxes"] + expected.view(np.int64)).view(np.float64)
    check_numbers(boxes, "boxes of vehicles")
    first_pieces = np.concatenate([[0], np.cumsum(pieces_per_path, dtype=np.int64)])
    return ReactiveTraffic(
        vehicle_track=vehicle_track,
        vehicle_poses=boxes[:, :3].copy(),
        vehicle_sizes=boxes[:, 3:].copy(),
        vehicle_speed=values["vehicle_speed"][:, 0],
        may_freeze=values["may_freeze"],
        agent_vehicle=values["agent_vehicle"].astype(np.int64),
        agent_poses=values["agent_poses"],
        agent_progress=values["agent_progress"][:, 0],
        agent_target_speed=values["agent_target_speed"][:, 0],
        path_xy=paths[:, :2].copy(),
        path_heading=paths[:, 2].copy(),
        path_progress=paths[:, 3].copy(),
        path_offsets=pieces[first_pieces],
    )


def _pack_tokens(tokens: tuple[str, ...]) -> tuple[bytes, bool]:
    """Bytes of the tokens of tracks, and whether they are the digits of NAVSIM's hexadecimal ones."""
    text = "".join(f"{token}\n" for token in tokens)
    if _HEX_TOKENS.fullmatch(text):
        return bytes.fromhex(text), True
    return "\n".join(tokens).encode(), False


def _unpack_tokens(data: bytes, is_hex: bool) -> tuple[str, ...]:
    if not is_hex:
        return tuple(data.decode().split("\n"))
    text = data.hex()
    return tuple([text[start : start + 16] for start in range(0, len(text), 16)])


def _pack_arrays(values: Mapping[str, NDArray[Any]], fields: _Fields) -> bytes:
    parts = []
    for name, dtype, shape in fields:
        array = np.ascontiguousarray(values[name], dtype=np.dtype(dtype))
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
        parts.append(array.tobytes())
    return b"".join(parts)


def _num_bytes(fields: _Fields) -> int:
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for _, dtype, shape in fields)


def _unpack_arrays(data: NDArray[np.uint8], fields: _Fields) -> tuple[dict[str, NDArray[Any]], int]:
    """Views into the bytes of `_pack_arrays`, and where these end; ValueError where a flag is not 0 or 1."""
    arrays = {}
    position = 0
    for name, dtype, shape in fields:
        array: NDArray[Any] = np.ndarray(shape, dtype=dtype, buffer=data, offset=position)
        arrays[name] = array
        position += array.nbytes
        if dtype == "|b1":
            check_rows(array.view(np.uint8).reshape(-1), 2, name)
    return arrays, position
