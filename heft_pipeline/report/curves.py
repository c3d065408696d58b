"""The report's training curves by stage."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator, PercentFormatter

from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.report.figures import SIZE, Figure, main_settings, save, tidy
from heft_pipeline.report.sections import Section, Setting
from heft_pipeline.training.metrics import read_metrics

_LINES = ["-", "--", "-.", ":"]
_SHADES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00"]

_SCORED = (
    "Top: the training loss; bottom: accuracy on the dev split, which chooses the epoch that is "
    "kept."
)
_UNSCORED = "The training loss; no dev split was held out, and the last epoch is kept."


def training_curves(section: Section, path: Path) -> Figure | None:
    """Draw training loss and dev accuracy by epoch, with a column for each kind of stage.

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
        len(values),
        len(kinds),
        figsize=(max(SIZE[0], 2.1 * len(kinds)), 2.2 * len(values)),
        layout="constrained",
        squeeze=False,
        sharex="col",
        sharey="row",
    )
    for column, kind in enumerate(kinds):
        lines = data[data.stage == kind].groupby(["epochs", "rank"], dropna=False)
        for number, ((epochs, rank), group) in enumerate(lines):
            mean = group.groupby("epoch")[values].mean()
            # With many settings the legend names the first few; the CSV has them all.
            name = f"{epochs} epochs" + (f", r{rank}" if data["rank"].nunique() > 1 else "")
            for row, value in enumerate(mean.columns):
                grid[row][column].plot(
                    mean.index,
                    mean[value],
                    color=_SHADES[number % len(_SHADES)],
                    linestyle=_LINES[number % len(_LINES)],
                    marker="o" if len(mean) < 8 else None,
                    markersize=3,
                    label=name if number < 6 else None,
                )
        grid[0][column].set_title(kind, loc="left", fontsize=10)
        grid[-1][column].set_xlabel("epoch")
        grid[-1][column].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        grid[0][column].legend(frameon=False, fontsize=7)
    _label_axes(grid)
    seeds = "Means over seeds. " if section.seeds > 1 else ""
    return save(
        drawing,
        path,
        data,
        "Training curves by stage",
        f"{seeds}{_SCORED if scored else _UNSCORED} "
        '"A on B" means that A was trained on top of the finished stage B. '
        f"{left_out}".strip(),
    )


def _label_axes(grid: Any) -> None:
    grid[0][0].set_ylabel("training loss (nats)")
    if len(grid) > 1:
        grid[1][0].set_ylabel("dev accuracy")
        grid[1][0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for axes in grid.flat:
        tidy(axes)


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
