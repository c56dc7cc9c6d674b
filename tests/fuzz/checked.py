"""One call of a reader on damaged files, watched: it ends soon, in little memory, well or with our error."""

from __future__ import annotations

import fnmatch
import os
import resource
import shutil
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from random import Random
from typing import NamedTuple

from mutations import MUTATORS
from readers import Files, Reader
from watch import watched

from drivefine_agent.errors import DriveFineError, SceneError

MAX_SECONDS = 2.0
"""Of work on a processor."""
MAX_WALL_SECONDS = 60.0
MAX_BYTES = 512 * 1024**2
"""Of what a reader may take beyond what the process has."""

_WRITES = ("open for writing", "os.remove", "os.rename", "os.rmdir", "os.mkdir")


class Finding(NamedTuple):
    """What a reader did that it must not do."""

    reader: str
    kind: str
    text: str


class Bench:
    """A reader with its real files, in a folder of its own."""

    def __init__(self, reader: Reader, root: Path) -> None:
        self.reader = reader
        self._real, self._copy = root / "real", root / "copy"
        self._real.mkdir(parents=True)
        reader.make(self._real)
        self.files = {
            str(path.relative_to(self._real)): path.read_bytes()
            for path in sorted(self._real.rglob("*"))
            if path.is_file()
        }
        self.targets = {
            name: mutator
            for pattern, mutator in reader.damaged.items()
            for name in self.files
            if fnmatch.fnmatch(name, pattern)
        }
        assert self.targets, f"{reader.name}: none of {list(reader.damaged)} is in {list(self.files)}"
        self.call({})  # the real files, which also imports what the reader needs
        self.call({})

    def call(self, changed: Files) -> object:
        """What the reader makes of the files, some of them changed."""
        self.put(changed)
        return self.reader.read(self._copy)

    def put(self, changed: Files) -> None:
        """Write the files, some of them changed, where the reader reads."""
        shutil.rmtree(self._copy, ignore_errors=True)
        for name, content in {**self.files, **changed}.items():
            (self._copy / name).parent.mkdir(parents=True, exist_ok=True)
            (self._copy / name).write_bytes(content)

    def damaged(self, random: Random) -> Files:
        """One of the files, damaged."""
        name = random.choice(sorted(self.targets))
        return {name: MUTATORS[self.targets[name]](self.files[name], random)}

    def finding(self, changed: Files) -> Finding | None:
        """What is wrong with how the reader takes changed files; None if nothing is."""
        self.put(changed)
        raised: Exception | None = None
        start, start_cpu = time.perf_counter(), time.process_time()
        limits = _limit_memory()
        try:
            with watched() as seen, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    self.reader.read(self._copy)
                except Exception as error:  # whatever it is: that is the question
                    raised = error
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
        events = [event for event in seen if not (self.reader.writes and event.startswith(_WRITES))]
        if events:
            return Finding(self.reader.name, "forbidden", "; ".join(events[:5]))
        if isinstance(raised, DriveFineError):
            # Of a scene that cannot be scored people are told its token and log, not what it was read from.
            if str(self._copy) not in str(raised) and not isinstance(raised, SceneError):
                return Finding(
                    self.reader.name, "does not name the file", f"{type(raised).__name__}: {raised}"
                )
        elif raised is not None:
            place = traceback.extract_tb(raised.__traceback__)[-1]
            text = f"{raised} ({Path(place.filename).name}:{place.lineno})"
            trace = "".join(traceback.format_exception(raised))
            return Finding(self.reader.name, type(raised).__name__, f"{text[:300]}\n{trace[-3000:]}")
        if cpu_seconds > MAX_SECONDS or seconds > MAX_WALL_SECONDS:
            return Finding(self.reader.name, "slow", f"{cpu_seconds:.1f} s of work in {seconds:.1f} s")
        return None


def _limit_memory() -> tuple[int, int]:
    """Limit the process to what it has and MAX_BYTES; returns the former limits."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * os.sysconf("SC_PAGESIZE") + MAX_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    return soft, hard


def new_root() -> Path:
    """A fresh folder, in memory where there is such a place."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="drivefine-fuzz-", dir=place))
