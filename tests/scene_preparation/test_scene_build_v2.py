"""What NAVSIM 2's builder puts into a scene besides 1.1's: horizon, lights, overlaps, second stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drivefine_agent.data.maps import Map, load_map
from drivefine_agent.data.scenes import SceneFilter, load_scenes
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import SceneError
from drivefine_agent.scoring.build_v2 import build_scoring_scene_v2
from drivefine_agent.scoring.route import load_route
from drivefine_agent.scoring.scorer_v2 import score_v2


@pytest.fixture(scope="module")
def window(navsim_mini: Path) -> SceneWindow:
    return load_scenes(navsim_mini / "navsim_logs" / "test", SceneFilter(num_future_frames=8, max_scenes=1))[
        0
    ]


@pytest.fixture(scope="module")
def map_(navsim_mini: Path, window: SceneWindow) -> Map:
    return load_map(navsim_mini / "maps", window.map_name)


def with_frame(window: SceneWindow, iteration: int, **changes) -> SceneWindow:
    frames = list(window.frames)
    index = window.num_history_frames - 1 + iteration
    frames[index] = replace(frames[index], **changes)
    return replace(window, frames=tuple(frames))


def test_a_light_that_is_red_in_one_frame_is_red_for_the_five_samples_from_it_on(
    window: SceneWindow, map_: Map
) -> None:
    """Red in the frame at 2.0 s: samples 20 to 24; the last frame's state holds for sample 40 alone."""
    lanes = load_route(map_, window.current.roadblock_ids).lanes
    connector = next(id_ for id_, lane in lanes.items() if lane.is_connector)
    off_route = next(id_ for id_ in map_.lane_connectors if id_ not in lanes)
    dark = window
    for iteration in range(9):
        dark = with_frame(dark, iteration, traffic_lights=())
    assert build_scoring_scene_v2(dark, map_).red_light_ids == ()
    lights = ((int(connector), True), (int(off_route), True))
    scene = build_scoring_scene_v2(with_frame(dark, 4, traffic_lights=lights), map_)
    assert scene.red_light_ids == (connector,)
    assert np.flatnonzero(scene.red_light_on[:, 0]).tolist() == [20, 21, 22, 23, 24]
    scene = build_scoring_scene_v2(with_frame(dark, 8, traffic_lights=lights), map_)
    assert np.flatnonzero(scene.red_light_on[:, 0]).tolist() == [40]
    green = build_scoring_scene_v2(with_frame(dark, 4, traffic_lights=((int(connector), False),)), map_)
    assert green.red_light_ids == ()


def test_a_track_of_a_single_frame_is_there_at_all_41_samples_but_not_in_frame_0(
    window: SceneWindow, map_: Map
) -> None:
    frame = window.frame_at(3)
    annotations = frame.annotations
    assert annotations is not None
    lone = replace(
        annotations,
        boxes=np.concatenate([annotations.boxes, [[60.0, 30.0, 0.8, 4.0, 2.0, 1.6, 0.0]]]),
        names=(*annotations.names, "vehicle"),
        velocity_3d=np.concatenate([annotations.velocity_3d, np.zeros((1, 3))]),
        instance_tokens=(*annotations.instance_tokens, "lone"),
        track_tokens=(*annotations.track_tokens, "lone"),
    )
    scene = build_scoring_scene_v2(with_frame(window, 3, annotations=lone), map_)
    column = scene.track_tokens.index("lone")
    assert scene.track_exists.shape[0] == 41
    assert scene.track_exists[:, column].all()
    assert not scene.exists_in_frame[column]
    assert (scene.track_poses[:, column] == scene.track_poses[0, column]).all()


def test_a_track_on_the_ego_at_the_start_is_marked(window: SceneWindow, map_: Map) -> None:
    annotations = window.current.annotations
    assert annotations is not None
    boxes = annotations.boxes.copy()
    boxes[0, :2] = 1.461, 0.0  # the centre of the ego
    scene = build_scoring_scene_v2(with_frame(window, 0, annotations=replace(annotations, boxes=boxes)), map_)
    assert scene.overlaps_at_start[scene.track_tokens.index(annotations.track_tokens[0])]
    assert scene.overlaps_at_start.sum() == 1 + build_scoring_scene_v2(window, map_).overlaps_at_start.sum()


def test_too_short_windows_are_named(window: SceneWindow, map_: Map) -> None:
    short = replace(window, frames=window.frames[:-1], num_future_frames=7)
    with pytest.raises(SceneError, match=r"8 future frames \(4 s\) are needed, got 7"):
        build_scoring_scene_v2(short, map_)
    late = replace(window, frames=window.frames[1:], num_history_frames=3)
    with pytest.raises(SceneError, match="num_history_frames=4"):
        build_scoring_scene_v2(late, map_)


def test_an_overlap_at_the_start_counts_in_reactive_traffic_only(window: SceneWindow, map_: Map) -> None:
    """A standing cyclist on the bonnet: recorded traffic leaves it out, reactive traffic does not."""
    annotations = window.current.annotations
    assert annotations is not None
    cyclist = replace(
        annotations,
        boxes=np.concatenate([annotations.boxes, [[4.0, 0.0, 0.8, 1.8, 0.6, 1.6, 0.0]]]),
        names=(*annotations.names, "bicycle"),
        velocity_3d=np.concatenate([annotations.velocity_3d, np.zeros((1, 3))]),
        instance_tokens=(*annotations.instance_tokens, "lone"),
        track_tokens=(*annotations.track_tokens, "lone"),
    )
    changed = with_frame(window, 0, annotations=cyclist)
    scene = build_scoring_scene_v2(changed, map_)
    poses = scene.human_poses[None]
    rules = {"human_penalty_filter": "false"}
    recorded = score_v2(scene, poses, traffic="non_reactive", **rules)
    reactive = score_v2(scene, poses, traffic="reactive", **rules)
    assert recorded.no_at_fault_collisions[0] == 1.0
    assert reactive.no_at_fault_collisions[0] == 0.0
