"""Roll-outs are the agent's own decoding, and their random numbers belong to scenes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from drivefine_agent.agent import DriveFineAgent
from drivefine_agent.baselines.base import PlanningCase
from drivefine_agent.data.scenes import load_scenes
from drivefine_agent.data.splits import load_split
from drivefine_agent.diffusion.decoding import DecodingOptions
from drivefine_agent.model.tiles import tile_image
from drivefine_agent.navsim_inputs import observation_from_window
from drivefine_agent.planner import Planner, plan_tokens, refiner_logits
from drivefine_agent.prompt import pad_contexts
from drivefine_agent.training.seeds import generator_for
from rl.config import HybridRolloutConfig
from rl.rollout import SceneInputs, encode_scenes, greedy_draft, sample_group, sample_refinements


def _sample(sampled, scenes: slice, visits: list[int], seed: int = 3):
    """Drafts and refinements of some of the two scenes."""
    inputs = SceneInputs(*(values[scenes] for values in sampled.scenes))
    context = encode_scenes(sampled.model, inputs)
    trace = sample_group(sampled.model, context, sampled.predict_ids, sampled.config, seed, visits)
    refined = sample_refinements(
        sampled.model, context, sampled.refine_ids, trace.actions, sampled.config, seed, visits
    )
    return trace, refined


def test_draws_do_not_depend_on_the_split_into_micro_batches(sampled) -> None:
    whole, refined = _sample(sampled, slice(None), [4, 5])
    for scene in range(2):
        part, refined_part = _sample(sampled, slice(scene, scene + 1), [4 + scene])
        assert torch.equal(part.actions[0], whole.actions[scene])
        assert torch.equal(part.step_map[0], whole.step_map[scene])
        assert torch.equal(refined_part[0], refined[scene])


def test_another_visit_or_seed_draws_anew(sampled) -> None:
    first, first_refined = _sample(sampled, slice(0, 1), [4])
    for visit, seed in ((5, 3), (4, 7)):
        other, other_refined = _sample(sampled, slice(0, 1), [visit], seed)
        assert not torch.equal(first.actions, other.actions)
        assert not torch.equal(first_refined, other_refined)


def test_samples_of_a_group_and_refinements_of_an_anchor_differ(sampled) -> None:
    trace, refined = _sample(sampled, slice(None), [0, 1])
    assert refined.shape == (2, 3, 2, 24)
    assert not torch.equal(trace.actions[:, 0], trace.actions[:, 1])
    assert not torch.equal(refined[:, :, 0], refined[:, :, 1])
    assert not trace.actions.requires_grad


def test_samples_are_what_the_planner_draws_with_the_same_generators(sampled) -> None:
    options = DecodingOptions(num_steps=6, temperature=1.0, num_samples=3, refine=False)
    plan = plan_tokens(
        sampled.model,
        None,
        sampled.scenes.context_ids,
        sampled.predict_ids,
        sampled.refine_ids,
        options,
        sampled.scenes.context_lengths,
        sampled.scenes.visual,
        [generator_for(3, "drafts", visit) for visit in (0, 1)],
    )
    assert torch.equal(plan.trace.actions, sampled.trace.actions)
    assert torch.equal(plan.trace.step_map, sampled.trace.step_map)


def test_refinements_follow_the_refiners_distribution_at_the_temperature(sampled) -> None:
    """Frequencies of the first slot over many draws, against the softmax."""
    config = replace(sampled.config, num_refined=2000, refine_temperature=0.7)
    context = encode_scenes(sampled.model, sampled.scenes)
    anchors = sampled.trace.actions
    got = sample_refinements(sampled.model, context, sampled.refine_ids, anchors, config, 0, [0, 1])
    with torch.no_grad():
        logits = refiner_logits(sampled.model, context, sampled.refine_ids, anchors)
    for scene, anchor in ((0, 0), (1, 2)):
        scaled = logits.spatial[scene, anchor, 0, 0]
        expected = torch.softmax(scaled / 0.7, -1).float()
        counts = torch.bincount(got[scene, anchor, :, 0], minlength=len(expected)) / 2000
        error = (counts - expected).abs().sum()
        assert error < 0.25
        assert error < (counts - torch.softmax(scaled, -1)).abs().sum()  # and not that of temperature 1


def test_a_further_anchor_leaves_the_refinements_of_the_others_alone(sampled) -> None:
    context = encode_scenes(sampled.model, sampled.scenes)
    greedy = greedy_draft(sampled.model, context, sampled.predict_ids, sampled.config)
    assert greedy.shape == (2, 1, 24)
    anchors = torch.cat([sampled.trace.actions, greedy], dim=1)
    got = sample_refinements(sampled.model, context, sampled.refine_ids, anchors, sampled.config, 3, [0, 1])
    assert got.shape == (2, 4, 2, 24)
    assert torch.equal(got[:, :3], sampled.batch.targets[:, :, 3:])


def test_greedy_draft_and_refinement_are_the_agents_bit_for_bit(navsim_mini: Path, start: Path) -> None:
    """Through Planner.plan and through DriveFineAgent, from images and windows, as in evaluation."""
    split = load_split("synth_one_stage", [navsim_mini / "splits"])
    windows = load_scenes(navsim_mini / "navsim_logs" / split.data_split, split.scene_filter)[:3]
    picture = np.random.default_rng(0).integers(0, 256, size=(9, 16, 3), dtype=np.uint8)
    image = np.asarray(cv2.resize(picture, (1920, 1080), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
    planner = Planner.from_pretrained(start)
    observations = [observation_from_window(window, image) for window in windows]
    plan = planner.plan(observations, DecodingOptions(num_steps=4))
    agent = DriveFineAgent(str(start), num_denoising_steps=4)
    agent.initialize()
    stages = agent.plan_stages([PlanningCase(window, image) for window in windows])

    tiles = torch.from_numpy(np.stack([tile_image(image, planner.model.config.tiles)] * 3))
    contexts = [planner.prompts.context(observation).ids for observation in observations]
    ids, lengths = pad_contexts(contexts, planner.model.config.text_config.pad_token_id or 0)
    with torch.no_grad():
        visual = planner.model.encode_images(tiles)
    scenes = SceneInputs(
        visual, torch.from_numpy(ids), None if lengths is None else torch.from_numpy(lengths)
    )
    context = encode_scenes(planner.model, scenes)
    predict, refine = (torch.from_numpy(planner.prompts.instruction(name)) for name in ("predict", "refine"))
    config = HybridRolloutConfig(num_denoising_steps=4)
    draft = greedy_draft(planner.model, context, predict, config)
    with torch.no_grad():
        refined = refiner_logits(planner.model, context, refine, draft).median()
    np.testing.assert_array_equal(draft, plan.generated_actions)
    np.testing.assert_array_equal(refined, plan.refined_actions)
    assert not torch.equal(draft, refined)
    for stage, actions in (("generated", draft), ("final", refined)):
        poses = planner.action_tokenizer.decode(actions[:, 0].numpy())
        np.testing.assert_array_equal(poses.astype(np.float32), stages[stage].astype(np.float32))
