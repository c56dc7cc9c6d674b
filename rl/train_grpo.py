"""GRPO of the generation expert on NAVSIM's PDM score (equations 2 to 4).

    maximise  mean over samples and tokens of  min(ratio A, clip(ratio) A)  -  beta KL(policy, reference)

For each scene G trajectories are sampled by the real denoising procedure; A is a sample's reward against the
mean of its group; a token's ratio is taken in the state in which its group of tau denoising steps began. The
refinement expert is left alone: `train_hybrid.py` trains both. With `reward.scorer_path` the score that a
learned scorer predicts is added to the true one, as `reward.scorer_weight` says.

    python rl/train_grpo.py checkpoint_path=RUN dataset_root=DATASET metric_cache_path=CACHE
    torchrun --nproc_per_node 2 rl/train_grpo.py engine.backend=ddp ...

Writes into `output_dir` (default: $NAVSIM_EXP_ROOT/<experiment_name>, or runs/<experiment_name>): model/ (for
agent.checkpoint_path), checkpoints/, tensorboard/, config.json, metrics.jsonl. A stopped run goes on where it
was. All keys: navsim_configs/train_grpo.yaml and rl/config.py.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from drivefine_agent.errors import DriveFineError
from drivefine_agent.training.from_mapping import from_mapping
from rl.config import TrainGRPOConfig
from rl.monitors import (
    Means,
    agreement_scalars,
    entropy_scalars,
    group_scalars,
    loss_scalars,
    reward_scalars,
    trajectory_scalars,
)
from rl.objectives import group_advantages, grpo_loss
from rl.policy import PolicyBatch
from rl.rollout import encode_scenes, sample_group
from rl.setup import StepClock, begin_run

LOGGER = logging.getLogger(__name__)


def train(config: TrainGRPOConfig) -> Path:
    """The whole run; returns the folder of the trained model."""
    objective, rollout, seed = config.objective, config.rollout, config.run.seed
    with begin_run(config, "grpo", needs_reference=objective.beta > 0.0) as run:
        engine, ask = run.engine, run.instructions
        spec = run.planner.action_tokenizer.spec
        for step in run.remaining_steps("GRPO"):
            clock, means, is_logged = StepClock(run.rewards), Means(), run.is_logged(step)
            micro_batches = run.micro_batches(step)

            # Draft: G trajectories per scene. They are scored while the next scenes are drafted.
            drafts = []
            with engine.inference() as model:
                for part in micro_batches:
                    scenes = run.scenes.inputs(model, part.index)
                    context = encode_scenes(model, scenes)
                    trace = sample_group(model, context, ask.predict, rollout, seed, part.visits)  # (B, G, L)
                    poses = run.poses(trace.actions)  # (B, G, 8, 3)
                    ticket = run.rewards.submit(run.scenes.tokens(part.index), poses)
                    means.add(trajectory_scalars(trace.actions, poses, spec, "generated"))
                    (predicted,) = run.predict(scenes, [trace.actions])  # (B, G), None without a scorer
                    batch = PolicyBatch(
                        visual=scenes.visual,
                        context_ids=scenes.context_ids,
                        context_lengths=scenes.context_lengths,
                        predict_ids=ask.predict,
                        refine_ids=ask.refine,
                        actions=trace.actions,
                        step_map=trace.step_map,
                        targets=None,
                        wants_entropy=is_logged,
                    )
                    asked = batch._replace(wants_entropy=False)
                    reference = None if run.reference is None else run.log_probs(run.reference, asked)
                    old = run.log_probs(model, asked) if objective.num_inner_updates > 1 else None
                    drafts.append((batch, ticket, predicted, reference, old))
            del model, context, trace  # where weights are sharded: a whole copy, and what it remembers

            # Rewards and advantages.
            scored = {}
            for update in range(objective.num_inner_updates):
                for part, draft in zip(micro_batches, drafts, strict=True):
                    batch, ticket, predicted, reference, old = draft
                    if update == 0:
                        scores = run.collect(ticket, part, batch.actions, "generated", predicted)
                        scored[ticket] = scores
                        means.add(reward_scalars(scores, "generated"))
                        means.add(agreement_scalars(scores, "generated"))
                        means.add(group_scalars(scores.learned))
                    rewards, is_valid = scored[ticket].tensors(engine.device)  # (B, G)
                    advantages = group_advantages(rewards, is_valid)  # (B, G)

                    # Objective.
                    with engine.accumulate(part.is_last):
                        log_probs = engine(batch)
                        old_log_probs: Any = log_probs.detach() if old is None else old
                        loss = grpo_loss(
                            log_probs.generator,  # (B, G, L)
                            old_log_probs.generator,
                            None if reference is None else reference.generator,
                            advantages,
                            is_valid,
                            objective.epsilon,
                            objective.beta,
                        )
                        engine.backward(loss.total * part.share)
                    means.add(loss_scalars(loss, "generator", len(rewards)))
                    means.add(entropy_scalars(log_probs.generator_entropy, None))
                scalars = run.update(step)
            if is_logged:
                run.log(step, means, scalars, clock)
        model_folder = run.finish()
    LOGGER.info("model: %s", model_folder)
    return model_folder


@hydra.main(version_base="1.3", config_path="../navsim_configs", config_name="train_grpo")
def main(config: DictConfig) -> None:
    """Convert errors made for people into one line; everything else is a bug and keeps its traceback."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        values: Any = OmegaConf.to_container(config, resolve=True)
        train(from_mapping(TrainGRPOConfig, values))
    except (DriveFineError, FloatingPointError, ValueError, OmegaConfBaseException) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
