"""Road networks: nuPlan's topology, continuous lanes, no gaps in the drivable surface, different layouts."""

import numpy as np
import pytest
import shapely
from worlds_by_seed import SEEDS, neighbourhood, world

from drivefine_agent.synthetic.junctions import lane_pairs
from drivefine_agent.synthetic.lanes import wrap
from drivefine_agent.synthetic.layout import draw_network
from drivefine_agent.synthetic.map_layers import global_id, neighbourhood_layers


@pytest.mark.parametrize("seed", SEEDS)
def test_connectors_join_their_lanes_without_a_kink(seed):
    network, _ = neighbourhood(seed)
    for connector in (s for s in network.segments.values() if s.is_connector):
        source, target = network.segments[connector.source], network.segments[connector.target]
        assert connector.path.xy[0] == pytest.approx(source.path.xy[-1], abs=1e-9)
        assert connector.path.xy[-1] == pytest.approx(target.path.xy[0], abs=1e-9)
        assert abs(wrap(connector.path.heading[0] - source.path.heading[-1])) < 0.06
        assert abs(wrap(connector.path.heading[-1] - target.path.heading[0])) < 0.06


@pytest.mark.parametrize("seed", SEEDS)
def test_baselines_have_vertices_about_a_metre_apart(seed):
    network, _ = neighbourhood(seed)
    for segment in network.segments.values():
        steps = np.diff(segment.path.s)
        assert 0.5 < steps.min()
        assert steps.max() < 1.5


@pytest.mark.parametrize("seed", SEEDS)
def test_every_lane_leads_on_or_leaves_the_neighbourhood(seed):
    network, _ = neighbourhood(seed)
    at_junctions = {lane for j in network.junctions for a in j.arms for lane in _incoming(network, a)}
    for lane in (s for s in network.segments.values() if not s.is_connector):
        assert bool(network.successors(lane.id)) == (lane.id in at_junctions)


def _incoming(network, arm):
    road = network.roads[arm.road]
    return road.forward if arm.at_end else road.backward


@pytest.mark.parametrize("seed", SEEDS)
def test_the_drivable_surface_has_no_gaps_along_lanes(seed):
    network, scenery = neighbourhood(seed)
    layers = neighbourhood_layers(network, scenery, 0, np.zeros(2))
    surface = shapely.union_all([a.polygon for a in (*layers.roadblocks, *layers.intersections)])
    shapely.prepare(surface)
    for segment in network.segments.values():
        for shift in (-0.95, 0.0, 0.95):  # nearly the full width of the lane
            xy = segment.path.offset(shift * segment.half_width).xy[1:-1]
            assert shapely.contains_xy(surface, xy).all(), segment.id


@pytest.mark.parametrize("seed", SEEDS)
def test_ids_are_unique_and_references_exist(seed):
    network, scenery = neighbourhood(seed)
    layers = neighbourhood_layers(network, scenery, 2, np.array([1000.0, 2000.0]))
    ids = [item.fid for name in layers.__dataclass_fields__ for item in getattr(layers, name)]
    assert len(ids) == len(set(ids))
    assert min(ids) >= global_id(2, 0)
    assert max(ids) < global_id(3, 0)
    lanes = {lane.fid for lane in layers.lanes}
    for connector in layers.lane_connectors:
        assert {connector.source_lane_fid, connector.target_lane_fid} <= lanes


@pytest.mark.parametrize("seed", SEEDS)
def test_roads_that_do_not_meet_do_not_overlap(seed):
    network, _ = neighbourhood(seed)
    met = {frozenset((a.road, b.road)) for j in network.junctions for a in j.arms for b in j.arms}
    surfaces = [shapely.Polygon(r.band(r.spec.left_width_m, -r.spec.right_width_m)) for r in network.roads]
    for i, first in enumerate(surfaces):
        for j in range(i + 1, len(surfaces)):
            if frozenset((i, j)) not in met:
                assert not first.intersects(surfaces[j])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_route_alternates_blocks_that_follow_one_another(seed):
    built = world(seed)
    blocks = [built.network.blocks[i] for i in built.route_blocks]
    assert [b.is_connector for b in blocks] == [i % 2 == 1 for i in range(len(blocks))]
    for before, connector, after in zip(blocks[0::2], blocks[1::2], blocks[2::2], strict=False):
        assert (connector.source, connector.target) == (before.id, after.id)


def test_layouts_of_different_seeds_differ():
    shapes = {tuple(np.round(neighbourhood(seed)[0].roads[0].reference.curvature[5:30], 4)) for seed in SEEDS}
    assert len(shapes) == len(SEEDS)


def test_layouts_have_curves_lane_changes_and_all_kinds_of_junctions():
    networks = [neighbourhood(seed)[0] for seed in range(16)]
    kinds = {j.kind for n in networks for j in n.junctions}
    assert kinds == {"signal", "all_way_stop", "yield", "joint"}
    assert {len(j.arms) for n in networks for j in n.junctions} == {2, 3, 4}
    sharpest = [np.abs(r.reference.curvature).max() for n in networks for r in n.roads]
    assert min(sharpest) < 1 / 150
    assert max(sharpest) > 1 / 35
    merges = [
        j
        for n in networks
        for j in n.junctions
        if j.kind == "joint" and any(len(v) > 1 for v in _by_target(n, j).values())
    ]
    assert merges


def _by_target(network, junction):
    table = {}
    for connector in junction.connectors:
        table.setdefault(network.segments[connector].target, []).append(connector)
    return table


LANE_PAIRS = [
    # one lane may do everything
    (1, {"left": 1, "straight": 1, "right": 1}, [(0, "straight", 0), (0, "left", 0), (0, "right", 0)]),
    # three lanes onto two: the left one only turns left
    (3, {"left": 1, "straight": 2}, [(1, "straight", 0), (2, "straight", 1), (0, "left", 0)]),
    # T-junction: the left lane left, the right lane right, onto the rightmost lane
    (2, {"left": 2, "right": 2}, [(0, "left", 0), (1, "right", 1)]),
    # a lane ends: both lead to the one that is left
    (2, {"straight": 1}, [(0, "straight", 0), (1, "straight", 0)]),
    # a lane begins
    (1, {"straight": 2}, [(0, "straight", 0)]),
]


@pytest.mark.parametrize(("num_in", "exits", "expected"), LANE_PAIRS)
def test_lane_pairs(num_in, exits, expected):
    assert lane_pairs(num_in, exits) == expected


@pytest.mark.parametrize("num_in", [1, 2, 3])
@pytest.mark.parametrize("left", [0, 1, 2, 3])
@pytest.mark.parametrize("straight", [0, 1, 2, 3])
@pytest.mark.parametrize("right", [0, 1, 2, 3])
def test_every_incoming_lane_leads_somewhere(num_in, left, straight, right):
    exits = {n: c for n, c in (("left", left), ("straight", straight), ("right", right)) if c}
    if exits:
        pairs = lane_pairs(num_in, exits)
        assert {lane for lane, _, _ in pairs} == set(range(num_in))
        assert all(0 <= out < exits[turn] for _, turn, out in pairs)
        assert {turn for _, turn, _ in pairs} == set(exits)


def test_a_dense_network_is_the_same_route_with_many_more_lanes_beside_it():
    sparse = draw_network(np.random.default_rng(7), 200.0)
    dense = draw_network(np.random.default_rng(7), 200.0, is_dense=True)
    assert dense.route_roads == sparse.route_roads
    for thin, full in zip(sparse.roads, dense.roads, strict=False):
        np.testing.assert_array_equal(thin.reference.xy, full.reference.xy)
    assert not sparse.parking_roads
    assert dense.parking_roads == list(range(len(sparse.roads), len(dense.roads)))
    assert len(dense.segments) > 3 * len(sparse.segments)
    lanes = [lane for road in dense.parking_roads for lane in dense.roads[road].forward]
    streets = [shapely.Polygon(dense.segments[lane].polygon()) for lane in lanes]
    ways = [shapely.Polygon(s.polygon()) for s in sparse.segments.values()]
    assert not any(street.intersects(way) for street in streets for way in ways)
