"""Which rows each table of the paper has here, and the paper's own numbers beside them.

Numbers of the paper: model.md 1.8 lists them with their contradictions (Table 1's 90.7 is 90.8 in Table 4).
They are of NAVSIM's navtest and an 8B model, ours of whatever was trained and evaluated: only the direction
of differences can be compared.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from drivefine_agent.reproduction.plans import GROUP_SIZES, REFINEMENT_BLOCKS, STEPS

Benchmark = Literal["navsim_v1", "navsim_v2", "navhard_two_stage"]

V1 = ("NC", "DAC", "TTC", "C", "EP", "PDMS")
V2 = ("NC", "DAC", "DDC", "TLC", "EP", "TTC", "LK", "HC", "EC", "EPDMS")


@dataclass(frozen=True)
class Row:
    """One row."""

    title: str
    plan: str
    """Of `plans.PLANS`."""
    is_draft: bool = False
    """Shows the generator's trajectories, before refinement."""
    paper: Mapping[str, float] = field(default_factory=dict)
    """The paper's numbers, by column."""
    x: float | None = None
    """Where the row stands on a figure's axis."""
    base: int | None = 0
    """The row that it is compared with."""
    latency: tuple[str, int] | None = None
    """Method and steps of tools/bench_latency.py's row with its latency."""


@dataclass(frozen=True)
class Table:
    """One table of the paper, or a figure made of the same evaluations."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    benchmarks: tuple[Benchmark, ...] = ("navsim_v1",)
    metric: str = "PDMS"
    """The column that rows are compared in."""
    kind: Literal["rows", "line", "plane", "latency", "pairs"] = "rows"
    """The picture: rows side by side; against each row's `x`; the first two columns against each other, with
    arrows from the base; against latency; the scenes that the second row changed most."""
    x_label: str = ""
    """Of a line."""
    left_out: tuple[Row, ...] = ()
    """Rows of the paper that the model does not have: of them, only the paper's numbers are shown."""

    @property
    def paper_rows(self) -> list[Row]:
        """Rows that the paper has numbers for, along the axis of a line."""
        rows = [row for row in (*self.rows, *self.left_out) if row.paper]
        return sorted(rows, key=lambda row: 0.0 if row.x is None else row.x)


def fitted(table: Table, same_as: Mapping[str, str], skip: Collection[str]) -> Table:
    """The table for a model that it does not fit in all rows.

    Args:
      table: as the paper has it; rows that others are compared with cannot be skipped.
      same_as: plans that are another plan, by name, such as the main model's number of refinement blocks.
      skip: plans whose rows are left out.
    """
    rows = [replace(row, plan=same_as.get(row.plan, row.plan)) for row in table.rows]
    bases = {table.rows[row.base].plan for row in table.rows if row.base is not None}
    if bases & set(skip):
        raise ValueError(f"rows that others are compared with cannot be skipped: {sorted(bases & set(skip))}")
    places = [number for number, row in enumerate(table.rows) if row.plan not in skip]
    new_place = {old: new for new, old in enumerate(places)}
    kept = (rows[number] for number in places)
    return replace(
        table,
        rows=tuple(replace(row, base=None if row.base is None else new_place[row.base]) for row in kept),
        left_out=tuple(replace(row, base=None) for row in rows if row.plan in skip),
    )


def _of(columns: tuple[str, ...], *values: float) -> dict[str, float]:
    return dict(zip(columns, values, strict=True))


_SFT, _GRPO = _of(V1, 98.0, 95.2, 94.9, 99.4, 81.6, 86.7), _of(V1, 98.3, 96.9, 95.1, 99.2, 85.1, 89.6)
_OFFLINE, _ONLINE = _of(V1, 98.5, 97.3, 95.2, 99.9, 85.4, 90.3), _of(V1, 98.6, 97.9, 95.2, 99.9, 85.5, 90.8)

_SAMPLE = 3
"""The row of Table 1 with a single sample, which best of N is compared with."""

TABLE_1 = Table(
    "Planners, PDMS of NAVSIM 1.1",
    V1,
    (
        Row("DriveFine", "hybrid", paper=_of(V1, 98.6, 97.9, 95.2, 99.9, 85.5, 90.7), base=None),
        Row("DriveFine, supervised only", "sft", is_draft=True, paper=_SFT),
        Row(
            "DriveFine*, reinforced by a learned scorer too",
            "hybrid_scored",
            paper=_of(V1, 98.8, 98.6, 96.2, 100.0, 86.9, 91.8),
        ),
        Row("DriveFine, one sample at temperature 1", "hybrid_sample"),
        Row("best of 6 samples by consensus", "hybrid_best_of_6_consensus", base=_SAMPLE),
        Row("best of 6 samples by the learned scorer", "hybrid_best_of_6_scorer", base=_SAMPLE),
        Row(
            "DriveFine†, best of 6 samples by the true score",
            "hybrid_best_of_6_oracle",
            paper=_of(V1, 99.3, 99.2, 97.9, 100.0, 89.1, 94.2),
            base=_SAMPLE,
        ),
        Row("DriveFine, generator's second pass in place of the refiner", "hybrid_second_pass"),
        Row("DriveFine, blind", "hybrid_blind"),
        Row("autoregressive, supervised only", "ar_sft"),
        Row("autoregressive, GRPO", "ar_grpo"),
        Row("diffusion head, supervised only", "head_sft"),
        Row("diffusion head, reinforced", "head_rl", paper=_of(V1, 98.2, 97.8, 95.2, 99.8, 83.5, 89.6)),
        Row("MLP of the ego's status", "ego_status_mlp"),
        Row("constant velocity", "constant_velocity"),
        Row("PDM-Closed", "pdm_closed"),
        Row("human", "human", paper=_of(V1, 100.0, 100.0, 100.0, 99.9, 87.5, 94.8)),
    ),
)

TABLE_2 = Table(
    "Planners, EPDMS of NAVSIM 2.2 (one stage, recorded traffic)",
    V2,
    (
        Row(
            "DriveFine",
            "hybrid",
            paper=_of(V2, 98.7, 97.3, 99.5, 99.8, 88.7, 97.8, 97.7, 98.4, 83.8, 89.7),
            base=None,
        ),
        Row("DriveFine, supervised only", "sft", is_draft=True),
        Row("autoregressive, GRPO", "ar_grpo"),
        Row(
            "diffusion head, reinforced",
            "head_rl",
            paper=_of(V2, 98.3, 95.2, 99.5, 99.8, 87.1, 97.5, 96.6, 98.3, 86.5, 83.6),
        ),
        Row(
            "MLP of the ego's status",
            "ego_status_mlp",
            paper=_of(V2, 93.1, 77.9, 92.7, 99.6, 86.0, 91.5, 89.4, 98.3, 85.4, 64.0),
        ),
        Row("constant velocity", "constant_velocity"),
        Row("human", "human"),
    ),
    benchmarks=("navsim_v2",),
    metric="EPDMS",
)

TABLE_3 = Table(
    "Two stages, EPDMS of NAVSIM 2.2 (reactive traffic), by mapping group",
    ("stage 1", "stage 2", "EPDMS"),
    (
        Row("DriveFine", "hybrid", paper={"stage 1": 74.4, "stage 2": 41.0}, base=None),
        Row("DriveFine, supervised only", "sft", is_draft=True),
        Row("autoregressive, GRPO", "ar_grpo"),
        Row("diffusion head, reinforced", "head_rl", paper={"stage 1": 68.9, "stage 2": 37.8}),
        Row("constant velocity", "constant_velocity"),
    ),
    benchmarks=("navhard_two_stage",),
    metric="EPDMS",
)

TABLE_4 = Table(
    "Components",
    V1,
    (
        Row("SFT, drafts", "sft_coarse", is_draft=True, paper=_SFT, base=None),
        Row("+ GRPO, drafts", "grpo_coarse", is_draft=True, paper=_GRPO, base=0),
        Row("+ offline RFT, refined", "offline_coarse", paper=_OFFLINE, base=1),
        Row("+ online RFT, refined", "hybrid_coarse", paper=_ONLINE, base=2),
        # Controls: what refinement owes to its warm start, and what each row gains by it.
        Row("SFT, refined", "sft_coarse", base=0),
        Row("+ GRPO, refined", "grpo_coarse", base=1),
        Row("+ online RFT, drafts", "hybrid_coarse", is_draft=True, base=1),
    ),
)

TABLE_5 = Table(
    "Reinforcement by PDMS, judged by extended metrics",
    ("EP", "LK", "EC", "PDMS", "EPDMS"),
    (
        Row(
            "DriveFine, supervised only",
            "sft",
            is_draft=True,
            paper=_of(("EP", "LK", "EC", "PDMS", "EPDMS"), 86.8, 97.9, 83.3, 86.7, 86.8),
            base=None,
        ),
        Row(
            "+ reinforced by PDMS",
            "hybrid",
            paper=_of(("EP", "LK", "EC", "PDMS", "EPDMS"), 88.7, 97.7, 83.8, 90.5, 89.1),
        ),
    ),
    benchmarks=("navsim_v1", "navsim_v2"),
    metric="EPDMS",
)

_BLOCKS = {1: 90.0, 2: 90.4, 4: 90.8, 6: 90.8, 8: 90.7}
TABLE_6 = Table(
    "Number of refinement blocks",
    V1,
    (
        Row("n = 0 (drafts of GRPO)", "grpo_coarse", is_draft=True, paper={"PDMS": 89.6}, x=0, base=None),
        *(
            Row(
                f"n = {n}",
                f"hybrid_coarse_n{n}",
                paper={"PDMS": _BLOCKS[n]} if n in _BLOCKS else {},
                x=n,
            )
            for n in REFINEMENT_BLOCKS
        ),
    ),
    kind="line",
    x_label="refinement blocks n",
)

_GROUPS = {  # EP, DAC, PDMS
    0: (81.6, 95.2, 86.7),
    2: (83.7, 95.8, 88.4),
    4: (84.4, 96.3, 89.1),
    6: (84.7, 96.5, 89.4),
    8: (85.1, 96.9, 89.6),
    10: (85.2, 96.8, 89.6),
}
TABLE_7 = Table(
    "Group size G of GRPO (generator only)",
    ("EP", "DAC", "PDMS"),
    tuple(
        Row(
            "SFT" if size == 0 else f"G = {size}",
            {0: "sft", 10: "grpo"}.get(size, f"grpo_g{size}"),
            is_draft=True,
            paper=_of(("EP", "DAC", "PDMS"), *_GROUPS[size]),
            x=size,
            base=None if size == 0 else 0,
        )
        for size in (0, *GROUP_SIZES, 10)
    ),
    kind="line",
    x_label="samples per scene G",
)

FIGURE_2 = Table(
    "Reinforcement by PDMS, judged by EPDMS: token planners and a diffusion planner",
    ("PDMS", "EPDMS"),
    tuple(
        row
        for number, (name, before, after) in enumerate(
            (
                ("DriveFine", "sft", "hybrid"),
                ("autoregressive", "ar_sft", "ar_grpo"),
                ("diffusion head", "head_sft", "head_rl"),
            )
        )
        for row in (
            Row(f"{name}, supervised", before, is_draft=before == "sft", base=None),
            Row(f"{name}, reinforced", after, base=2 * number),
        )
    ),
    benchmarks=("navsim_v1", "navsim_v2"),
    metric="EPDMS",
    kind="plane",
)

FIGURE_6 = Table(
    "What refinement changes",
    V1,
    (Row("drafts", "hybrid_coarse", is_draft=True, base=None), Row("refined", "hybrid_coarse")),
    kind="pairs",
)

FIGURE_7 = Table(
    "PDMS against latency of a plan",
    V1,
    (
        *(
            Row(
                f"DriveFine, {s} + 1 steps",
                "hybrid" if s == 12 else f"hybrid_s{s}",
                paper={"PDMS": 90.47} if s == 4 else {},
                latency=("cached", s),
                base=None if s == 12 else STEPS.index(12),
            )
            for s in STEPS
        ),
        Row("autoregressive, GRPO", "ar_grpo", latency=("autoregressive", 24), base=STEPS.index(12)),
        Row("diffusion head, reinforced", "head_rl", latency=("diffusion_head", 5), base=STEPS.index(12)),
    ),
    kind="latency",
)

TABLES: dict[str, Table] = {
    "figure2": FIGURE_2,
    "figure6": FIGURE_6,
    "figure7": FIGURE_7,
    "table1": TABLE_1,
    "table2": TABLE_2,
    "table3": TABLE_3,
    "table4": TABLE_4,
    "table5": TABLE_5,
    "table6": TABLE_6,
    "table7": TABLE_7,
}
