"""How trained models, and planners without training, are asked to drive: one evaluation each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Arguments of tools/evaluate.py. `{}` in them stands for the arm's folder."""

    arm: str | None
    """Of `arms.ARMS`; None: nothing is trained, and all seeds are the same."""
    overrides: tuple[str, ...]
    note: str = ""
    """What the planner knows that others do not."""
    scorer: str | None = None
    """The arm whose learned scorer it chooses by."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Arms that must be trained before."""
        return tuple(name for name in (self.arm, self.scorer) if name is not None)


STEPS = (1, 2, 4, 8, 12, 24)
"""Denoising steps of Figure 7."""
GROUP_SIZES = (2, 4, 6, 8)
REFINEMENT_BLOCKS = (1, 2, 3, 4, 5, 6, 8)
"""The paper's 1, 2, 4, 6, 8; and 3 and 5 for the tiny model, whose 5 blocks they then are a full copy of."""


def _drivefine(arm: str, *overrides: str) -> Plan:
    return Plan(arm, ("agent=drivefine", "agent.checkpoint_path={}/model", *overrides))


def _best_of(arm: str, selection: str, **fields: str) -> Plan:
    agent = ("agent=drivefine_best_of_n", "agent.checkpoint_path={}/model", f"agent.selection={selection}")
    return Plan(arm, agent, **fields)


def _other(agent: str, arm: str) -> Plan:
    return Plan(arm, (f"agent={agent}", "agent.checkpoint_path={}/model"))


COARSE = "{coarse}"
"""Stands for the configuration's `coarse`, overrides of plans that leave refinement something to do."""

PLANS: dict[str, Plan] = {
    "human": Plan(None, ("agent=human",), "the recorded future"),
    "pdm_closed": Plan(None, ("agent=pdm_closed",), "the map and all road users"),
    "constant_velocity": Plan(None, ("agent=constant_velocity",)),
    "ego_status_mlp": Plan(
        "ego_status_mlp", ("agent=ego_status_mlp", "agent.checkpoint_path={}"), "no image"
    ),
    "sft": _drivefine("sft"),
    "grpo": _drivefine("grpo"),
    "hybrid": _drivefine("hybrid"),
    "hybrid_blind": Plan("hybrid", (*_drivefine("hybrid").overrides, "blank_image=true"), "a grey image"),
    **{f"hybrid_s{s}": _drivefine("hybrid", f"agent.num_denoising_steps={s}") for s in STEPS if s != 12},
    "hybrid_scored": _drivefine("hybrid_scored"),
    "hybrid_sample": _drivefine("hybrid", "agent.temperature=1.0"),
    "hybrid_best_of_6_consensus": _best_of("hybrid", "consensus"),
    "hybrid_best_of_6_scorer": _best_of("hybrid", "scorer", scorer="scorer_hybrid"),
    "hybrid_best_of_6_oracle": _best_of("hybrid", "oracle", note="an oracle: picked by the true score"),
    **{name: _other("autoregressive", name) for name in ("ar_sft", "ar_grpo")},
    **{name: _other("diffusion_head", name) for name in ("head_sft", "head_rl")},
    "hybrid_second_pass": _drivefine("hybrid", "agent.refine=false", "agent.second_pass=8"),
    **{f"grpo_g{g}": _drivefine(f"grpo_g{g}") for g in GROUP_SIZES},
    "sft_coarse": _drivefine("sft", COARSE),
    **{f"{arm}_coarse": _drivefine(f"{arm}_coarse", COARSE) for arm in ("grpo", "offline", "hybrid")},
    **{f"hybrid_coarse_n{n}": _drivefine(f"hybrid_coarse_n{n}", COARSE) for n in REFINEMENT_BLOCKS},
}
