"""The report's figure of how much adapters edit the hidden states, by layer and position."""

import math
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from heft_pipeline.adapters.kind import AdapterSettings
from heft_pipeline.report.drawing import SIZE, SMALL, Figure, plain_numbers, save
from heft_pipeline.report.sections import Section, Setting

_MOST_TICKS = 8
#: With more rows or columns than this, cells have no room for their numbers.
_MOST_NUMBERED = 8
_VALUES = ["relative_edit", "edit_norm", "hidden_norm"]


def edit_figure(section: Section, path: Path, kind: type[AdapterSettings]) -> Figure | None:
    """Draw how much one kind of adapter changes the hidden states, by layer and prompt position.

    Each method stands beside the others, at the most epochs that it was trained for.

    Args:
        section: The compared runs.
        path: The files' path without an ending.
        kind: The kind of adapter whose edits are drawn.

    Returns:
        The figure; None where no stage has recorded edits of the kind.
    """
    panels = {
        name: table
        for setting in _longest(section)
        for name, table in _panels(setting, kind.kind).items()
    }
    if not panels:
        return None
    highest = max(table.relative_edit.max() for table in panels.values())
    drawing, grid = plt.subplots(
        len(panels), 1, figsize=(SIZE[0], 1.8 * len(panels)), layout="constrained", squeeze=False
    )
    for axes, (name, table) in zip(grid.flat, panels.items(), strict=True):
        image = _draw(axes, table, highest)
        axes.set_title(name, loc="left", fontweight="bold", fontsize=SMALL)
    grid[-1][0].set_xlabel("position in the prompt")
    bar = drawing.colorbar(
        image, ax=list(grid.flat), label="relative size of the edit", shrink=0.9, aspect=30
    )
    bar.locator = MaxNLocator(5)
    bar.formatter = plain_numbers()
    bar.update_ticks()
    data = pd.concat([t.assign(setting=name) for name, t in panels.items()], ignore_index=True)
    return save(
        drawing,
        path,
        data,
        f"How much {kind.title} changes the hidden states",
        f"Each number is the L2 norm of what {kind.title} changes in a hidden state, divided by "
        "the norm of that state before; it is a mean over dev examples"
        f"{' and seeds' if section.seeds > 1 else ''}. Position f1 is the first token of the "
        "prompt, and l1 is the last.",
    )


def _longest(section: Section) -> list[Setting]:
    """Of each method, the setting with the most epochs."""
    longest: dict[str, Setting] = {}
    for setting in section.settings:
        known = longest.get(setting.method)
        if known is None or setting.total_epochs > known.total_epochs:
            longest[setting.method] = setting
    return list(longest.values())


def _panels(setting: Setting, kind: str) -> dict[str, pd.DataFrame]:
    """The mean edits of each stage of a setting that has recorded edits of a kind, by name."""
    panels = {}
    for number, stage in enumerate(setting.runs[0].stages):
        files = [
            run.store.folder(run.stages[number].fingerprint) / f"{kind}_edits.csv"
            for run in setting.runs
        ]
        tables = [table for file in files if file.is_file() if len(table := pd.read_csv(file))]
        if tables:
            below = " + ".join(parent.title for parent in reversed(stage.chain[:-1]))
            grouped = pd.concat(tables).groupby(["layer", "position"], sort=False, as_index=False)
            panels[f"{setting.short} (on {below})" if below else setting.short] = grouped[
                _VALUES
            ].mean()
    return panels


def _draw(axes: Axes, table: pd.DataFrame, highest: float) -> AxesImage:
    positions = list(dict.fromkeys(table.position))
    cells = table.pivot(index="layer", columns="position", values="relative_edit")[positions]
    image = axes.imshow(cells, cmap="Greys", vmin=0, vmax=highest, aspect="auto", origin="lower")
    columns = range(0, len(positions), max(1, math.ceil(len(positions) / _MOST_TICKS)))
    axes.set_xticks(columns, [positions[column] for column in columns])
    rows = range(0, len(cells), max(1, math.ceil(len(cells) / _MOST_TICKS)))
    axes.set_yticks(rows, [cells.index[row] for row in rows])  # not every layer need be edited
    axes.set_ylabel("decoder layer")
    if max(cells.shape) <= _MOST_NUMBERED:
        for row, values in enumerate(cells.to_numpy()):
            for column, value in enumerate(values):
                axes.text(
                    column,
                    row,
                    f"{value:.2f}",
                    ha="center",
                    va="center",
                    fontsize=SMALL,
                    color="white" if value > 0.6 * highest else "black",
                )
    return image
