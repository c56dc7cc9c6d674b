"""Small road networks by hand: what scene preparation reads of a map, without a file."""

from pathlib import Path

import numpy as np
import shapely

from drivefine_agent.data.maps import LaneRecord, Layer, RoadblockRecord
from drivefine_agent.data.types import Annotations, Frame
from drivefine_agent.geometry.se2 import polyline_headings

LANE_WIDTH_M = 3.5


class ToyMap:
    """The part of data.maps.Map that scene preparation uses."""

    def __init__(self) -> None:
        self.name = "toy"
        self.path = Path("toy.gpkg")
        self.lanes: dict[str, LaneRecord] = {}
        self.lane_connectors: dict[str, LaneRecord] = {}
        self.roadblocks: dict[str, RoadblockRecord] = {}
        self.roadblock_connectors: dict[str, RoadblockRecord] = {}
        self.intersections: dict[str, shapely.Polygon] = {}
        self.carparks: dict[str, shapely.Polygon] = {}

    def roadblock(self, roadblock_id: str) -> RoadblockRecord:
        return self.roadblocks.get(roadblock_id) or self.roadblock_connectors[roadblock_id]

    def _polygons(self, layer: Layer) -> dict[str, shapely.Polygon]:
        records = getattr(self, layer.value)
        return {id_: getattr(record, "polygon", record) for id_, record in records.items()}

    def query(self, layer: Layer, xy: np.ndarray, half_side: float) -> list[str]:
        x, y = xy
        square = shapely.box(x - half_side, y - half_side, x + half_side, y + half_side)
        return [id_ for id_, polygon in self._polygons(layer).items() if polygon.intersects(square)]

    def nearest(self, layer: Layer, xy: np.ndarray) -> tuple[str, float] | None:
        distances = {i: p.distance(shapely.Point(xy)) for i, p in self._polygons(layer).items()}
        best = min(distances, key=distances.__getitem__, default=None)
        return None if best is None else (best, distances[best])


def lane(
    id_: str,
    points: list[tuple[float, float]],
    roadblock_id: str,
    *,
    is_connector: bool = False,
    successors: tuple[str, ...] = (),
    speed_limit: float | None = None,
) -> LaneRecord:
    """A lane of 3.5 m around a polyline."""
    line = shapely.LineString(points)
    baseline = np.array(points, dtype=float)
    return LaneRecord(
        id=id_,
        is_connector=is_connector,
        polygon=line.buffer(LANE_WIDTH_M / 2, cap_style="flat"),
        baseline=baseline,
        headings=polyline_headings(baseline),
        length=line.length,
        linestring=line,
        speed_limit=speed_limit,
        roadblock_id=roadblock_id,
        successors=successors,
        predecessors=(),
    )


def road_graph(edges: list[tuple[str, str]]) -> ToyMap:
    """Blocks without lanes from a list of (block, following block); ids with "c" are connectors."""
    map_ = ToyMap()
    for id_ in dict.fromkeys(id_ for edge in edges for id_ in edge):
        is_connector = id_.startswith("c")
        blocks = map_.roadblock_connectors if is_connector else map_.roadblocks
        blocks[id_] = RoadblockRecord(
            id=id_,
            is_connector=is_connector,
            polygon=shapely.box(0, 0, 1, 1),
            interior=(),
            successors=tuple(target for source, target in edges if source == id_),
            predecessors=tuple(source for source, target in edges if target == id_),
        )
    return map_


def straight_road(num_blocks: int, block_length_m: float = 20.0, speed_limit: float | None = None) -> ToyMap:
    """A road along +x from x = 0: blocks r0, c1, r2, c3, ... with one lane each (l0, k1, l2, ...)."""
    map_ = ToyMap()
    for index in range(num_blocks):
        is_connector = index % 2 == 1
        id_, lane_id = (f"c{index}", f"k{index}") if is_connector else (f"r{index}", f"l{index}")
        next_id, next_lane = (
            (f"r{index + 1}", f"l{index + 1}") if is_connector else (f"c{index + 1}", f"k{index + 1}")
        )
        before = f"r{index - 1}" if is_connector else f"c{index - 1}"
        start = index * block_length_m
        points = [
            (float(x), 0.0) for x in np.linspace(start, start + block_length_m, int(block_length_m) + 1)
        ]
        is_last = index == num_blocks - 1
        record = lane(
            lane_id,
            points,
            id_,
            is_connector=is_connector,
            successors=() if is_last else (next_lane,),
            speed_limit=speed_limit,
        )
        (map_.lane_connectors if is_connector else map_.lanes)[lane_id] = record
        blocks = map_.roadblock_connectors if is_connector else map_.roadblocks
        blocks[id_] = RoadblockRecord(
            id=id_,
            is_connector=is_connector,
            polygon=record.polygon,
            interior=(lane_id,),
            successors=() if is_last else (next_id,),
            predecessors=() if index == 0 else (before,),
        )
    return map_


def annotated_frame(
    boxes: list[tuple[str, str, tuple[float, float, float], tuple[float, float], tuple[float, float]]],
    ego_pose: tuple[float, float, float] = (0.0, 0.0, 0.0),
    token: str = "frame",
) -> Frame:
    """Objects (track token, type, (x, y, heading), (length, width), (vx, vy)) in the ego frame."""
    annotations = Annotations(
        boxes=np.array(
            [[x, y, 0.0, length, width, 1.5, h] for _, _, (x, y, h), (length, width), _ in boxes]
        ).reshape(-1, 7),
        names=tuple(name for _, name, _, _, _ in boxes),
        velocity_3d=np.array([[vx, vy, 0.0] for _, _, _, _, (vx, vy) in boxes]).reshape(-1, 3),
        instance_tokens=tuple(f"{track}-now" for track, *_ in boxes),
        track_tokens=tuple(track for track, *_ in boxes),
    )
    return Frame(
        token=token,
        timestamp_us=1_600_000_000_000_000,
        ego_pose=np.array(ego_pose),
        ego_velocity=np.zeros(2),
        ego_acceleration=np.zeros(2),
        driving_command=np.array([0, 1, 0, 0]),
        roadblock_ids=(),
        traffic_lights=(),
        annotations=annotations,
    )
