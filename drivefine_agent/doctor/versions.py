"""Python and the libraries against the ranges that this project was made for."""

from __future__ import annotations

import importlib.metadata
import platform
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from drivefine_agent.doctor.findings import Finding, failure, ok, warning
from drivefine_agent.doctor.options import DoctorOptions

DISTRIBUTION = "drivefine"
SHOWN = ("torch", "numpy", "shapely", "hydra-core", "numba", "transformers")
"""Named in the report even if all is well."""
TOO_NEW_FOR_NAVSIM = (3, 13)


def check(options: DoctorOptions) -> list[Finding]:
    """Python and every required library of this environment."""
    python_range, requirements = required()
    return [*python_findings(python_range, platform.python_version()), *library_findings(requirements)]


def required() -> tuple[str, list[str]]:
    """The range of Python and the requirements, from pyproject.toml of a checkout, else as installed.

    Raises:
      PackageNotFoundError: there is neither.
    """
    project_file = Path(__file__).parents[2] / "pyproject.toml"
    if project_file.is_file():
        project = tomllib.loads(project_file.read_text(encoding="utf-8"))["project"]
        return project["requires-python"], project["dependencies"]
    metadata = importlib.metadata.metadata(DISTRIBUTION)
    lines = importlib.metadata.requires(DISTRIBUTION) or []
    return metadata["Requires-Python"], [line for line in lines if "extra ==" not in line]


def python_findings(python_range: str, version: str) -> list[Finding]:
    """This Python against the range; NAVSIM itself does not run on 3.13."""
    if version not in SpecifierSet(python_range):
        return [
            failure(
                "Python",
                f"{version}, needed is {python_range}",
                "make an environment with Python 3.11 or 3.12",
            )
        ]
    if tuple(int(part) for part in version.split(".")[:2]) >= TOO_NEW_FOR_NAVSIM:
        return [
            warning(
                "Python",
                f"{version} suits this project; NAVSIM's own code breaks from 3.13 on",
                "use 3.11 or 3.12 if NAVSIM's scripts are to run in the same environment",
            )
        ]
    return [ok("Python", f"{version} ({python_range})")]


def library_findings(requirements: list[str]) -> list[Finding]:
    """One finding for each library that is absent or out of range, one for all others."""
    findings = []
    good = []
    for line in requirements:
        requirement = Requirement(line)
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            findings.append(
                failure(requirement.name, "not installed", f'pip install "{requirement}", or make .venv anew')
            )
            continue
        if requirement.specifier.contains(version, prereleases=True):
            good.append((requirement.name, version))
        else:
            findings.append(
                failure(
                    requirement.name,
                    f"{version}, needed is {requirement.specifier}",
                    f'pip install "{requirement}"',
                )
            )
    shown = ", ".join(f"{name} {version}" for name, version in good if name in SHOWN)
    return [*findings, ok("libraries", f"{len(good)} of {len(requirements)} in range: {shown}")]
