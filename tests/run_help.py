"""Prints, for each command named on the command line, what its `--help` does: a JSON object a line.

Runs each in a child of one process that has imported what all of them need, since torch, pandas and numba
take seconds to import and there are many commands. Keys: `command`, `exit_code`, `stdout`, `stderr`, and
`loaded`, the top-level modules that were imported.
"""

import contextlib
import json
import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path

import hydra  # noqa: F401  for the children

import rl.setup  # noqa: F401

ROOT = Path(__file__).parents[1]


def run_help(command: str) -> int:
    """The exit code of `python COMMAND --help`, run here as the main program."""
    sys.argv = [command, "--help"]
    sys.path.insert(0, str((ROOT / command).parent))
    try:
        runpy.run_path(str(ROOT / command), run_name="__main__")
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
            return 1
        return ended.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main(commands: list[str]) -> None:
    for command in commands:
        with tempfile.TemporaryDirectory() as scratch:
            files = {name: Path(scratch) / name for name in ("stdout", "stderr", "loaded")}
            child = os.fork()
            if child == 0:
                with files["stdout"].open("w") as out, files["stderr"].open("w") as err:
                    os.dup2(out.fileno(), 1)
                    os.dup2(err.fileno(), 2)
                    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                        code = run_help(command)
                files["loaded"].write_text(" ".join({name.split(".")[0] for name in sys.modules}))
                os._exit(code)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            print(
                json.dumps(
                    {
                        "command": command,
                        "exit_code": status,
                        "stdout": files["stdout"].read_text(),
                        "stderr": files["stderr"].read_text(),
                        "loaded": files["loaded"].read_text().split(),
                    }
                )
            )


if __name__ == "__main__":
    main(sys.argv[1:])
