"""The findings as text for people."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from drivefine_agent.doctor.findings import CheckResult, Finding, Status, worst

_MARKS = {Status.OK: "ok  ", Status.WARNING: "WARN", Status.FAILURE: "FAIL"}
_WIDTH = 110


def format_results(results: Sequence[CheckResult]) -> str:
    """One block per check, and a last line that sums up."""
    blocks = ["\n".join([result.check, *map(_format_finding, result.findings)]) for result in results]
    findings = [finding for result in results for finding in result.findings]
    count = {status: sum(finding.status is status for finding in findings) for status in Status}
    verdict = {
        Status.OK: "healthy",
        Status.WARNING: "healthy, with warnings",
        Status.FAILURE: "not healthy",
    }[worst(finding.status for finding in findings)]
    summary = f"{verdict}: {count[Status.OK]} ok, {count[Status.WARNING]} warnings, "
    return "\n\n".join([*blocks, f"{summary}{count[Status.FAILURE]} failures"])


def _format_finding(finding: Finding) -> str:
    lines = [_wrapped(f"  {_MARKS[finding.status]}  ", f"{finding.topic}: {finding.seen}")]
    lines += [" " * 10 + detail for detail in finding.details]  # unbroken: paths that may be copied
    if finding.remedy:
        lines.append(_wrapped(" " * 8 + "-> ", finding.remedy))
    return "\n".join(lines)


def _wrapped(lead: str, text: str) -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=lead,
        subsequent_indent=" " * len(lead),
        break_long_words=False,
        break_on_hyphens=False,
    )
