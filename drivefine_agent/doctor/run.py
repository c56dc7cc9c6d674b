"""Run the checks, each for itself."""

from __future__ import annotations

import importlib
import time
import traceback
from collections.abc import Callable, Sequence

from drivefine_agent.doctor.findings import CheckResult, Finding, failure
from drivefine_agent.doctor.options import DoctorOptions
from drivefine_agent.doctor.probes import ProbeError

Check = Callable[[DoctorOptions], list[Finding]]

CHECKS: dict[str, str] = {
    "versions": "drivefine_agent.doctor.versions",
    "blas": "drivefine_agent.doctor.blas",
    "navsim": "drivefine_agent.doctor.navsim_install",
    "hydra": "drivefine_agent.doctor.hydra_discovery",
    "variables": "drivefine_agent.doctor.variables",
    "dataset": "drivefine_agent.doctor.dataset",
    "caches": "drivefine_agent.doctor.caches",
    "hardware": "drivefine_agent.doctor.hardware",
}
"""Name -> module with a function `check(options)`, in the order of running."""


def run_checks(options: DoctorOptions, only: Sequence[str] = ()) -> list[CheckResult]:
    """Run all checks, or those named.

    A check that breaks is a failure with its error; it never hides the others.

    Raises:
      ValueError: `only` names an unknown check.
    """
    unknown = [name for name in only if name not in CHECKS]
    if unknown:
        raise ValueError(f"options.checks must be among {', '.join(CHECKS)}, got {', '.join(unknown)}")
    return [_run(name, options) for name in CHECKS if not only or name in only]


def _run(name: str, options: DoctorOptions) -> CheckResult:
    start = time.perf_counter()
    try:
        check: Check = importlib.import_module(CHECKS[name]).check
        findings = check(options)
    except ProbeError as error:
        findings = [
            failure(
                "interpreter",
                str(error),
                "name with --python an interpreter that runs and has the libraries that NAVSIM needs (numpy)",
            )
        ]
    # Whatever is broken on a stranger's machine, the other checks must still be run and this one reported.
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        findings = [
            failure(
                "the check itself",
                f"it broke with {type(error).__name__}: {error}",
                "if a library is named, install it again; else report this with the lines below",
                f"{where.filename}:{where.lineno} in {where.name}",
            )
        ]
    return CheckResult(name, tuple(findings), time.perf_counter() - start)
