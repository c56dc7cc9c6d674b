"""Files and folders are complete or absent: killed writers, full disks, what is left behind."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from drivefine_agent.data.atomic import (
    atomic_file,
    atomic_folder,
    atomic_path,
    remove_folder,
    remove_leftovers,
    restore,
    temporary_name,
    write_bytes,
)
from drivefine_agent.errors import DataError, DiskFullError

WRITER = """
import sys
from pathlib import Path
from drivefine_agent.data.atomic import atomic_folder, write_bytes
target, kind = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
for number in range(10**6):
    content = bytes([65 + number % 26]) * 3_000_000
    if kind == "file":
        write_bytes(target, content)
    else:
        with atomic_folder(target) as part:
            (part / "a").write_bytes(content)
            (part / "b").write_bytes(content)
"""


def run_limited(code: str, folder: Path, limit: int) -> subprocess.CompletedProcess[str]:
    """Runs code in a process that may write files of at most `limit` bytes."""
    preamble = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    command = [sys.executable, "-c", preamble + code, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_killed_writer_leaves_a_whole_version_and_the_next_one_cleans_up(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "result"
    for delay in (0.004, 0.011, 0.017, 0.026, 0.035):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(target), kind], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        while not target.exists():  # a first version
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if kind == "folder":
            restore(target)
        files = [target] if kind == "file" else [target / "a", target / "b"]
        contents = {path.read_bytes() for path in files}
        assert len(contents) == 1
        content = contents.pop()
        assert len(content) == 3_000_000
        assert len(set(content)) == 1
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_what_another_machine_writes_stays(tmp_path: Path) -> None:
    """Whatever it is called: its processes are not ours, so nobody here knows whether they live."""
    ours = temporary_name(tmp_path / "a")
    dead = ours.with_name(ours.name.replace(f".{os.getpid()}.", f".{2**22 + 1}."))  # above every number
    name, boot = socket.gethostname().split(".")[0], dead.name.split(".")[-4].rpartition("-")[2]
    assert boot == Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    other = dead.with_name(dead.name.replace(boot, "0123abcd"))
    assert name in other.name
    for path in (ours, dead, other):
        path.touch()
    assert remove_leftovers(tmp_path) == [dead]
    assert other.exists()


REMOVER = """
import os, shutil, signal, sys
from pathlib import Path
from drivefine_agent.data import atomic
def half(folder):
    (folder / "a").unlink()
    os.kill(os.getpid(), signal.SIGKILL)
shutil.rmtree = half
atomic.remove_folder(Path(sys.argv[1]))
"""


def test_a_folder_whose_removal_is_killed_is_not_there_by_half(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).touch()
    done = subprocess.run([sys.executable, "-c", REMOVER, str(folder)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not folder.exists()
    (left,) = tmp_path.iterdir()
    assert [path.name for path in left.iterdir()] == ["b"]
    assert remove_leftovers(tmp_path) == [left]
    remove_folder(tmp_path)
    assert not tmp_path.exists()
    tmp_path.mkdir()


def test_the_next_writer_of_the_name_removes_what_a_dead_one_left(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    with atomic_path(tmp_path / "scenes.npy") as part:
        part.touch()
        alive = tmp_path / part.name
    left = tmp_path / part.name.replace(str(os.getpid()), str(dead.pid))
    elsewhere = tmp_path / left.name.replace("npy.", "npy.other-")
    other = tmp_path / left.name.replace("scenes", "tiles")
    for path in (left, alive, elsewhere, other):
        path.write_bytes(b"half")
    with atomic_path(tmp_path / "scenes.npy") as part:
        np.save(part.open("wb"), np.arange(3))
    assert not left.exists()
    assert alive.exists()
    assert elsewhere.exists()
    assert other.exists()
    assert np.load(tmp_path / "scenes.npy").tolist() == [0, 1, 2]


def test_an_error_while_writing_leaves_the_old_version(tmp_path: Path) -> None:
    def interrupted_file() -> None:
        with atomic_file(tmp_path / "kept") as file:
            file.write(b"ne")
            raise RuntimeError("stop")

    def interrupted_folder() -> None:
        with atomic_folder(tmp_path / "folder") as part:
            (part / "half").write_bytes(b"")
            raise KeyboardInterrupt

    write_bytes(tmp_path / "kept", b"old")
    with pytest.raises(RuntimeError, match="stop"):
        interrupted_file()
    with pytest.raises(KeyboardInterrupt):
        interrupted_folder()
    assert (tmp_path / "kept").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_file_has_the_mode_of_any_other_and_a_link_stays(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "file")
    (tmp_path / "plain").write_bytes(b"")
    write_bytes(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "file").read_bytes() == b"x"
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "far/file")}
    assert len(modes) == 1


def test_a_folder_between_two_renames_is_put_back(tmp_path: Path) -> None:
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".model.old" / "weights").write_bytes(b"old")
    restore(tmp_path / "model")
    assert (tmp_path / "model" / "weights").read_bytes() == b"old"
    with atomic_folder(tmp_path / "model") as part:
        (part / "weights").write_bytes(b"new")
    assert (tmp_path / "model" / "weights").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "code",
    [
        "from drivefine_agent.data.atomic import write_bytes; write_bytes(folder / 'x', bytes(200_000))",
        "from drivefine_agent.data.atomic import atomic_file\n"
        "with atomic_file(folder / 'x') as file:\n  file.write(bytes(200_000))",
        "from drivefine_agent.data.atomic import atomic_path\nfrom safetensors.numpy import save_file\n"
        "import numpy\n"
        "with atomic_path(folder / 'x') as part:\n  save_file({'a': numpy.zeros(50_000)}, part)",
        "from drivefine_agent.data.atomic import atomic_folder\n"
        "with atomic_folder(folder / 'x') as part:\n  (part / 'a').write_bytes(bytes(200_000))",
    ],
    ids=["bytes", "file", "safetensors", "folder"],
)
def test_what_does_not_fit_is_named_and_leaves_nothing(code: str, tmp_path: Path) -> None:
    done = run_limited(f"import sys, pathlib\nfolder = pathlib.Path(sys.argv[1])\n{code}", tmp_path, 100_000)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("drivefine_agent.errors.DiskFullError: a file must fit on its disk, got ")
    assert f"cannot write {tmp_path / 'x'}" in last
    assert "make room" in last
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_mapped_array_on_a_full_disk_is_an_error_and_no_bus_error(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a file system here: {mounted.stderr.decode().strip()}")
    code = """
import sys, pathlib, numpy
from drivefine_agent.data.atomic import atomic_path, reserve
with atomic_path(pathlib.Path(sys.argv[1]) / "tiles.npy") as part:
    array = numpy.lib.format.open_memmap(part, mode="w+", dtype=numpy.uint8, shape=(4_000_000,))
    reserve(part)
    array[:] = 1
"""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(disk)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "DiskFullError" in done.stderr.splitlines()[-1]
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot write .*file/x") as caught:
        write_bytes(tmp_path / "file" / "x", b"")
    assert not isinstance(caught.value, DiskFullError)
