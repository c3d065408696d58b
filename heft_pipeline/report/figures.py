"""The report's figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd

matplotlib.use("Agg")  # no window, whatever the machine has
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

#: Method: colour (Okabe and Ito's, safe for colour blindness), marker and line, so that the
#: figures can be read in black and white.
_STYLES = {
    "lora": ("#0072B2", "o", "-"),
    "reft": ("#E69F00", "s", "--"),
    "heft": ("#009E73", "^", "-."),
    "joint": ("#CC79A7", "D", ":"),
    "base": ("#000000", "x", ":"),
}
_OTHER = ("#56B4E9", "v", "-")


def accuracy_over(
    groups: pd.DataFrame, column: str, label: str, title: str, path: Path
) -> list[Path]:
    """Draw accuracy over a column, a line a method and rank, with 95 % intervals.

    Args:
        groups: What :func:`heft_pipeline.report.table.groups_table` gives.
        column: The column of the horizontal axis, all greater than 0; its axis is logarithmic.
        label: The axis's label with its unit.
        title: What the figure shows.
        path: The files' path without an ending.

    Returns:
        The PNG, the SVG, and the CSV with the drawn numbers.
    """
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    drawn = groups[groups[column] > 0]
    series = ["method", "lora_rank", "reft_rank", "model", "data"]
    many = len(drawn.groupby(series, dropna=False)) > drawn.method.nunique()
    for keys, group in drawn.groupby(series, sort=False, dropna=False):
        _line(axes, group.sort_values(column), column, _name(keys, many))
    for index, majority in enumerate(sorted(set(groups.majority.round(6)))):
        axes.axhline(
            majority, color="0.5", linewidth=1, label="majority class" if index == 0 else None
        )
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.set_xticks(sorted(set(drawn[column]))) if drawn[column].nunique() <= 6 else None
    axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:.3g}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(xlabel=label, ylabel="accuracy (95 % interval)")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(suffix) for suffix in (".png", ".svg", ".csv")]
    figure.savefig(files[0], dpi=150)
    figure.savefig(files[1])
    plt.close(figure)
    drawn[[*series, column, "accuracy", "low", "high"]].to_csv(files[2], index=False)
    return files


def _line(axes: Axes, group: pd.DataFrame, column: str, name: str) -> None:
    colour, marker, line = _STYLES.get(group.method.iloc[0], _OTHER)
    accuracy = group.accuracy.to_numpy()
    axes.errorbar(
        group[column].to_numpy(),
        accuracy,
        yerr=[accuracy - group.low.to_numpy(), group.high.to_numpy() - accuracy],
        color=colour,
        marker=marker,
        linestyle=line,
        capsize=3,
        label=name,
    )


def _name(keys: Sequence[Any], with_rank: bool) -> str:
    method, lora_rank, reft_rank = keys[0], keys[1], keys[2]
    ranks = sorted({int(r) for r in (lora_rank, reft_rank) if not pd.isna(r)})
    return f"{method} r{'/'.join(map(str, ranks))}" if with_rank and ranks else str(method)
