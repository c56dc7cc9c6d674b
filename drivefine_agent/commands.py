"""Runs the project's own command lines, for jobs made of several of them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parents[1]

# Commands get SIGTERM when the process (on Linux: the thread) that started them ends, however it ends: they
# would hold their folders' locks for hours. The kernel keeps the wish (PR_SET_PDEATHSIG, 1) over exec.
_WITH_PARENT = (
    sys.executable,
    "-IS",
    "-c",
    "import ctypes, os, sys\n"
    "if sys.platform == 'linux': ctypes.CDLL(None).prctl(1, 15)\n"
    "if os.getppid() != int(sys.argv[1]): sys.exit('error: the process that starts a command has ended')\n"
    "os.execvp(sys.argv[2], sys.argv[2:])\n",
)
_END_LIMIT_S = 30.0

_running: set[subprocess.Popen[bytes]] = set()
"""Commands with a log that have not ended."""


def run_command(script: str, *arguments: str, log: Path | None = None, launcher: Sequence[str] = ()) -> None:
    """Prints and runs one command from the repository's root; its failure ends the job.

    Args:
      script: path below the root, such as `tools/evaluate.py`.
      arguments: as on the command line.
      log: file for what the command prints, where several run at once; each then computes on one thread.
      launcher: command that starts the script in place of this Python, such as torchrun and its options.

    Raises:
      SystemExit: with the command's own exit code, or, where it has a log, a line that names it.
    """
    command = f"$ {shlex.join(launcher) or 'python'} {script} {shlex.join(arguments)}"
    program = [
        *_WITH_PARENT,
        str(os.getpid()),
        *(launcher or (sys.executable,)),
        str(ROOT / script),
        *arguments,
    ]
    started = time.monotonic()
    if log is None:
        print(f"\n{command}", flush=True)
        code = subprocess.run(program, check=False).returncode
        if code != 0:
            sys.exit(code)
        print(f"  ({time.monotonic() - started:.0f} s)", flush=True)
        return
    tqdm.write(f"{command} > {log}")
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with log.open("a") as file:
        process = subprocess.Popen(
            program,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        _running.add(process)
        try:
            code = process.wait()
        finally:
            _running.discard(process)
    if code != 0:
        raise SystemExit(f"error: {script} ended with exit code {code}: see {log}")
    tqdm.write(f"  {log}: done ({time.monotonic() - started:.0f} s)")


def stop_commands() -> None:
    """Ends the commands that run at once with others, after one of them has failed."""
    processes = list(_running)
    for process in processes:
        process.terminate()
    end = time.monotonic() + _END_LIMIT_S
    for process in processes:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
