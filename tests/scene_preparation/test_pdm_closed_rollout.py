import numpy as np
import pytest
import shapely
from reference_pdm_closed import reference_plan
from toy_road import annotated_frame

from drivefine_agent.scoring.centerline import Path
from drivefine_agent.scoring.forecast import Forecast, forecast_tracks
from drivefine_agent.scoring.observation import frame_tracks
from drivefine_agent.scoring.pdm_closed import Rollout, plan_pdm_closed, target_speeds

EGO_POSE = np.array([20.0, 0.4, 0.0])  # rear axle, beside the path
FOOTPRINT = shapely.box(18.9, -0.75, 24.0, 1.55)


@pytest.fixture
def path() -> Path:
    """600 m along +x, a vertex every metre."""
    x = np.arange(601.0)
    return Path.from_poses(np.stack([x, np.zeros(601), np.zeros(601)], axis=-1))


def forecast(boxes: list, red_lights: dict | None = None) -> Forecast:
    tracks = frame_tracks(annotated_frame(boxes), np.zeros(3))
    return forecast_tracks(tracks, red_lights or {}, np.array([21.461, 0.4]), FOOTPRINT)


def rollout(path: Path, boxes: list, speed: float = 8.0, limit: float | None = 15.0) -> Rollout:
    return Rollout.start([path], target_speeds(limit), forecast(boxes), EGO_POSE, speed)


def test_targets_are_fractions_of_the_limit_or_of_fifteen() -> None:
    np.testing.assert_allclose(target_speeds(10.0), [2, 4, 6, 8, 10])
    np.testing.assert_allclose(target_speeds(None), [3, 6, 9, 12, 15])


def test_the_first_pose_lies_on_the_path_not_at_the_ego(path: Path) -> None:
    np.testing.assert_allclose(rollout(path, []).poses[0, :, 0], np.tile([20.0, 0.0, 0.0], (5, 1)))


def test_every_moving_proposal_brakes_in_its_first_step(path: Path) -> None:
    """8 m/s on an empty road: a phantom lead stands at the gap of 1 m, and braking is limited to 3 m/s^2."""
    started = rollout(path, [])
    started.advance_to(1)
    np.testing.assert_allclose(started.speeds, 7.7)
    np.testing.assert_allclose(started.arc_lengths, 20.8)  # moved with the old speed


def test_an_empty_road_is_driven_like_the_driver_model_says(path: Path) -> None:
    """Independent: the model's formula with a lead at the end of the path, half a car length shortened."""
    started = rollout(path, [], limit=15.0)
    started.advance_to(40)
    s, v = 20.0, 8.0
    for step in range(1, 41):
        lead, rear = (0.0, 0.0) if step == 1 else (600.0, 2.588)
        desired = 1 + 1.5 * v + v * v / (2 * np.sqrt(4.5))
        accel = 1.5 * (1 - (v / 15.0) ** 10 - (desired / max(lead - s - rear, 1.0)) ** 2)
        s, v = s + 0.1 * v, v + 0.1 * np.clip(accel, -3, 1.5)
    assert started.speeds[0, 4] == pytest.approx(v, abs=1e-12)
    assert started.poses[0, 4, 40, 0] == pytest.approx(s, abs=1e-10)


def test_a_standing_car_on_the_path_is_not_run_into(path: Path) -> None:
    started = rollout(path, [("car", "vehicle", (60.0, 0.0, 0.0), (4.0, 2.0), (0.0, 0.0))])
    started.advance_to(50)
    front = started.poses[0, :, 50, 0] + 4.049
    assert (front < 58.0).all()
    assert (started.speeds < 4.0).all()  # and slowing down


def test_the_lead_is_measured_from_bumper_to_bumper(path: Path) -> None:
    started = rollout(path, [("car", "vehicle", (60.0, 0.0, 0.0), (4.0, 2.0), (0.0, 0.0))])
    started.advance_to(2)
    # At step 2 the footprint of step 1 counts: arc length 20.8, front at 24.849, the car's rear at 58.
    np.testing.assert_allclose(started.leads[0, :, 0], 20.8 + (58.0 - 24.849))
    np.testing.assert_allclose(started.leads[0, :, 1:], 0.0)


def test_the_speed_of_a_lead_is_its_speed_along_the_ego_heading(path: Path) -> None:
    crossing = (
        "car",
        "vehicle",
        (60.0, 0.0, np.pi / 3),
        (4.0, 2.0),
        (2.0, 2.0 * np.sqrt(3)),
    )  # 4 m/s at 60 degrees
    started = rollout(path, [crossing])
    started.advance_to(2)
    np.testing.assert_allclose(started.leads[0, :, 1], 2.0)


def test_an_object_beside_the_corridor_does_not_lead(path: Path) -> None:
    started = rollout(
        path, [("car", "vehicle", (60.0, 2.2, 0.0), (4.0, 2.0), (0.0, 0.0))]
    )  # its edge at y = 1.2
    started.advance_to(2)
    np.testing.assert_allclose(started.leads[0, :, 0], 600.0)


def test_leads_are_looked_up_on_even_steps_only(path: Path) -> None:
    started = rollout(path, [("car", "vehicle", (60.0, 0.0, 0.0), (4.0, 2.0), (0.0, 0.0))])
    started.advance_to(2)
    at_two = started.leads.copy()
    started.advance_to(3)
    np.testing.assert_array_equal(started.leads, at_two)


def test_a_red_light_stops_the_proposals_before_its_polygon(path: Path) -> None:
    lights = {"5": shapely.box(50, -2, 70, 2)}
    started = Rollout.start([path], target_speeds(10.0), forecast([], lights), EGO_POSE, 8.0)
    started.advance_to(50)
    assert (started.poses[0, :, 50, 0] + 4.049 < 50.0).all()


def test_the_best_of_fifteen_wins_and_the_first_on_ties(path: Path) -> None:
    seen = []

    def prefer(indices: list[int]):
        def score(proposals: np.ndarray) -> np.ndarray:
            seen.append(proposals)
            return np.isin(np.arange(15), indices).astype(float)

        return score

    args = (path, forecast([]), EGO_POSE, 8.0, 15.0)
    winner = plan_pdm_closed(*args, prefer([7, 9, 12]))
    assert winner.shape == (51, 3)
    assert seen[0].shape == (15, 41, 3)
    np.testing.assert_array_equal(winner[:41], seen[0][7])
    # Proposal 7 = path 1, policy 2: one metre to the right, and continued beyond 4 s.
    np.testing.assert_allclose(winner[:, 1], -1.0)
    assert (np.diff(winner[40:, 0]) > 0).all()
    assert plan_pdm_closed(*args, prefer([14]))[0, 1] == pytest.approx(1.0)  # path 2 is to the left


def crowd(rng: np.random.Generator) -> tuple[list, dict]:
    """Road users on and beside the path, some in one another, and red lights that share an edge."""
    boxes = []
    for index in range(rng.integers(0, 25)):
        kind = ("vehicle", "pedestrian", "bicycle", "traffic_cone")[rng.integers(4)]
        size = (4.5, 1.9) if kind == "vehicle" else (0.8, 0.8)
        pose = (rng.uniform(10.0, 80.0), rng.normal(0.0, 4.0), rng.uniform(-np.pi, np.pi))
        velocity = rng.normal(0.0, 4.0, 2) * rng.integers(0, 2) * (kind != "traffic_cone")
        boxes.append((f"t{index}", kind, pose, size, tuple(velocity)))
        if rng.random() < 0.3:  # another one at the same place, that heads and drives elsewhere
            boxes.append((f"u{index}", kind, (*pose[:2], pose[2] + np.pi / 2), size[::-1], (5.0, 1.0)))
    lights = {
        "left": shapely.Polygon([(60, -2), (60, 2), (80, 8), (80, 4)]),
        "right": shapely.Polygon([(60, -2), (60, 2), (80, -4), (80, -8)]),
    }
    return boxes, lights if rng.random() < 0.4 else {}


@pytest.mark.parametrize("seed", range(60))
def test_the_plan_is_that_of_the_readable_reference_to_the_last_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    headings = np.cumsum(rng.normal(0.0, 0.02, 120))
    steps = rng.uniform(0.3, 1.5, (120, 1)) * np.stack([np.cos(headings), np.sin(headings)], axis=-1)
    steps[rng.integers(1, 120)] = 0.0  # two lanes meet
    centerline = Path.from_poses(np.column_stack([np.cumsum(steps, axis=0), headings]))
    seen = forecast(*crowd(rng))
    pose, speed = EGO_POSE + rng.normal(0.0, 0.3, 3), rng.uniform(0.0, 15.0)
    limit, best = (0.0 if seed % 10 == 0 else rng.uniform(3.0, 17.0)), int(rng.integers(15))
    proposals, winner = reference_plan(centerline, seen, pose, speed, target_speeds(limit), best)

    def score(found: np.ndarray) -> np.ndarray:
        np.testing.assert_array_equal(found, proposals)
        return np.eye(15)[best]

    np.testing.assert_array_equal(plan_pdm_closed(centerline, seen, pose, speed, limit, score), winner)
