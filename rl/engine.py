"""Where a policy is trained: one process, or several that share the scenes of a step. Same losses either way.

    engine = Engine.create(policy, groups, optimizer_configs, config)
    for step in ...:
        with engine.inference() as model:                 # whole weights, no gradient
            ...
        for i, part in enumerate(parts):                  # this process's micro-batches
            with engine.accumulate(is_last=i == len(parts) - 1):
                log_probs = engine(part)
                engine.backward(loss / len(parts))
        norms = engine.step(learning_rate_factor)

This is the only part that knows how many processes there are. A step's gradient is the mean over processes,
each group's is clipped by itself, and a parameter that a step did not use has gradient zero, whatever the
backend (the backends by themselves disagree: none, zero, or that of an earlier step).

Checkpoints have one form for all backends and any number of processes: weights and moments by name, whole,
in float32 (`gather_weights`, `save_state`, `load_state`).
"""

from __future__ import annotations

import copy
import gc
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from drivefine_agent.model.backbone.attention import AttentionName
from drivefine_agent.training.optimization import OptimizerConfig, build_optimizer
from rl.processes import Processes, ProcessLostError, mean_over
from rl.state_files import read_moments, read_weights, write_moments

if TYPE_CHECKING:
    from drivefine_agent.model.drivefine_model import DriveFineModel


Backend = Literal["single", "ddp", "fsdp2", "zero1", "zero2", "zero3"]
Batch = Any
"""What the policy's forward takes and gives; the engine does not look inside."""
T = TypeVar("T")

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter, beside its step counter."""


@dataclass(frozen=True)
class EngineConfig:
    """How the work is spread and computed; none of it changes what is learned, but for rounding."""

    backend: Backend = "single"
    """single: this process alone. Under torchrun: ddp (whole copies), zero1 (optimizer sharded), zero2 (and
    gradients), zero3 or fsdp2 (and weights). zero*: DeepSpeed, an optional dependency."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the forward pass; weights that are updated and their moments are float32 in any case."""
    gradient_checkpointing: bool = False
    """Recompute the blocks in the backward pass instead of keeping their activations."""
    attention: AttentionName = "sdpa"
    """Kernel of the language model: sdpa, flash or flex, see `model/backbone/attention.py`."""
    device: str = "cpu"
    """cpu, or cuda: under torchrun each process takes the GPU of its LOCAL_RANK."""
    timeout_s: float = 600.0
    """After so long without an answer another process counts as dead, and the run ends with an error."""
    zero3_persistence_threshold: int = 100_000
    """zero3: parameters with fewer elements stay whole on every process."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not self.timeout_s > 0:
            raise ValueError(f"engine.timeout_s must be positive, got {self.timeout_s}")
        if self.zero3_persistence_threshold < 0:
            raise ValueError(
                "engine.zero3_persistence_threshold must not be negative, "
                f"got {self.zero3_persistence_threshold}"
            )
        if torch.device(self.device).type not in ("cpu", "cuda"):
            raise ValueError(f"engine.device must be cpu or cuda, got {self.device!r}")


class Engine(ABC):
    """See the module's doc-string; `create` makes one."""

    def __init__(
        self,
        module: nn.Module,
        names: Mapping[str, Mapping[str, str]],
        optimizer: Mapping[str, OptimizerConfig],
        config: EngineConfig,
        processes: Processes,
    ) -> None:
        """Use `create`.

        Args:
          module: the policy, unwrapped.
          names: by group, each trained parameter's name in the model's state to its name in the module.
          optimizer: by group.
          config: of the engine.
          processes: of the run.
        """
        self.config = config
        self.processes = processes
        self.policy = module
        self.device = run_device(config, processes.local_rank)
        self._shapes = {name: tuple(t.shape) for name, t in self._model.state_dict().items()}
        self._names = names
        self._optimizer_configs = optimizer
        self._is_accumulating = False
        self._is_ready_to_step = False
        self._is_loss_finite = True

    @staticmethod
    def create(
        module: nn.Module,
        groups: Mapping[str, Mapping[str, nn.Parameter]],
        optimizer: Mapping[str, OptimizerConfig],
        config: EngineConfig,
    ) -> Engine:
        """Puts the policy on its device and wraps it; everything outside the groups is frozen.

        Args:
          module: the policy; its DriveFine model is `module.model`. Do not use it directly afterwards.
          groups: parameters to train, by group and name; no parameter is in two. Each group is clipped by
            itself.
          optimizer: AdamW's settings by group.
          config: of the engine.

        Raises:
          ValueError: the groups overlap or do not fit `optimizer`, or the processes do not fit the backend.
        """
        names = _names_in_module(module, groups, optimizer)
        if config.backend == "single":
            processes = Processes.alone(config.timeout_s)
        else:
            processes = Processes.joined(config.backend, torch.device(config.device).type, config.timeout_s)
        trained = {name for group in names.values() for name in group.values()}
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in trained)
        model: DriveFineModel = module.model  # type: ignore[assignment]
        model.checkpoint_blocks(config.gradient_checkpointing)
        model.use_attention(config.attention)
        module.train()
        if config.backend in ("zero1", "zero2", "zero3"):
            from rl.zero_engine import ZeroEngine

            return ZeroEngine(module, names, optimizer, config, processes)
        return TorchEngine(module, names, optimizer, config, processes)

    @property
    def _model(self) -> DriveFineModel:
        return self.policy.model  # type: ignore[return-value]

    def _trained_by_group(self) -> dict[str, dict[str, nn.Parameter]]:
        """Trained parameters as they are after wrapping, by group and name in the model's state."""
        parameters = dict(self.policy.named_parameters())
        return {
            group: {name: parameters[full] for name, full in names.items()}
            for group, names in self._names.items()
        }

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for group in self._trained_by_group().values() for name, p in group.items()}

    # ---------------------------------------------------------------------------------- processes

    @property
    def rank(self) -> int:
        """This process's number."""
        return self.processes.rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.processes.world_size

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.processes.rank == 0

    def share(self, batch_index: NDArray[np.int64]) -> NDArray[np.int64]:
        """This process's part of a step's scenes: equal parts, in order of the ranks.

        Raises:
          ValueError: the scenes cannot be shared equally; the mean over processes would weigh them unequally.
        """
        if len(batch_index) % self.world_size != 0:
            raise ValueError(
                f"a step's scenes must be shared equally: batch_size {len(batch_index)} is no multiple of "
                f"{self.world_size} processes"
            )
        size = len(batch_index) // self.world_size
        return batch_index[self.rank * size : (self.rank + 1) * size]

    def mean(
        self, scalars: Mapping[str, float], weights: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """Mean of each scalar over the processes, the same on all of them.

        Args:
          scalars: the same names on every process.
          weights: by name, such as the number of samples behind a scalar; 1 where absent. Scalars of weight 0
            do not count; NaN where all weights are 0.
        """
        return mean_over(self.processes, scalars, weights)

    def agree(self, value: T) -> T:
        """The main process's JSON value, on every process."""
        value = self.processes.gathered(value if self.is_main else None)[0]
        return value

    def raise_together(self, error: Exception | None) -> None:
        """Raises on every process if any has an error; keeps the others from waiting for one that gave up.

        Raises:
          Exception: this process's own error. ProcessLostError: another's.
        """
        messages = self.processes.gathered(None if error is None else str(error))
        if error is not None:
            raise error
        for rank, message in enumerate(messages):
            if message is not None:
                raise ProcessLostError(
                    f"all processes of a run must go on, got process {rank} that gave up: {message}"
                )

    # ---------------------------------------------------------------------------------- training

    def __call__(self, batch: Batch) -> Batch:
        """The policy's forward pass through the wrapper; gradients only inside `accumulate`."""
        with self.processes.watched(), self._precision():
            return self._forward(batch)

    @contextmanager
    def accumulate(self, is_last: bool) -> Iterator[None]:
        """Around forward and backward pass of one micro-batch of a step.

        Args:
          is_last: whether `step` follows.
        """
        if self._is_ready_to_step:
            raise RuntimeError(
                "a step ends with its last micro-batch, got another: call step() before the next one"
            )
        self._is_accumulating = True
        try:
            with self._synchronising(is_last):
                yield
        finally:
            self._is_accumulating = False
        self._is_ready_to_step = is_last

    def backward(self, loss: Tensor) -> None:
        """Adds a micro-batch's gradient to the step's; divide the loss by the number of micro-batches before.

        A loss that is not finite is reported by `step`, on all processes together.
        """
        if not self._is_accumulating:
            raise RuntimeError(
                "call backward inside `with engine.accumulate(is_last)`, as the forward pass, not outside"
            )
        self._is_loss_finite &= bool(torch.isfinite(loss.detach()))
        with self.processes.watched():
            self._backward(loss)

    def step(self, learning_rate_factor: float | Mapping[str, float]) -> dict[str, float]:
        """Clips each group by itself, updates, clears the gradients.

        Args:
          learning_rate_factor: share of the peak rates, for all groups or by group.

        Returns:
          Norm of each group's gradient before clipping; the same on every process.

        Raises:
          FloatingPointError: loss or gradient is not finite; raised on all processes together, and nothing
            has been updated.
        """
        if not self._is_ready_to_step:
            raise RuntimeError(
                "step() must follow a micro-batch, got none: open `with engine.accumulate(is_last=True)` "
                "first"
            )
        self._is_ready_to_step = False
        with self.processes.watched():
            norms = self._grad_norms()
            num_bad_losses = self.processes.total([float(not self._is_loss_finite)])[0]
            self._is_loss_finite = True
            if num_bad_losses or not all(math.isfinite(norm) for norm in norms.values()):
                self._drop_gradients()
                raise FloatingPointError(
                    f"loss and gradient must be finite, got gradient norms {norms}, and on "
                    f"{num_bad_losses:.0f} of {self.world_size} processes a loss that is not: lower "
                    "learning_rate or look at the rewards; nothing has been updated in this step"
                )
            for group, norm in norms.items():
                limit = self._optimizer_configs[group].max_grad_norm
                if norm > limit:
                    self._scale_gradients(group, limit / (norm + 1e-6))
            factor = learning_rate_factor
            for settings in self._optimizer.param_groups:
                own = factor[settings["group"]] if isinstance(factor, Mapping) else factor
                settings["lr"] = settings["peak_lr"] * own
            self._update()
        return norms

    # ---------------------------------------------------------------------------------- weights

    @contextmanager
    def inference(self) -> Iterator[DriveFineModel]:
        """The model with whole weights, without gradient. All processes enter; inside, each works alone.

        Do not keep the model: after a sharded backend's block it is gone.
        """
        with self.processes.watched():
            model = self._whole_model()
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad(), self._precision():
                yield model
        finally:
            model.train(was_training)

    def gather_weights(self) -> dict[str, Tensor]:
        """The model's state, whole and in float32, on the CPU of the main process; empty elsewhere."""
        weights = {}
        with self.processes.watched(), torch.no_grad():
            for name, tensor in self._whole_state():
                if self.is_main:
                    dtype = torch.float32 if tensor.is_floating_point() else None
                    weights[name] = tensor.detach().to("cpu", dtype, copy=True).contiguous()
        return weights

    def save_state(self, folder: Path) -> None:
        """Writes AdamW's moments into a folder, from the main process; all processes must call this.

        Raises:
          DataError: the folder cannot be written; raised on all processes.
        """

        def moments(name: str) -> dict[str, Tensor]:
            with self.processes.watched(), torch.no_grad():
                return {key: value.to("cpu", copy=True) for key, value in self._moments_of(name).items()}

        trained = {name: self._shapes[name] for group in self._names.values() for name in group}
        self.raise_together(write_moments(folder, trained, moments, self.is_main))

    def load_state(self, folder: Path) -> None:
        """Restores weights and moments of a checkpoint, whatever backend and number of processes wrote it.

        Args:
          folder: the checkpoint, with `model/` and what `save_state` wrote; every process reads it.

        Raises:
          DataError: a file is missing or damaged, or does not fit the model and groups.
        """
        self.raise_together(read_weights(folder / "model", self._shapes, self._set_weight))
        trained = {name: self._shapes[name] for group in self._names.values() for name in group}
        self.raise_together(read_moments(folder, trained, self._set_moments))
        self._after_loading()

    def close(self) -> None:
        """Leaves the group of processes; nothing can be done with the engine afterwards."""
        self._release()
        self.processes.leave()

    # ---------------------------------------------------------------------------------- of each backend

    _optimizer: torch.optim.Optimizer

    def _precision(self) -> AbstractContextManager[Any]:
        """Around forward passes."""
        return nullcontext()

    def _synchronising(self, is_last: bool) -> AbstractContextManager[Any]:
        """Around a micro-batch: whether its gradients are exchanged now or later."""
        return nullcontext()

    def _release(self) -> None:  # noqa: B027
        """Lets go of what must not outlive the group of processes."""

    @abstractmethod
    def _forward(self, batch: Batch) -> Batch: ...

    @abstractmethod
    def _backward(self, loss: Tensor) -> None: ...

    @abstractmethod
    def _grad_norms(self) -> dict[str, float]:
        """Norm of the mean gradient by group, equal on all processes; gradients are exchanged by now."""

    @abstractmethod
    def _scale_gradients(self, group: str, factor: float) -> None: ...

    @abstractmethod
    def _drop_gradients(self) -> None:
        """Forgets the step's gradients."""

    @abstractmethod
    def _update(self) -> None:
        """Optimizer step at the rates of the groups; gradients are zero afterwards."""

    @abstractmethod
    def _whole_model(self) -> DriveFineModel:
        """The model with whole weights; all processes call this."""

    @abstractmethod
    def _whole_state(self) -> Iterator[tuple[str, Tensor]]:
        """The model's state, one whole tensor after the other; all processes go through it."""

    @abstractmethod
    def _moments_of(self, name: str) -> dict[str, Tensor]:
        """Whole moments and step counter of a trained parameter; empty before the first step."""

    @abstractmethod
    def _set_weight(self, name: str, value: Tensor) -> None:
        """Takes a whole tensor of the model's state; no process waits for another."""

    @abstractmethod
    def _set_moments(self, name: str, moments: Mapping[str, Tensor]) -> None:
        """Takes what `_moments_of` gave."""

    def _after_loading(self) -> None:  # noqa: B027
        """Whatever must follow new weights."""


class TorchEngine(Engine):
    """One process, DistributedDataParallel or FSDP2."""

    def __init__(
        self,
        module: nn.Module,
        names: Mapping[str, Mapping[str, str]],
        optimizer: Mapping[str, OptimizerConfig],
        config: EngineConfig,
        processes: Processes,
    ) -> None:
        super().__init__(module, names, optimizer, config, processes)
        self._skeleton: nn.Module | None = None
        self._wrapped: nn.Module
        if config.backend == "fsdp2":
            self._skeleton = without_weights(self._model)
            self._wrapped = module
            shard(module, self.device, processes.world_size, config.precision)
        else:
            module.to(self.device)
            self._wrapped = module
            if config.backend == "ddp":
                # Parameters that a step does not use would otherwise be waited for.
                self._wrapped = DistributedDataParallel(module, find_unused_parameters=True)
        self._optimizer = make_optimizer(self._model, self._trained_by_group(), optimizer)

    def _precision(self) -> AbstractContextManager[Any]:
        if self.config.precision == "float32" or self.config.backend == "fsdp2":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _synchronising(self, is_last: bool) -> AbstractContextManager[Any]:
        if isinstance(self._wrapped, DistributedDataParallel) and not is_last:
            return self._wrapped.no_sync()
        return nullcontext()

    def _forward(self, batch: Batch) -> Batch:
        return self._wrapped(batch)

    def _release(self) -> None:
        # As the last owner of the group, DDP's reducer would wait for gloo's threads while it holds the
        # interpreter's lock, and they for the lock: seen as a process that never ends.
        if isinstance(self._wrapped, DistributedDataParallel):
            vars(self._wrapped).update(reducer=None, logger=None)
            self._wrapped = self.policy
            gc.collect()

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _grad_norms(self) -> dict[str, float]:
        norms = {}
        for group, parameters in self._trained_by_group().items():
            gradients = []
            for parameter in parameters.values():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
            norms[group] = float(whole(nn.utils.get_total_norm(gradients)))
        return norms

    def _scale_gradients(self, group: str, factor: float) -> None:
        for parameter in self._trained_by_group()[group].values():
            assert parameter.grad is not None
            parameter.grad.mul_(factor)

    def _drop_gradients(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def _update(self) -> None:
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _whole_model(self) -> DriveFineModel:
        if self._skeleton is None:
            return self._model
        dtype = torch.bfloat16 if self.config.precision == "bfloat16" else None
        return with_weights(self._skeleton, self._whole_state(), self.device, dtype)

    def _whole_state(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._model.state_dict().items():
            yield name, whole(tensor)

    def _moments_of(self, name: str) -> dict[str, Tensor]:
        state = self._optimizer.state.get(self._trained()[name], {})
        return {key: whole(torch.as_tensor(value)) for key, value in state.items()}

    def _set_weight(self, name: str, value: Tensor) -> None:
        target = self._model.state_dict()[name]
        with torch.no_grad():
            target.copy_(part_like(value, target))

    def _set_moments(self, name: str, moments: Mapping[str, Tensor]) -> None:
        parameter = self._trained()[name]
        self._optimizer.state[parameter] = {
            key: value.clone() if key == "step" else part_like(value, parameter).clone()
            for key, value in moments.items()
        }


# -------------------------------------------------------------------------------------- parts of both engines


def run_device(config: EngineConfig, local_rank: int) -> torch.device:
    """This process's device."""
    device = torch.device(config.device)
    if device.type == "cuda" and config.backend != "single":
        return torch.device("cuda", local_rank)
    return device


def make_optimizer(
    model: DriveFineModel,
    parameters: Mapping[str, Mapping[str, nn.Parameter]],
    configs: Mapping[str, OptimizerConfig],
) -> torch.optim.AdamW:
    """One AdamW over all groups; its parameter groups know `peak_lr`, `names` and the engine's `group`."""
    actions = {id(parameter) for parameter in model.parameters_of("action")}
    vision = {id(parameter) for parameter in model.parameters_of("vision")}

    param_groups: list[dict[str, Any]] = []
    for group, named in parameters.items():
        kinds = {
            name: "action" if id(p) in actions else "vision" if id(p) in vision else "language"
            for name, p in named.items()
        }
        built = build_optimizer(named, kinds.__getitem__, configs[group])
        param_groups += [{**param_group, "group": group} for param_group in built.param_groups]
    return torch.optim.AdamW(param_groups)


def shard(module: nn.Module, device: torch.device, world_size: int, precision: str) -> None:
    """FSDP2 in place: each transformer block is gathered when it is used, the rest with the whole policy."""
    # Keys and values are views; nothing in the model changes them in place, which is what FSDP2 warns of.
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (world_size,))
    policy = MixedPrecisionPolicy()
    if precision == "bfloat16":
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    for part in block_modules(module.model):  # type: ignore[arg-type]
        fully_shard(part, mesh=mesh, mp_policy=policy)
    # Also after the forward pass: whole weights that outlive an update would be used again.
    fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def block_modules(model: DriveFineModel) -> list[nn.Module]:
    """The transformer blocks of language model and tower, which are gathered one at a time."""
    names = set(model._no_split_modules or [])
    return [part for part in model.modules() if type(part).__name__ in names]


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered from all processes; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole value in the place, type and sharding of another tensor; exchanges nothing."""
    value = value.to(like.device, like.dtype)
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def without_weights(module: nn.Module) -> nn.Module:
    """A copy whose parameters are on the meta device, for `with_weights`."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        for parameter in module.parameters()
    }
    return copy.deepcopy(module, memo)


def with_weights(
    skeleton: nn.Module,
    state: Iterable[tuple[str, Tensor]],
    device: torch.device,
    dtype: torch.dtype | None,
) -> Any:
    """A plain module with the given tensors, on `device`, floating ones in `dtype` (None: as they are)."""
    module = copy.deepcopy(skeleton)
    moved = {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in state}
    module.load_state_dict(moved, assign=True)
    return module.requires_grad_(False).to(device)


def _names_in_module(
    module: nn.Module,
    groups: Mapping[str, Mapping[str, nn.Parameter]],
    optimizer: Mapping[str, OptimizerConfig],
) -> dict[str, dict[str, str]]:
    """By group, name in the model's state to name in the module."""
    if groups.keys() != optimizer.keys():
        raise ValueError(f"every group needs its optimizer: got {sorted(groups)} and {sorted(optimizer)}")
    muon = [group for group, config in optimizer.items() if config.muon_learning_rate > 0]
    if muon:
        raise ValueError(f"the engine trains with AdamW: muon_learning_rate must be 0, got it in {muon}")
    name_of = {id(p): name for name, p in module.named_parameters()}
    names: dict[str, dict[str, str]] = {}
    seen: dict[int, str] = {}
    for group, parameters in groups.items():
        if not parameters:
            raise ValueError(f"groups must have parameters, got none in {group!r}: leave it out")
        names[group] = {}
        for given, parameter in parameters.items():
            full = name_of.get(id(parameter), "")
            if not full.startswith("model."):
                raise ValueError(f"groups must name parameters of policy.model, got {given!r} in {group!r}")
            if id(parameter) in seen:
                raise ValueError(
                    f"groups must be disjoint: {given!r} is in {seen[id(parameter)]!r} and {group!r}"
                )
            seen[id(parameter)] = group
            names[group][full.removeprefix("model.")] = full
    return names
