"""Hits long-running commands at random moments, resumes them, and compares with an undisturbed run.

    make crash                                       # 200 hits, about an hour on two cores
    make crash CRASH="folder=runs/crash kills=50 commands=[make_world,evaluate]"
    make crash CRASH="folder=runs/crash hit=123"     # one hit again, with everything it printed

Each hit has a number, and a generator seeded by it chooses the command (crash_commands.py), what happens to
it and when: uniformly over its measured time, or just after one of its writes. Right after the hit every
file under a final name must be that of the undisturbed run or be accepted by its reader, and no process may
be left; then the same command is run again (one in four is hit once more first), must succeed, and its
output must be that of the undisturbed run, byte for byte, except for what crash_commands.py excepts with a
reason, and except where a reward worker was lost and the run has counted trajectories without a reward
(`masked_share`). Results: hits.jsonl and table.md in `folder`. A stopped harness goes on with the hits it
lacks; a failed hit leaves its folder behind.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from crash_commands import COMMANDS, HITS, OUT, PREPARATIONS, Command
from PIL import Image
from safetensors import safe_open

from drivefine_agent.scoring.cache import SceneCache
from drivefine_agent.scoring.cache_pack import Pack

ROOT = Path(__file__).parents[2]
MARK = "DRIVEFINE_CRASH_RUN"
"""Environment variable by which all processes of one run are found, whoever their parent is."""
WORKER_LIMIT_S = 10
"""After which workers count as stalled, where a worker is stopped; elsewhere the usual limit holds."""
END_LIMIT_S = 120.0
"""A command must end by itself within this after a hit."""
ORPHAN_LIMIT_S = 15.0
SECOND_HIT_SHARE = 0.25


class HitError(Exception):
    """What a hit has shown to be wrong: `kind` for the table, the rest for people."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


@dataclass(frozen=True)
class Undisturbed:
    """Measures of an undisturbed run."""

    seconds: float
    changes: int
    """How often the tree of OUT was seen to change."""
    num_bytes: int


# ------------------------------------------------------------------------------------------------ processes


class Running:
    """A command that runs in `folder`, and all processes it has started."""

    def __init__(
        self, command: Command, shared: Path, folder: Path, log: Path, has_short_limit: bool = False
    ) -> None:
        self.folder, self.mark = folder, f"{os.getpid()}-{time.monotonic_ns()}"
        environment = {
            **os.environ,
            **command.environment,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            **({"DRIVEFINE_WORKER_LIMIT_S": str(WORKER_LIMIT_S)} if has_short_limit else {}),
            MARK: self.mark,
        }
        script, *arguments = command.arguments(shared.resolve())
        with log.open("ab") as file:
            self.main = subprocess.Popen(
                [sys.executable, str(ROOT / script), *arguments],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def processes(self) -> list[int]:
        """All that live, the main process included, without zombies."""
        found, mark = [], f"{MARK}={self.mark}".encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                status = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if status != "Z" and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:  # has just ended, or is not ours
                continue
        return sorted(found)

    def workers(self, with_commands: bool) -> list[int]:
        """Those that work for the main process; the interpreter's own helpers do not count.

        Args:
          with_commands: also commands that the main process has started, as the ablation does.
        """
        found = []
        for pid in self.processes():
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            is_worker = b"multiprocessing.spawn" in line or b"--multiprocessing-fork" in line
            is_command = line.endswith(b".py") or b".py\0" in line
            if pid != self.main.pid and (is_worker or (with_commands and is_command)):
                found.append(pid)
        return found

    def wait_until_none(self, limit_s: float) -> list[int]:
        """Those still there after `limit_s`."""
        end = time.monotonic() + limit_s
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.1)
        return left

    def end_all(self) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.main.wait()


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of all files below a folder."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            try:
                status = os.stat(path)
            except OSError:
                continue
            found[path] = (status.st_size, status.st_mtime_ns)
    return found


# ------------------------------------------------------------------------------------------ what lies there


def is_temporary(name: Path) -> bool:
    """Whether a name below OUT says that the file is not, or not yet, a result."""
    return any(
        (part.startswith(".") and part != ".world") or part.endswith((".part", ".old", ".tmp"))
        for part in name.parts
    )


def final_files(out: Path) -> Iterator[Path]:
    """Names below OUT that promise whole files."""
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out)
        if path.is_file() and not is_temporary(name):
            yield name


def read(path: Path) -> None:
    """Reads the whole file as what its name says."""
    match path.suffix:
        case ".json":
            json.loads(path.read_bytes())
        case ".yaml":
            yaml.safe_load(path.read_text())
        case ".safetensors":
            with safe_open(str(path), framework="pt") as tensors:
                for name in tensors.keys():
                    tensors.get_tensor(name)
        case ".npy":
            np.load(path, allow_pickle=False)
        case ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                for name in arrays:
                    arrays[name]
        case ".pack":
            pack = Pack(path)
            for token in pack.tokens:
                pack.load(token)
        case ".parquet":
            pd.read_parquet(path)
        case ".csv":
            rows = list(csv.reader(path.open(newline="")))
            if not rows or len({len(row) for row in rows}) != 1:
                raise ValueError("rows of different lengths, or none")
        case ".jpg" | ".png":
            with Image.open(path) as image:
                image.load()
        case ".gpkg":
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
                if connection.execute("PRAGMA integrity_check").fetchone() != ("ok",):
                    raise ValueError("damaged")
        case _:
            raise ValueError("not a kind of file that can be recognised, and not that of the undisturbed run")


def check_halves(out: Path, reference: Path, command: Command) -> None:
    """Every file under a final name is that of the undisturbed run, or its reader takes it.

    Raises:
      HitError: half-written.
    """
    for name in final_files(out):
        path, whole = out / name, reference / name
        if any(
            name.match(e.pattern) and (e.normalise is None or name.suffix == ".jsonl")
            for e in command.exceptions
        ):
            continue  # logs, which grow
        if whole.is_file() and whole.read_bytes() == path.read_bytes():
            continue
        try:
            if path.name == "manifest.json" and (path.parent / "scenes.pack").is_file():
                cache = SceneCache(path.parent)
                for token in cache.tokens:
                    cache[token]
            else:
                read(path)
        except Exception as error:
            raise HitError("half_written", f"{name} ({path.stat().st_size} bytes): {error!r}") from error


def check_same(out: Path, reference: Path, command: Command) -> None:
    """The result is that of the undisturbed run.

    Raises:
      HitError: it is not.
    """
    exempt = [e for e in command.exceptions if e.normalise is None]
    names, expected = (
        {name for name in final_files(folder) if not any(name.match(e.pattern) for e in exempt)}
        for folder in (out, reference)
    )
    if names != expected:
        missing, more = sorted(map(str, expected - names)), sorted(map(str, names - expected))
        raise HitError("other_files", f"missing {missing[:5]}, too many {more[:5]}")
    for name in sorted(names):
        found, wanted = (out / name).read_bytes(), (reference / name).read_bytes()
        for exception in command.exceptions:
            if exception.normalise is not None and name.match(exception.pattern):
                found, wanted = exception.normalise(found), exception.normalise(wanted)
        if found != wanted:
            raise HitError("other_bytes", f"{name} differs from the undisturbed run's")


def masked_share(out: Path) -> float:
    """Sum over steps of the share of trajectories without a reward, as a reinforcement run logs it."""
    file = out / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return sum(v for line in lines for k, v in json.loads(line).items() if k.endswith("/masked_share"))


# ------------------------------------------------------------------------------------------------- the hits


class Harness:
    """Hits and their results in one folder."""

    def __init__(self, folder: Path, commands: list[str], hits: tuple[str, ...] = HITS) -> None:
        self.folder, self.commands, self.hits = folder, commands, hits
        self.shared, self.results = folder / "undisturbed", folder / "hits.jsonl"
        self.undisturbed: dict[str, Undisturbed] = {}

    def prepare(self, num_runs: int = 2) -> None:
        """Undisturbed runs of all commands and of what they read; the last one's results and time count.

        Args:
          num_runs: of each command; the first one may compile, and then takes longer than those that are hit.
        """
        for name in self.commands:
            self._prepare(COMMANDS[name], num_runs)

    def _prepare(self, command: Command, num_runs: int) -> None:
        for need in command.needs:
            if need not in self.undisturbed:
                self._prepare({**COMMANDS, **PREPARATIONS}[need], num_runs)
        if command.name in self.undisturbed:
            return
        folder, done = self.shared / command.name, self.shared / f"{command.name}.json"
        if not done.is_file():
            for _ in range(num_runs):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                log = self.shared / f"{command.name}.log"
                started, changes, before = time.monotonic(), 0, {}
                running = Running(command, self.shared, folder, log)
                while running.main.poll() is None:
                    now = tree(folder / OUT)
                    changes, before = changes + (now != before), now
                    time.sleep(0.002)
                seconds = time.monotonic() - started
                if running.main.returncode != 0:
                    sys.exit(f"{command.name} fails undisturbed, see {log}")
            size = sum(size for size, _ in tree(folder / OUT).values())
            measures = Undisturbed(seconds, changes, size)
            done.write_text(json.dumps(asdict(measures)))
            print(f"{command.name}: {seconds:.1f} s, {changes} changes, {size / 1e6:.2f} MB", flush=True)
        self.undisturbed[command.name] = Undisturbed(**json.loads(done.read_text()))

    def run(self, kills: int) -> None:
        """Hits until `kills` have happened; those recorded before count."""
        self.prepare()
        records = self.records()
        number = max((r["hit"] for r in records), default=-1) + 1
        happened = sum(r["outcome"] != "missed" for r in records)
        while happened < kills:
            record = self.hit(number)
            with self.results.open("a") as file:
                file.write(json.dumps(record) + "\n")
            happened += record["outcome"] != "missed"
            print(f"{happened}/{kills} {summary(record)}", flush=True)
            (self.folder / "table.md").write_text(table(self.records()))
            number += 1

    def records(self) -> list[dict[str, Any]]:
        if not self.results.is_file():
            return []
        lines = self.results.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        if len(whole) < len(lines):  # cut off when the harness was stopped: that hit is done again
            self.results.write_text("".join(whole))
        return [json.loads(line) for line in whole]

    def hit(self, number: int) -> dict[str, Any]:
        """One hit, its resume and its checks."""
        draw = random.Random(number)
        command = COMMANDS[self.commands[number % len(self.commands)]]
        kind = draw.choice([hit for hit in command.hits if hit in self.hits])
        folder = self.folder / f"hit_{number:05d}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        record = {"hit": number, "command": command.name, "kind": kind, "second": None}
        started = time.monotonic()
        try:
            record |= self._hit_once(command, kind, folder, draw, record)
            if record["outcome"] == "hit" and draw.random() < SECOND_HIT_SHARE:
                record["second"] = draw.choice(["kill_group", "kill_main", "terminate"])
                second = self._hit_once(command, record["second"], folder, draw, record)
                record["second_outcome"] = second["outcome"]
            if record["outcome"] == "hit":
                self._resume(command, folder)
                try:
                    check_same(folder / OUT, self.shared / command.name / OUT, command)
                except HitError as error:
                    record["masked"] = masked_share(folder / OUT) if kind.endswith("_worker") else 0.0
                    if error.kind != "other_bytes" or record["masked"] == 0.0:
                        raise
                record["outcome"] = "ok"
                left = [n for n in tree(folder / OUT) if is_temporary(Path(n).relative_to(folder / OUT))]
                record["left_temporary"] = len([n for n in left if not n.endswith(".lock")])
        except HitError as error:
            record |= {"outcome": error.kind, "detail": error.detail, "repeat": repeat(self, number)}
        finally:
            unmount(folder / OUT)
        record["seconds"] = round(time.monotonic() - started, 1)
        if record["outcome"] in ("ok", "missed"):
            shutil.rmtree(folder)
        return record

    def _hit_once(
        self, command: Command, kind: str, folder: Path, draw: random.Random, record: dict[str, Any]
    ) -> dict[str, Any]:
        """Starts, hits, waits for the end, checks for orphans and halves; adds the moment to the record."""
        out, measures = folder / OUT, self.undisturbed[command.name]
        after_write = draw.random() < 0.5
        moment_s = draw.uniform(0, measures.seconds)
        change, delay_s = (
            draw.randint(1, max(1, measures.changes)),
            draw.choice([0.0, 0.0, draw.uniform(0, 0.02)]),
        )
        size = int(measures.num_bytes * draw.uniform(0.02, 0.95))
        if kind == "disk_full":
            out.mkdir(exist_ok=True)
            mount(out, size)
            when = f"{size} bytes"
        else:
            when = f"change {change}" if after_write else f"{moment_s:.2f} s"
        record.setdefault("when", []).append(when)
        running = Running(command, self.shared, folder, folder / "log.txt", kind == "stop_worker")
        try:
            if kind != "disk_full":
                wait_for(running, out, change if after_write else None, moment_s, delay_s)
                if running.main.poll() is not None or not self._strike(running, kind, out, draw):
                    running.main.wait()
                    running.wait_until_none(ORPHAN_LIMIT_S)
                    return {"outcome": "missed"}
            try:
                code = running.main.wait(END_LIMIT_S)
            except subprocess.TimeoutExpired:
                raise HitError("hangs", f"still runs {END_LIMIT_S:.0f} s after the hit") from None
            left = running.wait_until_none(ORPHAN_LIMIT_S)
            if left:
                lines = [Path(f"/proc/{p}/cmdline").read_bytes().replace(b"\0", b" ").decode() for p in left]
                raise HitError("orphans", f"{len(left)} left: {lines[0][:200]}")
        finally:
            running.end_all()
        if kind == "renamed_away":  # as when a file system comes back: what was written meanwhile is hidden
            shutil.rmtree(out, ignore_errors=True)
            os.rename(folder / f"{OUT}.away", out)
        if kind == "disk_full" and code == 0:
            raise HitError("not_noticed", "exit status 0, although the disk was too small for the result")
        check_halves(out, self.shared / command.name / OUT, command)
        if kind == "disk_full":
            subprocess.run(["mount", "-o", "remount,size=1g", str(out)], check=True)
        return {"outcome": "hit", "exit": code}

    def _strike(self, running: Running, kind: str, out: Path, draw: random.Random) -> bool:
        """False: there is nothing to hit at this moment."""
        try:
            match kind:
                case "kill_group":
                    os.killpg(running.main.pid, signal.SIGKILL)
                case "kill_main":
                    os.kill(running.main.pid, signal.SIGKILL)
                case "terminate":
                    os.kill(running.main.pid, signal.SIGTERM)
                case "kill_worker" | "stop_worker":
                    # A command that stands still cannot be told from one that computes.
                    with_commands = kind == "kill_worker"
                    end = time.monotonic() + 20.0
                    while not (workers := running.workers(with_commands)):
                        if running.main.poll() is not None or time.monotonic() > end:
                            return False
                        time.sleep(0.005)
                    number = signal.SIGKILL if kind == "kill_worker" else signal.SIGSTOP
                    os.kill(draw.choice(workers), number)
                case "renamed_away":
                    os.rename(out, out.with_name(f"{OUT}.away"))
        except (ProcessLookupError, FileNotFoundError):
            return False
        return True

    def _resume(self, command: Command, folder: Path) -> None:
        log = folder / "log.txt"
        with log.open("ab") as file:
            file.write(b"\n---- resumed ----\n")
        running = Running(command, self.shared, folder, log)
        try:
            code = running.main.wait(5 * END_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise HitError("resume_hangs", f"see {log}") from None
        finally:
            running.end_all()
        if code != 0:
            last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1]
            raise HitError("resume_fails", f"exit status {code}: {last[-400:]}")


def wait_for(running: Running, out: Path, change: int | None, moment_s: float, delay_s: float) -> None:
    """Until the moment of the hit, or the command's end."""
    end, seen, before = time.monotonic() + moment_s, 0, tree(out) if out.exists() else {}
    while running.main.poll() is None:
        if change is None:
            if time.monotonic() >= end:
                return
            time.sleep(0.005)
            continue
        now = tree(out)
        seen, before = seen + (now != before), now
        if seen >= change:
            time.sleep(delay_s)
            return
        time.sleep(0.001)


def mount(folder: Path, size: int) -> None:
    """A file system of `size` bytes at a folder."""
    pages = max(size, 16384)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={pages}", "none", str(folder)], check=True)


def unmount(folder: Path) -> None:
    if folder.is_mount():
        subprocess.run(["umount", "-l", str(folder)], check=True)


def can_mount() -> bool:
    """Whether this user may mount small file systems."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


# ---------------------------------------------------------------------------------------------- the results


def repeat(harness: Harness, number: int) -> str:
    commands = ",".join(harness.commands)
    return f'make crash CRASH="folder={harness.folder} commands=[{commands}] hit={number}"'


def summary(record: dict[str, Any]) -> str:
    line = (
        f"#{record['hit']} {record['command']} {record['kind']} at {', then '.join(record.get('when', []))}"
    )
    line += f", then {record['second']}" if record["second"] else ""
    line += f": {record['outcome']} ({record['seconds']} s)"
    return line + (f"\n    {record['detail']}\n    {record['repeat']}" if "detail" in record else "")


def table(records: list[dict[str, Any]]) -> str:
    """Commands by kind of hit: how many, and what went wrong."""
    happened = [r for r in records if r["outcome"] != "missed"]
    lines = [
        f"{len(happened)} hits, of them {sum(r['outcome'] == 'ok' for r in happened)} ok, and "
        f"{sum(bool(r['second']) for r in happened)} with a second hit, "
        f"{sum(r.get('masked', 0.0) > 0.0 for r in happened)} where the run counted lost rewards; "
        f"{len(records) - len(happened)} more came when nothing was left to hit.\n",
        "| command | " + " | ".join(HITS) + " |",
        "|---|" + "---|" * len(HITS),
    ]
    for name in dict.fromkeys(r["command"] for r in happened):
        cells = []
        for kind in HITS:
            outcomes = Counter(r["outcome"] for r in happened if (r["command"], r["kind"]) == (name, kind))
            cells.append(
                ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())) or "-"
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """folder=DIR kills=200 commands=[a,b] hit=N."""
    values = {"folder": "runs/crash", "kills": "200", "commands": "all", "hit": ""}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in values:
            sys.exit(f"error: arguments are {', '.join(values)}, got {argument}: see tests/crash/harness.py")
        values[key] = value
    chosen = list(COMMANDS) if values["commands"] == "all" else values["commands"].strip("[]").split(",")
    if unknown := set(chosen) - set(COMMANDS):
        sys.exit(f"error: commands must be among {', '.join(COMMANDS)}, got {', '.join(unknown)}")
    hits = tuple(hit for hit in HITS if hit != "disk_full" or can_mount())
    if len(hits) < len(HITS):
        print("disk_full is left out: small file systems need root and mount")
    harness = Harness(Path(values["folder"]).resolve(), chosen, hits)
    harness.folder.mkdir(parents=True, exist_ok=True)
    if values["hit"]:
        harness.prepare()
        record = harness.hit(int(values["hit"]))
        print(json.dumps(record, indent=1))
        return int(record["outcome"] not in ("ok", "missed"))
    harness.run(int(values["kills"]))
    print(table(harness.records()))
    return int(any(r["outcome"] not in ("ok", "missed") for r in harness.records()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
