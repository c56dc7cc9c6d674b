import itertools

import numpy as np
import pytest
import shapely
from scipy.interpolate import interp1d
from toy_road import ToyMap, lane, straight_road

from drivefine_agent.data.maps import RoadblockRecord
from drivefine_agent.errors import SceneError
from drivefine_agent.scoring.centerline import Path, route_centerline, shortest_lane_path, starting_lane
from drivefine_agent.scoring.drivable_map import crop_drivable_map
from drivefine_agent.scoring.route import Route, load_route


def square_footprint(x: float, y: float) -> shapely.Polygon:
    return shapely.box(x - 1, y - 1, x + 1, y + 1)


def test_arc_length_is_the_cumulative_chord_length() -> None:
    path = Path.from_poses(np.array([[0.0, 0, 0], [3, 4, 0], [3, 10, 0]]))
    np.testing.assert_array_equal(path.arc_length, [0, 5, 11])
    assert path.length == 11


def test_interpolation_is_that_of_scipy_with_doubled_junction_vertices() -> None:
    rng = np.random.default_rng(0)
    steps = rng.uniform(0.5, 2, 30)
    steps[[7, 15]] = 0.0  # two lanes meet: the junction vertex occurs twice
    heading = np.cumsum(rng.normal(0, 0.3, 31))
    x = 5e5 + np.concatenate([[0], np.cumsum(steps)])
    poses = np.stack([x, np.full(31, 4e6), np.arctan2(np.sin(heading), np.cos(heading))], axis=-1)
    path = Path.from_poses(poses)
    scipy_path = interp1d(path.arc_length, path.poses, axis=0)
    query = np.concatenate([rng.uniform(0.01, path.length, 200), path.arc_length[1:]])
    expected = scipy_path(query)
    ours = path.interpolate(query)
    np.testing.assert_array_equal(ours[:, :2], expected[:, :2])
    np.testing.assert_allclose(np.cos(ours[:, 2]), np.cos(expected[:, 2]), atol=1e-12)


def test_interpolation_is_clipped_to_the_path() -> None:
    path = Path.from_poses(np.array([[0.0, 0, 0], [10, 0, 0]]))
    np.testing.assert_allclose(path.interpolate(np.array([-3.0, 12.0]))[:, 0], [1e-5, 10.0])


def test_headings_are_unwrapped_along_the_path_and_wrapped_in_the_result() -> None:
    path = Path.from_poses(np.array([[0.0, 0, 3.1], [-10, 0, -3.1]]))
    assert path.interpolate(np.array([5.0]))[0, 2] == pytest.approx(np.pi)


def test_projection_is_the_arc_length_of_the_nearest_point() -> None:
    path = Path.from_poses(np.array([[0.0, 0, 0], [10, 0, 0]]))
    assert path.project(shapely.Point(4, 3)) == 4.0


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0.5, 2.5, [[1, 0], [2, 0]]),  # whole vertices only
        (1.0, 2.0, [[1, 0], [2, 0]]),
        (1.2, 1.7, [[1.2, 0], [1.7, 0]]),  # no vertex inside: the exact piece
        (-5, 99, [[0, 0], [1, 0], [2, 0], [3, 0]]),
    ],
)
def test_substring_has_no_partial_end_segments(start: float, end: float, expected: list[list[float]]) -> None:
    path = Path.from_poses(np.array([[float(x), 0, 0] for x in range(4)]))
    np.testing.assert_allclose(shapely.get_coordinates(path.substring(start, end)), expected)


def test_a_positive_shift_is_to_the_left() -> None:
    path = Path.from_poses(np.array([[0.0, 0, 0], [10, 0, 0]])).shifted(1.0)
    np.testing.assert_allclose(path.poses[:, :2], [[0, 1], [10, 1]], atol=1e-15)


def test_a_path_without_length_is_refused() -> None:
    with pytest.raises(SceneError, match="needs a length"):
        Path.from_poses(np.zeros((3, 3)))


def test_the_centreline_starts_with_the_starting_lane_behind_the_ego() -> None:
    map_ = straight_road(4, block_length_m=2.0)
    route = load_route(map_, ["r0", "c1", "r2", "c3"])
    path = route_centerline(map_, route, map_.lane_connectors["k1"])
    np.testing.assert_array_equal(path.poses[:, 0], [2, 3, 4, 4, 5, 6, 6, 7, 8])  # junctions twice


def test_the_target_is_at_most_thirty_blocks_ahead() -> None:
    map_ = straight_road(40, block_length_m=1.0)
    route = load_route(map_, [f"{'c' if i % 2 else 'r'}{i}" for i in range(40)])
    lanes = shortest_lane_path(map_, route, map_.lanes["l4"])
    assert [lane.id for lane in lanes][-1] == "k33"  # blocks 4 ... 33


def _random_lanes(rng: np.random.Generator) -> tuple[ToyMap, Route]:
    """Three layers of lanes and connectors with random lengths and links; blocks r0, c1, r2, c3, r4."""
    map_ = ToyMap()
    widths = rng.integers(1, 4, 5)
    for level, width in enumerate(widths):
        is_connector = level % 2 == 1
        block_id = f"{'c' if is_connector else 'r'}{level}"
        for index in range(width):
            targets = range(widths[level + 1]) if level < 4 else ()
            successors = tuple(f"{level + 1}.{t}" for t in targets if rng.random() < 0.6)
            record = lane(
                f"{level}.{index}",
                [(0.0, 0.0), (float(rng.integers(1, 50)) + 0.001 * level, 0.0)],
                block_id,
                is_connector=is_connector,
                successors=successors,
            )
            (map_.lane_connectors if is_connector else map_.lanes)[record.id] = record
        blocks = map_.roadblock_connectors if is_connector else map_.roadblocks
        blocks[block_id] = RoadblockRecord(
            block_id,
            is_connector,
            shapely.box(0, 0, 1, 1),
            tuple(f"{level}.{i}" for i in range(width)),
            (),
            (),
        )
    return map_, load_route(map_, ["r0", "c1", "r2", "c3", "r4"])


@pytest.mark.parametrize("seed", range(60))
def test_the_lane_path_is_the_cheapest_of_all_paths(seed: int) -> None:
    rng = np.random.default_rng(seed)
    map_, route = _random_lanes(rng)
    start = map_.lanes["0.0"]

    def paths_from(lane_id: str) -> list[list[str]]:
        tails = [paths_from(following) for following in route.lanes[lane_id].successors]
        return [[lane_id], *([lane_id, *tail] for tail in itertools.chain.from_iterable(tails))]

    def cost(path: list[str]) -> float:
        return 1.0 + sum(route.lanes[lane_id].length for lane_id in path[1:])

    paths = paths_from("0.0")
    complete = [path for path in paths if path[-1].startswith("4.")]
    deepest = max(len(path) for path in paths)
    candidates = complete or [path for path in paths if len(path) == deepest]
    ours = [record.id for record in shortest_lane_path(map_, route, start)]
    assert ours in candidates
    assert cost(ours) == min(cost(path) for path in candidates)


def test_the_starting_lane_has_the_least_heading_error() -> None:
    map_ = ToyMap()
    for index, angle in enumerate([0.5, 0.1, -0.3]):
        end = (20 * np.cos(angle), 20 * np.sin(angle))
        record = lane(f"l{index}", [(0.0, 0.0), end], f"r{index}")
        map_.lanes[record.id] = record
        map_.roadblocks[f"r{index}"] = RoadblockRecord(
            f"r{index}", False, record.polygon, (record.id,), (), ()
        )
    route = load_route(map_, list(map_.roadblocks))
    drivable = crop_drivable_map(map_, np.zeros(2))
    start = starting_lane(route, drivable, np.array([1.0, 0.0, 0.0]), square_footprint(1, 0))
    assert start.id == "l1"


def test_off_all_lanes_the_lane_under_the_centre_counts_then_the_nearest() -> None:
    map_ = straight_road(3)
    route = load_route(map_, ["r0", "c1", "r2"])
    drivable = crop_drivable_map(map_, np.zeros(2))
    behind = np.array([-1.0, 0.0, 0.0])  # rear axle before the road, centre on it
    assert starting_lane(route, drivable, behind, square_footprint(0.5, 0)).id == "l0"
    beside = np.array([30.0, 9.0, 0.0])
    assert starting_lane(route, drivable, beside, square_footprint(30, 9)).id == "k1"
