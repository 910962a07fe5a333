"""Small drawings of a page of HTML: curves with their spread, intervals, bars. Pure: numbers in, text out."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from mflight.proof.difference import Difference, direction

Curve = Sequence[tuple[int, float]]
"""Steps trained and the figure there."""

_SIZE_WH = (400, 250)
_MARGIN = {"left": 34, "right": 20, "top": 10, "bottom": 26}
_DASHES = {"synthesis": "", "real_only": "7 4", "control": "2 4", "equal_time": "9 3 2 3"}


def mean_curve(curves: Sequence[Curve]) -> list[tuple[float, float, float]]:
    """Average the curves of several seeds.

    Args:
        curves: one for each seed; their last points belong together even where the numbers of steps differ.

    Returns:
        steps, mean and sample standard deviation (0 with one seed), at the steps that all seeds have.
    """
    curves = [curve for curve in curves if curve]
    if not curves:
        return []
    inner = [dict(curve[:-1]) for curve in curves]
    shared = sorted(set(inner[0]).intersection(*inner[1:]))
    columns = [(float(step), [points[step] for points in inner]) for step in shared]
    columns.append((statistics.mean(curve[-1][0] for curve in curves), [curve[-1][1] for curve in curves]))
    return [
        (step, statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
        for step, values in columns
    ]


def curve_plot(title: str, curves: Mapping[str, Sequence[Curve]]) -> Markup:
    """Draw a figure over the steps: mean and one standard deviation over the seeds for each arm.

    Args:
        title: what is drawn, for those who cannot see it.
        curves: by arm, one for each seed.

    Returns:
        An SVG element; empty if there is nothing to draw.
    """
    means = {arm: mean_curve(own) for arm, own in curves.items()}
    points = [point for own in means.values() for point in own]
    if not points:
        return Markup()
    x_ticks = _ticks(max(step for step, _, _ in points), least=1.0)
    y_ticks = _ticks(max(mean + spread for _, mean, spread in points))
    place = _Place(x_ticks[-1], y_ticks[-1])
    ends = ", ".join(f"{_words(arm)} ends at {own[-1][1]:.1f}" for arm, own in means.items() if own)
    parts = [
        f'<svg viewBox="0 0 {_SIZE_WH[0]} {_SIZE_WH[1]}" role="img" aria-label="{title} over steps: {ends}">'
    ]
    for value in y_ticks:
        x1, y = place(0, value)
        parts.append(
            f'<line class="grid" x1="{x1}" x2="{_SIZE_WH[0] - _MARGIN["right"]}" y1="{y}" y2="{y}"/>'
        )
        parts.append(f'<text x="{x1 - 6}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    for value in x_ticks:
        x, y = place(value, 0)
        parts.append(f'<text x="{x}" y="{y + 17}" text-anchor="middle">{value:,.0f}</text>')
    drawn = [_line(arm, own, place) for arm, own in reversed(means.items()) if own]
    return Markup("".join([*parts, *drawn, "</svg>"]))


def legend_line(arm: str) -> Markup:
    """Draw the sample of an arm's line for a legend."""
    line = f'<line x1="1" x2="25" y1="5" y2="5" stroke="var(--{arm})" stroke-width="2.6" {_dash(arm)}/>'
    return Markup(f'<svg viewBox="0 0 26 10" aria-hidden="true">{line}</svg>')


def interval_track(difference: Difference, low: float, high: float) -> Markup:
    """Draw a mean with its interval on a scale from ``low`` to ``high``, in which 0 is marked."""
    if difference["mean"] is None:
        return Markup()
    span = ""
    if difference["low"] is not None:
        ends = [_percent(difference[end], low, high) for end in ("low", "high")]
        span = f'<i class="span" style="left:{ends[0]:.2f}%;right:{100 - ends[1]:.2f}%"></i>'
    zero, dot = (
        f'<i class="{css_class}" style="left:{_percent(value, low, high):.2f}%"></i>'
        for css_class, value in (("zero", 0.0), ("dot", difference["mean"]))
    )
    return Markup(f'<div class="track {tone(difference)}" aria-hidden="true">{zero}{span}{dot}</div>')


def bar_track(value: float, low: float, high: float, css_class: str) -> Markup:
    """Draw a bar from 0 to a value on a scale from ``low`` to ``high``."""
    zero, end = _percent(0.0, low, high), _percent(value, low, high)
    left, right = min(zero, end), max(zero, end)
    return Markup(
        f'<div class="track {css_class}" aria-hidden="true">'
        f'<i class="bar" style="left:{left:.2f}%;right:{100 - right:.2f}%"></i>'
        f'<i class="zero" style="left:{zero:.2f}%"></i></div>'
    )


def tone(difference: Difference) -> str:
    """Return ``good`` or ``bad`` where the interval leaves out 0, else ``even``."""
    return {1: "good", -1: "bad"}.get(direction(difference) or 0, "even")


def minus(text: str) -> str:
    """Write the sign of negative numbers as print does, not as a hyphen."""
    return re.sub(r"(?<![\w.])-(?=\d)", "\N{MINUS SIGN}", text)


def signed(value: float) -> str:
    """Write a change with its sign, such as ``+1.2``."""
    return minus(f"{value:+z.1f}")


def scale_of(differences: Sequence[Difference]) -> tuple[float, float]:
    """Return the ends of a scale that holds all means, 0, and intervals as far as twice the largest mean."""
    means = [difference["mean"] for difference in differences if difference["mean"] is not None]
    largest = max((abs(mean) for mean in means), default=1.0) or 1.0
    ends = [0.0, *means]
    for difference in differences:
        ends += [difference[end] for end in ("low", "high") if difference[end] is not None]
    low, high = (max(-2 * largest, min(2 * largest, end)) for end in (min(ends), max(ends)))
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


class _Place:
    """Takes steps and figure to a place in the drawing."""

    def __init__(self, x_max: float, y_max: float):
        self._x_max, self._y_max = x_max or 1.0, y_max or 1.0

    def __call__(self, step: float, value: float) -> tuple[float, float]:
        width = _SIZE_WH[0] - _MARGIN["left"] - _MARGIN["right"]
        height = _SIZE_WH[1] - _MARGIN["top"] - _MARGIN["bottom"]
        return (
            round(_MARGIN["left"] + width * step / self._x_max, 1),
            round(_MARGIN["top"] + height * (1 - max(0.0, value) / self._y_max), 1),
        )


def _line(arm: str, means: Sequence[tuple[float, float, float]], place: _Place) -> str:
    upper = [place(step, mean + spread) for step, mean, spread in means]
    lower = [place(step, mean - spread) for step, mean, spread in reversed(means)]
    middle = [place(step, mean) for step, mean, _ in means]
    band = (
        f'<polygon class="band" fill="var(--{arm})" points="{_path([*upper, *lower])}"/>'
        if len(means) > 1
        else ""
    )
    line = f'<polyline class="mean" stroke="var(--{arm})" {_dash(arm)} points="{_path(middle)}"/>'
    dots = "".join(f'<circle class="point" cx="{x}" cy="{y}" r="3" fill="var(--{arm})"/>' for x, y in middle)
    return f'<g data-arm="{arm}">{band}{line}{dots}</g>'


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)


def _dash(arm: str) -> str:
    return f'stroke-dasharray="{_DASHES[arm]}"' if _DASHES.get(arm) else ""


def _ticks(high: float, least: float = 0.0) -> list[float]:
    """Return round values from 0 to at least ``high``, at most five, no closer than ``least``."""
    rough = max(high, 1e-9) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = max(least, next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough))
    return [step * number for number in range(math.ceil(high / step) + 1)]


def _percent(value: float, low: float, high: float) -> float:
    return min(100.0, max(0.0, 100 * (value - low) / ((high - low) or 1.0)))


def _words(arm: str) -> str:
    return arm.replace("_", " ")
