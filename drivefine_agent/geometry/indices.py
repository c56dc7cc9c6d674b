"""Names for the positions of array layouts, so that code says `states[..., StateIndex.VX]`."""

from enum import IntEnum


class PoseIndex(IntEnum):
    """Layout of a pose (..., 3)."""

    X = 0
    Y = 1
    HEADING = 2


class StateIndex(IntEnum):
    """Layout of a simulated ego state (..., 11): rear axle pose, body-frame dynamics, steering."""

    X = 0
    Y = 1
    HEADING = 2
    VX = 3
    VY = 4
    AX = 5
    AY = 6
    STEERING_ANGLE = 7
    STEERING_RATE = 8
    YAW_RATE = 9
    YAW_ACCEL = 10


class CornerIndex(IntEnum):
    """Order of a box's corners (..., 4, 2), counter-clockwise from the front left."""

    FRONT_LEFT = 0
    REAR_LEFT = 1
    REAR_RIGHT = 2
    FRONT_RIGHT = 3


class BoxIndex(IntEnum):
    """Layout of an annotation box (..., 7), in the ego frame of its own frame."""

    X = 0
    Y = 1
    Z = 2
    LENGTH = 3
    WIDTH = 4
    HEIGHT = 5
    HEADING = 6
