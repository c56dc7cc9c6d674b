"""The picture shows the world: things appear where the pinhole formula puts them, and nowhere else."""

from dataclasses import replace

import numpy as np
import pytest
from worlds_by_seed import SEEDS, world

from drivefine_agent.constants import CAMERA_NAMES
from drivefine_agent.synthetic.camera import CAMERA_POSES, Renderer, _clip_near, _View, make_camera
from drivefine_agent.synthetic.world import TrackState

CAMERA = make_camera("CAM_F0")


def _place_ahead(frame, forward, left):
    x, y, heading = frame.ego_pose
    cos, sin = np.cos(heading), np.sin(heading)
    return x + cos * forward - sin * left, y + sin * forward + cos * left


def test_a_point_ahead_projects_by_the_pinhole_formula():
    view = _View(np.array([100.0, 50.0, np.pi / 2]), CAMERA)
    # heading north; 20 m before the camera (at 1.6 m), 2 m to the left (west), on the ground
    u, v = view.pixel(98.0, 50.0 + 1.6 + 20.0, 0.0)
    assert u == pytest.approx(960.0 - 1545.0 * 2.0 / 20.0)
    assert v == pytest.approx(560.0 + 1545.0 * 1.6 / 20.0)


@pytest.mark.parametrize("name", CAMERA_NAMES)
def test_camera_axes_are_a_right_handed_frame(name):
    camera = make_camera(name)
    assert camera.rotation @ camera.rotation.T == pytest.approx(np.eye(3))
    assert np.linalg.det(camera.rotation) == pytest.approx(1.0)
    yaw = np.radians(CAMERA_POSES[name][3])
    assert camera.rotation[:, 2] == pytest.approx([np.cos(yaw), np.sin(yaw), 0.0])
    assert camera.rotation[:, 1] == pytest.approx([0.0, 0.0, -1.0])  # image down is world down


def test_clipping_keeps_what_is_ahead():
    ring = np.array([[0.0, 1.0, -2.0], [0.0, 1.0, 6.0], [4.0, 1.0, 6.0], [4.0, 1.0, -2.0]])
    clipped = _clip_near(ring, 2.0)
    assert clipped[:, 2].min() == pytest.approx(2.0)
    assert len(clipped) == 4
    assert set(map(tuple, clipped.tolist())) >= {(0.0, 1.0, 6.0), (4.0, 1.0, 6.0)}


def test_pictures_are_full_size_and_repeatable():
    built = world(SEEDS[0])
    first = Renderer(built).draw(built.frames[20], CAMERA)
    again = Renderer(built).draw(built.frames[20], CAMERA)
    assert first.shape == (1080, 1920, 3)
    assert first.dtype == np.uint8
    assert (first == again).all()


@pytest.mark.parametrize("name", CAMERA_NAMES)
def test_every_camera_sees_road_and_sky(name):
    built = world(SEEDS[1])
    picture = Renderer(built).draw(built.frames[30], make_camera(name))
    blueness = picture[..., 2].astype(int) - picture[..., 0]
    assert blueness[5].max() > 40  # some sky between the buildings
    assert blueness[1000].mean() < 20


def _changed(first, second):
    rows, columns = np.nonzero((first != second).any(axis=2))
    return rows, columns


def test_an_obstacle_changes_the_picture_where_it_stands_and_only_there():
    built = world(SEEDS[0])
    renderer = Renderer(built)
    frame = replace(built.frames[20], tracks=())
    x, y = _place_ahead(frame, 1.6 + 12.0, 1.0)
    cone = TrackState(1, "traffic_cone", x, y, 0.0, 0.4, 0.4, 0.85, 0.0, 0.0, 0.5)
    rows, columns = _changed(
        renderer.draw(frame, CAMERA), renderer.draw(replace(frame, tracks=(cone,)), CAMERA)
    )
    # 12 m ahead of the camera, 1 m left, foot on the ground 1.6 m below, tip at 0.85 m
    assert columns.mean() == pytest.approx(960 - 1545 / 12, abs=4)
    assert rows.max() == pytest.approx(560 + 1545 * 1.6 / 12, abs=4)
    assert rows.min() == pytest.approx(560 + 1545 * (1.6 - 0.85) / 12, abs=4)
    assert np.ptp(columns) < 2.2 * 0.28 * 1545 / 12


def test_brake_lamps_light_up():
    built = world(SEEDS[0])
    renderer = Renderer(built)
    frame = replace(built.frames[20], tracks=())
    x, y = _place_ahead(frame, 16.0, 0.0)
    car = TrackState(1, "vehicle", x, y, float(frame.ego_pose[2]), 4.6, 1.9, 1.5, 0.0, 0.0, 0.3)
    dark = renderer.draw(replace(frame, tracks=(car,)), CAMERA)
    lit = renderer.draw(replace(frame, tracks=(replace(car, is_braking=True),)), CAMERA)
    rows, columns = _changed(dark, lit)
    assert len(rows) > 500
    assert lit[rows, columns, 0].mean() > 220
    assert lit[rows, columns, 1].mean() < 90


def test_the_light_changes_the_picture_from_red_to_green():
    seen = 0
    for seed in SEEDS:
        built = world(seed)
        renderer = Renderer(built)
        for index in range(0, len(built.frames), 4):
            frame = built.frames[index]
            red = replace(frame, lights=dict.fromkeys(frame.lights, "red"))
            green = replace(frame, lights=dict.fromkeys(frame.lights, "green"))
            first, second = renderer.draw(red, CAMERA), renderer.draw(green, CAMERA)
            rows, columns = _changed(first, second)
            if len(rows) < 1500:
                continue
            seen += 1
            # lamps hang above the horizon or close to it, and are a small part of the picture
            assert rows.max() < 700
            assert len(rows) < 0.08 * first.shape[0] * first.shape[1]
            more_red = first[rows, columns, 0].astype(int) - second[rows, columns, 0]
            assert (more_red > 60).sum() > 300
            break
    assert seen >= 2


def test_road_and_grass_differ_clearly():
    for seed in SEEDS:
        palette = Renderer(world(seed)).palette
        road, grass = np.array(palette.asphalt), np.array(palette.grass)
        assert grass[1] - road[1] > 45
