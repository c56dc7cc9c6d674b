"""What worker processes of this package have in common."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """Make this worker process end at once if its parent is killed; else it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is not a worker process"
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
