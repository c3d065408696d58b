"""The report's figures of accuracy: over epochs, over rank, and against compute."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd

matplotlib.use("Agg")  # opens no window
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from heft_pipeline.report.sections import Section, Setting

#: Each method's colour (Okabe and Ito's palette for colour blindness), marker and line; the
#: last two tell methods apart in black and white.
_STYLES = {
    "lora": ("#0072B2", "o", "-"),
    "reft": ("#E69F00", "s", "--"),
    "heft": ("#009E73", "^", "-."),
    "joint": ("#CC79A7", "D", ":"),
}
_OTHERS = [("#56B4E9", "v", "-"), ("#D55E00", "P", "--"), ("#000000", "X", "-.")]
_MOST_LINES = 8
SIZE = (5.0, 3.5)


@dataclass(frozen=True)
class Figure:
    """A drawn figure.

    Attributes:
        title: What it shows.
        caption: How to read it, and what it leaves out.
        path: The path of its files without their endings: ``.png``, ``.svg``, and ``.csv`` with
            the drawn numbers.
    """

    title: str
    caption: str
    path: Path

    @property
    def png(self) -> Path:
        """The bitmap."""
        return self.path.with_name(f"{self.path.name}.png")

    @property
    def svg(self) -> Path:
        """The vector drawing."""
        return self.path.with_name(f"{self.path.name}.svg")

    @property
    def csv(self) -> Path:
        """The drawn numbers."""
        return self.path.with_name(f"{self.path.name}.csv")


def accuracy_over_epochs(section: Section, path: Path) -> Figure | None:
    """Draw accuracy over the epochs of each stage, with a line and 95 % band for each method.

    Args:
        section: The compared runs.
        path: The files' path without an ending.

    Returns:
        The figure; None where nothing was trained.
    """
    drawn, left_out = main_settings(section)
    if not drawn:
        return None
    return _accuracy_lines(
        section,
        drawn,
        path,
        x=lambda setting: setting.epochs[-1],
        series=lambda setting: setting.method,
        label="epochs of each stage (HEFT trains two stages)",
        title="Accuracy over epochs",
        caption=left_out,
    )


def accuracy_over_rank(section: Section, path: Path) -> Figure | None:
    """Draw accuracy over the adapters' rank, with a line for each method and epochs.

    Args:
        section: The compared runs.
        path: The files' path without an ending.

    Returns:
        The figure; None where only one rank was trained.
    """
    variant = _first_variant(section)
    drawn = [s for s in section.settings if len(s.ranks) == 1 and _agrees(s, variant)]
    if len({s.ranks for s in drawn}) < 2:
        return None
    words = [f"{key}={value}" for key, value in variant.items()]
    caption = ""
    if len(drawn) < len(section.settings):
        which = f"Drawn: {', '.join(words)}, " if words else "Drawn: "
        caption = f"{which}one rank for both adapters; the other settings are in the table."
    if len({s.short for s in drawn}) > _MOST_LINES:
        most = max(s.epochs[-1] for s in drawn)
        drawn = [s for s in drawn if s.epochs[-1] == most]
        caption = f"At {most} epochs of each stage; the others are in the table."
    return _accuracy_lines(
        section,
        drawn,
        path,
        x=lambda setting: setting.ranks[0],
        series=lambda setting: setting.short,
        label="rank of the adapters",
        title="Accuracy over rank",
        caption=caption,
    )


def accuracy_against_compute(section: Section, path: Path) -> Figure | None:
    """Draw accuracy against training operations, with the Pareto front.

    Args:
        section: The compared runs.
        path: The files' path without an ending.

    Returns:
        The figure; None where nothing was trained.
    """
    settings = sorted(
        (s for s in section.settings if s.costs["train_tflop"] > 0),
        key=lambda setting: (setting.costs["train_tflop"], -setting.accuracy),
    )
    if not settings:
        return None
    drawing, axes = plt.subplots(figsize=SIZE, layout="constrained")
    front = _pareto(settings)
    axes.step(
        [s.costs["train_tflop"] for s in front],
        [s.accuracy for s in front],
        where="post",
        color="0.35",
        linewidth=1,
        zorder=1,
        label="Pareto front",
    )
    _scatter(axes, settings)
    _references(axes, section)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    _finish_axes(axes, "training operations of all stages (TFLOP)")
    data = _table(settings, "train_tflop", lambda setting: setting.costs["train_tflop"])
    data["pareto"] = [setting in front for setting in settings]
    return save(
        drawing,
        path,
        data,
        "Accuracy against compute",
        "Anything below the stepped line is equalled or beaten at a lower cost. A run is charged "
        "for every stage that it stands on.",
    )


def save(drawing: Drawing, path: Path, data: pd.DataFrame, title: str, caption: str) -> Figure:
    """Write a drawing as PNG and SVG with its data beside it, and close it.

    Args:
        drawing: matplotlib's figure.
        path: The files' path without an ending.
        data: The drawn numbers.
        title: What it shows.
        caption: How to read it.

    Returns:
        The figure.
    """
    figure = Figure(title, caption, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(figure.png, dpi=160)
    # With a fixed salt and no date, the same numbers give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "heft"}):
        drawing.savefig(figure.svg, metadata={"Date": None})
    plt.close(drawing)
    data.to_csv(figure.csv, index=False)
    return figure


def tidy(axes: Axes) -> None:
    """Remove the lines of axes that carry no information.

    Args:
        axes: The axes.
    """
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _pareto(settings: Sequence[Setting]) -> list[Setting]:
    """The settings that nothing cheaper equals, of settings in the order of their cost."""
    front: list[Setting] = []
    for setting in settings:
        if not front or setting.accuracy > front[-1].accuracy:
            front.append(setting)
    return front


def _scatter(axes: Axes, settings: Sequence[Setting]) -> None:
    """Mark each setting's accuracy over its cost; a few settings are named as well."""
    annotated = len(settings) <= 12
    groups = _grouped(settings, lambda setting: setting.method)
    for number, (name, group) in enumerate(groups.items()):
        colour, marker, _ = _style(name, number)
        axes.errorbar(
            [s.costs["train_tflop"] for s in group],
            [s.accuracy for s in group],
            yerr=_errors(group),
            color=colour,
            marker=marker,
            linestyle="none",
            capsize=3,
            label=name,
        )
        for setting in group if annotated else ():
            axes.annotate(
                setting.short.removeprefix(name),
                (setting.costs["train_tflop"], setting.accuracy),
                textcoords="offset points",
                xytext=(5, 4),
                fontsize=8,
            )


def _accuracy_lines(
    section: Section,
    settings: Sequence[Setting],
    path: Path,
    *,
    x: Callable[[Setting], int],
    series: Callable[[Setting], str],
    label: str,
    title: str,
    caption: str,
) -> Figure:
    drawing, axes = plt.subplots(figsize=SIZE, layout="constrained")
    lines = _grouped(settings, series)
    for number, (name, group) in enumerate(lines.items()):
        # Lines are moved apart a little, so that marks at the same place stay visible.
        places = [x(s) * 1.025 ** (number - (len(lines) - 1) / 2) for s in group]
        colour, marker, line = _style(group[0].method, number)
        low, high = [s.interval[0] for s in group], [s.interval[1] for s in group]
        axes.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.errorbar(
            places,
            [s.accuracy for s in group],
            yerr=_errors(group),
            color=colour,
            marker=marker,
            linestyle=line,
            capsize=3,
            label=name,
        )
    _references(axes, section)
    axes.set_xscale("log")
    ticks = sorted({x(setting) for setting in settings})
    axes.set_xticks(ticks if len(ticks) <= 8 else ticks[:: len(ticks) // 6])
    _finish_axes(axes, label)
    band = "Bands and bars are 95 % intervals" + (
        f" over {section.seeds} seeds and {len(section.ids):,} examples."
        if section.seeds > 1
        else f" of {len(section.ids):,} examples with one seed, and say nothing about other seeds."
    )
    data = _table(settings, "x", x)
    return save(drawing, path, data, title, f"{band} {caption}".strip())


def main_settings(section: Section) -> tuple[list[Setting], str]:
    """Choose the settings of one rank and variant, for figures that cannot show them all.

    Args:
        section: The compared runs.

    Returns:
        The settings, and a sentence for the caption where others are left out.
    """
    if not section.settings:
        return [], ""
    kinds = [(s.ranks, tuple(s.variant.items())) for s in section.settings]
    # A setting with fewer kinds of adapters agrees with one that has more.
    ranks = max(((r, kinds.count((r, v))) for r, v in kinds), key=lambda pair: pair[1])[0]
    variant = _first_variant(section)
    chosen = [s for s in section.settings if {*s.ranks} <= {*ranks} and _agrees(s, variant)]
    if len(chosen) == len(section.settings):
        return chosen, ""
    words = [f"rank {'/'.join(map(str, ranks))}"] if ranks else []
    words += [f"{key}={value}" for key, value in variant.items()]
    return chosen, f"Drawn: {', '.join(words)}; the other settings are in the table."


def _first_variant(section: Section) -> dict[str, str]:
    """The variant of the first setting that has a value for the most varying keys."""
    return max((setting.variant for setting in section.settings), key=len, default={})


def _agrees(setting: Setting, variant: dict[str, str]) -> bool:
    return all(variant.get(key, value) == value for key, value in setting.variant.items())


def _grouped(
    settings: Sequence[Setting], key: Callable[[Setting], str]
) -> dict[str, list[Setting]]:
    groups: dict[str, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(key(setting), []).append(setting)
    return {
        name: sorted(group, key=lambda s: (s.epochs[-1:], s.total_epochs, s.ranks))
        for name, group in groups.items()
    }


def _style(method: str, number: int) -> tuple[str, str, str]:
    return _STYLES.get(method, _OTHERS[number % len(_OTHERS)])


def _errors(group: Sequence[Setting]) -> list[list[float]]:
    return [
        [max(0.0, s.accuracy - s.interval[0]) for s in group],
        [max(0.0, s.interval[1] - s.accuracy) for s in group],
    ]


def _references(axes: Axes, section: Section) -> None:
    axes.axhline(section.majority[1], color="0.5", linewidth=1, label="majority class", zorder=0)
    if section.base:
        axes.axhline(
            section.base.accuracy,
            color="0.2",
            linewidth=1,
            linestyle=(0, (1, 2)),
            label="untouched model",
            zorder=0,
        )


def _finish_axes(axes: Axes, label: str) -> None:
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.3g}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(xlabel=label, ylabel="accuracy (95 % interval)")
    tidy(axes)
    # Above the axes it hides nothing.
    axes.legend(
        frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0
    )


def _table(settings: Sequence[Setting], column: str, x: Callable[[Setting], float]) -> pd.DataFrame:
    def row(setting: Setting) -> dict[str, Any]:
        low, high = setting.interval
        return {
            "method": setting.method,
            "stage_epochs": "+".join(map(str, setting.epochs)),
            "rank": "/".join(map(str, setting.ranks)),
            **setting.variant,
            column: x(setting),
            "accuracy": setting.accuracy,
            "low": low,
            "high": high,
            "seeds": len(setting.seeds),
        }

    return pd.DataFrame([row(setting) for setting in settings])
