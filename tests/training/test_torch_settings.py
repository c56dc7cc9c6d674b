"""What a training process asks of torch."""

from __future__ import annotations

import os
import subprocess
import sys


def test_settings_are_those_asked_for_in_a_new_process() -> None:
    script = """
import os, torch
from drivefine_agent.training.torch_settings import set_up_torch
print(torch.are_deterministic_algorithms_enabled())
set_up_torch(3, True)
print(torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
print(os.environ["CUBLAS_WORKSPACE_CONFIG"])
set_up_torch(None, False)
print(torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
"""
    environment = {k: v for k, v in os.environ.items() if k != "CUBLAS_WORKSPACE_CONFIG"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout.split("\n")[:4] == ["False", "3 True", ":4096:8", "3 False"], done.stderr
