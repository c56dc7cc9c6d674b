"""Running one check and picking one of its findings."""

from __future__ import annotations

from drivefine_agent.doctor.findings import CheckResult, Finding, Status
from drivefine_agent.doctor.options import DoctorOptions
from drivefine_agent.doctor.run import run_checks


def run_one(name: str, options: DoctorOptions) -> CheckResult:
    """One check, run as the command runs it."""
    (result,) = run_checks(options, [name])
    return result


def finding(result: CheckResult, topic: str) -> Finding:
    """The finding with this topic, else the one whose topic ends so."""
    exact = [finding for finding in result.findings if finding.topic == topic]
    (found,) = exact or [finding for finding in result.findings if finding.topic.endswith(topic)]
    assert found.status is Status.OK or found.remedy
    return found
