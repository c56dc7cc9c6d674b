"""Optimizer groups, learning-rate schedule and the running average of the weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_MATRIX_OF_A_BLOCK = re.compile(r"layers\.\d+\..*weight$")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a warm-up and a cosine decay; the paper's numbers where it names them, else LaViDa's."""

    learning_rate: float = 4e-5
    """Peak rate of the language model's blocks, embeddings and projector."""
    muon_learning_rate: float = 0.0
    """Peak rate of Muon (torch.optim.Muon) on the matrices inside the blocks; 0: AdamW there too, as in the
    paper. Meant for models trained from scratch; updates are scaled to AdamW's root mean square."""
    vision_factor: float = 0.1
    """Times the peak rate, for a pretrained vision tower; 1 for one that starts from scratch."""
    action_factor: float = 5.0
    """Times the peak rate, for the new action tables."""
    weight_decay: float = 0.0
    """On matrices only; vectors (norms, biases) and tables never decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_share: float = 0.03
    """Share of all steps with a linearly rising rate."""
    final_share: float = 0.0
    """Share of the peak rate that is left at the end of the cosine."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("learning_rate", "vision_factor", "action_factor", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.muon_learning_rate < 0:
            raise ValueError(f"muon_learning_rate must not be negative, got {self.muon_learning_rate}")
        for name in ("warmup_share", "final_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")


def learning_rate_factor(step: int, num_steps: int, warmup_share: float, final_share: float) -> float:
    """Share of the peak rate in step `step` of 0 ... num_steps - 1: a linear rise, then half a cosine.

    The first step has a positive rate, the peak is reached at the end of the warm-up.
    """
    warmup_steps = math.ceil(warmup_share * num_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon on some groups and AdamW on the others, as one optimizer with one state."""

    def __init__(
        self,
        muon_groups: list[dict[str, Any]],
        adamw_groups: list[dict[str, Any]],
        betas: tuple[float, float],
    ) -> None:
        """Groups as `build_optimizer` makes them, each with its own lr and weight_decay."""
        self._parts: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(muon_groups, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(adamw_groups, betas=betas),
        )
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        for part in self._parts:
            part.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Both updates. The gradients must be there, or `closure` makes them and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss


def build_optimizer(
    parameters: Mapping[str, nn.Parameter], group_of: Callable[[str], str], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """The optimizer over named parameters, one group per (kind, decayed or not, Muon or not).

    Args:
      parameters: what to train, by name.
      group_of: parameter name to "language", "vision" or "action".
      config: rates and decay.

    Each group carries `peak_lr` for `set_learning_rate` and `names`, the parameters' names in order, for
    checkpoints.
    """
    if not parameters:
        raise ValueError("parameters must be given to be trained, got none")
    factor = {"language": 1.0, "vision": config.vision_factor, "action": config.action_factor}
    groups: dict[tuple[bool, str, bool], list[str]] = {}
    for name, parameter in parameters.items():
        kind = group_of(name)
        decays = config.weight_decay > 0 and parameter.ndim >= 2 and kind != "action"
        by_muon = config.muon_learning_rate > 0 and _is_block_matrix(name, parameter)
        groups.setdefault((by_muon, kind, decays), []).append(name)

    def described(by_muon: bool) -> list[dict[str, Any]]:
        peak = config.muon_learning_rate if by_muon else config.learning_rate
        return [
            {
                "params": [parameters[name] for name in names],
                "names": names,
                "lr": peak * factor[kind],
                "peak_lr": peak * factor[kind],
                "weight_decay": config.weight_decay if decays else 0.0,
            }
            for (muon, kind, decays), names in sorted(groups.items())
            if muon == by_muon
        ]

    muon_groups = described(by_muon=True)
    if not muon_groups:
        return torch.optim.AdamW(described(by_muon=False), betas=config.betas)
    return MuonAndAdamW(muon_groups, described(by_muon=False), config.betas)


def _is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix inside a transformer block or the projector: no table, no head."""
    return parameter.ndim == 2 and _MATRIX_OF_A_BLOCK.search(name) is not None


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets every group's rate to `factor` of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def optimizer_step(
    loss: Tensor, optimizer: torch.optim.Optimizer, average: WeightAverage, max_grad_norm: float
) -> float:
    """Backward pass, clipping, update, weight average.

    Returns:
      The gradient's norm before clipping.

    Raises:
      FloatingPointError: loss or gradient is not finite; nothing has been updated then.
    """
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"the loss must be finite, got {loss.item()}: lower learning_rate or check the data"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    if not math.isfinite(norm):
        raise FloatingPointError(
            f"the gradient must be finite, got norm {norm} at loss {loss.item()}: lower learning_rate"
        )
    optimizer.step()
    average.update()
    return norm


class WeightAverage:
    """Exponential running average of the trained weights: steadier than the last iterate of a short run.

    The decay rises with the number of updates, `min(decay, (1 + n) / (10 + n))`, so that the random start is
    soon forgotten.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        """Starts from the present values of `parameters`; decay 0 keeps the last iterate."""
        if not 0 <= decay < 1:
            raise ValueError(f"the weight average's decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.num_updates = 0
        self._live = dict(parameters)
        self.averages = {name: value.detach().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes the present weights into the average; call after each optimizer step."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates)) if self.decay > 0 else 0.0
        names = list(self.averages)
        torch._foreach_lerp_(
            [self.averages[name] for name in names], [self._live[name].detach() for name in names], 1 - decay
        )

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the model's weights and the averages; call again to go back."""
        for name, average in self.averages.items():
            live = self._live[name].detach()
            kept = live.clone()
            live.copy_(average)
            average.copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """Tensors by parameter name."""
        return dict(self.averages)

    def load(self, averages: dict[str, Tensor], num_updates: int) -> None:
        """Takes over what `state` gave; the names must match exactly."""
        if averages.keys() != self.averages.keys():
            differing = sorted(averages.keys() ^ self.averages.keys())
            raise ValueError(f"averages must hold the parameters of the model, got others: {differing[:5]}")
        self.num_updates = num_updates
        for name, value in averages.items():
            self.averages[name].copy_(value)
