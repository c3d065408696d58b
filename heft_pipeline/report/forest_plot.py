"""The report's figure of the difference that each claim is about, with its interval."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from heft_pipeline.evidence.claims import ACCURACY, LOGPROB
from heft_pipeline.evidence.comparison import Comparison
from heft_pipeline.report.figures import Figure, save
from heft_pipeline.report.verdicts import CONTRADICTED, ONE_RUN, SUPPORTED, Verdict

_MOST = 30
#: Decided claims have a filled mark, whose shape shows the direction.
_MARKS = {SUPPORTED: (">", "black"), CONTRADICTED: ("<", "black"), ONE_RUN: ("s", "white")}
_LABELS = {
    ACCURACY: "difference (points of accuracy)",
    LOGPROB: "difference (log-probability of the right choice, nats)",
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
        figsize=(5.0, 0.6 * len(groups) + 0.4 + 0.42 * len(drawn)),
        height_ratios=[len(group) + 0.5 for group in groups],
        layout="constrained",
        squeeze=False,
    )
    for axes, group in zip(grid.flat, groups, strict=True):
        _draw(axes, group)
    more = f" The first {_MOST} of {len(tested)} claims are drawn." if len(tested) > _MOST else ""
    of_one_run = any(verdict.verdict == ONE_RUN for verdict, _ in drawn)
    squares = " Squares speak of these runs only, not of other seeds." if of_one_run else ""
    at_once = " for all claims of the report at once" if len(tested) > 1 else ""
    return save(
        drawing,
        path,
        pd.json_normalize([record for record in records if record["difference"] is not None]),
        "Effects",
        "To the right of the line, the claim's first side is better. The bars cover with "
        f"95 %{at_once}. Filled marks are decided, open marks are not: their bar crosses the line, "
        "or the dotted one where the claim allows a margin. Dots are single seeds."
        f"{squares}{more}",
    )


def _draw(axes: Axes, group: Sequence[tuple[Verdict, Comparison]]) -> None:
    metric = group[0][0].claim.metric
    scale = 100 if metric == ACCURACY else 1
    axes.axvline(0, color="0.4", linewidth=1)
    for row, (verdict, found) in enumerate(group):
        mark, fill = _MARKS.get(verdict.verdict, ("o", "white"))
        if verdict.claim.margin:
            for boundary in verdict.claim.boundaries:
                place = [scale * boundary] * 2
                axes.plot(place, [-row - 0.35, -row + 0.35], color="0.4", linestyle=":")
        if len(found.seeds) > 1:
            axes.plot(
                scale * found.by_seed,
                [-row - 0.22] * len(found.by_seed),
                linestyle="none",
                marker=".",
                markersize=4,
                color="0.55",
            )
        low, high = verdict.interval
        axes.errorbar(
            scale * found.difference,
            -row,
            xerr=[[scale * (found.difference - low)], [scale * (high - found.difference)]],
            color="black",
            marker=mark,
            markerfacecolor=fill,
            capsize=3,
        )
    axes.set_yticks([-row for row in range(len(group))], [v.what for v, _ in group])
    axes.set_ylim(-len(group) + 0.4, 0.6)
    axes.set_xlabel(_LABELS[metric])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
