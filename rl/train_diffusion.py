"""Policy gradient of the diffusion-head baseline on NAVSIM's PDM score.

    maximise  mean over samples and steps of  log-density x advantage x discount^(steps that remain)

For each scene G trajectories are sampled by stochastic DDIM; the advantage is a sample's z-score in its
group. The head is kept close to the model it starts from by the likelihood of that model's own samples. See
`rl/diffusion.py`.

    python rl/train_diffusion.py checkpoint_path=RUN dataset_root=DATASET metric_cache_path=CACHE
    python rl/train_diffusion.py ... reward.progress_weight=10     # ReCogDrive's reward; the metric has 5

Writes into `output_dir` what `rl/train_grpo.py` writes. A stopped run goes on where it was. All keys:
navsim_configs/train_diffusion.yaml, rl/config.py and rl/diffusion.py.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from drivefine_agent.diffusion.continuous import DDIMOptions, sample_chain
from drivefine_agent.errors import DriveFineError
from drivefine_agent.pose_diffusion import poses_of
from drivefine_agent.training.from_mapping import from_mapping
from drivefine_agent.training.seeds import generator_for
from rl.diffusion import (
    DiffusionBatch,
    DiffusionPolicy,
    TrainDiffusionConfig,
    diffusion_loss,
    standard_advantages,
)
from rl.monitors import Means, drives_backward, group_scalars, reward_scalars
from rl.setup import StepClock, begin_run

if TYPE_CHECKING:
    from drivefine_agent.model.drivefine_model import DriveFineModel
    from drivefine_agent.model.pose_head import PromptStates


LOGGER = logging.getLogger(__name__)


def train(config: TrainDiffusionConfig) -> Path:
    """The whole run; returns the folder of the trained model."""
    objective, rollout, seed = config.objective, config.rollout, config.run.seed
    options, needs_reference = rollout.options, objective.imitation > 0.0

    def make_policy(model: DriveFineModel) -> DiffusionPolicy:
        return DiffusionPolicy(model, options, objective.log_prob_std)

    with begin_run(config, "diffusion", needs_reference, make_policy, decoders=["diffusion_head"]) as run:
        engine = run.engine
        for step in run.remaining_steps("Diffusion"):
            clock, means = StepClock(run.rewards), Means()
            micro_batches = run.micro_batches(step)

            # Draft: G trajectories per scene, and M of the starting model.
            drafts = []
            with engine.inference() as model:
                for part in micro_batches:
                    scenes = run.scenes.inputs(model, part.index)
                    prompt = model.prompt_states(
                        scenes.context_ids, run.instructions.predict, scenes.context_lengths, scenes.visual
                    )
                    status = run.scenes.status(part.index)
                    samples = rollout.num_samples
                    chains = _sample(model, prompt, status, samples, options, seed, "drafts", part.visits)
                    poses = poses_of(chains)  # (B, G, 8, 3)
                    ticket = run.rewards.submit(run.scenes.tokens(part.index), poses)
                    backward = drives_backward(poses)
                    means.add({"generated/backward_share": (float(backward.mean()), float(backward.size))})
                    if run.reference is not None:
                        samples = rollout.num_imitated
                        imitated = _sample(
                            run.reference, prompt, status, samples, options, seed, "imitated", part.visits
                        )
                        chains = torch.cat([chains, imitated], dim=1)
                    drafts.append((DiffusionBatch(prompt, status, chains), ticket))
            del model, prompt

            # Rewards, advantages, objective.
            for part, (batch, ticket) in zip(micro_batches, drafts, strict=True):
                scores = run.rewards.collect(ticket)
                means.add(reward_scalars(scores, "generated"))
                means.add(group_scalars(scores.rewards))
                rewards, is_valid = scores.tensors(engine.device)  # (B, G)
                advantages = standard_advantages(rewards, is_valid)
                with engine.accumulate(part.is_last):
                    log_probs = engine(batch)  # (B, G + M, S, 8, 3)
                    loss = diffusion_loss(log_probs, advantages, is_valid, objective)
                    engine.backward(loss.total * part.share)
                count = float(len(rewards))
                means.add({"head/policy_loss": (float(loss.policy), count)})
                means.add({"head/imitation_loss": (float(loss.imitation), count)})
            scalars = run.update(step)
            if run.is_logged(step):
                run.log(step, means, scalars, clock)
        model_folder = run.finish()
    LOGGER.info("model: %s", model_folder)
    return model_folder


def _sample(
    model: DriveFineModel,
    prompt: PromptStates,
    status: Tensor,
    num_samples: int,
    options: DDIMOptions,
    seed: int,
    purpose: str,
    visits: Sequence[int],
) -> Tensor:
    """(B, N, S + 1, 8, 3) chains; all random numbers of a scene follow from its visit."""
    return sample_chain(
        lambda noisy, times: model.predict_noise(prompt, noisy, times, status),
        len(status),
        num_samples,
        options,
        status.device,
        [generator_for(seed, purpose, visit) for visit in visits],
    )


@hydra.main(version_base="1.3", config_path="../navsim_configs", config_name="train_diffusion")
def main(config: DictConfig) -> None:
    """Convert errors made for people into one line; everything else is a bug and keeps its traceback."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        values: Any = OmegaConf.to_container(config, resolve=True)
        train(from_mapping(TrainDiffusionConfig, values))
    except (DriveFineError, FloatingPointError, ValueError, OmegaConfBaseException) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
