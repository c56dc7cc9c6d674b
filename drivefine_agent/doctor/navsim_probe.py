"""Which NAVSIM does this interpreter import? A script: prints one JSON object.

Runs alone, on Python 3.9 or later. Versions are told by what the source contains, which is parsed and not
executed; NAVSIM has no version that could be trusted. Only at the end it is imported for a trial.

Source of the features: navsim-formats 9.3, pdm-scorer 6.2.
"""

import ast
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys

MARK = os.path.join("agents", "abstract_agent.py")
"""A file that NAVSIM has and the unrelated distribution of the same name has not."""
SCRIPTS = os.path.join("planning", "script")
TRIAL_MODULES = ("navsim.common.dataclasses", "navsim.agents.abstract_agent", "navsim.evaluate.pdm_score")
DISTRIBUTIONS = ("numpy", "hydra-core", "torch", "pytorch-lightning", "shapely", "ray", "nuplan-devkit")


def find(package):
    """Folder of an importable package, without importing it; None if there is none. And its file."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or [])
    return places[0] if places else spec.origin


def tree_of(folder, *parts):
    """The parsed source of a file; an empty module if there is none."""
    path = os.path.join(folder, *parts)
    if not os.path.isfile(path):
        return ast.Module([], [])
    with open(path, encoding="utf-8") as file:
        return ast.parse(file.read())


def class_named(tree, name):
    """A class of a module, or None."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    return None


def has_field(tree, class_name, field):
    """Whether a dataclass declares a field; None without the class."""
    found = class_named(tree, class_name)
    if found is None:
        return None
    return any(isinstance(node, ast.AnnAssign) and name_of(node.target) == field for node in found.body)


def name_of(node):
    """Name of a name node, else ''."""
    return node.id if isinstance(node, ast.Name) else ""


def init_takes(tree, class_name, argument):
    """Whether a class's constructor has an argument; None without the class."""
    found = class_named(tree, class_name)
    if found is None:
        return None
    for node in found.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return argument in [a.arg for a in node.args.args + node.args.kwonlyargs]
    return False


def penalty_filter(tree):
    """How pdm_score treats what the human driver got wrong too: None, 'legacy' or 'fixed'.

    With the fix of September 2025 the product of the multipliers is written anew after columns were changed.
    """
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    if "human_penalty_filter" not in names:
        return None
    written = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Subscript):
                    written |= {n.value for n in ast.walk(target) if isinstance(n, ast.Constant)}
    return "fixed" if "multiplicative_metrics_prod" in written else "legacy"


def features(folder):
    """What tells the versions apart, and what a regular wheel lacks."""
    dataclasses = tree_of(folder, "common", "dataclasses.py")
    scripts = os.path.join(folder, SCRIPTS)
    yaml_files = [
        name for _, _, files in os.walk(folder) for name in files if name.endswith((".yaml", ".yml"))
    ]
    return {
        "base_takes_sampling": init_takes(tree_of(folder, MARK), "AbstractAgent", "trajectory_sampling"),
        "cache_has_map_parameters": has_field(
            tree_of(folder, "planning", "metric_caching", "metric_cache.py"), "MetricCache", "map_parameters"
        ),
        "filter_has_second_stage": has_field(dataclasses, "SceneFilter", "include_synthetic_scenes"),
        "penalty_filter": penalty_filter(tree_of(folder, "evaluate", "pdm_score.py")),
        "scripts": sorted(os.listdir(scripts)) if os.path.isdir(scripts) else [],
        "num_yaml_files": len(yaml_files),
    }


def providers(package):
    """Distributions that say they provide a package, as 'name version'. Python 3.9 asks each for itself."""
    found = set()
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        top_level = (distribution.read_text("top_level.txt") or "").split()
        if name and (name.lower() == package or package in top_level):
            found.add(name + " " + distribution.version)
    return sorted(found)


def version_of(distribution):
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def trial():
    """Error of importing what a run needs, or None."""
    for name in TRIAL_MODULES:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever it is, it is what the user's run would meet
            return name + ": " + type(error).__name__ + ": " + str(error)
    return None


def main():
    """Print the report."""
    report = {
        "python": platform.python_version(),
        "executable": sys.executable,
        "navsim": find("navsim"),
        "providers": providers("navsim"),
        "nuplan": find("nuplan"),
        "versions": {name: version_of(name) for name in DISTRIBUTIONS},
    }
    folder = report["navsim"]
    report["is_navsim"] = folder is not None and os.path.isfile(os.path.join(folder, MARK))
    if report["is_navsim"]:
        report["features"] = features(folder)
        if report["nuplan"] is not None:
            report["import_error"] = trial()
    print(json.dumps(report))


if __name__ == "__main__":
    del sys.path[0]  # this folder
    main()
