"""The report's figure of ReFT's edits by layer and position."""

from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

from heft_pipeline.report.figures import Figure, save
from heft_pipeline.report.sections import Section, Setting

_FILE = "reft_edits.csv"
_MOST_CELLS = 64


def reft_edits(section: Section, path: Path) -> Figure | None:
    """Draw how much ReFT changes the hidden states, by layer and prompt position.

    ReFT alone and HEFT's second stage stand side by side, each at the most epochs trained.

    Args:
        section: What is compared.
        path: The files' path without an ending.

    Returns:
        The figure; None where no stage has recorded its edits.
    """
    tables = {
        f"{s.short}{' (on LoRA)' if s.method == 'heft' else ''}": _edits(s)
        for method in ("reft", "heft", "joint")
        if (s := _longest(section, method)) is not None
    }
    panels = {name: table for name, table in tables.items() if not table.empty}
    if not panels:
        return None
    highest = max(table.relative_edit.max() for table in panels.values())
    drawing, grid = plt.subplots(
        len(panels), 1, figsize=(5.0, 2.5 * len(panels)), layout="constrained", squeeze=False
    )
    for axes, (name, table) in zip(grid.flat, panels.items(), strict=True):
        positions = list(dict.fromkeys(table.position))
        cells = table.pivot(index="layer", columns="position", values="relative_edit")[positions]
        image = axes.imshow(
            cells, cmap="Greys", vmin=0, vmax=highest, aspect="auto", origin="lower"
        )
        axes.set_xticks(range(len(positions)), positions, fontsize=8)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.set_ylabel("decoder layer")
        axes.set_title(name, loc="left", fontsize=10)
        if cells.size <= _MOST_CELLS:
            for row, values in enumerate(cells.to_numpy()):
                for column, value in enumerate(values):
                    shade = "white" if value > 0.6 * highest else "black"
                    axes.text(
                        column,
                        row,
                        f"{value:.2f}",
                        ha="center",
                        va="center",
                        fontsize=7,
                        color=shade,
                    )
    grid[-1][0].set_xlabel("prompt position: f1 is the first token, l1 the last")
    drawing.colorbar(image, ax=list(grid.flat), label="size of the edit / of the state", shrink=0.8)
    data = pd.concat([t.assign(setting=name) for name, t in panels.items()], ignore_index=True)
    return save(
        drawing,
        path,
        data,
        "ReFT's edit by layer and position",
        "L2 norm of what ReFT adds, divided by that of the hidden state it is added to; a mean "
        "over dev examples" + (" and seeds." if section.seeds > 1 else "."),
    )


def _longest(section: Section, method: str) -> Setting | None:
    found = [setting for setting in section.settings if setting.method == method]
    return max(found, key=lambda setting: setting.total_epochs, default=None)


def _edits(setting: Setting) -> pd.DataFrame:
    files = [run.store.folder(run.last.fingerprint) / _FILE for run in setting.runs]
    tables = [pd.read_csv(file) for file in files if file.is_file()]
    if not tables:
        return pd.DataFrame()
    together = pd.concat(tables)
    return together.groupby(["layer", "position"], sort=False, as_index=False)[
        ["relative_edit", "edit_norm", "hidden_norm"]
    ].mean()
