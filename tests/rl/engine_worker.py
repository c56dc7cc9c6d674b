"""A short training run with the engine; started by torchrun in the tests, and called by them in one process.

    torchrun --nproc_per_node 2 tests/rl/engine_worker.py '{"backend": "ddp", "out": "FILE"}'

The policy is the debug model with both experts in one forward pass, the data are random, and the losses are
what reinforcement uses: sums of log-probabilities weighted by advantages of both signs.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from drivefine_agent.model.choices import IMAGE_PLACEHOLDER
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.drivefine_model import DriveFineModel
from drivefine_agent.model.text_tokenizer import TextTokenizer
from drivefine_agent.planner import Planner
from drivefine_agent.training.optimization import OptimizerConfig
from drivefine_agent.training.seeds import generator_for
from rl.engine import Engine, EngineConfig
from rl.run_state import Provenance, resume_run_state, save_run_state

GROUPS = {"generator": ("language", "action"), "refiner": ("refinement",)}
RATE = 3e-3


class Scenes(NamedTuple):
    """B scenes with N answers each."""

    visual: Tensor
    context_ids: Tensor
    actions: Tensor
    advantages: Tensor
    uses: tuple[str, ...]
    """Which experts are asked."""


class LogProbs(NamedTuple):
    """(B, N, L) each; None where not asked."""

    generator: Tensor | None
    refiner: Tensor | None


class TwoExperts(nn.Module):
    """Log-probabilities of given answers by both experts, over one context."""

    def __init__(self, model: DriveFineModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, scenes: Scenes) -> LogProbs:
        context = self.model.encode_context(None, scenes.context_ids, None, scenes.visual)
        instruction = torch.arange(4, device=scenes.context_ids.device)
        masked = torch.where(torch.arange(24) % 2 == 0, scenes.actions, -1)
        generator = refiner = None
        if "generator" in scenes.uses:
            prompt = self.model.append_instruction(context, instruction)
            generator = self.model.answer_logits(prompt, masked).log_probs(scenes.actions)
        if "refiner" in scenes.uses:
            prompt = self.model.append_instruction(context, instruction + 4, expert="refinement")
            refiner = self.model.answer_logits(prompt, scenes.actions).log_probs(scenes.actions)
        return LogProbs(generator, refiner)


@dataclass
class Job:
    """What the worker is to do."""

    backend: str
    out: str = ""
    steps: int = 10
    batch_size: int = 4
    micro_batch_size: int = 2
    precision: str = "float32"
    checkpointing: bool = False
    learned_positions: bool = False
    threshold: int = 0
    """Of zero3: 0 shards every parameter, however small."""
    max_grad_norm: dict[str, float] = field(default_factory=lambda: {"generator": 0.5, "refiner": 0.05})
    idle: dict[str, str] = field(default_factory=dict)
    """Step to the expert that is not asked in it."""
    folder: str | None = None
    """Checkpoints are written here, after every step, and resumed from here."""
    stop_after: int | None = None
    die_at: dict[str, int] = field(default_factory=dict)
    """Signal's name to the step at which process 1 gets it."""
    nan_at: int | None = None
    """Process 1, or the only one, has a loss that is not a number in this step."""
    timeout_s: float = 60.0
    seed: int = 0


def make_planner(seed: int = 0, learned_positions: bool = False) -> Planner:
    torch.manual_seed(seed)
    tokenizer = TextTokenizer.tiny()
    config = DriveFineConfig.debug(learned_positions=learned_positions)
    config.text_config.vocab_size = len(tokenizer)
    model = DriveFineModel(config)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return Planner(model, tokenizer)


def make_scenes(model: DriveFineModel, step: int, index: np.ndarray, uses: tuple[str, ...]) -> Scenes:
    """Every scene is drawn by (step, its number in the global batch), whoever computes it."""
    config, parts = model.config, []
    for number in index:
        generator = generator_for(0, "scene", step * 1000 + int(number))
        ids = torch.randint(0, 50, (9,), generator=generator)
        ids[2] = IMAGE_PLACEHOLDER
        visual = torch.randn(config.num_visual_tokens, config.text_config.hidden_size, generator=generator)
        spatial = torch.randint(0, config.spatial_bins, (3, 8, 2), generator=generator)
        heading = config.spatial_bins + torch.randint(0, config.heading_bins, (3, 8, 1), generator=generator)
        actions = torch.cat([spatial, heading], dim=-1).flatten(1)
        advantages = torch.randn(3, generator=generator)
        parts.append((visual, ids, actions, advantages))
    return Scenes(*(torch.stack(tensors) for tensors in zip(*parts, strict=True)), uses)


def loss_of(log_probs: LogProbs, advantages: Tensor) -> Tensor:
    terms = [-(a.mean(-1) * advantages).mean() for a in log_probs if a is not None]
    return torch.stack(terms).sum()


def make_engine(planner: Planner, job: Job) -> Engine:
    policy = TwoExperts(planner.model)
    groups = {}
    for group, parts in GROUPS.items():
        wanted = {id(p) for part in parts for p in planner.model.parameters_of(part)}
        groups[group] = {name: p for name, p in policy.named_parameters() if id(p) in wanted}
    optimizer = {
        group: OptimizerConfig(
            learning_rate=RATE, action_factor=1.0, weight_decay=0.1, max_grad_norm=job.max_grad_norm[group]
        )
        for group in groups
    }
    config = EngineConfig(
        backend=job.backend,  # type: ignore[arg-type]
        precision=job.precision,  # type: ignore[arg-type]
        gradient_checkpointing=job.checkpointing,
        timeout_s=job.timeout_s,
        zero3_persistence_threshold=job.threshold,
    )
    return Engine.create(policy, groups, optimizer, config)


def provenance(job: Job) -> Provenance:
    return Provenance(
        configuration={"run": {"seed": job.seed, "batch_size": job.batch_size}},
        data={"split": "none", "num_tokens": 0, "tokens_sha256": ""},
        parent={"path": "none", "weights_sha256": ""},
        reward_weights={"progress": 5.0},
        seeds={"run": job.seed},
    )


def run(job: Job) -> dict[str, Any]:
    """The whole run; returns losses, norms and weights as the main process sees them."""
    planner = make_planner(job.seed, job.learned_positions)
    engine = make_engine(planner, job)
    try:
        return _run(job, planner, engine)
    finally:
        engine.close()


def _run(job: Job, planner: Planner, engine: Engine) -> dict[str, Any]:
    losses, norms, rollouts = [], [], []
    begin = 0
    if job.folder is not None:
        found = resume_run_state(Path(job.folder), engine, provenance(job).configuration)
        begin = found.step if found else 0
    errors = []
    for step in range(begin, job.steps):
        if engine.rank == 1:
            for name, at in job.die_at.items():
                if at == step:
                    os.kill(os.getpid(), getattr(signal, name))
        idle = job.idle.get(str(step))
        uses = tuple(name for name in GROUPS if name != idle)
        own = engine.share(np.arange(job.batch_size))
        with engine.inference() as model:
            scenes = make_scenes(model, step, own, ("generator",))
            value = TwoExperts(model)(scenes).generator
        assert value is not None
        rollouts.append(engine.mean({"rollout": value.mean().item()})["rollout"])
        parts = [own[i : i + job.micro_batch_size] for i in range(0, len(own), job.micro_batch_size)]
        total = 0.0
        for i, part in enumerate(parts):
            with engine.accumulate(is_last=i == len(parts) - 1):
                scenes = make_scenes(planner.model, step, part, uses)
                loss = loss_of(engine(scenes), scenes.advantages) / len(parts)
                if job.nan_at == step and engine.rank == engine.world_size - 1:
                    loss = loss * float("nan")
                engine.backward(loss)
            total += loss.item()
        losses.append(engine.mean({"loss": total})["loss"])
        try:
            norms.append(engine.step(1.0 if step < 5 else 0.5))
        except FloatingPointError as error:
            errors.append(str(error))
        if job.folder is not None:
            save_run_state(Path(job.folder), step + 1, engine, planner, provenance(job))
        if job.stop_after == step + 1:
            os.kill(os.getpid(), signal.SIGKILL)
    state = engine.gather_weights()
    digest = hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state)))
    return {
        "losses": losses,
        "norms": norms,
        "rollouts": rollouts,
        "weights": {name: value.double().sum().item() for name, value in state.items()},
        "sha256": digest.hexdigest(),
        "errors": errors,
    }


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    torch.set_num_threads(1)
    started = time.monotonic()
    result = run(job)
    result["seconds"] = time.monotonic() - started
    if os.environ.get("RANK", "0") == "0":
        Path(job.out).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
