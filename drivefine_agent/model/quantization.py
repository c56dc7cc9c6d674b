"""Weights of the language model's blocks in 8 bits, for inference, through torchao (an optional package).

Weight-only: activations stay in the model's type, products are computed in it. What decides an answer's
precision stays as it is: embeddings, action tables, heads, norms; so does the vision tower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from torch import nn

from drivefine_agent.errors import MissingPackageError

if TYPE_CHECKING:
    from drivefine_agent.model.drivefine_model import DriveFineModel


QuantizationName = Literal["none", "int8", "fp8"]
QUANTIZATIONS: tuple[str, ...] = get_args(QuantizationName)


def quantize(model: DriveFineModel, quantization: QuantizationName) -> None:
    """Replaces the weights of the blocks' linear layers; the model can no longer be trained or saved.

    Args:
      model: on its device.
      quantization: `none` changes nothing; `int8`; `fp8`: e4m3.

    Raises:
      ValueError: for an unknown name.
      MissingPackageError: torchao is not installed.
    """
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"unknown quantization {quantization!r}: choose one of {', '.join(QUANTIZATIONS)}")
    if quantization == "none":
        return
    try:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise MissingPackageError(
            f"quantization={quantization} needs the package torchao, which is not installed: "
            "pip install torchao"
        ) from error
    model.requires_grad_(False)
    settings = Int8WeightOnlyConfig() if quantization == "int8" else Float8WeightOnlyConfig()
    quantize_(model.backbone, settings, filter_fn=lambda module, _: isinstance(module, nn.Linear))
