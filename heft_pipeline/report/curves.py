"""The report's training curves by stage."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.report.drawing import SIZE, SMALL, Figure, percentages, plain_numbers, save, tidy
from heft_pipeline.report.figures import main_settings
from heft_pipeline.report.sections import Section, Setting
from heft_pipeline.training.metrics import read_metrics

_LINES = ["-", "--", "-.", ":"]
_SHADES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00"]

_SCORED = (
    "The training loss stands on the left, and accuracy on the dev split, which chooses the epoch "
    "that is kept, on the right."
)
_UNSCORED = "This is the training loss. No dev split was held out, and so the last epoch is kept."
#: The legend names so many settings; the CSV has them all.
_MOST_NAMED = 4


def training_curves(section: Section, path: Path) -> Figure | None:
    """Draw training loss and dev accuracy by epoch, with a row for each kind of stage.

    Args:
        section: The compared runs.
        path: The files' path without an ending.

    Returns:
        The figure; None where no stage has ended an epoch.
    """
    drawn, left_out = main_settings(section)
    data = _curves(drawn)
    if data.empty:
        return None
    kinds = list(dict.fromkeys(data.stage))
    scored = data.dev_accuracy.notna().any()
    values = ["train_loss"] + ["dev_accuracy"] * bool(scored)
    drawing, grid = plt.subplots(
        len(kinds),
        len(values),
        figsize=(SIZE[0], 0.3 + 1.35 * len(kinds)),
        layout="constrained",
        squeeze=False,
        sharex="row",
        sharey="col",
    )
    for row, kind in enumerate(kinds):
        lines = data[data.stage == kind].groupby(["epochs", "rank"], dropna=False)
        for number, ((epochs, rank), group) in enumerate(lines):
            mean = group.groupby("epoch")[values].mean()
            name = f"{epochs} epochs" + (f", r{rank}" if data["rank"].nunique() > 1 else "")
            for column, value in enumerate(mean.columns):
                grid[row][column].plot(
                    mean.index,
                    mean[value],
                    color=_SHADES[number % len(_SHADES)],
                    linestyle=_LINES[number % len(_LINES)],
                    marker="o" if len(mean) < 8 else None,
                    markersize=2.5,
                    label=name if number < _MOST_NAMED else None,
                )
        grid[row][0].set_title(kind, loc="left", fontweight="bold", fontsize=SMALL)
        grid[row][0].legend(frameon=False, borderpad=0, handlelength=1.8, labelspacing=0.2)
        grid[row][0].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    _label_axes(grid)
    seeds = "Lines are means over seeds. " if section.seeds > 1 else ""
    stacked = (
        "\N{LEFT DOUBLE QUOTATION MARK}A on B\N{RIGHT DOUBLE QUOTATION MARK} means that A was "
        "trained on top of the finished stage B."
        if any(" on " in kind for kind in kinds)
        else ""
    )
    return save(
        drawing,
        path,
        data,
        "How training went",
        " ".join(filter(None, [f"{seeds}{_SCORED if scored else _UNSCORED}", stacked, left_out])),
    )


def _label_axes(grid: Any) -> None:
    for row in grid:
        row[0].set_ylabel("training loss (nats)")
        if len(row) > 1:
            row[1].set_ylabel("dev accuracy")
    for axes in grid.flat:
        axes.set_xlabel("epoch")
        axes.yaxis.set_major_formatter(plain_numbers())
        tidy(axes)
    if len(grid[0]) > 1:
        grid[0][1].yaxis.set_major_formatter(percentages())


def _curves(settings: Sequence[Setting]) -> pd.DataFrame:
    found: dict[str, list[dict[str, Any]]] = {}
    for setting in settings:
        for run in setting.runs:
            for stage in run.stages:
                if not stage.adapters or stage.fingerprint in found:
                    continue
                file = run.store.folder(stage.fingerprint) / "metrics.jsonl"
                found[stage.fingerprint] = [
                    {
                        "stage": _name(stage),
                        "epochs": stage.epochs,
                        "rank": stage.rank,
                        "seed": stage.seed,
                        "fingerprint": stage.fingerprint,
                        "epoch": line["epoch"],
                        "train_loss": line["train_loss"],
                        "dev_accuracy": line.get("dev_accuracy", math.nan),
                    }
                    for line in read_metrics(file)
                    if line.get("event") == "epoch"
                ]
    return pd.DataFrame([row for rows in found.values() for row in rows])


def _name(stage: StageSpec) -> str:
    """What is trained on what, e.g. ``ReFT on LoRA``."""
    *parents, own = [one.title for one in stage.chain]
    return f"{own} on {' + '.join(reversed(parents))}" if parents else own
