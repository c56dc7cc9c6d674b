"""What the vision tower of a model from scratch is made to see: a coarse bird's-eye grid in front of the ego.

A pretrained tower knows roads and cars before it meets its first trajectory; one that starts from scratch
would have to learn them from 24 tokens a scene. An auxiliary target of several hundred cells a scene, made
from map and annotations of the training logs, stands in for that pretraining. Training only: plans never use
it.

Grid: cells of 3 m in the ego frame, rows ahead from x = 3 m, columns from right to left, centred on the ego.
Channels: drivable area; road users and objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from tqdm import tqdm

from drivefine_agent.data.maps import Layer, Map, load_map
from drivefine_agent.data.types import FloatArray, SceneWindow
from drivefine_agent.errors import DataError
from drivefine_agent.geometry.boxes import box_corners, corner_polygons
from drivefine_agent.geometry.indices import BoxIndex, PoseIndex
from drivefine_agent.geometry.se2 import global_from_local

CELL_M = 3.0
OBJECT_MARGIN_M = 0.75
"""A cell is occupied when an object, widened by this much, covers its centre: half a cell's slack."""


def cell_centers(rows: int, cols: int) -> FloatArray:
    """(rows, cols, 2) centres of the grid's cells in the ego frame [m]."""
    x = CELL_M * (1.5 + np.arange(rows))
    y = CELL_M * (np.arange(cols) - (cols - 1) / 2)
    return np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1)


def birdseye_grid(window: SceneWindow, map_: Map, rows: int, cols: int) -> NDArray[np.bool_]:
    """(2, rows, cols) what is drivable and what is occupied in front of the ego, at the current frame.

    Args:
      window: its current frame must be annotated.
      map_: the window's map.
      rows: of the grid, away from the ego.
      cols: of the grid, right to left.

    Raises:
      DataError: the frame has no annotations.
    """
    frame = window.current
    if frame.annotations is None:
        raise DataError(
            f"perception targets need annotations, scene {window.token} has none: {window.log_path}; set "
            "perception.num_epochs=0, or choose logs with annotations"
        )
    centers = cell_centers(rows, cols).reshape(-1, 2)
    poses = np.concatenate([centers, np.zeros((len(centers), 1))], axis=1)
    points = shapely.points(global_from_local(poses, frame.ego_pose)[:, : PoseIndex.HEADING])
    reach = CELL_M * (rows + cols)
    drivable = np.zeros(len(points), dtype=bool)
    for area in _drivable_areas(map_, frame.ego_pose, reach):
        drivable |= shapely.contains(area, points)
    boxes = frame.annotations.boxes
    occupied = np.zeros(len(points), dtype=bool)
    if len(boxes):
        corners = box_corners(
            boxes[:, [BoxIndex.X, BoxIndex.Y, BoxIndex.HEADING]],
            boxes[:, BoxIndex.LENGTH] + 2 * OBJECT_MARGIN_M,
            boxes[:, BoxIndex.WIDTH] + 2 * OBJECT_MARGIN_M,
        )
        tree = shapely.STRtree(corner_polygons(corners))
        occupied[tree.query(shapely.points(centers), predicate="within")[0]] = True
    return np.stack([drivable, occupied]).reshape(-1, rows, cols)


def _drivable_areas(map_: Map, ego_pose: FloatArray, reach_m: float) -> list[shapely.Polygon]:
    """Prepared polygons on which one may drive, near the ego."""
    areas = [
        *(map_.roadblocks[key].polygon for key in map_.query(Layer.ROADBLOCKS, ego_pose, reach_m)),
        *(map_.intersections[key] for key in map_.query(Layer.INTERSECTIONS, ego_pose, reach_m)),
        *(map_.carparks[key] for key in map_.query(Layer.CARPARKS, ego_pose, reach_m)),
    ]
    shapely.prepare(areas)
    return areas


def mirror_grid(grid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(..., rows, cols) grid with left and right exchanged."""
    return grid[..., ::-1]


def perception_targets(
    windows: Sequence[SceneWindow], maps_root: Path, rows: int, cols: int, show_progress: bool = True
) -> NDArray[np.bool_]:
    """(N, 2, rows, cols) grids of several scenes."""
    bar = tqdm(windows, desc="Bird's-eye grids", unit="scene", disable=not show_progress)
    return np.stack(
        [birdseye_grid(window, load_map(maps_root, window.map_name), rows, cols) for window in bar]
    )
