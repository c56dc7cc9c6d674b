"""The auxiliary bird's-eye grid, on roads and boxes placed by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely

from drivefine_agent.data.maps import load_map
from drivefine_agent.data.scenes import load_scenes
from drivefine_agent.data.splits import load_split
from drivefine_agent.data.types import Annotations, SceneWindow
from drivefine_agent.errors import DataError
from drivefine_agent.training.perception import birdseye_grid, cell_centers, mirror_grid


@pytest.fixture(scope="module")
def window(navsim_mini: Path) -> SceneWindow:
    split = load_split("synth_one_stage", [navsim_mini / "splits"])
    return load_scenes(navsim_mini / "navsim_logs" / split.data_split, split.scene_filter)[0]


def with_boxes(window: SceneWindow, boxes: list[list[float]] | None) -> SceneWindow:
    annotations = None
    if boxes is not None:
        names = ("vehicle",) * len(boxes)
        tokens = tuple(f"box{i}" for i in range(len(boxes)))
        array = np.array(boxes).reshape(-1, 7)
        annotations = Annotations(array, names, np.zeros((len(boxes), 3)), tokens, tokens)
    place = window.num_history_frames - 1
    frames = list(window.frames)
    frames[place] = replace(frames[place], annotations=annotations)
    return replace(window, frames=tuple(frames))


def test_cells_lie_ahead_and_from_right_to_left() -> None:
    centers = cell_centers(4, 6)
    assert centers[0, 0].tolist() == [4.5, -7.5]
    assert centers[3, 5].tolist() == [13.5, 7.5]


def test_a_car_fills_the_cells_whose_centres_it_covers(navsim_mini: Path, window: SceneWindow) -> None:
    """A car 4.5 x 2 m at (10.5, 1.5), widened by 0.75 m on each side, spans x 7.5-13.5 and y -0.25-3.25.

    Of the centres x = 4.5, 7.5, 10.5, 13.5 only 10.5 lies strictly inside, of y = -1.5, 1.5, 4.5 only 1.5.
    """
    map_ = load_map(navsim_mini / "maps", window.map_name)
    car = [10.5, 1.5, 0.0, 4.5, 2.0, 1.5, 0.0]
    occupied = birdseye_grid(with_boxes(window, [car]), map_, 4, 6)[1]
    assert np.argwhere(occupied).tolist() == [[2, 3]]
    assert not birdseye_grid(with_boxes(window, []), map_, 4, 6)[1].any()


def test_drivable_cells_are_those_inside_a_union_of_the_map(navsim_mini: Path, window: SceneWindow) -> None:
    """Against one union of all drivable polygons and plain trigonometry."""
    map_ = load_map(navsim_mini / "maps", window.map_name)
    polygons = [record.polygon for record in map_.roadblocks.values()]
    union = shapely.union_all([*polygons, *map_.intersections.values(), *map_.carparks.values()])
    x, y, heading = window.current.ego_pose
    drivable = birdseye_grid(window, map_, 16, 12)[0]
    for row in range(16):
        for col in range(12):
            ahead, left = 4.5 + 3 * row, -16.5 + 3 * col
            point = shapely.Point(
                x + ahead * np.cos(heading) - left * np.sin(heading),
                y + ahead * np.sin(heading) + left * np.cos(heading),
            )
            assert drivable[row, col] == union.contains(point), (row, col)
    assert 0 < drivable.sum() < drivable.size


def test_mirroring_exchanges_left_and_right() -> None:
    grid = np.zeros((2, 3, 4), dtype=bool)
    grid[1, 0, 1] = True
    assert np.argwhere(mirror_grid(grid)).tolist() == [[1, 0, 2]]


def test_a_frame_without_annotations_is_named(navsim_mini: Path, window: SceneWindow) -> None:
    with pytest.raises(DataError, match=window.token):
        birdseye_grid(with_boxes(window, None), load_map(navsim_mini / "maps", window.map_name), 4, 6)
