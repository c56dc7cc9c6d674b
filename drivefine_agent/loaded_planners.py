"""One model per process: agents that plan with the same weights share them.

NAVSIM's thread pool makes an agent for every chunk of logs; without this each would load its own 18 GB. A
planner is kept as long as an agent uses it. Planning only reads the weights, so threads may do it at once.
"""

from __future__ import annotations

import threading
import weakref
from pathlib import Path

import torch

from drivefine_agent.model.backbone.attention import AttentionName
from drivefine_agent.model.quantization import QuantizationName
from drivefine_agent.planner import Planner

_lock = threading.Lock()
_planners: weakref.WeakValueDictionary[tuple[object, ...], Planner] = weakref.WeakValueDictionary()


def shared_planner(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    attention: AttentionName = "sdpa",
    quantization: QuantizationName = "none",
    compile: bool = False,
) -> Planner:
    """The process's planner for a checkpoint, loaded when first asked for. Not for training.

    Args:
      folder: of the model; loaded again where its configuration file has been written anew.
      device: where it runs.
      dtype: of the weights.
      attention: kernel.
      quantization: of the blocks' weights.
      compile: compile the answer step. Such a planner has buffers of its own and is not shared.

    Raises:
      DataError: the folder holds no checkpoint.
    """
    config = folder / "config.json"
    written = config.stat().st_mtime_ns if config.is_file() else 0
    key = (folder.resolve(), written, str(device), dtype, attention, quantization)
    if compile:
        return Planner.from_pretrained(folder, None, device, dtype, attention, quantization, compile)
    with _lock:
        planner = _planners.get(key)
        if planner is None:
            planner = Planner.from_pretrained(folder, None, device, dtype, attention, quantization)
            _planners[key] = planner
        return planner
