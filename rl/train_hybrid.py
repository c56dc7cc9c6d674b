"""Hybrid reinforcement learning: GRPO of the generator and signed pairs for the refiner, in one step.

    generator   maximise  mean of  min(ratio A, clip(ratio) A)  -  beta KL(policy, reference)    (equation 3)
    refiner     maximise  mean over anchors a of
                    mean over samples b     of  ratio(a -> b) (r_b  - r_a)      offline          (equation 7')
                  + mean over refinements k of  ratio(a -> k) (r_ak - r_a)      online

The G samples of the generator are the refiner's anchors, and, offline, its targets too; online targets are K
refinements that it samples itself. One pass of the refiner per anchor gives the likelihood of all targets.
Its gradient reaches the refinement blocks and nothing else. Ratios are 1 in a step's first update, so that
the gradient is that of the likelihood; later ones are clipped as in equation 3 (the paper does not say).
Terms are switched off by `objective.generator`, `.offline`, `.online`: the rows of the paper's ablation. With
`reward.scorer_path` the score that a learned scorer predicts is added to the true one, times
`reward.scorer_weight`.

    python rl/train_hybrid.py checkpoint_path=RUN dataset_root=DATASET metric_cache_path=CACHE
    torchrun --nproc_per_node 2 rl/train_hybrid.py engine.backend=ddp ...

Writes into `output_dir` (default: $NAVSIM_EXP_ROOT/<experiment_name>, or runs/<experiment_name>): model/ (for
agent.checkpoint_path), checkpoints/, tensorboard/, config.json, metrics.jsonl. A stopped run goes on where it
was. All keys: navsim_configs/train_hybrid.yaml and rl/config.py.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from drivefine_agent.errors import DriveFineError
from drivefine_agent.training.from_mapping import from_mapping
from rl.config import TrainHybridConfig
from rl.monitors import (
    Means,
    agreement_scalars,
    entropy_scalars,
    group_scalars,
    loss_scalars,
    refinement_scalars,
    reward_scalars,
    trajectory_scalars,
    worse_target_scalars,
)
from rl.objectives import group_advantages, grpo_loss, pair_advantages, refiner_loss
from rl.policy import PolicyBatch
from rl.rollout import encode_scenes, greedy_draft, sample_group, sample_refinements
from rl.setup import StepClock, begin_run

LOGGER = logging.getLogger(__name__)


def train(config: TrainHybridConfig) -> Path:
    """The whole run; returns the folder of the trained model."""
    objective, rollout, seed = config.objective, config.rollout, config.run.seed
    num_samples, num_refined = rollout.num_samples, rollout.num_refined  # G, K
    with begin_run(config, "hybrid", needs_reference=objective.generator and objective.beta > 0.0) as run:
        engine, ask = run.engine, run.instructions
        spec = run.planner.action_tokenizer.spec
        for step in run.remaining_steps("Hybrid RL"):
            clock, means, is_logged = StepClock(run.rewards), Means(), run.is_logged(step)
            micro_batches = run.micro_batches(step)

            # Draft with the generation expert, refine with the refinement expert. Trajectories are scored
            # while the next ones are sampled.
            drafts = []
            with engine.inference() as model:
                for part in micro_batches:
                    scenes, tokens = run.scenes.inputs(model, part.index), run.scenes.tokens(part.index)
                    context = encode_scenes(model, scenes)
                    trace = sample_group(model, context, ask.predict, rollout, seed, part.visits)  # (B, G, L)
                    anchors = trace.actions  # (B, A, L): the samples, and the greedy draft if asked for
                    if rollout.greedy_anchor:
                        greedy = greedy_draft(model, context, ask.predict, rollout)
                        anchors = torch.cat([anchors, greedy], dim=1)
                    poses = run.poses(anchors)
                    anchor_ticket = run.rewards.submit(tokens, poses)
                    means.add(trajectory_scalars(anchors, poses, spec, "generated"))

                    targets, answers, refined_ticket = [], [anchors], None
                    if objective.offline:
                        targets.append(trace.actions[:, None].expand(-1, anchors.shape[1], -1, -1))
                    if objective.online:
                        refined = sample_refinements(
                            model, context, ask.refine, anchors, rollout, seed, part.visits
                        )  # (B, A, K, L)
                        targets.append(refined)
                        answers.append(refined.flatten(1, 2))  # (B, A K, L)
                        poses = run.poses(answers[1])  # (B, A K, 8, 3)
                        refined_ticket = run.rewards.submit(tokens, poses)
                        means.add(trajectory_scalars(answers[1], poses, spec, "refined"))
                    predicted = run.predict(scenes, answers)  # None of each without a learned scorer
                    batch = PolicyBatch(
                        visual=scenes.visual,
                        context_ids=scenes.context_ids,
                        context_lengths=scenes.context_lengths,
                        predict_ids=ask.predict,
                        refine_ids=ask.refine,
                        actions=trace.actions,
                        step_map=trace.step_map if objective.generator else None,
                        anchors=anchors,
                        targets=torch.cat(targets, dim=2) if targets else None,  # (B, A, G + K, L)
                        wants_entropy=is_logged,
                    )
                    asked = batch._replace(wants_entropy=False)
                    reference = None
                    if run.reference is not None:
                        reference = run.log_probs(run.reference, asked._replace(targets=None))
                    old = run.log_probs(model, asked) if objective.num_inner_updates > 1 else None
                    drafts.append((batch, answers, predicted, anchor_ticket, refined_ticket, reference, old))
            del model, context, trace  # where weights are sharded: a whole copy, and what it remembers

            scored = {}
            for update in range(objective.num_inner_updates):
                for part, draft in zip(micro_batches, drafts, strict=True):
                    batch, answers, predicted, anchor_ticket, refined_ticket, reference, old = draft

                    # Rewards.
                    if update == 0:
                        scores = run.collect(anchor_ticket, part, answers[0], "generated", predicted[0])
                        scored[anchor_ticket] = scores
                        means.add(reward_scalars(scores.first(num_samples), "generated"))
                        means.add(agreement_scalars(scores.first(num_samples), "generated"))
                        means.add(group_scalars(scores.learned[:, :num_samples]))
                        if refined_ticket is not None:
                            refined_scores = scored[refined_ticket] = run.collect(
                                refined_ticket, part, answers[1], "refined", predicted[1]
                            )
                            means.add(reward_scalars(refined_scores, "refined"))
                            means.add(agreement_scalars(refined_scores, "refined"))
                            means.add(refinement_scalars(scores.rewards, refined_scores.rewards))
                    anchor_rewards, is_known = scored[anchor_ticket].tensors(engine.device)  # (B, A)
                    rewards, is_valid = anchor_rewards[:, :num_samples], is_known[:, :num_samples]  # (B, G)

                    with engine.accumulate(part.is_last):
                        log_probs = engine(batch)
                        old_log_probs: Any = log_probs.detach() if old is None else old
                        loss = torch.zeros((), device=engine.device)

                        # Generator: advantages in the group, GRPO.
                        if objective.generator:
                            term = grpo_loss(
                                log_probs.generator,
                                old_log_probs.generator,
                                None if reference is None else reference.generator,
                                group_advantages(rewards, is_valid),
                                is_valid,
                                objective.epsilon,
                                objective.beta,
                            )
                            loss = loss + term.total
                            means.add(loss_scalars(term, "generator", len(rewards)))

                        # Refiner, offline: anchor a, target b, both samples of the generator.
                        if objective.offline:
                            pairs = log_probs.refiner[:, :num_samples, :num_samples]  # (B, G, G, L)
                            advantages = pair_advantages(rewards, rewards[:, None])
                            is_pair = is_valid[:, :, None] & is_valid[:, None]
                            term = refiner_loss(
                                pairs,
                                old_log_probs.refiner[:, :num_samples, :num_samples],
                                advantages,
                                is_pair,
                                objective.epsilon,
                                objective.min_advantage,
                                objective.log_prob_floor,
                            )
                            loss = loss + term.total
                            means.add(loss_scalars(term, "offline", len(rewards)))
                            means.add(worse_target_scalars(pairs, advantages, is_pair, "offline"))

                        # Refiner, online: anchor a, its own refinements k.
                        if refined_ticket is not None:
                            own = log_probs.refiner[:, :, -num_refined:]  # (B, A, K, L)
                            values, is_scored = scored[refined_ticket].tensors(engine.device)
                            advantages = pair_advantages(anchor_rewards, values.view(own.shape[:-1]))
                            is_pair = is_known[:, :, None] & is_scored.view(own.shape[:-1])
                            term = refiner_loss(
                                own,
                                old_log_probs.refiner[:, :, -num_refined:],
                                advantages,
                                is_pair,
                                objective.epsilon,
                                objective.min_advantage,
                                objective.log_prob_floor,
                            )
                            loss = loss + term.total
                            means.add(loss_scalars(term, "online", len(rewards)))
                            means.add(worse_target_scalars(own, advantages, is_pair, "online"))
                        engine.backward(loss * part.share)
                    means.add(entropy_scalars(log_probs.generator_entropy, log_probs.refiner_entropy))
                scalars = run.update(step)
            if is_logged:
                run.log(step, means, scalars, clock)
        model_folder = run.finish()
    LOGGER.info("model: %s", model_folder)
    return model_folder


@hydra.main(version_base="1.3", config_path="../navsim_configs", config_name="train_hybrid")
def main(config: DictConfig) -> None:
    """Convert errors made for people into one line; everything else is a bug and keeps its traceback."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        values: Any = OmegaConf.to_container(config, resolve=True)
        train(from_mapping(TrainHybridConfig, values))
    except (DriveFineError, FloatingPointError, ValueError, OmegaConfBaseException) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
