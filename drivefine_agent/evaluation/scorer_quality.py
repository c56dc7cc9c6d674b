"""What a learned scorer is worth on scenes it has not seen: calibration, ranking, and what its choice costs.

Calibration and discrimination are per sub-score, over all candidates. Ranking is within scenes, where a
choice is made. Regret is what the chosen candidate lacks of the scene's best, beside the regret of the first
candidate and of a random one; also among the candidates of one kind alone, since driving chooses among
refined samples.

Shapes: S scenes, N candidates of a scene, K sub-scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.evaluation.agreement import (
    area_under_curve,
    brier,
    calibration_error,
    kendall,
    reliability,
    spearman,
)
from drivefine_agent.evaluation.bootstrap import Interval, paired_interval
from drivefine_agent.evaluation.comparison import SHORT_NAMES
from drivefine_agent.learned_scorer import CONDITIONAL, PREDICTED, predicted_score

FloatArray = NDArray[np.float64]
_MULTIPLIERS = [PREDICTED.index(name) for name in ("no_at_fault_collisions", "drivable_area_compliance")]


@dataclass(frozen=True)
class JudgedScene:
    """The candidates of one scene, all of them scored."""

    kinds: NDArray[np.str_]
    """(N,)."""
    predicted: FloatArray
    """(N, K) predicted sub-scores, in the order of `PREDICTED`."""
    true: FloatArray
    """(N, K) true ones."""
    scores: FloatArray
    """(N,) true PDM scores."""

    @property
    def predicted_scores(self) -> FloatArray:
        """(N,)."""
        return predicted_score(self.predicted)

    def of_kind(self, kind: str, limit: int) -> JudgedScene:
        """Its first `limit` candidates of a kind."""
        keep = np.flatnonzero(self.kinds == kind)[:limit]
        return JudgedScene(self.kinds[keep], self.predicted[keep], self.true[keep], self.scores[keep])


def scorer_quality(scenes: Sequence[JudgedScene], choices: Sequence[tuple[str, int]] = ()) -> dict[str, Any]:
    """All measures, as JSON values.

    Args:
      scenes: held-out scenes.
      choices: (kind, N) pairs: what driving would choose among, the first N candidates of that kind.
    """
    predicted = np.concatenate([scene.predicted for scene in scenes])
    true = np.concatenate([scene.true for scene in scenes])
    sub_scores = {name: _sub_score_quality(name, predicted, true, i) for i, name in enumerate(PREDICTED)}
    return {
        "num_scenes": len(scenes),
        "num_candidates": len(true),
        "sub_scores": sub_scores,
        "ranking": _ranking(scenes),
        "selection": [
            _selection("all candidates", scenes),
            *(_selection(f"first {n} {kind}", [s.of_kind(kind, n) for s in scenes]) for kind, n in choices),
        ],
    }


def _sub_score_quality(name: str, predicted: FloatArray, true: FloatArray, column: int) -> dict[str, Any]:
    weights = np.ones(len(true))
    if name in CONDITIONAL:
        weights = true[:, _MULTIPLIERS].prod(axis=-1)
    counts = weights > 0
    p, y, w = predicted[counts, column], true[counts, column], weights[counts]
    rows = reliability(p, y, w)
    base = float((y * w).sum() / w.sum()) if w.sum() > 0 else float("nan")
    is_graded = name == "ego_progress"
    return {
        "num_candidates": int(counts.sum()),
        "mean_predicted": _mean(p),
        "mean_true": _mean(y),
        "auc": None if is_graded else _number(area_under_curve(p, y == 1.0)),
        "spearman": _number(spearman(p, y)) if len(y) else None,
        "brier": _number(brier(p, y, w)),
        "brier_of_the_mean": _number(brier(np.full_like(y, base), y, w)),
        "expected_calibration_error": _number(calibration_error(rows)),
        "reliability": rows,
    }


def _ranking(scenes: Sequence[JudgedScene]) -> dict[str, Any]:
    """Within scenes, over those in which true scores differ."""
    rho = [spearman(scene.predicted_scores, scene.scores) for scene in scenes]
    tau = [kendall(scene.predicted_scores, scene.scores) for scene in scenes]
    error = [float(np.abs(scene.predicted_scores - scene.scores).mean()) for scene in scenes]
    return {
        "spearman_within_scene": _mean(np.array([v for v in rho if math.isfinite(v)])),
        "kendall_within_scene": _mean(np.array([v for v in tau if math.isfinite(v)])),
        "num_scenes_that_differ": sum(math.isfinite(value) for value in tau),
        "mean_absolute_error": _mean(np.array(error)),
    }


def _selection(name: str, scenes: Sequence[JudgedScene]) -> dict[str, Any]:
    """Mean scores of the choices, and their regret against the oracle's."""
    scenes = [scene for scene in scenes if len(scene.scores)]
    chosen = np.array([scene.scores[np.argmax(scene.predicted_scores)] for scene in scenes])
    best = np.array([scene.scores.max() for scene in scenes])
    first = np.array([scene.scores[0] for scene in scenes])
    random = np.array([scene.scores.mean() for scene in scenes])
    return {
        "candidates": name,
        "num_scenes": len(scenes),
        "mean_score": {
            "first": _mean(first),
            "random": _mean(random),
            "scorer": _mean(chosen),
            "oracle": _mean(best),
        },
        "regret": {
            "first": _mean(best - first),
            "random": _mean(best - random),
            "scorer": _mean(best - chosen),
        },
        "scorer_minus_first": _interval(chosen, first),
        "scorer_minus_random": _interval(chosen, random),
        "oracle_minus_scorer": _interval(best, chosen),
    }


def _interval(first: FloatArray, second: FloatArray) -> dict[str, float] | None:
    if len(first) == 0:
        return None
    interval: Interval = paired_interval(first, second)
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def _mean(values: FloatArray) -> float | None:
    return float(values.mean()) if len(values) else None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


# --------------------------------------------------------------------------------------------- as Markdown


def quality_markdown(quality: dict[str, Any]) -> str:
    """The measures as tables."""
    lines = [
        f"# Learned scorer on held-out scenes: {quality['num_scenes']} scenes, "
        f"{quality['num_candidates']} candidates",
        "",
        "Progress, time to collision, comfort: over candidates whose NC x DAC is not 0, weighted by it.",
        "AUC tells full marks from less. The mean's Brier score is that of always predicting the mean.",
        "",
        "| | mean true | mean predicted | AUC | Spearman | Brier | mean's Brier | calibration error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in quality["sub_scores"].items():
        values = [
            row[key]
            for key in (
                "mean_true",
                "mean_predicted",
                "auc",
                "spearman",
                "brier",
                "brier_of_the_mean",
                "expected_calibration_error",
            )
        ]
        lines.append(f"| {SHORT_NAMES[name]} | " + " | ".join(_text(value) for value in values) + " |")
    ranking = quality["ranking"]
    lines += [
        "",
        "Predicted and true score within scenes "
        f"({ranking['num_scenes_that_differ']} whose candidates differ): "
        f"Spearman {_text(ranking['spearman_within_scene'])}, "
        f"Kendall {_text(ranking['kendall_within_scene'])}, "
        f"mean absolute error {_text(ranking['mean_absolute_error'])}.",
        "",
        "Mean PDMS (x 100) of the candidate that is chosen; intervals are 95 %, paired over scenes.",
        "",
        "| among | scenes | first | random | scorer | oracle | scorer - first | oracle - scorer |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in quality["selection"]:
        means = [_percent(row["mean_score"][key]) for key in ("first", "random", "scorer", "oracle")]
        gains = [_percent_interval(row[key]) for key in ("scorer_minus_first", "oracle_minus_scorer")]
        lines.append(f"| {row['candidates']} | {row['num_scenes']} | " + " | ".join([*means, *gains]) + " |")
    lines += ["", "Reliability: mean prediction -> mean truth (weight) by tenths of the prediction.", ""]
    for name, row in quality["sub_scores"].items():
        bins = [f"{b['predicted']:.2f} -> {b['true']:.2f} ({b['weight']:.0f})" for b in row["reliability"]]
        lines.append(f"* {SHORT_NAMES[name]}: {', '.join(bins)}")
    return "\n".join(lines) + "\n"


def _text(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.1f}"


def _percent_interval(interval: dict[str, float] | None) -> str:
    if interval is None:
        return "n/a"
    return f"{100 * interval['mean']:+.1f} [{100 * interval['low']:+.1f}, {100 * interval['high']:+.1f}]"
