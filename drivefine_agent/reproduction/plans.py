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


STEPS = (1, 2, 4, 8, 12, 24)
"""Denoising steps of Figure 7."""
GROUP_SIZES = (2, 4, 6, 8)
REFINEMENT_BLOCKS = (1, 2, 3, 4, 5, 6, 8)
"""The paper's 1, 2, 4, 6, 8; and 3 and 5 for the tiny model, whose 5 blocks they then are a full copy of."""


def _drivefine(arm: str, *overrides: str) -> Plan:
    return Plan(arm, ("agent=drivefine", "agent.checkpoint_path={}/model", *overrides))


_COARSE = "agent.num_denoising_steps=2"

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
    **{f"grpo_g{g}": _drivefine(f"grpo_g{g}") for g in GROUP_SIZES},
    "sft_coarse": _drivefine("sft", _COARSE),
    **{f"{arm}_coarse": _drivefine(f"{arm}_coarse", _COARSE) for arm in ("grpo", "offline", "hybrid")},
    **{f"hybrid_coarse_n{n}": _drivefine(f"hybrid_coarse_n{n}", _COARSE) for n in REFINEMENT_BLOCKS},
}
