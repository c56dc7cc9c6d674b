"""DeepSpeed's settings as a function of the engine's; no default is trusted that would change a loss."""

from __future__ import annotations

from typing import Any

STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
"""Backends of the engine that are DeepSpeed's."""


def deepspeed_config(
    backend: str, precision: str, micro_batch_size: int = 1, persistence_threshold: int = 100_000
) -> dict[str, Any]:
    """DeepSpeed's JSON.

    Accumulation, clipping and rates are the engine's work: DeepSpeed is told of one micro-batch per step,
    whose end the engine announces, and does not clip (its default: a norm of 1, over both groups together).

    Args:
      backend: zero1, zero2 or zero3.
      precision: float32 or bfloat16, of weights and activations; masters and moments are float32.
        Micro-batches add up in float32, but for zero1 with bfloat16, where DeepSpeed adds in bfloat16.
      micro_batch_size: must be given, and changes nothing but DeepSpeed's throughput counter.
      persistence_threshold: zero3 keeps parameters with fewer elements whole.

    Raises:
      ValueError: another backend or precision.
    """
    if backend not in STAGES:
        raise ValueError(f"engine.backend must be one of {', '.join(STAGES)} here, got {backend!r}")
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision must be float32 or bfloat16, got {precision!r}")
    stage = STAGES[backend]
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        zero |= {
            "stage3_param_persistence_threshold": persistence_threshold,
            "stage3_gather_16bit_weights_on_model_save": False,  # the engine gathers them itself
        }
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": precision == "bfloat16"},
        "fp16": {"enabled": False},
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }
    if (
        precision == "bfloat16" and stage > 1
    ):  # stage 1 would take another optimizer, without shards of gradients
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings
