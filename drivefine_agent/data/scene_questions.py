"""Questions about a scene whose answers follow from its log: two kinds of ReCogDrive's QA set (model.md 5.2).

The others of that set were written by a large vision-language model and cannot be made from logs.
"""

from __future__ import annotations

import numpy as np

from drivefine_agent.constants import NUM_POSES
from drivefine_agent.data.recogdrive import Turn
from drivefine_agent.data.scenes import future_poses
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.geometry.indices import BoxIndex, PoseIndex

VULNERABLE = ("pedestrian", "bicycle")
MAX_DISTANCE_M = 40.0
MIN_OFFSET_M = 2.0  # to the side, to be worth a word
MAX_NAMED = 5  # the nearest ones

# Thresholds of ReCogDrive's rules.
SPEED_CHANGE_MPS = 3.0
STANDING_MPS = 2.0
SIDE_M = 4.0
TURN_RAD = float(np.deg2rad(5.0))

ROAD_USERS_QUESTION = "Which pedestrians and cyclists are ahead, within 40 m?"
PLAN_QUESTION = (
    "What does the car do in the next 4 seconds? Answer with SPEED (KEEP, ACCELERATE, DECELERATE, STOP) and "
    "PATH (STRAIGHT, RIGHT_CHANGE, LEFT_CHANGE, RIGHT_TURN, LEFT_TURN)."
)


def scene_turns(window: SceneWindow) -> tuple[Turn, ...]:
    """What can be asked about the scene's current frame; the first kind only where it is annotated.

    Raises:
      DataError: the scene has no 4 s of future.
    """
    turns = [Turn(PLAN_QUESTION, f"{plan_speed(window)}, {plan_path(window)}")]
    if window.current.annotations is not None:
        turns.insert(0, Turn(ROAD_USERS_QUESTION, road_users_text(window)))
    return tuple(turns)


def road_users_text(window: SceneWindow) -> str:
    """Vulnerable road users in front of the ego, nearest first, with distances and offsets to the side."""
    annotations = window.current.annotations
    assert annotations is not None
    boxes = annotations.boxes
    distance = np.hypot(boxes[:, BoxIndex.X], boxes[:, BoxIndex.Y])
    is_named = np.isin(annotations.names, VULNERABLE) & (boxes[:, BoxIndex.X] > 0)
    rows = np.flatnonzero(is_named & (distance <= MAX_DISTANCE_M))
    rows = rows[np.argsort(distance[rows], kind="stable")][:MAX_NAMED]
    if len(rows) == 0:
        return "None."
    parts = []
    for row in rows:
        side = boxes[row, BoxIndex.Y]
        part = f"{annotations.names[row]} {boxes[row, BoxIndex.X]:.0f} m ahead"
        if abs(side) > MIN_OFFSET_M:
            part += f", {abs(side):.0f} m to the {'left' if side > 0 else 'right'}"
        parts.append(part)
    return "; ".join(parts) + "."


def plan_speed(window: SceneWindow) -> str:
    """KEEP, ACCELERATE, DECELERATE or STOP over the next 4 s."""
    speeds = [np.hypot(*window.frame_at(i).ego_velocity) for i in range(NUM_POSES + 1)]
    if max(speeds) < STANDING_MPS:
        return "STOP"
    change = speeds[-1] - speeds[0]
    if abs(change) <= SPEED_CHANGE_MPS:
        return "KEEP"
    return "ACCELERATE" if change > 0 else "DECELERATE"


def plan_path(window: SceneWindow) -> str:
    """STRAIGHT, or a turn or lane change to one side, by the pose in 4 s."""
    end = future_poses(window, NUM_POSES)[-1]
    if abs(end[PoseIndex.Y]) <= SIDE_M:
        return "STRAIGHT"
    side = "LEFT" if end[PoseIndex.Y] > 0 else "RIGHT"
    return f"{side}_{'TURN' if abs(end[PoseIndex.HEADING]) > TURN_RAD else 'CHANGE'}"
