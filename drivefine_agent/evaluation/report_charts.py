"""The report's small drawings, as SVG text: intervals, histograms, scatter, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.evaluation.bootstrap import Interval

GOOD, BAD, NEUTRAL, GRID = "#076344", "#a02b12", "#5b6570", "#e2e5e9"
CURVE_COLOURS = ("#1f5fbf", "#d1341f", "#0a9462", "#8a3ffc", "#b36b00")
_BINS = 20

FloatArray = NDArray[np.float64]


def interval_svg(interval: Interval, reach: float) -> str:
    """A drawn interval around a zero line; `reach` lies at the ends."""
    width, height, middle = 120, 18, 60

    def place(value: float) -> float:
        return middle + 53 * value / reach

    colour = NEUTRAL
    if interval.excludes_zero:
        colour = GOOD if interval.mean > 0 else BAD
    return (
        f'<svg width="{width}" height="{height}" role="img" aria-label="interval">'
        f'<line x1="{middle}" x2="{middle}" y1="0" y2="{height}" stroke="#b9c0c8"/>'
        f'<line x1="{place(interval.low):.1f}" x2="{place(interval.high):.1f}" y1="9" y2="9" '
        f'stroke="{colour}" stroke-width="3" stroke-linecap="round"/>'
        f'<circle cx="{place(interval.mean):.1f}" cy="9" r="5" fill="{colour}" stroke="#fff" '
        'stroke-width="1.5"/></svg>'
    )


def histogram_svg(values: FloatArray, largest_share: float) -> str:
    """Distribution of scores in [0, 1]: zeros by themselves in red, twenty bins above."""
    zeros = int(np.sum(values == 0.0))
    counts, _ = np.histogram(values[values > 0.0], bins=_BINS, range=(0.0, 1.0))
    width, height, left, step = 250.0, 96.0, 6.0, 11.0
    unit = (height - 26.0) / max(largest_share * len(values), 1.0)
    bars = []
    for slot, (count, colour, name) in enumerate(
        [
            (zeros, BAD, "0"),
            *(
                (int(count), "#4a6f9c", f"{100 * i / _BINS:.0f} to {100 * (i + 1) / _BINS:.0f}")
                for i, count in enumerate(counts)
            ),
        ]
    ):
        tall = count * unit
        x = left + slot * step + (4.0 if slot else 0.0)
        bars.append(
            f'<rect x="{x:.1f}" y="{height - 16 - tall:.1f}" width="{step - 1.5}" height="{tall:.1f}" '
            f'fill="{colour}"><title>{name}: {count} scenes</title></rect>'
        )
    base = left + step + 4.0
    ticks = "".join(
        f'<text x="{base + t * _BINS * step:.1f}" y="{height - 3}" text-anchor="middle">{100 * t:.0f}</text>'
        for t in (0.5, 1.0)
    )
    mean = base + float(values.mean()) * _BINS * step if len(values) else base
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="100%" role="img" aria-label="distribution" '
        f'font-size="10" fill="{NEUTRAL}"><line x1="0" x2="{width:.0f}" y1="{height - 16}" '
        f'y2="{height - 16}" stroke="{GRID}"/>{"".join(bars)}'
        f'<line x1="{mean:.1f}" x2="{mean:.1f}" y1="6" y2="{height - 16}" stroke="#1c2128" '
        f'stroke-dasharray="3 3"/><text x="{left + 5}" y="{height - 3}" text-anchor="middle">0</text>'
        f"{ticks}</svg>"
    )


def scatter_svg(tokens: Sequence[str], before: FloatArray, after: FloatArray, metric: str) -> str:
    """Scores before (right) and after (up), one dot per scene; on the diagonal nothing changed."""
    size, margin = 340, 42
    span = size - 2 * margin
    x, y = margin + span * before, size - margin - span * after
    colours = np.select([after > before + 1e-9, after < before - 1e-9], [GOOD, BAD], NEUTRAL)
    dots = "".join(
        f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{colour}" fill-opacity="0.45" '
        f'data-token="{escape(token)}"><title>{escape(token)}: {100 * first:.1f} → {100 * second:.1f}</title>'
        "</circle>"
        for token, px, py, colour, first, second in zip(tokens, x, y, colours, before, after, strict=True)
    )
    ticks = "".join(
        f'<text x="{margin + span * t}" y="{size - margin + 16}" text-anchor="middle">{100 * t:.0f}</text>'
        f'<text x="{margin - 7}" y="{size - margin - span * t + 4}" text-anchor="end">{100 * t:.0f}</text>'
        for t in (0.0, 0.5, 1.0)
    )
    low, high = margin, size - margin
    return (
        f'<svg viewBox="0 0 {size} {size}" width="100%" style="max-width:{size}px" role="img" '
        f'aria-label="{metric} before and after refinement" font-size="11.5" fill="{NEUTRAL}">'
        f'<rect x="{low}" y="{low}" width="{span}" height="{span}" fill="#fafbf9" stroke="{GRID}"/>'
        f'<line x1="{low}" y1="{high}" x2="{high}" y2="{low}" stroke="#b9c0c8" stroke-dasharray="4 4"/>'
        f"{dots}{ticks}"
        f'<text x="{size / 2}" y="{size - 6}" text-anchor="middle">{metric} before refinement</text>'
        f'<text transform="translate(12 {size / 2}) rotate(-90)" text-anchor="middle">after</text>'
        f'<text x="{low + 8}" y="{low + 18}" fill="{GOOD}">gained</text>'
        f'<text x="{high - 8}" y="{high - 10}" text-anchor="end" fill="{BAD}">lost</text></svg>'
    )


def curves_svg(series: Mapping[str, tuple[str, FloatArray, FloatArray]]) -> str:
    """Curves (colour, steps, values) by name on one pair of axes; each is also smoothed where it is long.

    Values that are not finite are left out, and leave a gap.
    """
    width, height, left, right, top, bottom = 270.0, 150.0, 44.0, 8.0, 10.0, 20.0
    steps = np.concatenate([steps for _, steps, _ in series.values()])
    values = np.concatenate([values for _, _, values in series.values()])
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return f'<p class="note">no finite value in {len(steps)} rows</p>'
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-12:
        low, high = low - max(abs(low), 1.0) * 0.05, high + max(abs(high), 1.0) * 0.05
    first, last = float(steps.min()), max(float(steps.max()), float(steps.min()) + 1.0)

    def points(x: FloatArray, y: FloatArray) -> str:
        px = left + (x - first) / (last - first) * (width - left - right)
        py = top + (high - y) / (high - low) * (height - top - bottom)
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(px, py, strict=True))

    lines = []
    for name, (colour, x, y) in series.items():
        is_finite = np.isfinite(y)
        title = f"<title>{escape(name)}: last {y[-1]:.4g}</title>"
        pieces = np.split(np.arange(len(y)), np.flatnonzero(np.diff(is_finite.astype(int))) + 1)
        pieces = [piece for piece in pieces if len(piece) and is_finite[piece[0]]]
        is_long = is_finite.sum() > 40
        for piece in pieces:
            if len(piece) == 1:
                a, b = points(x[piece], y[piece]).split(",")
                lines.append(f'<circle cx="{a}" cy="{b}" r="2.5" fill="{colour}">{title}</circle>')
                continue
            opacity = "0.3" if is_long else "1"
            lines.append(
                f'<polyline points="{points(x[piece], y[piece])}" fill="none" stroke="{colour}" '
                f'stroke-width="1.6" stroke-opacity="{opacity}">{title}</polyline>'
            )
            if is_long:
                smooth = _running_mean(y[piece], max(3, len(piece) // 15))
                lines.append(
                    f'<polyline points="{points(x[piece], smooth)}" fill="none" stroke="{colour}" '
                    f'stroke-width="2">{title}</polyline>'
                )
    labels = "".join(
        f'<text x="{left - 5}" y="{y:.1f}" text-anchor="end">{value:.3g}</text>'
        for value, y in ((high, top + 8), (low, height - bottom))
    )
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="100%" role="img" aria-label="curve" '
        f'font-size="10" fill="{NEUTRAL}"><rect x="{left}" y="{top}" width="{width - left - right}" '
        f'height="{height - top - bottom}" fill="#fafbf9" stroke="{GRID}"/>{"".join(lines)}{labels}'
        f'<text x="{left}" y="{height - 6}">{first:.0f}</text>'
        f'<text x="{width - right}" y="{height - 6}" text-anchor="end">step {steps.max():.0f}</text></svg>'
    )


def _running_mean(values: FloatArray, window: int) -> FloatArray:
    """Mean over a centred window that is cut at the ends, so that no value is invented there."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    positions = np.arange(len(values))
    start = np.maximum(positions - window // 2, 0)
    stop = np.minimum(positions + window // 2 + 1, len(values))
    return np.asarray((sums[stop] - sums[start]) / (stop - start))
