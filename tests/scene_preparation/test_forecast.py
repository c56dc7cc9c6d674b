import numpy as np
import pytest
import shapely
from toy_road import annotated_frame

from drivefine_agent.scoring.forecast import NUM_MAPS, Forecast, forecast_tracks
from drivefine_agent.scoring.observation import frame_tracks

EGO = shapely.box(-2.6, -1.15, 2.6, 1.15)  # its centre is the origin


def forecast(boxes: list, red_lights: dict | None = None, collided_before: tuple[str, ...] = ()) -> Forecast:
    tracks = frame_tracks(annotated_frame(boxes), np.zeros(3))
    return forecast_tracks(tracks, red_lights or {}, np.zeros(2), EGO, collided_before)


def vehicle(token: str, x: float, y: float = 0.0, heading: float = 0.0, velocity=(0.0, 0.0)) -> tuple:
    return (token, "vehicle", (x, y, heading), (4.0, 2.0), velocity)


def test_objects_move_at_constant_velocity_every_fifth_of_a_second() -> None:
    ours = forecast([vehicle("a", 10.0, velocity=(5.0, 0.0))])
    assert ours.corners.shape == (NUM_MAPS, 1, 4, 2)
    np.testing.assert_allclose(ours.centroids[:, 0, 0], 10.0 + 5.0 * 0.2 * np.arange(26))


@pytest.mark.parametrize(
    ("velocity", "expected_step"),
    [
        ((5.0, 0.1), 1.0),  # along the heading, with the whole speed, whichever way the velocity points
        ((-5.0, 0.1), -1.0),  # more than 90 degrees off: it drives backwards
    ],
    ids=["forward", "backward"],
)
def test_objects_move_along_their_heading(velocity: tuple[float, float], expected_step: float) -> None:
    ours = forecast([vehicle("a", 10.0, velocity=velocity)])
    step = ours.centroids[1, 0] - ours.centroids[0, 0]
    np.testing.assert_allclose(step, [expected_step * np.hypot(*velocity) / 5.0, 0.0], atol=1e-12)


def test_static_objects_come_first_and_stay() -> None:
    cone = ("cone", "traffic_cone", (20.0, 0.0, 0.0), (0.5, 0.5), (3.0, 0.0))
    ours = forecast([vehicle("a", 10.0, velocity=(5.0, 0.0)), cone])
    assert ours.tokens == ("cone", "a")
    assert list(ours.is_agent) == [False, True]
    assert np.ptp(ours.corners[:, 0], axis=0).max() == 0.0


def test_the_nearest_fifty_vehicles_within_a_hundred_metres_count() -> None:
    boxes = [vehicle(f"v{i}", 10.0 + 1.5 * i, y=20.0) for i in range(60)]
    ours = forecast([*boxes, vehicle("far", 100.1)])
    assert ours.tokens == tuple(f"v{i}" for i in range(50))


def test_limits_are_per_type() -> None:
    people = [("p", "pedestrian", (10.0 + i, 5.0, 0.0), (1.0, 1.0), (0.0, 0.0)) for i in range(30)]
    bikes = [("b", "bicycle", (10.0 + i, -5.0, 0.0), (1.0, 1.0), (0.0, 0.0)) for i in range(30)]
    boxes = [(f"{name}{i}", *rest) for i, (name, *rest) in enumerate([*people, *bikes])]
    ours = forecast(boxes)
    assert len([t for t in ours.tokens if t.startswith("p")]) == 25
    assert len([t for t in ours.tokens if t.startswith("b")]) == 10


def test_what_the_ego_overlaps_now_is_ignored() -> None:
    ours = forecast([vehicle("inside", 1.0), vehicle("ahead", 20.0)])
    assert dict(zip(ours.tokens, ours.is_ignored, strict=True)) == {"inside": True, "ahead": False}


def test_a_red_light_is_ignored_only_if_the_ego_is_within_its_polygon() -> None:
    lights = {"1": shapely.box(-5, -5, 5, 5), "2": shapely.box(0, -5, 50, 5)}
    ours = forecast([], lights)
    assert ours.tokens == ("red_light_1", "red_light_2")
    assert list(ours.is_ignored) == [True, False]
    assert ours.polygons(NUM_MAPS - 1).shape == (2,)


def test_what_was_overlapped_in_an_earlier_scene_is_gone_and_its_light_ignored() -> None:
    """NAVSIM's caching never clears the list; ordered runs imitate that (quirk 3)."""
    ours = forecast(
        [vehicle("seen", 20.0), vehicle("new", 30.0)],
        {"7": shapely.box(10, -5, 50, 5)},
        collided_before=("seen", "red_light_7"),
    )
    assert ours.tokens == ("new", "red_light_7")
    assert list(ours.is_ignored) == [False, True]
