"""Fuzzes every reader guided by the lines of our code that a damaged file reaches: make fuzz-guided, or

    python tests/fuzz/guided.py [--seconds 30] [--output runs/fuzz_guided] [READER ...]

The fuzzer is libFuzzer by atheris (pip install atheris). What reaches new lines is kept and damaged further:
half of the time by libFuzzer's own changes of bytes, half by those of mutations.py, which know formats and
checksums. Compiled kernels and libraries are not seen inside. Each reader has a process of its own, and
another one if that dies. Prints a table; findings.jsonl in the output folder names the file that makes each
again. Ends with 1 if there are findings.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

KERNELS = tuple(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "drivefine_agent").rglob("*.py")
    if "njit" in path.read_text()
)
"""Modules that numba compiles, whose byte code must stay as it is."""


HANG_S = 180.0
"""After which one run of a reader, or the start of its process, counts as hanging."""


def fuzz(name: str, seconds: float, folder: Path) -> None:
    """One reader in this process; libFuzzer ends it. Runs and findings are written into `folder`."""
    import atheris

    with atheris.instrument_imports(include=["drivefine_agent", "rl"], exclude=list(KERNELS)):
        from checked import Bench, new_root
        from mutations import MUTATORS
        from readers import READERS

    bench = Bench(next(reader for reader in READERS if reader.name == name), new_root())
    targets = sorted(bench.targets)
    known: set[tuple[str, str]] = set()
    num_runs = 0

    def changed(data: bytes) -> dict[str, bytes]:
        """The first byte says which file the rest is."""
        return {targets[data[0] % len(targets)]: data[1:]} if data else {}

    def one_input(data: bytes) -> None:
        nonlocal num_runs
        finding = bench.finding(changed(data))
        num_runs += 1
        if finding is not None and (finding.kind, finding.text[-80:]) not in known:
            known.add((finding.kind, finding.text[-80:]))
            made = folder / f"finding-{num_runs}.bin"
            made.write_bytes(data)
            with (folder / "findings.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"input": str(made), **finding._asdict()}) + "\n")
        if num_runs % 20 == 0:
            (folder / f"runs-{os.getpid()}").write_text(str(num_runs))

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        draw = Random(seed)
        if data and draw.random() < 0.5:
            target = bench.targets[targets[data[0] % len(targets)]]
            try:
                return (data[:1] + MUTATORS[target](data[1:], draw))[:max_size]
            except Exception:  # they are made for whole files; this one is damaged already
                pass
        mutated: bytes = atheris.Mutate(data, max_size)
        return mutated

    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for index, target in enumerate(targets[:256]):
        (corpus / f"real-{index}").write_bytes(bytes([index]) + bench.files[target])
    largest = max(len(bench.files[target]) for target in targets)
    options: dict[str, Any] = {
        "max_total_time": int(seconds),
        "max_len": 2 * largest + 1024,
        "rss_limit_mb": 0,  # Bench sets its own limit
        "timeout": 10**6,  # the parent waits no longer than HANG_S
        "artifact_prefix": f"{folder}/",
        "verbosity": 0,
        "print_final_stats": 0,
    }
    arguments = [sys.argv[0], str(corpus), *(f"-{key}={value}" for key, value in options.items())]
    atheris.Setup(arguments, one_input, custom_mutator=mutate)
    atheris.Fuzz()


def run(name: str, seconds: float, folder: Path) -> int:
    """One reader for a while, in new processes; returns the number of runs. A death is a finding."""
    folder.mkdir(parents=True)
    stop = time.monotonic() + seconds
    while (left := stop - time.monotonic()) >= 1.0:
        log = folder / "log.txt"
        command = [sys.executable, __file__, name, "--child", f"--seconds={left:.0f}", f"--output={folder}"]
        with log.open("ab") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
            try:
                text = f"exit code {process.wait(left + HANG_S)}"
            except subprocess.TimeoutExpired:
                process.kill()
                text = f"hangs for {HANG_S:.0f} s"
                process.wait()
        if process.returncode == 0:
            break
        inputs = sorted(folder.glob("crash-*"))
        death = {"input": str(inputs[-1:]), "reader": name, "kind": "died", "text": text}
        with (folder / "findings.jsonl").open("a", encoding="utf-8") as findings:
            findings.write(json.dumps(death | {"log": str(log)}) + "\n")
        if not inputs:
            break  # it could not even start
    return sum(int(path.read_text()) for path in folder.glob("runs-*"))


def main() -> int:
    """All readers, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("readers", nargs="*", help="names of readers; none: all")
    parser.add_argument("--seconds", type=float, default=30.0, help="per reader (default: 30)")
    parser.add_argument("--output", type=Path, default=Path("runs/fuzz_guided"), help="a new folder")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        fuzz(arguments.readers[0], arguments.seconds, arguments.output)
        return 0
    from readers import READERS
    from tqdm import tqdm

    names = [reader.name for reader in READERS]
    if unknown := set(arguments.readers) - set(names):
        parser.error(f"readers must be among {names}, got {sorted(unknown)}")
    lines, num_findings = ["| Reader | runs | inputs kept | findings |", "|---|---|---|---|"], 0
    for name in tqdm(arguments.readers or names, desc="Fuzzing", unit="reader"):
        folder = arguments.output.resolve() / name.replace(" ", "_")
        num_runs = run(name, arguments.seconds, folder)
        file = folder / "findings.jsonl"
        findings = file.read_text().splitlines() if file.is_file() else []
        num_kept = len(list(folder.glob("corpus/*")))
        lines.append(f"| {name} | {num_runs:,} | {num_kept:,} | {len(findings)} |")
        num_findings += len(findings)
    table = "\n".join(lines) + "\n"
    (arguments.output / "table.md").write_text(table)
    print(f"{table}\n{num_findings} findings below {arguments.output}")
    return 1 if num_findings else 0


if __name__ == "__main__":
    sys.exit(main())
