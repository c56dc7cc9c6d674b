"""Does `agent=drivefine` resolve in NAVSIM's commands, by the search-path plugin of this package?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drivefine_agent.doctor.findings import Finding, failure, ok, warning
from drivefine_agent.doctor.options import DoctorOptions
from drivefine_agent.doctor.probes import run_probe

PROBE = "hydra_probe.py"
PLUGIN_MODULE = "hydra_plugins.drivefine_searchpath"
OPTION = "drivefine"
_OTHER_WAY = "or pass --config-dir FOLDER, the folder navsim_configs of this project, to NAVSIM's commands"


def check(options: DoctorOptions) -> list[Finding]:
    """Hydra in the interpreter `options.python`.

    Raises:
      ProbeError: the interpreter cannot be run.
    """
    return hydra_findings(run_probe(PROBE, options.python, options.environment))


def hydra_findings(report: Mapping[str, Any]) -> list[Finding]:
    """What the probe's report means."""
    where = report["executable"]
    if report["hydra_error"] is not None:
        return [
            failure(
                "Hydra",
                f"does not work in {where}: {report['hydra_error']}",
                "pip install 'hydra-core>=1.3.2,<1.4' there (1.2 does not import on Python 3.11 or "
                "later); if it "
                "is a plugin that breaks, uninstall that plugin",
                *report["warnings"],
            )
        ]
    findings = _shadowing(report)
    ours = [name for name in report["plugins"] if name.startswith(PLUGIN_MODULE)]
    is_there = OPTION in report["options"]
    if report["compose_error"] is not None:
        findings.append(
            failure(
                "agent=drivefine",
                f"is found in {where} but cannot be composed: {report['compose_error']}",
                "install this package again, so that its YAML files are complete",
            )
        )
    elif is_there and ours:
        findings.append(ok("agent=drivefine", f"resolves to {report['target']} by {ours[0]}, in {where}"))
    elif not report["package_found"]:
        findings.append(
            warning(
                "agent=drivefine",
                f"this package is not installed in {where}",
                "pip install -e this project there (Python 3.11 or later), or predict here and score there: "
                "tools/create_submission.py, then NAVSIM's run_pdm_score_from_submission.py",
            )
        )
    elif ours:
        findings.append(
            failure(
                "agent=drivefine",
                f"the plugin {ours[0]} is there, but Hydra finds no such agent, only {report['options']}: "
                "its "
                "YAML files are missing",
                f"install this package again, {_OTHER_WAY}",
                *report["warnings"],
            )
        )
    else:
        findings.append(
            warning(
                "agent=drivefine",
                f"Hydra in {where} does not find this package's search-path plugin ({PLUGIN_MODULE}); it has "
                f"{report['plugins'] or 'none'}",
                f"install this package again (pip install -e .), {_OTHER_WAY}",
                *report["warnings"],
            )
        )
    return findings


def _shadowing(report: Mapping[str, Any]) -> list[Finding]:
    if not report["shadowing"]:
        return []
    owners = ", ".join(report["shadowing_owners"]) or "an unknown distribution"
    return [
        warning(
            "hydra_plugins",
            f"{', '.join(report['shadowing'])} (of {owners}) makes a regular package of what must be a "
            "shared "
            "namespace, and hides the plugins of other folders",
            f"uninstall {owners}, or delete that file if it is empty, {_OTHER_WAY}",
        )
    ]
