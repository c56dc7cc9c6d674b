"""Points in polygons and the flags made of them: against shapely, and on edges."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from kernel_toy_world import Area, drivable_polygons, moving_states, road, strip
from reference_scoring import areas_of

from drivefine_agent.scoring.areas import EgoAreas, ego_areas
from drivefine_agent.scoring.footprint import footprint_points
from drivefine_agent.scoring.polygons import DrivablePolygons
from drivefine_agent.scoring.types import PolygonKind

ORIGIN = np.array([585_000.0, 4_475_000.0])
KINDS = list(PolygonKind)


def flags_of(states: np.ndarray, areas: list[Area]) -> EgoAreas:
    return ego_areas(footprint_points(states), states[..., :2], drivable_polygons(areas))


def as_rows(flags: EgoAreas) -> np.ndarray:
    return np.stack(
        [flags.non_drivable, flags.multiple_lanes, flags.off_route, flags.rear_axle_in_intersection], axis=-1
    )


def random_polygon(rng: np.random.Generator) -> shapely.Polygon:
    """A star-shaped polygon near the origin, sometimes with a hole, with up to 80 vertices."""
    count = int(rng.integers(3, 80))
    angles = np.sort(rng.uniform(0.0, 2 * np.pi, count))
    center = rng.uniform(-15.0, 15.0, 2)
    radius = rng.uniform(4.0, 12.0, count) if rng.random() < 0.5 else np.full(count, rng.uniform(5.0, 15.0))
    shell = ORIGIN + center + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    polygon = shapely.Polygon(shell)
    if rng.random() < 0.3:
        polygon = polygon.difference(shapely.Point(ORIGIN + center).buffer(1.5))
    return polygon if polygon.geom_type == "Polygon" and not polygon.is_empty else random_polygon(rng)


@pytest.mark.parametrize("seed", range(8))
def test_flags_equal_shapelys_on_random_maps(seed):
    rng = np.random.default_rng(seed)
    areas = [
        Area(random_polygon(rng), KINDS[int(rng.integers(len(KINDS)))], bool(rng.random() < 0.5))
        for _ in range(25)
    ]
    states = np.zeros((4, 41, 11))
    states[..., :2] = ORIGIN + rng.uniform(-12.0, 12.0, (4, 41, 2))
    states[..., 2] = rng.uniform(-np.pi, np.pi, (4, 41))
    rows = as_rows(flags_of(states, areas))
    for p in range(4):
        for t in range(41):
            assert tuple(rows[p, t]) == areas_of(states[p, t], areas), (p, t)
    assert 0.02 < rows.mean() < 0.98


def test_points_on_edges_and_vertices_are_outside():
    """The ego at the origin has its corners at y = +-1.1485, x from -1.127 to 4.049."""
    state = np.zeros((1, 1, 11))
    exact = [Area(strip(-1.1485, 1.1485), PolygonKind.ROADBLOCK)]
    assert flags_of(state, exact).non_drivable[0, 0]
    wider = [Area(strip(-1.1486, 1.1486), PolygonKind.ROADBLOCK)]
    assert not flags_of(state, wider).non_drivable[0, 0]
    corner = footprint_points(state)[0, 0, 0]
    tip = [
        Area(
            shapely.Polygon([corner, np.add(corner, (-30, 9)), np.add(corner, (-30, -20))]),
            PolygonKind.ROADBLOCK,
        )
    ]
    assert flags_of(state, tip).non_drivable[0, 0]


@pytest.mark.parametrize("offset", [-3e-8, -1e-9, 1e-9, 3e-8])
def test_points_next_to_an_edge_are_decided_exactly(offset):
    state = np.zeros((1, 1, 11))
    areas = [Area(strip(-3.0, 1.1485 + offset), PolygonKind.ROADBLOCK)]
    assert flags_of(state, areas).non_drivable[0, 0] == (offset < 0)


def test_every_corner_may_lie_in_another_drivable_polygon():
    """Front corners in an intersection, rear ones in a roadblock; a lane connector alone is no road."""
    state = np.zeros((1, 1, 11))
    both = [
        Area(strip(-3, 3, -50, 2), PolygonKind.ROADBLOCK),
        Area(strip(-3, 3, 2, 50), PolygonKind.INTERSECTION),
    ]
    assert not flags_of(state, both).non_drivable[0, 0]
    connector = [Area(strip(-3, 3), PolygonKind.LANE_CONNECTOR)]
    assert flags_of(state, connector).non_drivable[0, 0]
    car_park = [Area(strip(-3, 3), PolygonKind.CARPARK_AREA)]
    assert not flags_of(state, car_park).non_drivable[0, 0]


def test_corners_on_an_edge_that_two_polygons_share_are_in_neither():
    state = np.zeros((1, 1, 11))
    split = [
        Area(strip(-3, 3, -50, 4.049), PolygonKind.ROADBLOCK),
        Area(strip(-3, 3, 4.049, 50), PolygonKind.ROADBLOCK),
    ]
    assert flags_of(state, split).non_drivable[0, 0]


def test_a_lane_that_holds_the_whole_ego_ends_the_multiple_lane_flag():
    state = np.zeros((1, 1, 11))
    two = [Area(strip(-9, 0), PolygonKind.LANE), Area(strip(0, 9), PolygonKind.LANE)]
    assert flags_of(state, two).multiple_lanes[0, 0]
    three = [*two, Area(strip(-9, 9), PolygonKind.LANE_CONNECTOR)]
    assert not flags_of(state, three).multiple_lanes[0, 0]


def test_off_route_asks_for_the_centre_only():
    state = np.zeros((1, 1, 11))
    behind = [Area(strip(-3, 3, -50, 1.46), PolygonKind.LANE, True)]
    ahead = [Area(strip(-3, 3, 1.46, 50), PolygonKind.LANE, True)]
    assert flags_of(state, behind).off_route[0, 0]
    assert not flags_of(state, ahead).off_route[0, 0]
    other_kind = [Area(strip(-3, 3), PolygonKind.ROADBLOCK, True)]
    assert flags_of(state, other_kind).off_route[0, 0]


def test_a_map_without_polygons_is_all_non_drivable():
    rows = as_rows(flags_of(moving_states(5.0), []))
    assert (rows == [True, False, True, False]).all()


def test_polygons_survive_the_way_into_arrays_and_back():
    hole = shapely.box(0, 0, 10, 10).difference(shapely.box(2, 2, 3, 3))
    given = [hole, strip(-1, 1)]
    flat = DrivablePolygons.from_shapely(given, np.array([17, 0]), np.array([False, True]))
    assert flat.part_offsets.tolist() == [0, 2, 3]
    for back, polygon in zip(flat.shapely_polygons, given, strict=True):
        assert shapely.equals_exact(back, polygon)


def test_multipolygons_are_refused_by_index():
    both = shapely.MultiPolygon([shapely.box(0, 0, 1, 1), shapely.box(2, 2, 3, 3)])
    with pytest.raises(ValueError, match="got MultiPolygon at index 1"):
        DrivablePolygons.from_shapely([strip(0, 1), both], np.array([0, 0]), np.array([True, True]))
    with pytest.raises(ValueError, match="2 polygons, 1 kinds and 2 flags"):
        DrivablePolygons.from_shapely([strip(0, 1)] * 2, np.array([0]), np.array([True, True]))


def test_flags_of_a_state_do_not_depend_on_the_batch():
    rng = np.random.default_rng(5)
    areas = [Area(random_polygon(rng), KINDS[i % len(KINDS)], i % 2 == 0) for i in range(25)] + road()
    states = np.zeros((30, 41, 11))
    states[..., :2] = ORIGIN + rng.uniform(-12.0, 12.0, (30, 41, 2))
    together = as_rows(flags_of(states, areas))
    for p in range(30):
        np.testing.assert_array_equal(together[p], as_rows(flags_of(states[p : p + 1], areas))[0])
