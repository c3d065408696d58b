"""The report's figure of the difference that each claim is about, with its interval."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from heft_pipeline.evidence.claims import ACCURACY, LOGPROB
from heft_pipeline.evidence.comparison import Comparison
from heft_pipeline.report.drawing import SIZE, SMALL, Figure, plain_numbers, save
from heft_pipeline.report.verdicts import CONTRADICTED, ONE_RUN, SUPPORTED, Verdict

_MOST = 30
#: A claim's row in inches, a line of its name in rows, and how many letters one has room for.
_INCHES, _LINE, _LETTERS = 0.42, 0.3, 60
#: Decided claims have a filled mark, whose shape shows the direction.
_MARKS = {SUPPORTED: (">", "black"), CONTRADICTED: ("<", "black"), ONE_RUN: ("s", "white")}
_LABELS = {
    ACCURACY: "difference (points of accuracy)",
    LOGPROB: "difference (log-probability of the right answer, nats)",
}


def effects(
    verdicts: Sequence[Verdict], records: Sequence[dict[str, Any]], path: Path
) -> Figure | None:
    """Draw the difference of each tested claim with its interval.

    Args:
        verdicts: The verdicts; the first 30 whose claim could be tested are drawn.
        records: The same for machines, written beside the figure.
        path: The files' path without an ending.

    Returns:
        The figure; None where no claim could be tested.
    """
    # One cluster alone shows nothing of others: its interval is everything.
    tested = [
        (v, v.comparison)
        for v in verdicts
        if v.comparison is not None and math.isfinite(v.interval[1] - v.interval[0])
    ]
    if not tested:
        return None
    drawn = tested[:_MOST]
    groups = [[one for one in drawn if one[0].claim.metric == metric] for metric in _LABELS]
    groups = [group for group in groups if group]
    drawing, grid = plt.subplots(
        len(groups),
        figsize=(SIZE[0], 0.5 * len(groups) + _INCHES * (len(drawn) + _extra_lines(drawn))),
        height_ratios=[len(group) + _extra_lines(group) for group in groups],
        layout="constrained",
        squeeze=False,
    )
    for axes, group in zip(grid.flat, groups, strict=True):
        _draw(axes, group)
    more = f" The first {_MOST} of {len(tested)} claims are drawn." if len(tested) > _MOST else ""
    of_one_run = any(verdict.verdict == ONE_RUN for verdict, _ in drawn)
    squares = " Squares speak of these runs only, not of other seeds." if of_one_run else ""
    margins = any(verdict.claim.margin for verdict, _ in drawn)
    dotted = " (where the claim allows a margin, a dotted one)" if margins else ""
    several = any(len(found.seeds) > 1 for _, found in drawn)
    dots = " The small pale dots are single seeds." if several else ""
    at_once = " for all claims of the report at once" if len(tested) > 1 else ""
    return save(
        drawing,
        path,
        pd.json_normalize([record for record in records if record["difference"] is not None]),
        "How large the differences are",
        "To the right of the line at 0, the claim's first side is better. The bars are 95 % "
        f"intervals{at_once}. A filled mark means that the claim is decided. An open mark means "
        f"that it is not, because the bar crosses the line{dotted}.{squares}{dots}{more}",
    )


def named_claim(what: str) -> str:
    """A claim in lines that fit above a column's axes."""
    return textwrap.fill(what, _LETTERS, subsequent_indent="   ")


def _extra_lines(drawn: Sequence[tuple[Verdict, Comparison]]) -> float:
    """The room that the names of more than one line take, in rows."""
    return sum(_LINE * named_claim(verdict.what).count("\n") for verdict, _ in drawn)


def _draw(axes: Axes, group: Sequence[tuple[Verdict, Comparison]]) -> None:
    metric = group[0][0].claim.metric
    scale = 100 if metric == ACCURACY else 1
    axes.axvline(0, color="0.4", linewidth=0.8)
    bottom = 0.0
    for verdict, found in group:
        name = named_claim(verdict.what)
        # The name stands above the bar, and the dots of seeds below it.
        row = bottom - _LINE * (name.count("\n") + 1) - 0.22
        axes.text(
            0,
            bottom,
            name,
            transform=axes.get_yaxis_transform(),
            va="top",
            fontsize=SMALL,
            bbox={"color": "white", "pad": 0.5, "alpha": 0.85},
            zorder=2,
        ).set_in_layout(False)
        bottom = row - (1 - _LINE - 0.22)
        mark, fill = _MARKS.get(verdict.verdict, ("o", "white"))
        for boundary in verdict.claim.boundaries if verdict.claim.margin else ():
            place = [scale * boundary] * 2
            axes.plot(place, [row - 0.3, row + 0.2], color="0.4", linestyle=":")
        if len(found.seeds) > 1:
            axes.plot(
                scale * found.by_seed,
                [row - 0.25] * len(found.by_seed),
                linestyle="none",
                marker="o",
                markersize=2,
                markeredgewidth=0,
                color="0.5",
            )
        low, high = verdict.interval
        axes.errorbar(
            scale * found.difference,
            row,
            xerr=[[scale * (found.difference - low)], [scale * (high - found.difference)]],
            color="black",
            marker=mark,
            markerfacecolor=fill,
        )
    axes.set_ylim(bottom, 0.1)
    axes.set_yticks([])
    axes.set_xlabel(_LABELS[metric])
    axes.xaxis.set_major_formatter(plain_numbers())
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
