"""DeepSpeed ZeRO behind the engine's interface: stages 1 (optimizer sharded), 2 (gradients) and 3 (weights).

DeepSpeed exchanges gradients and keeps the shards; accumulation, clipping and rates are ours. What it gets
wrong for two experts by itself, each with a test:

* It clips both groups by their joint norm, at 1.0 unless told otherwise: it is told not to, and the shards
  of the mean gradient (`averaged_gradients`, one list per parameter group) are measured and scaled here.
* Stages 1 and 2 forget all but the last backward pass of a step unless told where the step ends.
* Stage 3 gives parameters that a step does not use their gradient of an earlier step: the buffer of
  gradients is cleared after each step.
* Stage 3 gathers a module's weights when its `forward` is called; our heads and embeddings are used by other
  methods as well, so they are gathered with the whole policy. (Not as "leaf modules": those lose gradients
  when a block is called several times before one backward pass, as ours are.)
* Its checkpoints unpickle and fit one number of processes only: ours are by name and whole, through its
  accessors.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from drivefine_agent.model.drivefine_model import DriveFineModel
from drivefine_agent.training.optimization import OptimizerConfig
from rl.deepspeed_config import STAGES, deepspeed_config
from rl.engine import (
    MOMENTS,
    Batch,
    Engine,
    EngineConfig,
    block_modules,
    make_optimizer,
    with_weights,
    without_weights,
)
from rl.processes import Processes


class ZeroEngine(Engine):
    """DeepSpeed's engine around the policy."""

    def __init__(
        self,
        module: nn.Module,
        names: Mapping[str, Mapping[str, str]],
        optimizer: Mapping[str, OptimizerConfig],
        config: EngineConfig,
        processes: Processes,
    ) -> None:
        super().__init__(module, names, optimizer, config, processes)
        self._stage = STAGES[config.backend]
        self._skeleton = without_weights(self._model) if self._stage == 3 else None
        if self._stage < 3:
            module.to(self.device)
        masters = self._float32_masters()
        with processes.watched():
            self._start(module)
        for name, value in masters.items():
            self._set_weight(name, value)
        self._after_loading()

    def _start(self, module: nn.Module) -> None:
        """Wraps the policy."""
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        if self.device.type == "cpu":
            # Its shared-memory exchange would be compiled on first use, which needs a compiler and ninja.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(auto_mpi_discovery=False, dist_init_required=False)
        model = self._model
        settings = deepspeed_config(
            self.config.backend,
            self.config.precision,
            persistence_threshold=self.config.zero3_persistence_threshold,
        )
        optimizer = make_optimizer(model, self._trained_by_group(), self._optimizer_configs)
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=settings, dist_init_required=False
        )
        self._zero: Any = self._engine.optimizer
        self._optimizer = self._zero.optimizer
        if self._stage == 3:
            for part in parts_without_blocks(model):
                for parameter in part.parameters():
                    deepspeed.zero.register_external_parameter(module, parameter)

    def _float32_masters(self) -> dict[str, Tensor]:
        """Trained weights before DeepSpeed rounds them; it makes its masters from the rounded ones."""
        if self.config.precision == "float32":
            return {}
        return {name: p.detach().to("cpu", torch.float32, copy=True) for name, p in self._trained().items()}

    # ---------------------------------------------------------------------------------- training

    def _synchronising(self, is_last: bool) -> AbstractContextManager[Any]:
        self._engine.set_gradient_accumulation_boundary(is_last)
        return nullcontext()

    def _forward(self, batch: Batch) -> Batch:
        return self._engine(batch)

    def _backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def _grad_norms(self) -> dict[str, float]:
        groups = list(self._names)
        squares = torch.zeros(len(groups), dtype=torch.float64, device=self.device)
        for group, gradients in self._gradient_shards():
            for gradient in gradients:
                squares[groups.index(group)] += gradient.detach().double().square().sum()
        dist.all_reduce(squares)
        return dict(zip(groups, squares.sqrt().tolist(), strict=True))

    def _scale_gradients(self, group: str, factor: float) -> None:
        for owner, gradients in self._gradient_shards():
            if owner == group:
                for gradient in gradients:
                    gradient.mul_(factor)

    def _gradient_shards(self) -> Iterator[tuple[str, list[Tensor]]]:
        """This process's shards of the mean gradient, and the group they belong to."""
        for number, gradients in self._zero.averaged_gradients.items():
            owner = self._zero.sub_group_to_group_id[number] if self._stage == 3 else number
            yield self._optimizer.param_groups[owner]["group"], gradients or []

    def _drop_gradients(self) -> None:
        self._zero.zero_grad(set_to_none=True)
        for number in list(self._zero.averaged_gradients):
            self._zero.averaged_gradients[number] = None
        if self._stage < 3:
            for number in list(self._zero.all_grad_tensors):
                self._zero.all_grad_tensors[number] = None
        self._clear_buffer()

    def _update(self) -> None:
        self._engine.step()
        self._clear_buffer()

    def _clear_buffer(self) -> None:
        if self._stage == 3:
            self._zero.grad_partitions_flat_buffer.zero_()

    # ---------------------------------------------------------------------------------- weights

    def _whole_model(self) -> DriveFineModel:
        if self._skeleton is None:
            return self._model
        return with_weights(self._skeleton, self._whole_state(in_float32=False), self.device, None)

    def _whole_state(self, in_float32: bool = True) -> Iterator[tuple[str, Tensor]]:
        trained = self._trained()
        parameters = dict(self._model.named_parameters())
        for name in self._shapes:
            if name not in parameters:
                yield name, self._model.get_buffer(name)
            elif name in trained and in_float32:
                value = safe_get_full_fp32_param(trained[name])
                yield name, value.view(self._shapes[name])
            else:
                with self._gathered(parameters[name]):
                    yield name, parameters[name].detach().clone()

    def _gathered(self, parameter: nn.Parameter) -> AbstractContextManager[Any]:
        if self._stage < 3:
            return nullcontext()
        return deepspeed.zero.GatheredParameters([parameter])

    def _moments_of(self, name: str) -> dict[str, Tensor]:
        parameter = self._trained()[name]
        states = list(self._optimizer.state.values())
        if not states or "step" not in states[0]:
            return {}
        self._link_states()
        moments = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
        return {key: value.view(self._shapes[name]) for key, value in moments.items()} | {
            "step": torch.as_tensor(states[0]["step"]).float()
        }

    def _set_weight(self, name: str, value: Tensor) -> None:
        trained = self._trained()
        if name in trained:
            safe_set_full_fp32_param(trained[name], value.to(self.device, torch.float32))
            return
        with torch.no_grad():
            if name not in dict(self._model.named_parameters()):
                self._model.get_buffer(name).copy_(value)
            else:
                self._set_frozen(self._model.get_parameter(name), value)

    def _set_frozen(self, parameter: nn.Parameter, value: Tensor) -> None:
        if self._stage < 3:
            parameter.copy_(value)
            return
        shard: Tensor = vars(parameter)["ds_tensor"]  # ZeRO-3's own part of the parameter
        flat = value.flatten().to(shard.device, shard.dtype)
        own = flat[shard.numel() * self.rank :][: shard.numel()]
        shard.view(-1)[: len(own)].copy_(own)

    def _set_moments(self, name: str, moments: Mapping[str, Tensor]) -> None:
        self._make_states(moments["step"])
        for key in MOMENTS:
            safe_set_full_optimizer_state(self._trained()[name], moments[key].to(self.device), key)

    def _make_states(self, step: Tensor) -> None:
        """Makes AdamW's state of the shards, which its first step would make."""
        shards = (
            self._zero.fp32_partitioned_groups_flat
            if self._stage == 3
            else self._zero.single_partition_of_fp32_groups
        )
        for shard in shards:
            if not self._optimizer.state.get(shard):
                self._optimizer.state[shard] = {"step": step.clone()} | {
                    key: torch.zeros_like(shard) for key in MOMENTS
                }
        self._link_states()

    def _link_states(self) -> None:
        """Shows the accessors all groups' state; DeepSpeed does so when only the first group has any."""
        if self._stage < 3:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def _after_loading(self) -> None:
        """Brings the weights that are computed with in line with the masters, as DeepSpeed's step does."""
        if self._stage < 3:
            self._zero.update_lp_params()
            return
        zero = self._zero
        with self.processes.watched(), torch.no_grad():
            zero._partition_all_parameters()
            for number in range(len(zero.fp16_groups)):
                zero._reassign_or_swap_out_partitioned_parameters(number)
            if zero.persistent_parameters:
                zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def parts_without_blocks(model: DriveFineModel) -> list[nn.Module]:
    """Embeddings, heads and projector: small, and used by other methods than `forward` as well."""
    blocks = {id(p) for block in block_modules(model) for p in block.parameters()}
    return [part for part in model.children() if not any(id(p) in blocks for p in part.parameters())]
