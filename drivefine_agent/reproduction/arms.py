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
    scorer: str | None = None
    """The arm whose learned scorer it uses."""

    @property
    def seed_key(self) -> str:
        """The script's name for its seed."""
        return {MLP: "mlp.seed", SCORER: "seed"}.get(self.script, "run.seed")

    @property
    def needs(self) -> tuple[str, ...]:
        """Arms that must be trained before."""
        return tuple(name for name in (self.parent, self.scorer) if name is not None)


SFT, GRPO, HYBRID = "tools/train_sft.py", "rl/train_grpo.py", "rl/train_hybrid.py"
DIFFUSION, MLP, SCORER = "rl/train_diffusion.py", "tools/train_ego_status_mlp.py", "tools/train_scorer.py"

ARMS: dict[str, Arm] = {
    "ego_status_mlp": Arm(MLP, recipe="ego_status_mlp"),
    "sft": Arm(SFT, recipe="sft"),
    # The main model, and group sizes (Table 7).
    "grpo": Arm(GRPO, "sft", "rl"),
    "hybrid": Arm(HYBRID, "sft", "rl"),
    **{f"grpo_g{g}": Arm(GRPO, "sft", "rl", (f"rollout.num_samples={g}",)) for g in GROUP_SIZES},
    # Learned scorers: of the supervised model, to reinforce it with; of the main model, to choose by.
    "scorer_sft": Arm(SCORER, "sft", "scorer"),
    "hybrid_scored": Arm(HYBRID, "sft", "rl_scored", scorer="scorer_sft"),
    "scorer_hybrid": Arm(SCORER, "hybrid", "scorer"),
    # Other decoders.
    "ar_sft": Arm(SFT, None, "sft", ("model.decoder=autoregressive",)),
    "ar_grpo": Arm(GRPO, "ar_sft", "rl"),
    "head_sft": Arm(SFT, None, "sft", ("model.decoder=diffusion_head", "generator.pairs_per_scene=8")),
    "head_rl": Arm(DIFFUSION, "head_sft", "rl_diffusion"),
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
        (f"+model.overrides.n_refine={_n}", "perception.num_epochs=0", "generator.num_epochs=0"),
        start="model.init_from={}/model",
    )
    ARMS[f"hybrid_coarse_n{_n}"] = Arm(HYBRID, f"sft_n{_n}", "rl_coarse")


def with_parents(names: Iterable[str]) -> list[str]:
    """The arms and all that they start from, parents first.

    Raises:
      KeyError: an arm is not known.
    """
    ordered: dict[str, None] = {}

    def add(name: str) -> None:
        for needed in ARMS[name].needs:
            add(needed)
        ordered[name] = None

    for name in names:
        add(name)
    return list(ordered)
