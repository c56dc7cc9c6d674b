"""What the package depends on: declared, used, bounded, installed without conflict, and free to be used."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import packages_distributions
from importlib.util import find_spec

import pytest
import yaml
from licence_list import (
    PURPOSES,
    ROOT,
    declared,
    direct,
    installed,
    is_compatible,
    listed,
    runtime_distributions,
    stated_licence,
)
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

OURS = ("drivefine_agent", "rl", "tools", "hydra_plugins", "navsim_configs")
NAVSIMS = {"navsim", "nuplan", "pytorch_lightning"}
"""Of NAVSIM's own environment, on no index or its own choice: docs/navsim.md."""
BY_OTHERS = {"torch.utils.tensorboard": "tensorboard"}
"""Modules that need another package than their own."""


@cache
def third_party_imports() -> dict[str, set[str]]:
    """Top-level names of foreign modules, each with the files that import it."""
    found: dict[str, set[str]] = {}
    # What a script of tools/ imports from beside it, or, in two benchmarks, from the references in tests/.
    beside = {path.stem for folder in ("tools", "tests") for path in (ROOT / folder).rglob("*.py")}
    for path in (path for folder in OURS for path in (ROOT / folder).rglob("*.py")):
        local = {*OURS, *beside} if path.parent.name == "tools" else set(OURS)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [str(node.module)]
            else:
                continue
            for module in modules:
                name = BY_OTHERS.get(module, module.split(".")[0])
                if name not in local | sys.stdlib_module_names:
                    found.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return found


def distribution_of(module: str) -> str:
    """Canonical name of the distribution that has a module; the module's own where it is not installed."""
    return canonicalize_name(packages_distributions().get(module, [module])[0])


def test_every_import_is_declared_and_every_dependency_is_imported() -> None:
    imports = {distribution_of(name): files for name, files in third_party_imports().items()}
    undeclared = {name: files for name, files in imports.items() if name not in direct()}
    assert {name for name in undeclared if name.replace("-", "_") not in NAVSIMS} == set(), undeclared
    assert set(direct()) - set(imports) == set(), "declared and imported nowhere"


def test_an_import_is_found_wherever_it_stands() -> None:
    """In functions and under conditions too, or the test before it would see nothing of what is optional."""
    imports = third_party_imports()
    assert "rl/ray_rewards.py" in imports["ray"]
    assert "drivefine_agent/model/quantization.py" in imports["torchao"]
    assert "drivefine_agent/training/metrics.py" in imports["tensorboard"]


def test_what_is_installed_is_without_conflict() -> None:
    if find_spec("pip") is None:
        pytest.skip("this environment was made without pip")
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("requirement", [line for lines in declared().values() for line in lines], ids=str)
def test_what_is_installed_is_inside_the_bounds(requirement: Requirement) -> None:
    """Of this checkout's pyproject.toml; what pip checks may be an older one's."""
    assert requirement.extras or any(bound.operator == ">=" for bound in requirement.specifier)
    package = installed(requirement.name)
    if package is None:
        assert requirement.name in {"ray", "torchao"}, "only these two are not among the extras of `dev`"
    else:
        assert requirement.specifier.contains(package.version, prereleases=True), package.version


def test_every_upper_bound_says_what_it_keeps_out() -> None:
    lines = [
        line for line in (ROOT / "pyproject.toml").read_text().splitlines() if re.search(r'[\w"\]],<\d', line)
    ]
    assert len(lines) >= 5
    for line in lines:
        bound = re.search(r",(<[\d.]+)", line)
        assert bound is not None
        assert re.search(rf"# .*{re.escape(bound[1])}: \w", line), line
    for name in ("numpy", "transformers", "shapely", "hydra-core", "omegaconf", "pandas"):
        assert any(bound.operator == "<" for bound in direct()[name].specifier), name


def test_conda_and_the_makefile_install_what_is_declared() -> None:
    steps = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    python = next(step for step in steps if isinstance(step, str) and step.startswith("python="))
    project = (ROOT / "pyproject.toml").read_text()
    supported = re.search(r'^requires-python = "(.+)"$', project, re.MULTILINE)
    assert supported is not None
    assert SpecifierSet(supported[1]).contains(python.removeprefix("python="))
    lines = next(step["pip"] for step in steps if isinstance(step, dict))
    assert "-e .[dev]" in lines
    for line in set(lines) - {"-e .[dev]"}:
        assert Requirement(line).specifier == direct()[Requirement(line).name].specifier
    torch = re.search(r"^TORCH +\?= torch==(\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert torch is not None
    assert direct()["torch"].specifier.contains(torch[1])


def test_the_list_of_licences_is_complete() -> None:
    packages = runtime_distributions(direct().values())
    assert len(packages) > 40
    stated = {name: stated_licence(package) for name, package in packages.items()}
    missing = set(stated) - set(listed())
    assert not missing, f"run `python tests/licence_list.py`: {sorted(missing)}"
    assert set(PURPOSES) == set(direct())
    assert set(direct()) <= set(listed())


def test_no_licence_forbids_apache_2() -> None:
    here = {name: stated_licence(it) for name, it in runtime_distributions(direct().values()).items()}
    assert {name: it for name, it in (here | listed()).items() if not is_compatible(it)} == {}


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("MIT", True),
        ("Apache-2.0 WITH LLVM-exception AND BSD-2-Clause", True),
        ("GPL-3.0-only OR MIT", True),
        ("GPL-3.0-or-later", False),
        ("AGPL-3.0-only", False),
        ("MIT AND LGPL-2.1-only", False),
        ("CC-BY-NC-4.0", False),
        ("Proprietary", False),
    ],
)
def test_licences_that_go_with_apache_2(licence: str, expected: bool) -> None:
    assert is_compatible(licence) is expected


def test_every_file_of_the_makefiles_lowest_exists() -> None:
    """A test that was renamed would silently fall out of what the lowest versions are tested with."""
    found = re.search(r"^LOWEST_TESTS *:= *((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found is not None
    paths = found[1].replace("\\\n", " ").split()
    assert len(paths) >= 4
    assert [path for path in paths if not (ROOT / path).exists()] == []
