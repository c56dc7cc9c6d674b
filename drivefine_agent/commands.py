"""Runs the project's own command lines one after the other, for jobs made of several of them."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_command(script: str, *arguments: str) -> None:
    """Prints and runs one command from the repository's root; its failure ends the job.

    Args:
      script: path below the root, such as `tools/evaluate.py`.
      arguments: as on the command line.

    Raises:
      SystemExit: with the command's own exit code.
    """
    print(f"\n$ python {script} {shlex.join(arguments)}", flush=True)
    started = time.monotonic()
    code = subprocess.run([sys.executable, str(ROOT / script), *arguments], check=False).returncode
    if code != 0:
        sys.exit(code)
    print(f"  ({time.monotonic() - started:.0f} s)", flush=True)
