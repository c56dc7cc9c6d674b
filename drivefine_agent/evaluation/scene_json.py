"""One scene of the report as compact JSON: the picture, the surroundings over time, the trajectories.

Lengths are whole centimetres (of the map: decimetres), angles whole milliradians, in the ego frame of now. A
list of points is flat, x, y[, heading] each; after the first, every point is the difference from the one
before. `report_scene.js` is the reader.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from drivefine_agent.constants import EGO_WIDTH_M, NUM_SIM_STATES, TRACK_TYPES
from drivefine_agent.data.types import CameraRecord
from drivefine_agent.evaluation.birdseye import BirdsEyeView, visible_window
from drivefine_agent.evaluation.camera_view import encode_jpeg, ribbon_outlines
from drivefine_agent.evaluation.paths import LineStyle, path_line
from drivefine_agent.evaluation.scene_view import to_ego
from drivefine_agent.scoring.contacts import TrackBoxes
from drivefine_agent.scoring.explain import Explained
from drivefine_agent.scoring.types import FloatArray, ScoringScene

ASPECT = 1.15
"""Height of the bird's-eye view divided by its width."""
_SIMPLIFIED_M = 0.08
_NARROW_M = 0.16  # half the width of a line on the road
_STANDS_M = 0.05


@dataclass(frozen=True)
class Plan:
    """A trajectory of a scene."""

    id: str
    """A key of the report's list of plans."""
    poses: FloatArray
    """(8, 3) ego frame."""
    style: LineStyle
    explained: Explained | None
    """None where it was not scored."""
    is_wide: bool = False
    """Painted as wide as the vehicle: the trajectory that counts."""
    has_own_traffic: bool = False
    """The others react to it: its road users are told with it."""


def differences(rows: FloatArray, scale: float) -> list[int]:
    """Flat whole numbers: the first row, then the difference of each from the one before."""
    whole = np.round(np.asarray(rows) * scale).astype(np.int64)
    return np.diff(whole, axis=0, prepend=np.zeros((1, whole.shape[1]), dtype=np.int64)).ravel().tolist()


def poses_json(poses: FloatArray) -> list[int]:
    """Poses (N, 3) in centimetres and milliradians."""
    unwrapped = np.column_stack([poses[:, :2] * 100.0, np.unwrap(poses[:, 2]) * 1000.0])
    return differences(unwrapped, 1.0)


def scene_json(
    scene: ScoringScene,
    view: BirdsEyeView,
    plans: Sequence[Plan],
    image: NDArray[np.uint8] | None,
    camera: CameraRecord | None,
    ground_z_m: float = 0.0,
    image_width_px: int = 640,
) -> dict[str, Any]:
    """What the report's script needs to draw a scene.

    Args:
      scene: the prepared scene.
      view: its surroundings.
      plans: the trajectories; road users are those of the first scored one.
      image: (H, W, 3) RGB of the front camera, or None.
      camera: its calibration.
      ground_z_m: height of the road in the ego frame.
      image_width_px: to which the picture is scaled.
    """
    origin = scene.initial_state[:3]
    own = [path_line(plan.poses) for plan in plans if not plan.id.startswith("run")]
    window = visible_window(own, ASPECT)
    near = (window[0] - 3.0, window[2] - 3.0, window[1] + 3.0, window[3] + 3.0)
    scored = [plan for plan in plans if plan.explained is not None]
    tracks = TrackBoxes.from_scene(scene) if not scored else scored[0].explained.tracks  # type: ignore[union-attr]
    data: dict[str, Any] = {
        "window": [round(value, 2) for value in window],
        "areas": _areas(view, near),
        "lines": [differences(part, 10.0) for line in view.lane_lines for part in _clipped_line(line, near)],
        "tracks": tracks_json(scene, tracks, origin, near),
        "plans": {},
    }
    if view.route_line is not None:
        data["route"] = [differences(part, 10.0) for part in _clipped_line(view.route_line, near)]
    for plan in plans:
        entry: dict[str, Any] = {"poses": poses_json(np.vstack([np.zeros((1, 3)), plan.poses]))}
        if plan.explained is not None:
            states = plan.explained.states[:, :3]
            local = np.column_stack([to_ego(states[:, :2], origin), states[:, 2] - origin[2]])
            entry["states"] = poses_json(local)
            if plan.has_own_traffic:
                entry["tracks"] = tracks_json(scene, plan.explained.tracks, origin, near)
        if image is not None and camera is not None:
            entry["road"] = _road(plan, camera, ground_z_m, image.shape[1])
        data["plans"][plan.id] = entry
    if image is not None:
        data["image"] = base64.b64encode(encode_jpeg(image, image_width_px)).decode("ascii")
        data["size"] = [1000, round(1000 * image.shape[0] / image.shape[1])]
    return data


def tracks_json(
    scene: ScoringScene, tracks: TrackBoxes, origin: FloatArray, near: tuple[float, float, float, float]
) -> list[dict[str, Any]]:
    """Road users that come near within 4 s: type, token, size, poses, and when they are there.

    Args:
      scene: gives types and tokens.
      tracks: the boxes.
      origin: (3,) the ego's pose now.
      near: lowest x and y, highest x and y of what is shown [m].
    """
    corners = to_ego(np.asarray(tracks.corners)[:NUM_SIM_STATES], origin)  # (T, K, 4, 2)
    exists = np.asarray(tracks.exists)[: len(corners)]
    middle = corners.mean(axis=2)
    is_near = exists & np.all((middle > near[:2]) & (middle < near[2:]), axis=-1)
    found = []
    for k in np.flatnonzero(is_near.any(axis=0)):
        there = np.flatnonzero(exists[:, k])
        box = corners[there, k]
        along = box[:, 0] - box[:, 1]
        poses = np.column_stack([middle[there, k], np.arctan2(along[:, 1], along[:, 0])])
        stands = np.ptp(poses[:, :2], axis=0).max() < _STANDS_M
        entry: dict[str, Any] = {
            "i": int(k),
            "k": TRACK_TYPES[scene.track_type[k]],
            "n": scene.track_tokens[k][:4] if k < len(scene.track_tokens) else str(k),
            "s": [
                round(100 * float(np.linalg.norm(box[0, 0] - box[0, 1]))),
                round(100 * float(np.linalg.norm(box[0, 0] - box[0, 3]))),
            ],
            "p": poses_json(poses[:1] if stands else poses),
        }
        if len(there) < len(exists):  # times at which it is there: first and last of each run
            breaks = np.flatnonzero(np.diff(there) > 1)
            firsts, lasts = np.r_[there[0], there[breaks + 1]], np.r_[there[breaks], there[-1]]
            entry["t"] = np.column_stack([firsts, lasts]).ravel().tolist()
        found.append(entry)
    return found


def _areas(view: BirdsEyeView, near: tuple[float, float, float, float]) -> list[list[Any]]:
    """[kind, ring, ring ...] of the parts of the map that are shown."""
    areas: list[list[Any]] = []
    for area in view.areas:
        shape = shapely.make_valid(shapely.Polygon(area.rings[0], area.rings[1:]))
        clipped = shapely.clip_by_rect(shape, *near).simplify(_SIMPLIFIED_M)
        for part in shapely.get_parts(clipped):
            if part.geom_type == "Polygon" and not part.is_empty:
                rings = [shapely.get_coordinates(ring)[:-1] for ring in (part.exterior, *part.interiors)]
                areas.append([area.kind, *(differences(ring, 10.0) for ring in rings)])
    return areas


def _clipped_line(line: FloatArray, near: tuple[float, float, float, float]) -> list[FloatArray]:
    clipped = shapely.clip_by_rect(shapely.LineString(line), *near).simplify(_SIMPLIFIED_M)
    return [shapely.get_coordinates(p) for p in shapely.get_parts(clipped) if p.geom_type == "LineString"]


def _road(plan: Plan, camera: CameraRecord, ground_z_m: float, image_width_px: int) -> list[str]:
    """Paths (SVG) on a picture 1000 units wide: the line, and under it the way of the vehicle."""
    line, scale = path_line(plan.poses), 1000.0 / image_width_px
    narrow = ribbon_outlines(line, _NARROW_M, camera, ground_z_m, plan.style.dash_m)
    paths = [_svg_path(narrow, scale)]
    if plan.is_wide:
        paths.append(_svg_path(ribbon_outlines(line, EGO_WIDTH_M / 2, camera, ground_z_m), scale))
    return paths


def _svg_path(outlines: Sequence[FloatArray], scale: float) -> str:
    text = ""
    for outline in outlines:
        points = np.round(np.clip(outline * scale, -4000.0, 6000.0)).astype(int)
        text += "M" + "L".join(f"{x} {y}" for x, y in points) + "Z"
    return text
