import numpy as np
import pytest
import shapely
from toy_road import straight_road

from drivefine_agent.errors import SceneError
from drivefine_agent.scoring.drivable_map import crop_drivable_map, polygon_arrays, polygons_from_arrays
from drivefine_agent.scoring.types import PolygonKind


def test_polygons_come_in_the_order_of_navsim() -> None:
    map_ = straight_road(3)
    map_.intersections["i"] = shapely.box(20, -5, 40, 5)
    map_.carparks["p"] = shapely.box(0, 5, 10, 15)
    drivable = crop_drivable_map(map_, np.array([30.0, 0.0]))
    assert drivable.ids == ("r0", "r2", "l0", "l2", "k1", "i", "p")
    assert list(drivable.kinds) == [
        PolygonKind.ROADBLOCK,
        PolygonKind.ROADBLOCK,
        PolygonKind.LANE,
        PolygonKind.LANE,
        PolygonKind.LANE_CONNECTOR,
        PolygonKind.INTERSECTION,
        PolygonKind.CARPARK_AREA,
    ]


def test_the_crop_is_a_square_and_touching_counts() -> None:
    map_ = straight_road(1, block_length_m=20.0)
    assert crop_drivable_map(map_, np.array([120.0, 50.0])).ids == ("r0", "l0")
    assert crop_drivable_map(map_, np.array([120.1, 0.0])).ids == ()


def test_only_lanes_of_the_route_are_on_it() -> None:
    map_ = straight_road(3)
    drivable = crop_drivable_map(map_, np.array([30.0, 0.0]))
    on_route = dict(zip(drivable.ids, drivable.on_route({"l0", "k1", "r2"}), strict=True))
    assert on_route == {"r0": False, "r2": False, "l0": True, "l2": False, "k1": True}


def test_a_multi_polygon_of_one_part_is_unwrapped_and_of_several_refused() -> None:
    map_ = straight_road(1)
    part, other = shapely.box(0, 5, 10, 15), shapely.box(20, 5, 30, 15)
    map_.carparks["p"] = shapely.MultiPolygon([part])
    assert crop_drivable_map(map_, np.zeros(2)).polygons[-1].equals(part)
    map_.carparks["p"] = shapely.MultiPolygon([part, other])
    with pytest.raises(SceneError, match="'p' is a MultiPolygon of 2 parts"):
        crop_drivable_map(map_, np.zeros(2))


def test_polygons_survive_the_way_through_arrays() -> None:
    with_hole = shapely.Polygon([(0, 0), (9, 0), (9, 9), (0, 9)], [[(1, 1), (1, 2), (2, 2)]])
    polygons = np.array([shapely.box(0, 0, 1, 1), with_hole], dtype=object)
    xy, rings, parts = polygon_arrays(polygons)
    assert list(parts) == [0, 1, 3]
    assert list(rings) == [0, 5, 10, 14]
    assert len(xy) == 14
    assert shapely.equals_exact(polygons_from_arrays(xy, rings, parts), polygons).all()


def test_no_polygons_give_empty_arrays() -> None:
    xy, rings, parts = polygon_arrays(np.empty(0, dtype=object))
    assert xy.shape == (0, 2)
    assert list(rings) == list(parts) == [0]
