"""Memory of this machine against what a model needs, counted from its shape."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from drivefine_agent.doctor.findings import Finding, failure, ok, warning
from drivefine_agent.doctor.options import DoctorOptions
from drivefine_agent.errors import DataError
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.drivefine_model import DriveFineModel

INFERENCE_BYTES = {"float32": 4, "bfloat16": 2}
TRAINING_BYTES = 20
"""Of tools/train_sft.py per parameter: weights, gradients, AdamW's two moments, running average; float32."""
_GB = 1e9
_TRAINING_PLAN = "see the memory plan in docs/cluster.md for several GPUs"


@dataclass(frozen=True)
class Need:
    """Bytes that a model's parameters take; activations come on top."""

    name: str
    num_parameters: int

    @property
    def training(self) -> int:
        """In one process of supervised training."""
        return TRAINING_BYTES * self.num_parameters

    def inference(self, dtype: str) -> int:
        """To plan with it."""
        return INFERENCE_BYTES[dtype] * self.num_parameters


def check(options: DoctorOptions) -> list[Finding]:
    """RAM, and every GPU, against the model.

    Raises:
      DataError: the checkpoint has no configuration that can be read.
    """
    need = model_need(options)
    gpus = [
        (torch.cuda.get_device_properties(index).name, torch.cuda.get_device_properties(index).total_memory)
        for index in range(torch.cuda.device_count())
    ]
    numbers = (
        f"{need.num_parameters:,} parameters: {_gb(need.inference('bfloat16'))} to plan in bfloat16, "
        f"{_gb(need.inference('float32'))} in float32, {_gb(need.training)} to train in one process; "
        "activations "
        "come on top"
    )
    return [
        ok(f"model {need.name}", numbers),
        memory_finding(need, ram_bytes()),
        *gpu_findings(need, gpus),
    ]


def model_need(options: DoctorOptions) -> Need:
    """The parameters of the preset or checkpoint; nothing is allocated."""
    if options.checkpoint is None:
        presets = {
            "tiny": DriveFineConfig.tiny,
            "debug": DriveFineConfig.debug,
            "llada_8b": DriveFineConfig.llada_8b,
        }
        config, name = presets[options.model](), options.model
    else:
        folder = options.checkpoint
        folder = folder / "model" if (folder / "model" / "config.json").is_file() else folder
        if not (folder / "config.json").is_file():
            raise DataError(
                f"a checkpoint is a folder with config.json, there is none in {folder}: choose another folder"
            )
        config, name = DriveFineConfig.from_pretrained(folder, local_files_only=True), str(folder)
    with torch.device("meta"):
        model = DriveFineModel(config)
    return Need(name, sum(parameter.numel() for parameter in model.parameters()))


def memory_finding(need: Need, available: int) -> Finding:
    """RAM: planning must fit; training may not."""
    topic = "memory"
    seen = f"{_gb(available)} of RAM for this process, {os.cpu_count()} CPU cores"
    if available < need.inference("bfloat16"):
        return failure(
            topic,
            f"{seen}: too little to load {need.name}, even in bfloat16",
            f"use a machine with more than {_gb(need.inference('bfloat16'))}, or a smaller model",
        )
    if available < need.inference("float32"):
        return warning(
            topic,
            f"{seen}: too little to load {need.name} in float32",
            f"plan in bfloat16, or on a machine with more than {_gb(need.inference('float32'))}; to train, "
            f"{_TRAINING_PLAN}",
        )
    if available < need.training:
        return warning(topic, f"{seen}: enough to plan, too little to train {need.name}", _TRAINING_PLAN)
    return ok(topic, f"{seen}: enough to plan and to train")


def gpu_findings(need: Need, gpus: list[tuple[str, int]]) -> list[Finding]:
    """Each GPU by its name and bytes."""
    if not gpus:
        if need.num_parameters < 100_000_000:
            return [ok("GPU", f"none that torch {torch.__version__} can use; {need.name} runs on CPU cores")]
        return [
            warning(
                "GPU",
                f"none that torch {torch.__version__} can use; {need.name} is slow without",
                "use a machine with a GPU; if this one has one, install a torch build with CUDA that its "
                "driver "
                "supports (nvidia-smi shows which)",
            )
        ]
    findings = []
    for index, (name, total) in enumerate(gpus):
        topic, seen = f"GPU {index}", f"{name}, {_gb(total)}"
        if total < need.inference("bfloat16"):
            findings.append(
                failure(
                    topic,
                    f"{seen}: too small to plan with {need.name}",
                    "use a larger GPU or a smaller model",
                )
            )
        elif total < need.training:
            findings.append(
                warning(
                    topic, f"{seen}: large enough to plan, too small to train {need.name}", _TRAINING_PLAN
                )
            )
        else:
            findings.append(ok(topic, f"{seen}: large enough to plan and to train"))
    return findings


def ram_bytes() -> int:
    """Memory that this process may use: the machine's, or its container's limit if that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    for path in limits:
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            total = min(total, int(text))
    return total


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / _GB:.1f} GB" if num_bytes >= 0.1 * _GB else f"{num_bytes / 1e6:.0f} MB"
