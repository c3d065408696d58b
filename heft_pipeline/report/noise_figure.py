"""The report's figure of where each comparison's noise comes from, and what would lessen it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import Patch

from heft_pipeline.evidence.comparison import Comparison
from heft_pipeline.report import words
from heft_pipeline.report.drawing import SIZE, SMALL, Figure, legend_above, save
from heft_pipeline.report.forest_plot import named_claim
from heft_pipeline.report.sentences import widths_with_more, would_decide
from heft_pipeline.report.verdicts import Verdict

_MOST = 30
#: Of each source: its colour and hatch; in black and white, a dark, a light and a white bar.
_SOURCES = {
    "seeds": ("#0072B2", ""),
    "examples": ("#F0C66E", ""),
    "rest": ("white", "\\\\\\\\"),  # lines: an SVG spells out each dot of a dotted pattern
}
_UNKNOWN = ("#F0C66E", "////")
#: The height of a line of text and the room between claims, in inches; the share of the width
#: that the bars take.
_LINE, _GAP, _BARS = 0.125, 0.14, 0.45


def noise_figure(verdicts: Sequence[Verdict], path: Path) -> Figure | None:
    """Draw what seeds and examples contribute to each difference's variance.

    Args:
        verdicts: The verdicts; the first 30 whose claim could be tested are drawn.
        path: The files' path without an ending.

    Returns:
        The figure; None where no claim could be tested.
    """
    tested = [(v, v.comparison) for v in verdicts if v.comparison is not None]
    if not tested:
        return None
    drawn = tested[:_MOST]
    height = sum(_height(verdict) for verdict, _ in drawn)
    drawing, axes = plt.subplots(figsize=(SIZE[0], height + 0.4), layout="constrained")
    top = 0.0
    for verdict, found in drawn:
        _draw(axes, verdict, found, top)
        top -= _height(verdict)
    axes.set_ylim(top + _GAP, 0.02)
    axes.set_xlim(0, 1)
    axes.set_axis_off()
    unknown = any(found.components.of_seeds is None for _, found in drawn)
    _explain(drawing, drawn, unknown)
    one_seed = (
        " One seed does not show how much seeds differ, so a hatched bar is of examples alone."
        if unknown
        else ""
    )
    more = f" The first {_MOST} of {len(tested)} claims are drawn." if len(tested) > _MOST else ""
    return save(
        drawing,
        path,
        pd.DataFrame([_row(verdict, found) for verdict, found in tested]),
        "Where the noise comes from",
        "Each bar divides the variance of a claim's difference by what it comes from: from seeds, "
        "from examples, and the rest, which is new in each pair of a seed and an example. Beside "
        "it stands half the width of the interval now, and what it would be with more data."
        f"{one_seed}{more}",
    )


def _shares(found: Comparison) -> dict[str, float]:
    """The share of each source in the variance of the mean."""
    parts = found.components.variances
    whole = sum(parts) or 1.0
    return {name: part / whole for name, part in zip(_SOURCES, parts, strict=True)}


def _height(verdict: Verdict) -> float:
    """The height in inches that a claim takes: its name, its widths, and what would decide it."""
    lines = named_claim(verdict.what).count("\n") + 1 + len(widths_with_more(verdict))
    return _LINE * (lines + bool(would_decide(verdict))) + _GAP


def _draw(axes: Axes, verdict: Verdict, found: Comparison, top: float) -> None:
    """Draw a claim below a height in inches."""
    metric, name = verdict.claim.metric, named_claim(verdict.what)
    _write(axes, 0, top, name, weight="bold")
    top -= _LINE * (name.count("\n") + 1)
    widths = [
        f"±{words.size(width, metric)} {'now' if name == 'now' else f'with {name}'}"
        for name, width in widths_with_more(verdict).items()
    ]
    _bar(axes, found, top - _LINE * len(widths) / 2 - 0.02)
    for line in widths:
        _write(axes, _BARS + 0.02, top, line if line is widths[0] else _without_unit(line))
        top -= _LINE
    _write(axes, 0, top, would_decide(verdict))


def _without_unit(line: str) -> str:
    size, _, *rest = line.split(" ")
    return " ".join([size, *rest])


def _write(axes: Axes, left: float, top: float, text: str, weight: str = "normal") -> None:
    # The text has its place already; the layout must not make room for it again.
    axes.text(left, top, text, va="top", fontsize=SMALL, fontweight=weight).set_in_layout(False)


def _bar(axes: Axes, found: Comparison, middle: float) -> None:
    left = 0.0
    for name, share in _shares(found).items():
        known = found.components.of_seeds is not None
        colour, hatch = _SOURCES[name] if known else _UNKNOWN
        if share:
            axes.barh(
                middle,
                _BARS * share,
                1.4 * _LINE,
                left=_BARS * left,
                color=colour,
                hatch=hatch,
                edgecolor="black",
                linewidth=0.6,
            )
        left += share


def _explain(drawing: Drawing, drawn: Sequence[tuple[Verdict, Comparison]], unknown: bool) -> None:
    known = any(found.components.of_seeds is not None for _, found in drawn)
    entries = dict(_SOURCES) if known else {}
    if unknown:
        entries["examples (seeds unknown)"] = _UNKNOWN
    handles = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="black", linewidth=0.6, label=name)
        for name, (colour, hatch) in entries.items()
    ]
    legend_above(drawing, handles, columns=min(3, len(handles)))


def _row(verdict: Verdict, found: Comparison) -> dict[str, Any]:
    seeds, examples = verdict.needed
    unknown = found.components.of_seeds is None
    shares = {f"share_of_{name.replace(' ', '_')}": s for name, s in _shares(found).items()}
    if unknown:
        shares["share_of_seeds"] = float("nan")
    widths = {
        f"half_width_{'' if name == 'now' else 'with_'}{name.replace(' ', '_').replace(',', '')}": w
        for name, w in widths_with_more(verdict).items()
    }
    still_open = verdict.holds is None
    return {
        "claim": verdict.what,
        "verdict": verdict.verdict,
        "metric": verdict.claim.metric,
        **shares,
        **widths,
        "seeds_that_would_decide": seeds if still_open else None,
        "examples_that_would_decide": examples if still_open else None,
    }
