"""Running one of the probe files in an interpreter, which need not be this one."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drivefine_agent.data.json_text import parse_json
from drivefine_agent.errors import DataError, DriveFineError

TIMEOUT_S = 300


class ProbeError(DriveFineError):
    """An interpreter could not run a probe."""


def run_probe(name: str, python: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """What a probe file prints as its last line, a JSON object.

    Args:
      name: of the file in this folder.
      python: path of an interpreter, Python 3.9 or later.
      environment: all its variables.

    Raises:
      ProbeError: it could not be started, ended with an error, was killed, or printed something else.
    """
    path = Path(__file__).with_name(name)
    try:
        done = subprocess.run(
            [python, str(path)],
            env=dict(environment),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProbeError(
            f"an interpreter must be able to run, got {error} from {python}: correct --python"
        ) from error
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ProbeError(
            f"{python} {path.name} ended with exit code {done.returncode}: {last[0]}; run it to see all"
        )
    try:
        result = parse_json(lines[-1], f"the answer of {path.name}")
    except DataError as error:
        raise ProbeError(
            f"{python} {path.name} must print a JSON object, got {lines[-1][:80]!r}; run it to see all"
        ) from error
    if not isinstance(result, dict):
        raise ProbeError(
            f"{python} {path.name} must print a JSON object, got {lines[-1][:80]!r}; run it to see all"
        )
    return result
