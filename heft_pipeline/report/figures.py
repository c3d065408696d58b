"""The report's figures of accuracy: over epochs, over rank, and against compute."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from heft_pipeline.report.drawing import (
    SIZE,
    SMALL,
    Figure,
    legend_above,
    moved_right,
    percentages,
    plain_numbers,
    save,
    tidy,
)
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
#: How far lines, and the dots of seeds, stand apart, in points.
_APART, _SEEDS_APART = 4.0, 1.0
#: Where a mark's name stands, so that those of two methods at one place can be read.
_NAMED = [((4, 3), "left"), ((4, -8), "left"), ((-4, 3), "right"), ((-4, -8), "right")]
_IN_THE_TABLE = "the others are in the table."


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
        label="epochs of each stage",
        title="How accuracy changes with epochs",
        caption=f"HEFT trains two stages, each for as many epochs. {left_out}".strip()
        if any(len(setting.epochs) > 1 for setting in drawn)
        else left_out,
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
    caption = ""
    if len(drawn) < len(section.settings):
        values = [f"{key}={value}" for key, value in variant.items()]
        caption = (
            "Only settings with one rank for all adapters"
            f"{' and ' if values else ''}{', '.join(values)} are drawn; {_IN_THE_TABLE}"
        )
    if len({s.short for s in drawn}) > _MOST_LINES:
        most = max(s.epochs[-1] for s in drawn)
        drawn = [s for s in drawn if s.epochs[-1] == most]
        caption = f"Only settings with {most} epochs of each stage are drawn; {_IN_THE_TABLE}"
    return _accuracy_lines(
        section,
        drawn,
        path,
        x=lambda setting: setting.ranks[0],
        series=lambda setting: setting.short,
        label="rank of the adapters",
        title="How accuracy changes with the rank",
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
        linewidth=0.8,
        zorder=1,
        label="Pareto front",
    )
    _scatter(axes, settings)
    _references(axes, section)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=_log_steps(settings)))
    _finish_axes(axes, "training operations of all stages (TFLOP)")
    data = _table(settings, "train_tflop", lambda setting: setting.costs["train_tflop"])
    data["pareto"] = [setting in front for setting in settings]
    return save(
        drawing,
        path,
        data,
        "What accuracy costs",
        "Whatever lies below the stepped line (the Pareto front) is equalled or beaten at a lower "
        "cost. A run is charged for every stage that it stands on. Bars are 95 % intervals."
        f"{_dots(settings)}",
    )


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
        place, side = _NAMED[number % len(_NAMED)]
        axes.errorbar(
            [s.costs["train_tflop"] for s in group],
            [s.accuracy for s in group],
            yerr=_errors(group),
            color=colour,
            marker=marker,
            linestyle="none",
            label=name,
        )
        for setting in group:
            _draw_seeds(axes, setting, [run.costs["train_tflop"] for run in setting.runs], colour)
        for setting in group if annotated else ():
            axes.annotate(
                setting.short.removeprefix(name),
                (setting.costs["train_tflop"], setting.accuracy),
                textcoords="offset points",
                xytext=place,
                ha=side,
                fontsize=SMALL,
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
    apart = min(_APART, 4 * _APART / max(1, len(lines) - 1))
    for number, (name, group) in enumerate(lines.items()):
        right = apart * (number - (len(lines) - 1) / 2)
        places = [x(setting) for setting in group]
        moved = moved_right(axes, right)
        colour, marker, line = _style(group[0].method, number)
        low, high = [s.interval[0] for s in group], [s.interval[1] for s in group]
        axes.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0, transform=moved)
        axes.errorbar(
            places,
            [s.accuracy for s in group],
            yerr=_errors(group),
            color=colour,
            marker=marker,
            linestyle=line,
            label=name,
            transform=moved,
        )
        for setting in group:
            _draw_seeds(axes, setting, [x(setting)] * len(setting.seeds), colour, right)
    _references(axes, section)
    axes.set_xscale("log")
    ticks = sorted({x(setting) for setting in settings})
    axes.set_xticks(ticks if len(ticks) <= 8 else ticks[:: len(ticks) // 6])
    _finish_axes(axes, label)
    band = "Bands and bars are 95 % intervals" + (
        f" over {section.seeds} seeds and {len(section.ids):,} examples."
        if section.seeds > 1
        else f" over {len(section.ids):,} examples. With one seed, they say nothing about others."
    )
    band += _dots(settings)
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
    values = [f"rank {'/'.join(map(str, ranks))}"] if ranks else []
    values += [f"{key}={value}" for key, value in variant.items()]
    return chosen, f"Only settings with {', '.join(values)} are drawn; {_IN_THE_TABLE}"


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


def _draw_seeds(
    axes: Axes, setting: Setting, places: Sequence[float], colour: str, right: float = 0.0
) -> None:
    """Mark each seed's own accuracy with a pale dot; a single seed is the setting's own mark."""
    accuracies = setting.right.mean(axis=1)
    count = len(accuracies)
    for number, (place, accuracy) in enumerate(zip(places, accuracies, strict=True)):
        if count > 1:
            beside = right + _SEEDS_APART * (number - (count - 1) / 2)
            axes.plot(
                place,
                accuracy,
                color=colour,
                alpha=0.45,
                linestyle="none",
                marker="o",
                markersize=2,
                markeredgewidth=0,
                zorder=1.5,
                transform=moved_right(axes, beside),
            )


def _dots(settings: Sequence[Setting]) -> str:
    """What the caption says of the dots of single seeds."""
    several = any(len(setting.seeds) > 1 for setting in settings)
    return " The small pale dots are single seeds." if several else ""


def _log_steps(settings: Sequence[Setting]) -> tuple[int, ...]:
    """The digits that are marked in each power of ten of the cost: fewer over many powers."""
    costs = [setting.costs["train_tflop"] for setting in settings]
    if max(costs) > 50 * min(costs):
        return (1,)
    return (1, 2, 5) if min(costs) > 0.001 and max(costs) < 1000 else (1, 3)


def _cut(answer: str) -> str:
    """An answer in quotation marks, as far as the legend has room for it."""
    return repr(answer if len(answer) <= 9 else f"{answer[:8]}\N{HORIZONTAL ELLIPSIS}")


def _references(axes: Axes, section: Section) -> None:
    axes.axhline(
        section.majority[1],
        color="0.5",
        linewidth=0.8,
        label=f"always {_cut(section.majority[0])}",
        zorder=0,
    )
    if section.base:
        axes.axhline(
            section.base.accuracy,
            color="0.2",
            linewidth=0.8,
            linestyle=(0, (1, 2)),
            label="untouched model",
            zorder=0,
        )


def _finish_axes(axes: Axes, label: str) -> None:
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(plain_numbers())
    axes.yaxis.set_major_formatter(percentages())
    axes.set(xlabel=label, ylabel="accuracy (95 % interval)")
    tidy(axes)
    handles = axes.get_legend_handles_labels()[0]
    drawing = axes.figure
    assert isinstance(drawing, Drawing)
    # What was trained comes first, and then the lines to compare it with.
    legend_above(drawing, sorted(handles, key=lambda one: isinstance(one, Line2D)))


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
            "accuracy_of_each_seed": " ".join(map(str, setting.right.mean(axis=1))),
        }

    return pd.DataFrame([row(setting) for setting in settings])
