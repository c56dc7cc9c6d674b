"""What stands in for nuPlan's classes when its pickles are read: records that hold fields, no code.

The pickles refer to classes of nuplan-devkit, to paths and sometimes to polygons. None of them is imported.
A class becomes an empty record that takes whatever fields the pickle sets; an enum becomes the name of its
member; a path becomes its text; a polygon, which NAVSIM makes anew when it needs one, becomes None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from drivefine_agent.constants import AGENT_TYPES, TRACK_TYPES
from drivefine_agent.data.safe_pickle import NUMPY_AND_BUILTINS, Guard, PickledObject
from drivefine_agent.data.types import GlobalObjects
from drivefine_agent.errors import DataError, UnsafePickleError

LIGHT_STATES = ("green", "yellow", "red", "unknown")
"""By the value of nuPlan's TrafficLightStatusType."""

_STATE = "nuplan.common.actor_state"
CLASS_MODULES = {
    "DetectionsTracks": "nuplan.planning.simulation.observation.observation_type",
    "TrackedObjects": f"{_STATE}.tracked_objects",
    "Agent": f"{_STATE}.agent",
    "StaticObject": f"{_STATE}.static_object",
    "SceneObjectMetadata": f"{_STATE}.scene_object",
    "OrientedBox": f"{_STATE}.oriented_box",
    "StateSE2": f"{_STATE}.state_representation",
    "Point2D": f"{_STATE}.state_representation",
    "StateVector2D": f"{_STATE}.state_representation",
    "TimePoint": f"{_STATE}.state_representation",
    "TrafficLightStatuses": "nuplan.common.maps.maps_datatypes",
    "TrafficLightStatusData": "nuplan.common.maps.maps_datatypes",
}
"""nuPlan's classes in second-stage pickles -> the module that defines them."""
ENUM_MODULES = {
    "TrackedObjectType": f"{_STATE}.tracked_objects_types",
    "TrafficLightStatusType": "nuplan.common.maps.maps_datatypes",
}


class _Closed(type):
    """Classes whose attributes a pickle cannot set."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise UnsafePickleError(f"a pickle tried to set the attribute {name!r} of a class")


class Record(PickledObject, metaclass=_Closed):
    """An object of a pickle, as the fields that the pickle sets."""

    __slots__ = ("fields",)
    fields: dict[str, Any]
    kind = "object"

    def __new__(cls, *args: Any) -> Record:
        """An empty record."""
        if args:
            raise UnsafePickleError(f"a {cls.kind} in a pickle must be made without arguments")
        record = object.__new__(cls)
        object.__setattr__(record, "fields", {})
        return record

    def __setattr__(self, name: str, value: Any) -> None:
        raise UnsafePickleError(f"a pickle tried to set the attribute {name!r} of a {self.kind}")

    def pickled_fields(self) -> dict[str, Any]:
        """See `PickledObject`."""
        return self.fields

    def __setstate__(self, state: Any) -> None:
        """Takes a dict, or what a class with slots has: (dict or None, dict); once."""
        if self.fields:
            raise UnsafePickleError(f"a pickle tried to set the state of a {self.kind} twice")
        for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
            if part is None:
                continue
            if not isinstance(part, dict) or not all(isinstance(name, str) for name in part):
                raise UnsafePickleError(f"the state of a {self.kind} in a pickle must be fields by name")
            self.fields.update(part)


def record_class(name: str) -> type[Record]:
    """The class of records that stand in for one of nuPlan's or NAVSIM's classes."""
    record_class: type[Record] = _Closed(name, (Record,), {"__slots__": (), "kind": name})  # type: ignore[assignment]
    return record_class


def member_of(kind: str, names: tuple[str, ...]) -> Callable[..., str]:
    """What stands in for an enumeration: the function from a member's value to its name."""

    def member(*args: Any) -> str:
        value = args[0] if len(args) == 1 else None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(names):
            raise UnsafePickleError(f"{kind} has the values 0 ... {len(names) - 1}, got {args!r:.60}")
        return names[value]

    return member


def path_text(*parts: Any) -> str:
    """What stands in for a path: its text."""
    if not all(isinstance(part, str) for part in parts):
        raise UnsafePickleError(
            f"a path in a pickle must be made of texts, got {[type(part).__name__ for part in parts[:3]]}"
        )
    return str(PurePosixPath(*parts))


def _no_polygon(*args: Any) -> None:
    if not all(isinstance(arg, bytes | bool) for arg in args):
        raise UnsafePickleError(
            f"a polygon in a pickle must be made of bytes, got {[type(arg).__name__ for arg in args[:3]]}"
        )


def _second_stage_names() -> dict[tuple[str, str], Any]:
    names: dict[tuple[str, str], Any] = dict(NUMPY_AND_BUILTINS)
    for name, module in CLASS_MODULES.items():
        names[module, name] = record_class(name)
    types = Guard(member_of("TrackedObjectType", (*TRACK_TYPES, "ego")))
    lights = Guard(member_of("TrafficLightStatusType", LIGHT_STATES))
    names[ENUM_MODULES["TrackedObjectType"], "TrackedObjectType"] = types
    names[ENUM_MODULES["TrafficLightStatusType"], "TrafficLightStatusType"] = lights
    for module in ("pathlib", "pathlib._local"):
        for name in ("PosixPath", "PurePosixPath"):
            names[module, name] = Guard(path_text)
    for module in ("shapely", "shapely.io"):
        names[module, "from_wkb"] = Guard(_no_polygon)
    return names


SECOND_STAGE_NAMES: Mapping[tuple[str, str], Any] = _second_stage_names()
"""The allow-list of `safe_pickle.load_pickle` for second-stage pickles."""


def field(record: Any, kind: str, name: str, where: str) -> Any:
    """A field of a record.

    Raises:
      DataError: it is no such record, or lacks the field.
    """
    if not isinstance(record, Record) or record.kind != kind:
        found = record.kind if isinstance(record, Record) else type(record).__name__
        raise DataError(f"expected a {kind} of nuPlan, got a {found} in {where}")
    if name not in record.fields:
        raise DataError(f"a {kind} needs the field {name!r}, which is missing in {where}")
    return record.fields[name]


def global_objects(detections: Any, where: str) -> GlobalObjects:
    """The road users and objects of a `DetectionsTracks` record, in its order, which is by type.

    Static objects stand still whatever their record says, as for NAVSIM.

    Raises:
      DataError: the record or one of its objects is incomplete, or not finite.
    """
    tracked = field(detections, "DetectionsTracks", "tracked_objects", where)
    objects = field(tracked, "TrackedObjects", "tracked_objects", where)
    if not isinstance(objects, list):
        raise DataError(f"'tracked_objects' must be a list, got {type(objects).__name__} in {where}")
    found = objects_in_order(objects, where)
    types = [TRACK_TYPES.index(name) for name in found.names]
    if types != sorted(types):
        raise DataError(f"nuPlan keeps objects sorted by type, they are not in {where}")
    return found


def objects_in_order(objects: Sequence[Any], where: str) -> GlobalObjects:
    """`Agent` and `StaticObject` records as arrays, in any order; see `global_objects`."""
    names, tokens = [], []
    rows = np.zeros((len(objects), 7))
    for index, item in enumerate(objects):
        place = f"object {index} of {where}"
        kind = "StaticObject" if getattr(item, "kind", None) == "StaticObject" else "Agent"
        name = field(item, kind, "_tracked_object_type", place)
        if not isinstance(name, str) or name not in TRACK_TYPES:
            raise DataError(f"the type of an object must be one of {TRACK_TYPES}, got {name!r} in {place}")
        box = field(item, kind, "_box", place)
        center = field(box, "OrientedBox", "_center", place)
        values = [field(center, "StateSE2", key, place) for key in ("x", "y", "heading")]
        values += [field(box, "OrientedBox", key, place) for key in ("_length", "_width")]
        if name in AGENT_TYPES:
            velocity = field(item, kind, "_velocity", place)
            values += [field(velocity, "StateVector2D", key, place) for key in ("_x", "_y")]
        else:
            values += [0.0, 0.0]
        try:
            rows[index] = values
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"box and velocity must be numbers, got {values!r:.120} in {place}") from error
        names.append(name)
        token = field(field(item, kind, "_metadata", place), "SceneObjectMetadata", "track_token", place)
        tokens.append(str(token))
    if not np.isfinite(rows[:, :5]).all():
        raise DataError(f"the boxes of objects must be finite, they are not in {where}")
    return GlobalObjects(
        tuple(names), tuple(tokens), rows[:, :3].copy(), rows[:, 3:5].copy(), rows[:, 5:].copy()
    )


def light_states(statuses: Any, where: str) -> tuple[tuple[int, bool], ...]:
    """(lane connector id, is red) of a `TrafficLightStatuses` record.

    Raises:
      DataError: the record is incomplete.
    """
    lights = field(statuses, "TrafficLightStatuses", "traffic_lights", where)
    if not isinstance(lights, list):
        raise DataError(f"'traffic_lights' must be a list, got {type(lights).__name__} in {where}")
    pairs = []
    for light in lights:
        connector = field(light, "TrafficLightStatusData", "lane_connector_id", where)
        state = field(light, "TrafficLightStatusData", "status", where)
        if not isinstance(state, str) or state not in LIGHT_STATES:
            raise DataError(f"the state of a light must be one of {LIGHT_STATES}, got {state!r} in {where}")
        try:
            pairs.append((int(connector), state == "red"))
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"a lane connector must be a number, got {connector!r:.40} in {where}") from error
    return tuple(pairs)
