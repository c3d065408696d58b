"""The report's figure of the difference that each claim is about, with its interval."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

from heft_pipeline.evidence.significance import Comparison
from heft_pipeline.report.figures import Figure, save
from heft_pipeline.report.verdicts import CONTRADICTED, SUPPORTED, Verdict

_MOST = 30
#: Decided claims have a filled mark, whose shape shows the direction.
_MARKS = {SUPPORTED: (">", "black"), CONTRADICTED: ("<", "black")}


def effects(verdicts: Sequence[Verdict], path: Path) -> Figure | None:
    """Draw the difference of each tested claim with its 95 % interval.

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
    drawing, axes = plt.subplots(figsize=(5.0, 1.0 + 0.42 * len(drawn)), layout="constrained")
    axes.axvline(0, color="0.4", linewidth=1)
    for row, (verdict, found) in enumerate(drawn):
        mark, fill = _MARKS.get(verdict.verdict, ("o", "white"))
        axes.errorbar(
            100 * found.difference,
            -row,
            xerr=[
                [100 * (found.difference - found.low)],
                [100 * (found.high - found.difference)],
            ],
            color="black",
            marker=mark,
            markerfacecolor=fill,
            capsize=3,
        )
    axes.set_yticks([-row for row in range(len(drawn))], [v.what for v, _ in drawn])
    axes.set_ylim(-len(drawn) + 0.4, 0.6)
    axes.set_xlabel("difference (points of accuracy, 95 % interval)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    more = f" The first {_MOST} of {len(tested)} claims are drawn." if len(tested) > _MOST else ""
    return save(
        drawing,
        path,
        _table(tested),
        "Effects",
        "To the right of the line, the claim's first side is more accurate. Filled marks are "
        "decided after correction for all claims of the report, open marks are not decided; the "
        f"bars are not corrected.{more}",
    )


def _table(tested: Sequence[tuple[Verdict, Comparison]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "claim": verdict.what,
                "verdict": verdict.verdict,
                "difference": found.difference,
                "low": found.low,
                "high": found.high,
                "p_value": found.p_value,
                "holm": verdict.adjusted,
                "wins": found.wins,
                "losses": found.losses,
                "seeds": found.seeds,
                "examples": found.examples,
                "needed_examples": found.needed_examples,
                "needed_seeds": found.needed_seeds,
            }
            for verdict, found in tested
        ]
    )
