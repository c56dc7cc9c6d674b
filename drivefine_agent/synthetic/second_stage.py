"""The second stage of a synthetic dataset: what the world looks like from where the ego might have ended up.

For a moment t0 of a test drive, first-stage samples are t0 and the frame before it. Each follow-up is a drive
that departs from the recorded one at t0 (see `deviation`). Of it two samples are made: one that starts at
t0 + 4 s and belongs to t0, and its predecessor that starts half a second earlier. The road users do what
they did in the recorded drive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from drivefine_agent.constants import AGENT_TYPES, CAMERA_NAMES, NUM_HISTORY_FRAMES, NUM_POSES, TRACK_TYPES
from drivefine_agent.data.second_stage import SECOND_STAGE_TOKEN_LENGTH
from drivefine_agent.data.second_stage_writer import write_second_stage
from drivefine_agent.data.sensors import write_image
from drivefine_agent.data.splits import StageGroup
from drivefine_agent.data.types import Frame, GlobalObjects, SceneWindow, SecondStage
from drivefine_agent.errors import DataError
from drivefine_agent.synthetic.camera import Camera, Renderer, make_camera
from drivefine_agent.synthetic.deviation import deviated_frames, draw_deviation
from drivefine_agent.synthetic.lanes import wrap
from drivefine_agent.synthetic.log_content import (
    ANNOTATION_RADIUS_M,
    LogPlan,
    annotations_of,
    lights_of,
    log_frames,
    make_token,
)
from drivefine_agent.synthetic.world import World, WorldFrame, seed_of

FIRST_INDEX = NUM_HISTORY_FRAMES
"""Earliest t0: the frame before it needs its history."""
FRAMES_AFTER = 2 * NUM_POSES
"""Frames needed after t0: 4 s of first stage and 4 s of second stage."""
LEAST_SPACING = 2
"""Frames between two t0 of a drive, so that no frame is in two groups."""


@dataclass(frozen=True)
class SecondStageOptions:
    """What of the second stage is drawn into files."""

    num_followups: int
    cameras: tuple[str, ...]
    images: str
    """samples: the current frames; all: the history too; none."""
    jpeg_quality: int


def choose_starts(num_frames: int, samples: Sequence[int], count: int, seed: int) -> list[int]:
    """Frame indices of t0, in order: samples of the drive as far as they reach, then any other frames.

    Raises:
      DataError: the drive is too short for so many.
    """
    possible = range(FIRST_INDEX, num_frames - FRAMES_AFTER)
    rng = np.random.default_rng(seed_of(seed, "two stages"))
    order = [*rng.permutation([i for i in samples if i in possible]), *rng.permutation(list(possible))]
    chosen: list[int] = []
    for index in order:
        if len(chosen) < count and all(abs(int(index) - other) >= LEAST_SPACING for other in chosen):
            chosen.append(int(index))
    if len(chosen) < count:
        raise DataError(
            f"{count} two-stage groups do not fit into a drive of {num_frames} frames, {len(chosen)} do: "
            "raise log_duration_s or num_test_logs, or lower num_two_stage_groups"
        )
    return sorted(chosen)


def write_groups(
    root: Path, folder: Path, world: World, plan: LogPlan, starts: Sequence[int], options: SecondStageOptions
) -> list[StageGroup]:
    """Writes the second-stage samples of one drive, and the first-stage images that are still missing.

    Args:
      root: of the dataset.
      folder: of the second stage.
      world: the drive.
      plan: its log.
      starts: frame indices of t0.
      options: follow-ups and images.
    """
    cameras = {name: make_camera(name) for name in CAMERA_NAMES}
    frames = log_frames(world, plan, cameras)
    renderer = Renderer(world)
    groups = []
    for start in starts:
        if options.images != "none":
            _draw_first_stage(root, world, plan, frames, (start - 1, start), renderer, options)
        pairs = []
        for rank in range(options.num_followups):
            rng = np.random.default_rng(seed_of(plan.seed, "departure", start, rank))
            deviation = draw_deviation(world.frames, start, rank, rng)
            pair = []
            for lag in (0, 1):
                now = start + NUM_POSES - lag
                history = range(now - NUM_HISTORY_FRAMES + 1, now + 1)
                ego = deviated_frames(world.frames, start, deviation, history)
                window = _window(world, plan, frames, ego, now, (start, rank, lag), cameras, options)
                write_second_stage(folder, window)
                for frame, view in zip(window.frames, ego, strict=True):
                    for name, record in frame.cameras.items():
                        picture = renderer.draw(view, cameras[name])
                        write_image(folder / "sensor_blobs", record.data_path, picture, options.jpeg_quality)
                pair.append(window.token)
            pairs.append((pair[0], pair[1]))
        groups.append(StageGroup(frames[start].token, frames[start - 1].token, tuple(pairs)))
    return groups


def _draw_first_stage(
    root: Path,
    world: World,
    plan: LogPlan,
    frames: Sequence[Frame],
    indices: Sequence[int],
    renderer: Renderer,
    options: SecondStageOptions,
) -> None:
    sensor_root = root / "sensor_blobs" / plan.data_split
    for index in indices:
        for name in options.cameras:
            data_path = frames[index].cameras[name].data_path
            if not (sensor_root / data_path).is_file():
                picture = renderer.draw(world.frames[index], make_camera(name))
                write_image(sensor_root, data_path, picture, options.jpeg_quality)


def _window(
    world: World,
    plan: LogPlan,
    frames: Sequence[Frame],
    ego: Sequence[WorldFrame],
    now: int,
    identity: tuple[int, int, int],
    cameras: dict[str, Camera],
    options: SecondStageOptions,
) -> SceneWindow:
    """The sample whose current frame is the frame `now` of the log, seen from where `ego` has it."""
    parts = (plan.name, plan.seed, "second stage", *identity)
    token = make_token(*parts, 0, length=SECOND_STAGE_TOKEN_LENGTH)
    history = []
    for age, view in zip(range(NUM_HISTORY_FRAMES - 1, -1, -1), ego, strict=True):
        index = now - age
        frame_token = make_token(*parts, age, length=SECOND_STAGE_TOKEN_LENGTH)
        pose = view.ego_pose.copy()
        pose[:2] += plan.origin
        is_drawn = options.images == "all" or (options.images == "samples" and age == 0)
        history.append(
            replace(
                frames[index],
                token=frame_token,
                ego_pose=pose,
                ego_velocity=view.ego_velocity,
                ego_acceleration=view.ego_acceleration,
                annotations=annotations_of(view, plan, index),
                cameras={
                    name: replace(frames[index].cameras[name], data_path=f"{token}/{name}/{frame_token}.jpg")
                    for name in cameras
                    if is_drawn and name in options.cameras
                },
                scene_token=token,
            )
        )
    start, _, lag = identity
    future = world.frames[now + 1 : now + 1 + NUM_POSES]
    return SceneWindow(
        log_name=plan.name,
        map_name=plan.map_name,
        scene_token=token,
        frames=tuple(history),
        num_history_frames=NUM_HISTORY_FRAMES,
        num_future_frames=0,
        second_stage=SecondStage(
            scene_token=token,
            original_scene=frames[now].token,
            original_token=frames[start - lag].token,
            future_objects=tuple(_objects(frame, plan) for frame in future),
            future_lights=tuple(lights_of(world, frame, plan.place) for frame in future),
        ),
    )


def _objects(frame: WorldFrame, plan: LogPlan) -> GlobalObjects:
    """What is near the recorded ego, in the global frame and by type."""
    x, y, _ = frame.ego_pose
    near = [t for t in frame.tracks if np.hypot(t.x - x, t.y - y) < ANNOTATION_RADIUS_M]
    near.sort(key=lambda track: TRACK_TYPES.index(track.kind))
    moving = np.array([[t.kind in AGENT_TYPES] for t in near]).reshape(-1, 1)
    return GlobalObjects(
        names=tuple(t.kind for t in near),
        track_tokens=tuple(make_token(plan.name, plan.seed, "track", t.id) for t in near),
        poses=np.array(
            [[t.x + plan.origin[0], t.y + plan.origin[1], float(wrap(t.heading))] for t in near]
        ).reshape(-1, 3),
        sizes=np.array([[t.length, t.width] for t in near]).reshape(-1, 2),
        velocities=np.array([[t.vx, t.vy] for t in near]).reshape(-1, 2) * moving,
    )
