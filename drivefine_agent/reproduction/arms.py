"""What is trained for the tables: each arm is one command, started from the arm before it.

An arm is trained once per seed and shared by all tables that show it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from drivefine_agent.reproduction.plans import GROUP_SIZES, REFINEMENT_BLOCKS


@dataclass(frozen=True)
class Arm:
    """One training command."""

    script: str
    """Below the repository's root."""
    parent: str | None = None
    """The arm whose model it starts from."""
    recipe: str = ""
    """Key of the configuration that lists further overrides, such as `sft`."""
    overrides: tuple[str, ...] = ()
    """Of the script; what sets this arm apart from others of its recipe."""
    start: str = "checkpoint_path={}"
    """How the script is told where the parent's model is."""


GRPO, HYBRID, SFT = "rl/train_grpo.py", "rl/train_hybrid.py", "tools/train_sft.py"

ARMS: dict[str, Arm] = {
    "ego_status_mlp": Arm("tools/train_ego_status_mlp.py", recipe="ego_status_mlp"),
    "sft": Arm(SFT, recipe="sft"),
    # The main model, and group sizes (Table 7).
    "grpo": Arm(GRPO, "sft", "rl"),
    "hybrid": Arm(HYBRID, "sft", "rl"),
    **{f"grpo_g{g}": Arm(GRPO, "sft", "rl", (f"rollout.num_samples={g}",)) for g in GROUP_SIZES},
    # Components (Table 4) and refinement blocks (Table 6), where drafts leave the refiner something to do.
    "grpo_coarse": Arm(GRPO, "sft", "rl_coarse"),
    "offline_coarse": Arm(HYBRID, "sft", "rl_coarse", ("objective.online=false",)),
    "hybrid_coarse": Arm(HYBRID, "sft", "rl_coarse"),
}


for _n in REFINEMENT_BLOCKS:
    ARMS[f"sft_n{_n}"] = Arm(
        SFT,
        "sft",
        "refiner",
        (f"model.overrides={{n_refine: {_n}}}", "perception.num_epochs=0", "generator.num_epochs=0"),
        start="model.init_from={}/model",
    )
    ARMS[f"hybrid_coarse_n{_n}"] = Arm(HYBRID, f"sft_n{_n}", "rl_coarse")


def with_parents(names: Iterable[str]) -> list[str]:
    """The arms and all that they start from, parents first.

    Raises:
      KeyError: an arm is not known.
    """
    ordered: dict[str, None] = {}
    for name in names:
        line = [name]
        while (parent := ARMS[line[-1]].parent) is not None:
            line.append(parent)
        ordered.update(dict.fromkeys(reversed(line)))
    return list(ordered)
