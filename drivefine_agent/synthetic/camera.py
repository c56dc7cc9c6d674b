"""Draws what a camera sees of a world: flat ground, then everything that stands.

The ground's polygons are prepared once per world. For each picture they are projected together, clipped
where they reach behind the camera, and filled; boxes, people, cones, lights, trees and buildings follow
from far to near. Pictures are for learning as well as for looking at: road, markings, lights and obstacles
keep strong contrast, and lamps are drawn larger than life, so that they survive a small input size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from drivefine_agent.constants import IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX
from drivefine_agent.synthetic.lanes import FloatArray, box_corners, left_of, unit
from drivefine_agent.synthetic.map_layers import stop_line_ring
from drivefine_agent.synthetic.network import SHOULDER_M, WALKWAY_WIDTH_M, Junction
from drivefine_agent.synthetic.scenery import Prop
from drivefine_agent.synthetic.world import TrackState, World, WorldFrame

Color = tuple[int, int, int]
"""RGB."""
_Item = tuple[float, Callable[[NDArray[np.uint8]], None]]
"""Distance, and the function that draws it."""

FOCAL_PX = 1545.0
PRINCIPAL_X_PX = 960.0
PRINCIPAL_Y_PX = 560.0
GROUND_NEAR_M = 2.0
"""Ground nearer to the camera plane than this is below the picture."""
NEAR_M = 0.4
FAR_M = 170.0
_SHIFT = 4
_LIMIT_PX = 20_000.0

CAMERA_POSES: dict[str, tuple[float, float, float, float]] = {
    "CAM_F0": (1.60, 0.0, 1.60, 0.0),
    "CAM_L0": (1.50, 0.35, 1.60, 55.0),
    "CAM_R0": (1.50, -0.35, 1.60, -55.0),
    "CAM_L1": (1.20, 0.50, 1.60, 110.0),
    "CAM_R1": (1.20, -0.50, 1.60, -110.0),
    "CAM_L2": (0.80, 0.45, 1.60, 145.0),
    "CAM_R2": (0.80, -0.45, 1.60, -145.0),
    "CAM_B0": (0.50, 0.0, 1.60, 180.0),
}
"""Camera -> x, y, z [m] in the ego frame, yaw [deg]. All look level; close to nuPlan's rig."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera on the ego."""

    translation: FloatArray
    """(3,) in the ego frame [m]."""
    rotation: FloatArray
    """(3, 3) camera (x right, y down, z forward) to ego."""
    intrinsics: FloatArray
    """(3, 3) [px]."""


def make_camera(name: str) -> Camera:
    """The camera of that name."""
    x, y, z, yaw_deg = CAMERA_POSES[name]
    yaw = np.radians(yaw_deg)
    forward, left, up = (
        np.array([np.cos(yaw), np.sin(yaw), 0.0]),
        np.array([-np.sin(yaw), np.cos(yaw), 0.0]),
        [0, 0, 1.0],
    )
    rotation = np.stack([-left, -np.array(up), forward], axis=1)
    intrinsics = np.array([[FOCAL_PX, 0.0, PRINCIPAL_X_PX], [0.0, FOCAL_PX, PRINCIPAL_Y_PX], [0.0, 0.0, 1.0]])
    return Camera(np.array([x, y, z]), rotation, intrinsics)


@dataclass
class _Layer:
    """Ground polygons of one colour."""

    color: Color
    rings: list[FloatArray]
    overlaps: bool
    """Members may overlap one another, so they are filled one by one."""


class Renderer:
    """Draws the frames of one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        rng = np.random.default_rng(world.style)
        self.palette = _Palette(rng)
        self.background = self.palette.background()
        layers = _ground_layers(world, self.palette)
        self.layers = [_Prepared(layer.color, layer.overlaps, layer.rings) for layer in layers if layer.rings]

    def draw(self, frame: WorldFrame, camera: Camera) -> NDArray[np.uint8]:
        """(1080, 1920, 3) uint8 RGB: the world as a camera sees it in a frame."""
        image = self.background.copy()
        view = _View(frame.ego_pose, camera)
        for layer in self.layers:
            layer.fill(image, view)
        for _, draw in sorted(self.standing(frame, view), key=lambda item: -item[0]):
            draw(image)
        return image

    def standing(self, frame: WorldFrame, view: _View) -> list[_Item]:
        """(distance, function that draws it) of everything that stands and can be seen."""
        items: list[_Item] = []
        for track in frame.tracks:
            depth = view.depth(track.x, track.y)
            if depth < -3.0 or depth > FAR_M or not view.is_near_axis(track.x, track.y, 6.0):
                continue
            items.append((depth, partial(_draw_track, view=view, track=track, palette=self.palette)))
        for prop in [*self.world.scenery.buildings, *self.world.scenery.trees]:
            depth = view.depth(prop.x, prop.y)
            reach = 0.5 * (prop.length + prop.width)
            if depth < -reach or depth > FAR_M or not view.is_near_axis(prop.x, prop.y, reach + 4.0):
                continue
            if prop.kind == "building":
                items.append(
                    (depth + 2.0, partial(_draw_building, view=view, prop=prop, palette=self.palette))
                )
            elif depth > 1.5:
                items.append((depth, partial(_draw_tree, view=view, prop=prop, palette=self.palette)))
        for index, junction in enumerate(self.world.network.junctions):
            if np.hypot(*(junction.center - view.position[:2])) < 130.0:
                items += _junction_items(view, junction, index, frame)
        return items


class _Palette:
    """Colours of one world."""

    def __init__(self, rng: np.random.Generator) -> None:
        light = float(rng.uniform(0.86, 1.06))
        self.light = light

        def jitter(color: tuple[float, float, float], amount: float) -> Color:
            values = np.array(color) * light + rng.normal(0.0, amount, 3)
            red, green, blue = (int(v) for v in np.clip(values, 0, 255))
            return red, green, blue

        grey = float(rng.uniform(66.0, 92.0))
        self.asphalt = jitter((grey, grey + 1.0, grey + 6.0), 1)
        self.junction = self.asphalt
        self.car_park = jitter((104, 103, 104), 5)
        self.grass = jitter((128, 168, 70), 12)
        self.far_grass = jitter((158, 182, 118), 8)
        self.walkway = jitter((184, 180, 172), 6)
        self.kerb = jitter((214, 212, 206), 4)
        self.white = jitter((240, 240, 238), 3)
        self.yellow = jitter((236, 190, 52), 6)
        self.sky_top = jitter((96, 148, 214), 14)
        self.sky_low = jitter((206, 222, 236), 8)
        self.sun = unit(float(rng.uniform(-np.pi, np.pi)))

    def background(self) -> NDArray[np.uint8]:
        """Sky above the horizon, grass below."""
        horizon = int(PRINCIPAL_Y_PX)
        image = np.empty((IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX, 3), np.uint8)
        u = np.linspace(0.0, 1.0, horizon)[:, None]
        sky = (1 - u) * np.array(self.sky_top) + u * np.array(self.sky_low)
        image[:horizon] = sky[:, None, :].astype(np.uint8)
        v = np.linspace(0.0, 1.0, IMAGE_HEIGHT_PX - horizon)[:, None] ** 0.5
        grass = (1 - v) * np.array(self.far_grass) + v * np.array(self.grass)
        image[horizon:] = grass[:, None, :].astype(np.uint8)
        return image

    def haze(self, color: Color, depth: float) -> Color:
        """A colour as seen through `depth` metres of air."""
        share = min(0.55, max(0.0, depth) / 320.0)
        red, green, blue = (
            int((1 - share) * c + share * s) for c, s in zip(color, self.sky_low, strict=True)
        )
        return red, green, blue


class _View:
    """World to picture."""

    def __init__(self, ego_pose: FloatArray, camera: Camera) -> None:
        x, y, heading = (float(v) for v in ego_pose)
        cos, sin = np.cos(heading), np.sin(heading)
        global_from_ego = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        self.rotation = (global_from_ego @ camera.rotation).T  # global to camera
        self.position = np.array([x, y, 0.0]) + global_from_ego @ camera.translation
        self.forward = self.rotation[2, :2]
        self.right = self.rotation[0, :2]

    def camera_points(self, points: FloatArray) -> FloatArray:
        """(..., 3) global to (..., 3) camera coordinates."""
        return (points - self.position) @ self.rotation.T

    def depth(self, x: float, y: float) -> float:
        """Distance along the optical axis."""
        return float((x - self.position[0]) * self.forward[0] + (y - self.position[1]) * self.forward[1])

    def is_near_axis(self, x: float, y: float, margin_m: float) -> bool:
        """Whether a place is within the horizontal field of view, give or take a margin."""
        across = (x - self.position[0]) * self.right[0] + (y - self.position[1]) * self.right[1]
        return bool(abs(across) < 0.66 * max(self.depth(x, y), 0.0) + margin_m)

    def scale(self, x: float, y: float) -> float:
        """Pixels per metre at a place."""
        return FOCAL_PX / max(self.depth(x, y), NEAR_M)

    def pixel(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Picture position of a point in front of the camera."""
        c = self.camera_points(np.array([x, y, z]))
        depth = max(float(c[2]), NEAR_M)
        return PRINCIPAL_X_PX + FOCAL_PX * float(c[0]) / depth, PRINCIPAL_Y_PX + FOCAL_PX * float(
            c[1]
        ) / depth


def _pixels(camera_points: FloatArray) -> FloatArray:
    """(..., 2) picture positions of camera points in front of the camera."""
    depth = camera_points[..., 2:3]
    flat = FOCAL_PX * camera_points[..., :2] / depth + np.array([PRINCIPAL_X_PX, PRINCIPAL_Y_PX])
    return np.clip(flat, -_LIMIT_PX, _LIMIT_PX)


def _fixed(pixels: FloatArray) -> NDArray[np.int32]:
    """Sub-pixel integers for OpenCV."""
    return np.round(pixels * (1 << _SHIFT)).astype(np.int32)


def _clip_near(ring: FloatArray, near: float) -> FloatArray:
    """(M, 3) part of a ring (N, 3) of camera points beyond the near plane (Sutherland-Hodgman)."""
    following = np.roll(ring, -1, axis=0)
    inside, inside_next = ring[:, 2] >= near, following[:, 2] >= near
    step = np.where(inside != inside_next, following[:, 2] - ring[:, 2], 1.0)
    share = ((near - ring[:, 2]) / step)[:, None]
    cut = ring + share * (following - ring)
    points = np.stack([ring, cut], axis=1).reshape(-1, 3)
    keep = np.stack([inside, inside != inside_next], axis=1).reshape(-1)
    return points[keep]


class _Prepared:
    """A ground layer, ready to be projected in one go."""

    def __init__(self, color: Color, overlaps: bool, rings: list[FloatArray]) -> None:
        self.color = color
        self.overlaps = overlaps
        self.vertices = np.vstack(rings)
        self.counts = np.array([len(r) for r in rings])
        self.starts = np.concatenate([[0], np.cumsum(self.counts)[:-1]])

    def fill(self, image: NDArray[np.uint8], view: _View) -> None:
        """Fills the visible polygons."""
        delta = self.vertices - view.position[:2]
        depth = delta @ view.forward
        across = delta @ view.right
        highest = np.maximum.reduceat(depth, self.starts)
        lowest = np.minimum.reduceat(depth, self.starts)
        left = np.minimum.reduceat(across - 0.64 * np.maximum(depth, 0.0), self.starts)
        right = np.maximum.reduceat(across + 0.64 * np.maximum(depth, 0.0), self.starts)
        seen = np.flatnonzero((highest > GROUND_NEAR_M) & (lowest < FAR_M) & (left < 2.0) & (right > -2.0))
        rings = []
        for index in seen:
            piece = slice(self.starts[index], self.starts[index] + self.counts[index])
            height = np.full(self.counts[index], view.position[2])
            ring = np.stack([across[piece], height, depth[piece]], axis=1)
            if lowest[index] < GROUND_NEAR_M:
                ring = _clip_near(ring, GROUND_NEAR_M)
            if len(ring) >= 3:
                rings.append(_fixed(_pixels(ring)))
        if self.overlaps:
            for ring in rings:
                cv2.fillPoly(image, [ring], self.color, cv2.LINE_AA, _SHIFT)
        elif rings:
            cv2.fillPoly(image, rings, self.color, cv2.LINE_AA, _SHIFT)


def _ground_layers(world: World, palette: _Palette) -> list[_Layer]:
    """Everything flat, bottom first."""
    network = world.network
    walkways, asphalt, kerbs, yellow, white = [], [], [], [], []
    for road in network.roads:
        spec, length = road.spec, road.reference.length
        for side, has in ((1, spec.walkway_left), (-1, spec.walkway_right)):
            kerb = spec.kerb_m(side)
            if has:
                walkways.append(road.band(side * (kerb - 0.1), side * (kerb + WALKWAY_WIDTH_M)))
            lanes = spec.left_width_m if side > 0 else spec.right_width_m
            kerbs.append(road.band(side * (lanes + SHOULDER_M), side * (lanes + SHOULDER_M + 0.28)))
        asphalt.append(road.band(spec.left_width_m + SHOULDER_M, -spec.right_width_m - SHOULDER_M))
        yellow += [road.band(0.22, 0.08), road.band(-0.08, -0.22)]
        for count, sign in ((spec.num_forward, -1), (spec.num_backward, 1)):
            for border in range(1, count):
                offset = sign * border * spec.lane_width_m
                white += [
                    road.band(offset + 0.09, offset - 0.09, s, s + 3.0)
                    for s in np.arange(2.0, length - 4.0, 8.0)
                ]
            edge = sign * (count * spec.lane_width_m)
            white.append(road.band(edge + 0.07, edge - 0.07))
    junctions = [j.polygon for j in network.junctions]
    junction_kerbs = []
    for junction in network.junctions:
        if junction.kind == "joint":
            white += _joint_markings(world, junction)
        for arm_index, arm in enumerate(junction.arms):
            if arm.num_in and (
                junction.kind == "signal" or arm_index in junction.stop_arms + junction.yield_arms
            ):
                white.append(stop_line_ring(arm, 0.6))
        junction_kerbs.append(junction.polygon)
    stripes, curb_ramps = [], []
    for crossing in network.crossings:
        if crossing.is_marked:
            stripes += _zebra(crossing.start, crossing.end, crossing.width_m)
        curb_ramps.append(crossing.polygon())
    strips = [ring for _, ring in world.scenery.car_parks]
    return [
        _Layer(palette.walkway, walkways, True),
        _Layer(palette.kerb, [_outset(j, 0.3) for j in junctions], True),
        _Layer(palette.car_park, strips, True),
        _Layer(palette.asphalt, [*asphalt, *junctions], True),
        _Layer(palette.kerb, kerbs, True),
        _Layer(palette.asphalt, [_outset(j, -0.02) for j in junctions], True),
        _Layer(palette.car_park, [], True),
        _Layer(palette.yellow, yellow, False),
        _Layer(palette.white, [r for r in white if len(r) >= 4], True),
        _Layer(palette.white, stripes, False),
    ]


def _outset(ring: FloatArray, distance_m: float) -> FloatArray:
    """A ring moved outwards, vertex by vertex (counter-clockwise rings)."""
    tangent = np.roll(ring, -1, axis=0) - np.roll(ring, 1, axis=0)
    tangent /= np.maximum(np.hypot(tangent[:, 0], tangent[:, 1]), 1e-9)[:, None]
    return ring + distance_m * np.stack([tangent[:, 1], -tangent[:, 0]], axis=1)


def _joint_markings(world: World, junction: Junction) -> list[FloatArray]:
    """Edge lines along the outer connectors of a joint."""
    lines = []
    for connector_id in junction.connectors:
        segment = world.network.segments[connector_id]
        for side in (1, -1):
            edge = segment.path.offset(side * (segment.half_width - 0.1))
            lines += [
                np.vstack([edge.offset(0.06).xy[i : i + 3], edge.offset(-0.06).xy[i : i + 3][::-1]])
                for i in range(0, len(edge.xy) - 3, 6)
            ]
    return lines


def _zebra(start: FloatArray, end: FloatArray, width_m: float) -> list[FloatArray]:
    """Stripes of a marked crossing."""
    length = float(np.hypot(*(end - start)))
    along = (end - start) / length
    across = 0.5 * width_m * np.array([-along[1], along[0]])
    return [
        np.array(
            [
                start + s * along + across,
                start + s * along - across,
                start + e * along - across,
                start + e * along + across,
            ]
        )
        for s, e in ((s, min(s + 0.55, length)) for s in np.arange(0.3, length - 0.3, 1.1))
    ]


# -- what stands --------------------

_CAR_COLORS: tuple[Color, ...] = (
    (226, 226, 228),
    (46, 48, 54),
    (150, 154, 160),
    (164, 32, 36),
    (36, 72, 150),
    (92, 96, 102),
    (196, 176, 140),
    (30, 92, 70),
)
_SHIRTS: tuple[Color, ...] = (
    (214, 62, 52),
    (44, 92, 196),
    (236, 196, 48),
    (236, 236, 232),
    (122, 52, 150),
    (40, 150, 90),
)
_WALLS: tuple[Color, ...] = (
    (178, 122, 96),
    (196, 184, 160),
    (150, 152, 158),
    (168, 96, 80),
    (206, 202, 194),
    (128, 120, 128),
)
_RED_ON, _RED_OFF = (255, 48, 36), (96, 14, 14)
_LAMPS: dict[str, tuple[Color, Color]] = {
    "red": ((255, 40, 30), (70, 16, 14)),
    "yellow": ((255, 205, 40), (72, 58, 12)),
    "green": ((40, 255, 110), (12, 66, 30)),
}


def _shade(color: Color, factor: float) -> Color:
    red, green, blue = (int(min(255, max(0, c * factor))) for c in color)
    return red, green, blue


def _quad(image: NDArray[np.uint8], camera_ring: FloatArray, color: Color) -> None:
    """Fills a polygon given in camera coordinates."""
    if camera_ring[:, 2].min() < NEAR_M:
        camera_ring = _clip_near(camera_ring, NEAR_M)
    if len(camera_ring) >= 3:
        cv2.fillPoly(image, [_fixed(_pixels(camera_ring))], color, cv2.LINE_AA, _SHIFT)


def _box_faces(corners: FloatArray, low: float, high: float) -> list[tuple[FloatArray, int]]:
    """Faces (4, 3) of an upright box with their number: 0 left, 1 rear, 2 right, 3 front, 4 top."""
    bottom = np.column_stack([corners, np.full(4, low)])
    top = np.column_stack([corners, np.full(4, high)])
    faces = []
    for index in range(4):
        following = (index + 1) % 4
        faces.append((np.array([bottom[index], bottom[following], top[following], top[index]]), index))
    faces.append((top, 4))
    return faces


def _draw_box(
    image: NDArray[np.uint8],
    view: _View,
    corners: FloatArray,
    low: float,
    high: float,
    color: Color,
    palette: _Palette,
) -> None:
    """Draws the visible faces of an upright box (corners counter-clockwise from the front left)."""
    center = corners.mean(axis=0)
    for ring, face in _box_faces(corners, low, high):
        if face == 4:
            if view.position[2] <= high:
                continue
            shade = 1.12
        else:
            middle = ring[:, :2].mean(axis=0)
            normal = middle - center
            normal = normal / max(float(np.hypot(*normal)), 1e-9)
            edge = ring[1, :2] - ring[0, :2]
            outward = np.array([edge[1], -edge[0]]) / max(float(np.hypot(*edge)), 1e-9)
            if (view.position[:2] - middle) @ outward <= 0.0:
                continue
            shade = 0.74 + 0.22 * float(outward @ palette.sun)
        _quad(image, view.camera_points(ring), _shade(color, shade))


def _corners(
    x: float, y: float, heading: float, length: float, width: float, shift_m: float = 0.0
) -> FloatArray:
    """(4, 2) corners of a box whose centre lies `shift_m` ahead of (x, y)."""
    along = unit(heading)
    center = np.array([x, y]) + shift_m * along
    return box_corners(*(np.array([v]) for v in (center[0], center[1], heading, length, width)))[0]


def _draw_track(image: NDArray[np.uint8], view: _View, track: TrackState, palette: _Palette) -> None:
    """Draws a road user or object."""
    depth = view.depth(track.x, track.y)
    if track.kind == "vehicle":
        _draw_vehicle(image, view, track, palette, depth)
    elif track.kind in ("pedestrian", "bicycle"):
        if depth > 1.0:
            _draw_person(image, view, track, palette, depth)
    elif track.kind == "traffic_cone":
        if depth > 1.0:
            _draw_cone(image, view, track)
    else:
        base = {"barrier": (236, 110, 30), "czone_sign": (250, 140, 20), "generic_object": (120, 84, 52)}[
            track.kind
        ]
        corners = _corners(track.x, track.y, track.heading, track.length, track.width)
        if track.kind == "czone_sign":
            _draw_box(image, view, corners, 0.55 * track.height, track.height, base, palette)
            post = _corners(track.x, track.y, track.heading, 0.12, 0.12)
            _draw_box(image, view, post, 0.0, 0.55 * track.height, (90, 90, 90), palette)
            return
        _draw_box(image, view, corners, 0.0, track.height, base, palette)
        if track.kind == "barrier":
            _draw_box(image, view, corners, 0.4 * track.height, 0.62 * track.height, (244, 244, 240), palette)


def _draw_vehicle(
    image: NDArray[np.uint8], view: _View, track: TrackState, palette: _Palette, depth: float
) -> None:
    """A body with a cabin, wheels, and lamps that light up when it brakes."""
    color = palette.haze(_CAR_COLORS[int(track.tone * len(_CAR_COLORS))], depth)
    x, y, heading, length, width, height = (
        track.x,
        track.y,
        track.heading,
        track.length,
        track.width,
        track.height,
    )
    shadow = np.column_stack([_corners(x, y, heading, length + 0.3, width + 0.35), np.zeros(4)])
    _quad(image, view.camera_points(shadow), _shade(palette.asphalt, 0.45))
    is_truck = height > 2.3
    low, waist = 0.28, (0.5 if is_truck else 0.58 * height)
    wheels = _corners(x, y, heading, 0.78 * length, width - 0.05)
    _draw_box(image, view, wheels, 0.0, 0.55, (26, 26, 28), palette)
    body = _corners(x, y, heading, length, width)
    if is_truck:
        _draw_box(image, view, body, low, height, color, palette)
    else:
        _draw_box(image, view, body, low, waist, color, palette)
        cabin = _corners(x, y, heading, 0.56 * length, 0.86 * width, -0.05 * length)
        _draw_box(image, view, cabin, waist, height - 0.1, (48, 58, 70), palette)
        roof = _corners(x, y, heading, 0.5 * length, 0.82 * width, -0.05 * length)
        _draw_box(image, view, roof, height - 0.1, height, color, palette)
    toward = view.position[:2] - np.array([x, y])
    if depth < 1.0:
        return
    along, left = unit(heading), left_of(heading)
    is_behind = bool(toward @ along < 0.0)
    face = np.array([x, y]) + (-1 if is_behind else 1) * (0.5 * length + 0.02) * along
    if (toward - (face - [x, y])) @ ((-1 if is_behind else 1) * along) <= 0.0:
        return
    lamp = (_RED_ON if track.is_braking else _RED_OFF) if is_behind else (250, 244, 214)
    bottom, top = (0.62, 0.98) if not is_truck else (0.7, 1.2)
    for side in (-1.0, 1.0):
        inner, outer = face + side * 0.24 * width * left, face + side * 0.49 * width * left
        ring = np.array([[*inner, bottom], [*outer, bottom], [*outer, top], [*inner, top]])
        _quad(image, view.camera_points(ring), lamp)
    if is_behind and track.is_braking and not is_truck:
        a, b = face - 0.2 * width * left, face + 0.2 * width * left
        ring = np.array([[*a, waist - 0.02], [*b, waist - 0.02], [*b, waist + 0.12], [*a, waist + 0.12]])
        _quad(image, view.camera_points(ring), lamp)


def _board(
    image: NDArray[np.uint8],
    view: _View,
    x: float,
    y: float,
    half_width: float,
    low: float,
    high: float,
    color: Color,
) -> None:
    """An upright rectangle that faces the camera."""
    u, bottom = view.pixel(x, y, low)
    _, top = view.pixel(x, y, high)
    half = half_width * view.scale(x, y)
    ring = np.array([[u - half, bottom], [u + half, bottom], [u + half, top], [u - half, top]])
    cv2.fillPoly(image, [_fixed(np.clip(ring, -_LIMIT_PX, _LIMIT_PX))], color, cv2.LINE_AA, _SHIFT)


def _disc(
    image: NDArray[np.uint8], view: _View, x: float, y: float, z: float, radius: float, color: Color
) -> None:
    """A disc that faces the camera."""
    u, v = view.pixel(x, y, z)
    size = radius * view.scale(x, y)
    if abs(u) < 6000 and abs(v) < 6000 and size < 4000:
        center = (round(u * 16), round(v * 16))
        cv2.circle(image, center, max(8, round(size * 16)), color, -1, cv2.LINE_AA, _SHIFT)


def _draw_person(
    image: NDArray[np.uint8], view: _View, track: TrackState, palette: _Palette, depth: float
) -> None:
    """A pedestrian, or a rider on a bicycle."""
    shirt = palette.haze(_SHIRTS[int(track.tone * len(_SHIRTS))], depth)
    lift = 0.0
    if track.kind == "bicycle":
        lift = 0.35
        frame = _corners(track.x, track.y, track.heading, track.length, 0.1)
        _draw_box(image, view, frame, 0.25, 0.75, (30, 30, 34), palette)
        for end in (-0.55, 0.55):
            wheel = np.array([track.x, track.y]) + end * unit(track.heading)
            _disc(image, view, wheel[0], wheel[1], 0.36, 0.34, (24, 24, 26))
    _board(image, view, track.x, track.y, 0.17, lift, lift + 0.85, (44, 46, 60))
    _board(image, view, track.x, track.y, 0.27, lift + 0.8, lift + 1.45, shirt)
    _disc(image, view, track.x, track.y, lift + 1.62, 0.16, (214, 170, 138))


def _draw_cone(image: NDArray[np.uint8], view: _View, track: TrackState) -> None:
    """A cone, orange with a white band."""
    u, bottom = view.pixel(track.x, track.y, 0.0)
    _, top = view.pixel(track.x, track.y, track.height)
    half = 0.28 * view.scale(track.x, track.y)
    tip = 0.2 * half
    ring = np.array([[u - half, bottom], [u + half, bottom], [u + tip, top], [u - tip, top]])
    cv2.fillPoly(image, [_fixed(np.clip(ring, -_LIMIT_PX, _LIMIT_PX))], (255, 104, 16), cv2.LINE_AA, _SHIFT)
    high, low = bottom + 0.62 * (top - bottom), bottom + 0.4 * (top - bottom)
    ring = np.array(
        [[u - 0.66 * half, low], [u + 0.66 * half, low], [u + 0.5 * half, high], [u - 0.5 * half, high]]
    )
    cv2.fillPoly(image, [_fixed(np.clip(ring, -_LIMIT_PX, _LIMIT_PX))], (248, 248, 244), cv2.LINE_AA, _SHIFT)


def _draw_building(image: NDArray[np.uint8], view: _View, prop: Prop, palette: _Palette) -> None:
    """A block with rows of windows."""
    depth = max(view.depth(prop.x, prop.y), 0.0)
    color = palette.haze(_shade(_WALLS[int(prop.tone * len(_WALLS))], palette.light), depth)
    corners = _corners(prop.x, prop.y, prop.heading, prop.length, prop.width)
    _draw_box(image, view, corners, 0.0, prop.height, color, palette)
    center = corners.mean(axis=0)
    window = palette.haze((70, 84, 104), depth)
    for floor in np.arange(1.2, prop.height - 1.6, 3.2):
        inset = center + 1.002 * (corners - center)
        for ring, _ in _box_faces(inset, floor, floor + 1.4)[:4]:
            edge = ring[1, :2] - ring[0, :2]
            if (view.position[:2] - ring[:, :2].mean(axis=0)) @ np.array([edge[1], -edge[0]]) <= 0.0:
                continue
            margin = 0.06 * (ring[1] - ring[0])
            inner = np.array([ring[0] + margin, ring[1] - margin, ring[2] - margin, ring[3] + margin])
            _quad(image, view.camera_points(inner), window)


def _draw_tree(image: NDArray[np.uint8], view: _View, prop: Prop, palette: _Palette) -> None:
    """A trunk and a crown."""
    depth = view.depth(prop.x, prop.y)
    green = palette.haze(_shade((52, 104, 44), palette.light * (0.8 + 0.5 * prop.tone)), depth)
    _board(image, view, prop.x, prop.y, 0.16, 0.0, 0.5 * prop.height, palette.haze((94, 70, 48), depth))
    _disc(image, view, prop.x, prop.y, 0.66 * prop.height, 0.5 * prop.length, green)
    _disc(image, view, prop.x, prop.y, 0.74 * prop.height, 0.34 * prop.length, _shade(green, 1.15))


def _junction_items(view: _View, junction: Junction, index: int, frame: WorldFrame) -> list[_Item]:
    """Lights and stop signs of a junction."""
    items: list[_Item] = []

    def add(place: FloatArray, draw: Callable[[NDArray[np.uint8]], None]) -> None:
        depth = view.depth(place[0], place[1])
        if 2.0 < depth < FAR_M and view.is_near_axis(place[0], place[1], 4.0):
            items.append((depth, draw))

    for arm_index, arm in enumerate(junction.arms):
        light = frame.lights.get((index, arm_index))
        near_right = arm.left + 1.3 * left_of(arm.heading)
        facing = unit(arm.heading)
        if light is not None:
            across = float((arm.position - junction.center) @ facing)
            far = (
                arm.position
                - (2.0 * across + 2.0) * facing
                + 0.5 * arm.num_in * arm.lane_width_m * left_of(arm.heading)
            )
            far_right = far + (0.5 * arm.num_in * arm.lane_width_m + 1.5) * left_of(arm.heading)
            add(
                far,
                partial(
                    _draw_light,
                    view=view,
                    place=far,
                    post=far_right,
                    height=5.8,
                    state=light,
                    facing=facing,
                    size=1.35,
                ),
            )
            add(
                near_right,
                partial(
                    _draw_light,
                    view=view,
                    place=near_right,
                    post=near_right,
                    height=3.4,
                    state=light,
                    facing=facing,
                    size=1.0,
                ),
            )
        elif arm_index in junction.stop_arms:
            add(near_right, partial(_draw_stop_sign, view=view, place=near_right, facing=facing))
        elif arm_index in junction.yield_arms:
            add(near_right, partial(_draw_yield_sign, view=view, place=near_right, facing=facing))
    return items


def _draw_light(
    image: NDArray[np.uint8],
    view: _View,
    place: FloatArray,
    post: FloatArray,
    height: float,
    state: str,
    facing: FloatArray,
    size: float,
) -> None:
    """A signal head on its post; lamps only where it faces the camera."""
    x, y = float(place[0]), float(place[1])
    _board(image, view, float(post[0]), float(post[1]), 0.1, 0.0, height + 1.1 * size, (92, 94, 98))
    if post is not place:
        start, end = (
            view.pixel(float(post[0]), float(post[1]), height + size),
            view.pixel(x, y, height + size),
        )
        if max(map(abs, (*start, *end))) < 8000:
            thickness = max(1, int(0.16 * view.scale(x, y)))
            points = [tuple(int(v) for v in p) for p in (start, end)]
            cv2.line(image, points[0], points[1], (92, 94, 98), thickness, cv2.LINE_AA)
    is_facing = float((view.position[:2] - place) @ facing) > 0.35 * float(
        np.hypot(*(view.position[:2] - place))
    )
    _board(
        image,
        view,
        x,
        y,
        0.62 * size,
        height - 1.45 * size,
        height + 1.45 * size,
        (226, 190, 60) if is_facing else (40, 40, 42),
    )
    if not is_facing:
        return
    _board(image, view, x, y, 0.52 * size, height - 1.35 * size, height + 1.35 * size, (22, 22, 24))
    for position, name in enumerate(("red", "yellow", "green")):
        is_on = name == state
        _disc(
            image,
            view,
            x,
            y,
            height + 0.86 * size * (1 - position),
            size * (0.44 if is_on else 0.32),
            _LAMPS[name][0 if is_on else 1],
        )


def _draw_stop_sign(image: NDArray[np.uint8], view: _View, place: FloatArray, facing: FloatArray) -> None:
    """A stop sign on a post; grey from behind."""
    x, y = float(place[0]), float(place[1])
    is_facing = float((view.position[:2] - place) @ facing) > 0.0
    _board(image, view, x, y, 0.06, 0.0, 2.4, (120, 122, 124))
    u, v = view.pixel(x, y, 2.6)
    size = view.scale(x, y)
    angles = np.pi / 8 + np.arange(8) * np.pi / 4
    for radius, color in (
        ((0.72, (245, 245, 245)), (0.64, (204, 24, 30))) if is_facing else ((0.7, (150, 152, 154)),)
    ):
        ring = np.array([u, v]) + radius * size * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        cv2.fillPoly(image, [_fixed(np.clip(ring, -_LIMIT_PX, _LIMIT_PX))], color, cv2.LINE_AA, _SHIFT)
    if is_facing and 10.0 < size < 900.0:
        corner = (int(u - 0.5 * size), int(v + 0.17 * size))
        thickness = max(1, int(0.07 * size))
        cv2.putText(image, "STOP", corner, 0, 0.0137 * size, (245, 245, 245), thickness, cv2.LINE_AA)


def _draw_yield_sign(image: NDArray[np.uint8], view: _View, place: FloatArray, facing: FloatArray) -> None:
    """A triangle that points down, white with a red border; grey from behind."""
    x, y = float(place[0]), float(place[1])
    is_facing = float((view.position[:2] - place) @ facing) > 0.0
    _board(image, view, x, y, 0.06, 0.0, 2.2, (120, 122, 124))
    u, v = view.pixel(x, y, 2.6)
    size = view.scale(x, y)
    angles = np.pi / 2 + np.arange(3) * 2 * np.pi / 3
    for radius, color in (
        ((0.85, (204, 24, 30)), (0.5, (248, 248, 246))) if is_facing else ((0.85, (150, 152, 154)),)
    ):
        ring = np.array([u, v]) + radius * size * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        cv2.fillPoly(image, [_fixed(np.clip(ring, -_LIMIT_PX, _LIMIT_PX))], color, cv2.LINE_AA, _SHIFT)
