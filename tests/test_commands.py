"""Commands run as jobs: their output, their failure, and the end of what runs beside a failed one."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from drivefine_agent import commands
from drivefine_agent.commands import run_command, stop_commands


def script(folder: Path, text: str) -> str:
    """A script's path."""
    file = folder / "script.py"
    file.write_text(text)
    return str(file)


def test_a_command_with_a_log_writes_there_and_uses_one_thread(tmp_path: Path) -> None:
    file = script(tmp_path, "import os, sys; print(sys.argv[1], os.environ['OMP_NUM_THREADS'])")
    log = tmp_path / "logs" / "run.log"
    run_command(file, "first", log=log)
    run_command(file, "second", log=log)
    assert log.read_text().split() == ["first", "1", "second", "1"]


def test_a_failed_command_names_its_log_and_keeps_what_it_printed(tmp_path: Path) -> None:
    file = script(tmp_path, "import sys; sys.exit('no such thing')")
    log = tmp_path / "run.log"
    with pytest.raises(SystemExit, match=r"ended with exit code 1: see .*run\.log"):
        run_command(file, log=log)
    assert log.read_text().strip() == "no such thing"


def test_without_a_log_its_exit_code_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        run_command(script(tmp_path, "raise SystemExit(3)"))
    assert ended.value.code == 3


PARENT = """
import sys
from pathlib import Path
from drivefine_agent.commands import run_command
run_command(sys.argv[1], log=Path(sys.argv[2]) if len(sys.argv) > 2 else None)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("has_log", [False, True])
def test_a_command_ends_with_the_process_that_started_it(
    number: signal.Signals, has_log: bool, tmp_path: Path
) -> None:
    file = script(tmp_path, "import os, time; print('pid', os.getpid(), flush=True); time.sleep(600)")
    log = tmp_path / "run.log"
    command = [sys.executable, "-c", PARENT, file, *([str(log)] if has_log else [])]
    output = tmp_path / "output"
    deadline = time.monotonic() + 30
    with output.open("wb") as stream, subprocess.Popen(command, stdout=stream) as parent:
        while not (found := re.findall(r"^pid (\d+)$", _read(log if has_log else output), re.MULTILINE)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        parent.send_signal(number)
    while Path(f"/proc/{found[0]}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def test_a_command_that_stands_still_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_END_LIMIT_S", 0.5)
    file = script(
        tmp_path, "import os, signal; print('started', flush=True); os.kill(os.getpid(), signal.SIGSTOP)"
    )
    log, ended = tmp_path / "run.log", threading.Event()

    def run() -> None:
        with pytest.raises(SystemExit, match="exit code -9"):
            run_command(file, log=log)
        ended.set()

    threading.Thread(target=run).start()
    deadline = time.monotonic() + 30
    while "started" not in _read(log):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    stop_commands()
    assert ended.wait(10.0)


def test_commands_that_still_run_are_stopped(tmp_path: Path) -> None:
    file = script(tmp_path, "import time; print('started', flush=True); time.sleep(60)")
    log = tmp_path / "run.log"
    errors: list[BaseException] = []

    def run() -> None:
        try:
            run_command(file, log=log)
        except SystemExit as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + 30
    while not (log.is_file() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    stop_commands()
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert len(errors) == 1
