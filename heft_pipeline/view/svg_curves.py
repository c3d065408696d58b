"""A stage's curves as drawings within the page: no script, and nothing but numbers in them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 420, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 14, 40
#: As many points as the drawing has columns; of more, each column's lowest and highest are drawn.
_COLUMNS = _WIDTH - _LEFT - _RIGHT
_TICKS = 5
_LARGEST = 1e300
#: So many dots can be told apart.
_MOST_DOTS = 40
_DOT = Markup('<circle class="dot s{}" cx="{:.1f}" cy="{:.1f}" r="3"><title>{}</title></circle>')
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a drawing: its name, and its points by rising x."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Curve:
    """A drawing.

    Attributes:
        title: What is drawn, with its unit.
        drawing: The SVG.
        names: The names of its lines, in the order of their colours.
    """

    title: str
    drawing: Markup
    names: tuple[str, ...]


def stage_curves(lines: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """The curves of a stage that have any points.

    Args:
        lines: The decoded lines of its ``metrics.jsonl``.

    Returns:
        Loss, dev accuracy and learning rate over optimiser steps.
    """
    steps = [line for line in lines if line["event"] == "step"]
    epochs = [line for line in lines if line["event"] == "epoch"]
    wanted = [
        (
            "loss (nats)",
            [
                Series("training", _points(steps, "loss")),
                Series("training, mean of the epoch", _points(epochs, "train_loss")),
                Series("dev", _points(epochs, "dev_loss")),
            ],
        ),
        ("dev accuracy (%)", [Series("dev", _points(epochs, "dev_accuracy", 100))]),
        ("learning rate", [Series("learning rate", _points(steps, "learning_rate"))]),
    ]
    found = []
    for title, several in wanted:
        series = [one for one in several if one.points]
        if series:
            found.append((title, series))
    last = max((x for _, several in found for one in several for x, _ in one.points), default=1)
    return [
        Curve(title, _draw(title, several, last), tuple(one.name for one in several))
        for title, several in found
    ]


def _points(lines: Iterable[Mapping[str, Any]], key: str, times: float = 1) -> list[Point]:
    pairs = ((line["step"], line.get(key)) for line in lines)
    found = ((_plain(x), _plain(y)) for x, y in pairs)
    return [(x, times * y) for x, y in found if x is not None and y is not None]


def _plain(value: object) -> float | None:
    """A number that can be drawn, or None for anything else that a file may hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if abs(value) < _LARGEST else None  # which is false of NaN


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Round numbers within a range, about five.

    Args:
        low: The range's lower end.
        high: Its upper end, at least as high.
        whole: Whether they count something, so that there is nothing between 1 and 2.
    """
    if not low < high:
        return [low]
    rough = (high - low) / _TICKS
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * n for n in (1, 2, 2.5, 5, 10) if size * n >= rough * (1 - 1e-9))
    step = max(1.0, step) if whole else step
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [step * n for n in range(first, last + 1)]


def tick_names(values: Sequence[float]) -> list[str]:
    """Numbers with as many digits as tell them apart; very small ones with an exponent.

    Args:
        values: Evenly spaced numbers.
    """
    top = max(map(abs, values), default=0.0)
    gap = abs(values[1] - values[0]) if len(values) > 1 else top
    if top and (top < 1e-3 or top >= 1e6):
        digits = max(0, math.ceil(math.log10(top / gap)) if gap else 0)
        return ["0" if not value else _short(f"{value:.{digits}e}") for value in values]
    digits = max(0, 1 - math.floor(math.log10(gap))) if gap else 0
    names = [f"{value:,.{digits}f}" for value in values]
    while digits and all(name.endswith("0") for name in names):
        digits -= 1
        names = [f"{value:,.{digits}f}" for value in values]
    return names


def _short(text: str) -> str:
    number, _, power = text.partition("e")
    number = number.rstrip("0").rstrip(".") if "." in number else number
    return f"{number}e{int(power)}"


def _draw(title: str, several: Sequence[Series], last: float) -> Markup:
    xs = [x for one in several for x, _ in one.points]
    ys = [y for one in several for _, y in one.points]
    low, high = min(ys), max(ys)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    left, right = min(0.0, *xs), max(last, 1.0)
    low, high = (0.0 if 0 <= low < margin * 4 else low - margin), high + margin

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / (right - left) * _COLUMNS
        return _LEFT + across, _TOP + (high - y) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_axes(ticks(left, right, whole=True), ticks(low, high), place)]
    for number, one in enumerate(several):
        drawn = [place(x, y) for x, y in _thinned(one.points)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
        parts.append(Markup('<polyline class="line s{}" points="{}"/>').format(number, line))
        if len(one.points) <= _MOST_DOTS:
            for x, y in one.points:
                across, down = place(x, y)
                said = f"{one.name}, step {x:,.0f}: {y:.4g}"
                parts.append(_DOT.format(number, across, down, said))
    said = f"{title} over steps, from {ys[0]:.4g} to {several[0].points[-1][1]:.4g}"
    frame = '<svg class="curve" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    return Markup(frame).format(_WIDTH, _HEIGHT, said, Markup("").join(parts))


def _axes(across: Sequence[float], up: Sequence[float], place: Any) -> Markup:
    bottom, parts = _HEIGHT - _BOTTOM, []
    for value, name in zip(up, tick_names(up), strict=True):
        _, y = place(0, value)
        text = (
            '<line class="grid" x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}"/>'
            '<text x="{}" y="{:.1f}" text-anchor="end">{}</text>'
        )
        right = _WIDTH - _RIGHT
        parts.append(Markup(text).format(_LEFT, y, right, y, _LEFT - 6, y + 4, escape(name)))
    for value, name in zip(across, tick_names(across), strict=True):
        x, _ = place(value, 0)
        text = (
            '<line class="axis" x1="{:.1f}" y1="{}" x2="{:.1f}" y2="{}"/>'
            '<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>'
        )
        parts.append(Markup(text).format(x, bottom, x, bottom + 4, x, bottom + 18, escape(name)))
    base = '<line class="axis" x1="{}" y1="{}" x2="{}" y2="{}"/>'
    parts.append(Markup(base).format(_LEFT, bottom, _WIDTH - _RIGHT, bottom))
    middle = _LEFT + _COLUMNS / 2
    word = '<text x="{:.1f}" y="{}" text-anchor="middle">step</text>'
    parts.append(Markup(word).format(middle, _HEIGHT - 6))
    return Markup("").join(parts)


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    """The points, or of very many, the lowest and the highest in each column."""
    if len(points) <= 2 * _COLUMNS:
        return points
    size = math.ceil(len(points) / _COLUMNS)
    kept = []
    for first in range(0, len(points), size):
        part = points[first : first + size]
        ends = min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])
        kept += sorted(set(ends))
    return kept
