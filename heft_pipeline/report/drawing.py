"""How every figure of the report is drawn and written: its width, its type, its files.

A figure is as wide as one column of a paper in two columns (NeurIPS, ICML and ACL: 3.25 to 3.3
inches), and its smallest letters have 7 points there. The page shows the same drawing larger.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")  # opens no window
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FuncFormatter
from matplotlib.transforms import ScaledTranslation, Transform

from heft_pipeline.command_line.printable import printable
from heft_pipeline.files.replaced import replaced
from heft_pipeline.report import words
from heft_pipeline.report.spreadsheet import csv_text

#: The width of a column and the usual height, in inches.
SIZE = (3.3, 2.6)
#: The endings of a figure's pictures; a figure of many has the second alone.
FORMATS = ("png", "svg", "pdf")
_FORMATS: ContextVar[tuple[str, ...]] = ContextVar("formats", default=FORMATS)
#: The sizes of letters in points.
TEXT, SMALL = 8, 7
_STYLE = {
    "font.size": TEXT,
    "axes.labelsize": TEXT,
    "axes.titlesize": TEXT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "errorbar.capsize": 2.5,
    "hatch.linewidth": 0.6,
    # Numbers are written in full: neither an exponent nor an offset stands at an axis's end.
    "axes.formatter.limits": (-20, 20),
    "axes.formatter.useoffset": False,
    # Letters stay letters in a PDF; with a fixed salt, the same numbers give the same SVG.
    "pdf.fonttype": 42,
    "svg.hashsalt": "heft",
    # Names and labels are text, also where they have dollar signs.
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Figure:
    """A drawn figure.

    Attributes:
        title: What it shows.
        caption: How to read it, and what it leaves out.
        path: The path of its files without their endings: ``.png``, ``.svg``, ``.pdf``, and
            ``.csv`` with the drawn numbers.
        formats: Which of these pictures there are.
    """

    title: str
    caption: str
    path: Path
    formats: tuple[str, ...] = FORMATS

    @property
    def picture(self) -> Path:
        """The picture for Markdown: the bitmap, or the vector drawing where there is no other."""
        return self.png if "png" in self.formats else self.svg

    @property
    def png(self) -> Path:
        """The bitmap."""
        return self.path.with_name(f"{self.path.name}.png")

    @property
    def svg(self) -> Path:
        """The vector drawing, for the page."""
        return self.path.with_name(f"{self.path.name}.svg")

    @property
    def pdf(self) -> Path:
        """The vector drawing with text, for a paper."""
        return self.path.with_name(f"{self.path.name}.pdf")

    @property
    def csv(self) -> Path:
        """The drawn numbers."""
        return self.path.with_name(f"{self.path.name}.csv")


@contextmanager
def style(formats: Sequence[str] = FORMATS) -> Iterator[None]:
    """The context in which all figures of the report are drawn and saved.

    Args:
        formats: What :func:`save` writes; ``svg`` is one of them.

    Yields:
        Nothing.
    """
    before = _FORMATS.set(tuple(formats))
    try:
        with matplotlib.rc_context(_STYLE):
            yield
    finally:
        _FORMATS.reset(before)


def save(drawing: Drawing, path: Path, data: pd.DataFrame, title: str, caption: str) -> Figure:
    """Write a drawing in the formats of :func:`style` with its data beside it, and close it.

    No file has a date, so that the same numbers give the same files.

    Args:
        drawing: matplotlib's figure.
        path: The files' path without an ending.
        data: The drawn numbers.
        title: What it shows.
        caption: How to read it.

    Returns:
        The figure.
    """
    figure = Figure(title, caption, path, _FORMATS.get())
    path.parent.mkdir(parents=True, exist_ok=True)
    _make_printable(drawing)
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    try:
        for ending in figure.formats:
            with replaced(path.with_name(f"{path.name}.{ending}")) as partial:
                drawing.savefig(partial, format=ending, dpi=240, metadata=undated.get(ending))
            drawing.set_layout_engine("none")  # everything has its place, which takes long to find
        with replaced(figure.csv) as partial:
            partial.write_text(csv_text(data), encoding="utf-8")
    finally:
        plt.close(drawing)  # matplotlib keeps all that are not closed
    return figure


def _make_printable(drawing: Drawing) -> None:
    """Take controls out of a drawing's texts: no XML may have them, and so no SVG."""
    for axes in drawing.axes:
        for axis in (axes.xaxis, axes.yaxis):
            named = axis.get_major_formatter()
            if isinstance(named, FixedFormatter):
                named.seq = [printable(str(name)) for name in named.seq]
    for text in drawing.findobj(Text):
        assert isinstance(text, Text)
        text.set_text(printable(text.get_text()))


def tidy(axes: Axes) -> None:
    """Remove the lines of axes that carry no information.

    Args:
        axes: The axes.
    """
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def plain_numbers() -> FuncFormatter:
    """Write the numbers at an axis as the text does, e.g. ``1,000`` or ``0.00002``."""
    return FuncFormatter(lambda x, _: words.number(x).replace("-", "\N{MINUS SIGN}"))


def percentages() -> FuncFormatter:
    """Write the shares at an axis in percent, e.g. ``70%`` or ``62.5%``."""
    return FuncFormatter(lambda x, _: f"{words.number(100 * x)}%")


def moved_right(axes: Axes, points: float) -> Transform:
    """The data's coordinates, moved so that marks at the same place stay visible.

    Args:
        axes: The axes.
        points: By how much, at the figure's own size; negative to the left.

    Returns:
        The transform.
    """
    drawing = axes.figure
    assert isinstance(drawing, Drawing)
    return axes.transData + ScaledTranslation(points / 72, 0, drawing.dpi_scale_trans)


def legend_above(drawing: Drawing, handles: Sequence[Artist], columns: int = 3) -> None:
    """Put the legend above the axes, where it hides nothing.

    Args:
        drawing: matplotlib's figure, in the constrained layout.
        handles: What it explains.
        columns: How many entries stand side by side.
    """
    drawing.legend(
        handles=handles,
        frameon=False,
        ncols=columns,
        loc="outside upper left",
        borderpad=0,
        handlelength=1.8,
        handletextpad=0.5,
        columnspacing=1.0,
        labelspacing=0.3,
    )
