"""Which NAVSIM the scoring interpreter imports, and whether its scripts can run. See `navsim_probe`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drivefine_agent.doctor.findings import Finding, failure, ok, warning
from drivefine_agent.doctor.options import DoctorOptions
from drivefine_agent.doctor.probes import run_probe

PROBE = "navsim_probe.py"
_INSTALL = (
    "git clone NAVSIM and nuplan-devkit and install both with `pip install --no-deps -e` "
    "(environment.yml has "
    "the lines)"
)
COMPARED_VERSIONS = ("1.1", "2.2")
APRIL_2025 = "2.2 of April 2025"
"""Before the tag was moved to the fix of the filter."""
_RULES = {
    None: "no human-penalty filter",
    "fixed": "human-penalty filter after the fix of September 2025",
    "legacy": "human-penalty filter before the fix of September 2025",
}


def check(options: DoctorOptions) -> list[Finding]:
    """NAVSIM as `options.python` sees it.

    Raises:
      ProbeError: the interpreter cannot be run.
    """
    report = run_probe(PROBE, options.python, options.environment)
    return [
        *navsim_findings(report),
        *devkit_findings(report, options.environment.get("NAVSIM_DEVKIT_ROOT")),
    ]


def navsim_findings(report: Mapping[str, Any]) -> list[Finding]:
    """What the probe's report means."""
    where = f"{report['executable']} (Python {report['python']})"
    if report["navsim"] is None:
        return [
            ok(
                "NAVSIM",
                f"none in {where}; nothing of ours needs it. To run NAVSIM's own scripts: {_INSTALL}, or "
                "name "
                "the interpreter that has it with --python",
            )
        ]
    if not report["is_navsim"]:
        return [_unrelated(report, where)]
    folder, features = report["navsim"], report["features"]
    version, rules = version_of(features), _RULES[features["penalty_filter"]]
    findings = [ok("NAVSIM", f"{version} by its source ({rules}) at {folder}, in {where}")]
    if version not in COMPARED_VERSIONS:
        findings.append(
            warning(
                "NAVSIM's version",
                f"{version} scores by other rules than 1.1 and 2.2, which this project reproduces"
                + (", in the human-penalty filter at least" if version.startswith("2") else ""),
                "git fetch --tags --force && git checkout v2.2 (or v1.1) in the checkout"
                + (
                    "; to compare with its old results, use human_penalty_filter=legacy here"
                    if version == APRIL_2025
                    else ""
                ),
            )
        )
    findings += _scripts(features, folder)
    findings += _importable(report, where)
    return findings


def devkit_findings(report: Mapping[str, Any], devkit_root: str | None) -> list[Finding]:
    """Whether scripts and package would come from the same checkout."""
    if not devkit_root or not report["is_navsim"]:
        return []
    imported, named = Path(report["navsim"]).resolve(), (Path(devkit_root) / "navsim").resolve()
    if imported == named:
        return []
    return [
        warning(
            "NAVSIM_DEVKIT_ROOT",
            f"scripts started from {named} would import the package from {imported}: two checkouts are mixed",
            f"export NAVSIM_DEVKIT_ROOT={imported.parent}, or put the other checkout first on PYTHONPATH",
        )
    ]


def version_of(features: Mapping[str, Any]) -> str:
    """The release, from what the source contains; tried on the tags v1.0 to v2.2 of NAVSIM's repository."""
    scripts = features["scripts"]
    marks = {
        features[key]
        for key in ("base_takes_sampling", "cache_has_map_parameters", "filter_has_second_stage")
    }
    if marks == {False}:
        return "1.1" if "run_merge_submission_pickles.py" in scripts else "1.0 or older"
    if marks != {True}:
        return "unknown"
    if features["penalty_filter"] == "fixed":
        return "2.2"
    if "run_create_submission_pickle_warmup.py" in scripts:
        return APRIL_2025
    return "2.1" if "run_pdm_score_one_stage.py" in scripts else "2.0"


def _unrelated(report: Mapping[str, Any], where: str) -> Finding:
    providers = ", ".join(report["providers"])
    owner = f"the distribution {providers}" if providers else "a folder on the import path"
    cure = "pip uninstall navsim there" if providers else f"take {report['navsim']} off the import path"
    return failure(
        "NAVSIM",
        f"the package `navsim` in {where} is not NAVSIM but {owner}: {report['navsim']}. The package "
        "index has "
        "an unrelated program of this name",
        f"{cure}, then {_INSTALL}",
    )


def _scripts(features: Mapping[str, Any], folder: str) -> list[Finding]:
    scripts = [name for name in features["scripts"] if name.startswith("run_") and name.endswith(".py")]
    if scripts and features["num_yaml_files"]:
        return [ok("NAVSIM's scripts", f"{len(scripts)} scripts, {features['num_yaml_files']} YAML files")]
    return [
        failure(
            "NAVSIM's scripts",
            f"{len(scripts)} scripts and {features['num_yaml_files']} YAML files in {folder}: a regular "
            "install "
            'leaves the configuration out, and every script stops with "Could not load '
            "'default_evaluation'\"",
            "pip uninstall navsim, then `pip install --no-deps -e` the checkout, or put it on PYTHONPATH",
        )
    ]


def _importable(report: Mapping[str, Any], where: str) -> list[Finding]:
    if report["nuplan"] is None:
        return [
            failure(
                "nuplan-devkit",
                f"not importable in {where}; NAVSIM does not import without it",
                "git clone nuplan-devkit (motional, v1.2) and `pip install --no-deps -e` it; it is not "
                "on the "
                "package index. environment.yml has the lines",
            )
        ]
    findings = []
    error = report["import_error"]
    if error is None:
        findings.append(ok("importing NAVSIM", f"works, with nuplan at {report['nuplan']}"))
    else:
        findings.append(failure("importing NAVSIM", f"fails in {where}: {error}", _import_remedy(report)))
    if report["versions"]["ray"] is None:
        findings.append(
            warning(
                "ray",
                "not installed; it is NAVSIM's default worker",
                "pass worker=sequential or worker=single_machine_thread_pool to NAVSIM's scripts",
            )
        )
    return findings


def _import_remedy(report: Mapping[str, Any]) -> str:
    """The known combinations that cannot work, before the general advice."""
    python = tuple(int(part) for part in report["python"].split(".")[:2])
    hydra = report["versions"]["hydra-core"]
    if python >= (3, 13):
        return "NAVSIM's enums break from Python 3.13 on: use 3.11 or 3.12"
    if hydra is not None and hydra.startswith("1.2.") and python >= (3, 11):
        return "hydra-core 1.2 does not import on Python 3.11 or later: pip install 'hydra-core>=1.3,<1.4'"
    return "install what the error names (environment.yml lists what NAVSIM needs)"
