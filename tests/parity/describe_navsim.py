"""Prints, as JSON, the signatures that the seam relies on, of the NAVSIM that this interpreter imports.

    python tests/parity/describe_navsim.py > description.json

Runs where NAVSIM lives, so it uses nothing of this package and nothing newer than Python 3.9.
`tests/data/navsim_signatures.json` holds what NAVSIM 1.1 and 2.2 answered.
"""

import importlib
import inspect
import json
import os

os.environ.setdefault("NUPLAN_MAPS_ROOT", ".")

CLASSES = {
    "navsim.agents.abstract_agent": ["AbstractAgent"],
    "navsim.common.dataclasses": [
        "AgentInput",
        "Annotations",
        "Camera",
        "Cameras",
        "EgoStatus",
        "Frame",
        "Lidar",
        "Scene",
        "SceneMetadata",
        "SensorConfig",
        "Trajectory",
    ],
    "navsim.planning.training.abstract_feature_target_builder": [
        "AbstractFeatureBuilder",
        "AbstractTargetBuilder",
    ],
    "nuplan.planning.simulation.trajectory.trajectory_sampling": ["TrajectorySampling"],
}


def parameters(function):
    """[name, default or null if there is none] of each parameter but self."""
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name != "self":
            default = parameter.default
            # A default that is an object prints differently everywhere: its class says enough.
            text = (
                repr(default)
                if isinstance(default, (int, float, str, type(None)))
                else type(default).__name__
            )
            found.append([name, None if default is inspect.Parameter.empty else text])
    return found


def describe(cls):
    """Constructor and public methods, as parameter lists."""
    methods = {}
    for name, member in inspect.getmembers(cls):
        is_own = any(
            name in base.__dict__ for base in cls.__mro__ if base.__module__.startswith(("navsim", "nuplan"))
        )
        if callable(member) and is_own and not name.startswith("_"):
            methods[name] = parameters(member)
    return {"constructor": parameters(cls.__init__), "methods": methods}


def main():
    """Describes every class of the seam."""
    found = {}
    for module, names in CLASSES.items():
        for name in names:
            found[name] = describe(getattr(importlib.import_module(module), name))
    print(json.dumps(found, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
