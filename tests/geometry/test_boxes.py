import numpy as np
import shapely

from drivefine_agent.geometry.boxes import box_corners, corner_polygons
from drivefine_agent.geometry.indices import CornerIndex


def test_corners_of_a_box_that_looks_along_x():
    #   REAR_LEFT  (-1, 2.5) ---- FRONT_LEFT  (3, 2.5)
    #   REAR_RIGHT (-1, 1.5) ---- FRONT_RIGHT (3, 1.5)
    corners = box_corners([1.0, 2.0, 0.0], length_m=4.0, width_m=1.0)
    assert corners.shape == (4, 2)
    np.testing.assert_allclose(corners[CornerIndex.FRONT_LEFT], [3.0, 2.5])
    np.testing.assert_allclose(corners[CornerIndex.REAR_LEFT], [-1.0, 2.5])
    np.testing.assert_allclose(corners[CornerIndex.REAR_RIGHT], [-1.0, 1.5])
    np.testing.assert_allclose(corners[CornerIndex.FRONT_RIGHT], [3.0, 1.5])


def test_corners_turn_with_the_heading():
    # looking along +y: the front is up, the left is towards -x
    corners = box_corners([0.0, 0.0, np.pi / 2], length_m=4.0, width_m=1.0)
    np.testing.assert_allclose(corners[CornerIndex.FRONT_LEFT], [-0.5, 2.0], atol=1e-15)
    np.testing.assert_allclose(corners[CornerIndex.REAR_RIGHT], [0.5, -2.0], atol=1e-15)


def test_boxes_of_different_sizes_in_one_batch():
    corners = box_corners(np.zeros((3, 2, 3)), np.array([[1.0, 2.0]] * 3), np.ones((3, 2)))
    assert corners.shape == (3, 2, 4, 2)
    np.testing.assert_allclose(corners[0, :, CornerIndex.FRONT_LEFT, 0], [0.5, 1.0])


def test_polygons_are_closed_counter_clockwise_and_of_the_right_area():
    polygons = corner_polygons(box_corners([[5.0, 5.0, 0.3], [0.0, 0.0, 2.0]], [4.0, 2.0], [2.0, 1.0]))
    np.testing.assert_allclose(shapely.area(polygons), [8.0, 2.0])
    assert all(shapely.is_ccw(shapely.get_exterior_ring(polygons)))
    assert all(len(polygon.exterior.coords) == 5 for polygon in polygons)
