"""One model per process: agents that plan with the same weights share them.

NAVSIM's thread pool makes an agent for every chunk of logs; without this each would load its own 18 GB. A
planner is kept as long as an agent uses it. Planning only reads the weights, so threads may do it at once.
"""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from drivefine_agent.errors import DataError
from drivefine_agent.model.backbone.attention import AttentionName
from drivefine_agent.model.choices import DecoderName
from drivefine_agent.model.quantization import QuantizationName
from drivefine_agent.planner import Planner

if TYPE_CHECKING:
    from drivefine_agent.model.config import DriveFineConfig


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


def model_folder(folder: Path) -> Path:
    """The model in a folder: itself, or its `model/`."""
    inner = folder / "model"
    return inner if (inner / "config.json").is_file() else folder


def check_decoder(config: DriveFineConfig, wanted: DecoderName, folder: Path) -> None:
    """Keep a baseline's weights from being evaluated under another name.

    Raises:
      DataError: the model was trained for another decoder.
    """
    if config.decoder_type != wanted:
        raise DataError(
            f"the model in {folder} was trained with model.decoder={config.decoder_type}, the agent wants "
            f"{wanted}: choose the agent of the same name (masked: agent=drivefine)"
        )


def model_device(name: str) -> torch.device:
    """The device of a name; `auto` is the GPU if there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def model_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a name; `auto` is bfloat16 on a GPU, else float32.

    Raises:
      ValueError: torch has no such dtype.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype must be auto or a torch dtype such as float32 or bfloat16, got {name!r}")
    return dtype
