"""What a check has to say."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Raises:
      ValueError: a warning or failure without a remedy.
    """

    topic: str
    """What was looked at, in a few words; unique within its check."""
    status: Status
    seen: str
    """What was found, with the values."""
    remedy: str = ""
    """What to do; empty if all is well."""
    details: tuple[str, ...] = ()
    """More lines, e.g. the first of the missing files."""

    def __post_init__(self) -> None:
        if self.status is not Status.OK and not self.remedy:
            raise ValueError(f"a {self.status} needs a remedy: {self.topic}")


@dataclass(frozen=True)
class CheckResult:
    """The findings of one check."""

    check: str
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def status(self) -> Status:
        """The worst of the findings."""
        return worst(finding.status for finding in self.findings)


def worst(statuses: Any) -> Status:
    """The worst status of an iterable; ok if it is empty."""
    order = list(Status)
    return max(statuses, key=order.index, default=Status.OK)


def ok(topic: str, seen: str, *details: str) -> Finding:
    """All is well."""
    return Finding(topic, Status.OK, seen, details=details)


def warning(topic: str, seen: str, remedy: str, *details: str) -> Finding:
    """It works, but not for all uses."""
    return Finding(topic, Status.WARNING, seen, remedy, details)


def failure(topic: str, seen: str, remedy: str, *details: str) -> Finding:
    """Something that was asked for does not work."""
    return Finding(topic, Status.FAILURE, seen, remedy, details)


def as_plain(results: list[CheckResult]) -> dict[str, Any]:
    """The results as plain dicts and lists, for JSON."""
    return {
        "status": str(worst(result.status for result in results)),
        "checks": [
            {
                "check": result.check,
                "status": str(result.status),
                "seconds": round(result.seconds, 3),
                "findings": [{**asdict(f), "status": str(f.status)} for f in result.findings],
            }
            for result in results
        ],
    }
