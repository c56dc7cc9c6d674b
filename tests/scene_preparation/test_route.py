import numpy as np
import pytest
from toy_road import ToyMap, lane, road_graph, straight_road

from drivefine_agent.data.maps import RoadblockRecord
from drivefine_agent.errors import SceneError
from drivefine_agent.scoring.route import (
    correct_route,
    current_block,
    load_route,
    search_blocks,
)


def ego(x: float, y: float = 0.0, heading: float = 0.0) -> np.ndarray:
    return np.array([x, y, heading])


def test_a_route_lists_blocks_once_and_their_lanes_in_order() -> None:
    route = load_route(straight_road(4), ["r0", "c1", "r0", "r2"])
    assert list(route.blocks) == ["r0", "c1", "r2"]
    assert list(route.lanes) == ["l0", "k1", "l2"]


def test_an_unknown_block_is_named() -> None:
    with pytest.raises(SceneError, match=r"'r99'.*toy\.gpkg"):
        load_route(straight_road(2), ["r0", "r99"])


def test_an_empty_route_is_refused() -> None:
    with pytest.raises(SceneError, match="needs a route"):
        load_route(straight_road(2), [])


def test_the_current_block_is_the_one_on_the_route_even_if_another_is_nearer() -> None:
    map_ = straight_road(1)
    other = lane("other", [(0.0, 1.0), (10.0, 1.0), (20.0, 1.0)], "rx")
    map_.lanes["other"] = other
    map_.roadblocks["rx"] = RoadblockRecord("rx", False, other.polygon, ("other",), (), ())
    block, listed = current_block(map_, ego(10.0, 0.9), ["r0"])
    assert (block.id, listed) == ("r0", ["r0"])
    block, listed = current_block(map_, ego(10.0, 0.9), ["somewhere else"])
    assert block.id == "rx"
    assert sorted(listed) == ["r0", "rx"]


def test_a_block_against_the_driving_direction_is_only_a_last_resort() -> None:
    block, listed = current_block(straight_road(1), ego(10.0, 0.0, np.pi), ["r0"])
    assert (block.id, listed) == ("r0", ["r0"])  # the only candidate, though its heading is wrong


def test_far_from_all_blocks_the_nearest_of_each_layer_are_candidates() -> None:
    _, listed = current_block(straight_road(3), ego(90.0), ["r0"])
    assert listed == ["r2", "c1"]


def corrected(map_: ToyMap, route: list[str], pose: np.ndarray) -> list[str]:
    return list(correct_route(map_, load_route(map_, route), pose).blocks)


def test_a_route_that_starts_ahead_is_led_back_to_the_ego() -> None:
    assert corrected(straight_road(7), ["r4", "c5"], ego(10.0)) == ["r0", "c1", "r2", "c3", "r4", "c5"]


def test_a_route_that_starts_behind_is_entered_where_the_ego_meets_it() -> None:
    """The ego stands on a side road that joins the route at its second block; nothing leads back there."""
    map_ = straight_road(5)
    ramp = lane("ramp", [(10.0, -30.0), (15.0, -30.0), (20.0, -30.0)], "rx", successors=("kx",))
    join = lane("kx", [(20.0, -30.0), (40.0, 0.0)], "cx", is_connector=True, successors=("l2",))
    map_.lanes["ramp"] = ramp
    map_.lane_connectors["kx"] = join
    map_.roadblocks["rx"] = RoadblockRecord("rx", False, ramp.polygon, ("ramp",), ("cx",), ())
    map_.roadblock_connectors["cx"] = RoadblockRecord("cx", True, join.polygon, ("kx",), ("r2",), ("rx",))
    assert corrected(map_, ["r0", "c1", "r2", "c3"], ego(15.0, -30.0)) == ["rx", "cx", "r2", "c3"]


def test_a_gap_is_closed() -> None:
    assert corrected(straight_road(6), ["r0", "r4"], ego(10.0)) == ["r0", "c1", "r2", "c3", "r4"]


def test_a_gap_that_cannot_be_closed_stays() -> None:
    assert corrected(straight_road(6), ["r0", "r4", "r2"], ego(10.0)) == ["r0", "c1", "r2", "c3", "r4"]


def test_a_loop_is_cut_before_the_connector_that_closes_it() -> None:
    map_ = straight_road(5)
    overlapping = map_.roadblock_connectors["c1"].polygon.buffer(-0.5)
    c3 = map_.roadblock_connectors["c3"]
    map_.roadblock_connectors["c3"] = RoadblockRecord(
        c3.id, True, overlapping, c3.interior, c3.successors, c3.predecessors
    )
    assert corrected(map_, ["r0", "c1", "r2", "c3", "r4"], ego(10.0)) == ["r0", "c1", "r2"]


def _queue_search(
    map_: ToyMap, start: str, targets: list[str], forward: bool, max_depth: int
) -> list[str] | None:
    """The search as specified: a queue with an entry per parent; per (id, depth) the last parent wins."""
    level = [start]
    parents: dict[tuple[str, int], str] = {}
    for depth in range(1, max_depth + 1):
        following = []
        for id_ in level:
            if id_ in targets:
                path = [id_]
                for back in range(depth, 1, -1):
                    path.append(parents[path[-1], back])
                return path[::-1]
            block = map_.roadblock(id_)
            for neighbour in block.successors if forward else block.predecessors:
                following.append(neighbour)
                parents[neighbour, depth + 1] = id_
        level = following
    return None


@pytest.mark.parametrize("seed", range(40))
def test_search_finds_the_path_of_the_queue_without_a_visited_set(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num = int(rng.integers(3, 8))
    edges = list(
        dict.fromkeys(
            (f"r{rng.integers(num)}", f"c{rng.integers(num)}")
            if rng.random() < 0.5
            else (f"c{rng.integers(num)}", f"r{rng.integers(num)}")
            for _ in range(int(rng.integers(num, 4 * num)))
        )
    )
    map_ = road_graph(edges)
    ids = [*map_.roadblocks, *map_.roadblock_connectors]
    for _ in range(20):
        start = str(rng.choice(ids))
        targets = [str(id_) for id_ in rng.choice(ids, size=int(rng.integers(1, 3)))]
        forward, depth = bool(rng.random() < 0.5), int(rng.integers(1, 8))
        expected = _queue_search(map_, start, targets, forward, depth)
        found = search_blocks(map_, map_.roadblock(start), targets, forward, depth)
        assert (None if found is None else [block.id for block in found]) == expected


def test_search_survives_a_grid_that_would_overflow_the_queue() -> None:
    """Two parallel connectors between each pair of blocks: 2^14 queue entries at depth 29, 14 blocks here."""
    edges = []
    for index in range(20):
        for side in "ab":
            edges += [(f"r{index}", f"c{index}{side}"), (f"c{index}{side}", f"r{index + 1}")]
    map_ = road_graph(edges)
    path = search_blocks(map_, map_.roadblock("r0"), ["r14"], forward=True, max_depth=30)
    assert path is not None
    assert [block.id for block in path][1::2] == [f"c{index}b" for index in range(14)]  # the last parent wins
    assert search_blocks(map_, map_.roadblock("r0"), ["r15"], forward=True, max_depth=30) is None
