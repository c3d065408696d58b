"""How the report writes numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from heft_pipeline.evidence.claims import ACCURACY

if TYPE_CHECKING:  # numbers are written by what answers at once, too
    from heft_pipeline.report.sections import Section, Setting

#: Stands for a cost that is not known.
UNKNOWN = "unknown"


def share(value: float) -> str:
    """A share in percent, e.g. ``61.1%``."""
    return f"{value:.1%}"


def percent(value: float) -> str:
    """A share in percent with two digits behind the point, e.g. ``85.17 %``."""
    return f"{value:.2%}".replace("%", " %")


def interval(low: float, high: float) -> str:
    """An interval of shares in percent, e.g. ``58.0-64.1``."""
    return f"{100 * low:.1f}-{100 * high:.1f}"


def points(value: float) -> str:
    """A difference of shares in percentage points with a sign, e.g. ``+0.12``."""
    return f"{100 * value:+.2f}".replace("-", "\N{MINUS SIGN}")


def amount(value: float, metric: str = ACCURACY) -> str:
    """A difference with a sign: points of accuracy, e.g. ``+0.12``, or nats, e.g. ``+0.012``."""
    if math.isinf(value):
        return "+\N{INFINITY}" if value > 0 else "\N{MINUS SIGN}\N{INFINITY}"
    if metric == ACCURACY:
        return points(value)
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def size(value: float, metric: str = ACCURACY) -> str:
    """The size of a difference with its unit, e.g. ``10.90 points`` or ``0.012 nats``."""
    return f"{amount(abs(value), metric)[1:]} {unit(metric)}"


def unit(metric: str) -> str:
    """What differences of a metric are counted in."""
    return "points" if metric == ACCURACY else "nats"


def number(value: float) -> str:
    """A number with three digits that count and no exponent, e.g. ``1,060`` or ``0.298``."""
    return UNKNOWN if math.isnan(value) else _with_digits(value, 3)


def fixed(value: float, decimals: int = 0) -> str:
    """A number with so many decimals, e.g. ``1,060.5``."""
    return UNKNOWN if math.isnan(value) else f"{value:,.{decimals}f}"


def rounded(value: int) -> str:
    """A number with two digits that count: more would suggest a precision that it lacks."""
    return f"{round(value, -max(0, len(str(value)) - 2)):,}"


def short(number: float) -> str:
    """A count in at most five characters, e.g. ``69.6k``."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if float(f"{number:.3g}") >= size:
            return f"{_with_digits(number / size, 3)}{letter}"
    return f"{number:.0f}"


def seconds(value: float) -> str:
    """A duration, e.g. ``54.9 s``, ``12 min 5 s`` or ``3 h 20 min``."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def epochs(stage_epochs: tuple[int, ...]) -> str:
    """The epochs of each stage, and their sum where there are several: ``3``, ``3 (6)``."""
    if not stage_epochs:
        return ""
    same = len(set(stage_epochs)) == 1
    each = str(stage_epochs[0]) if same else "+".join(map(str, stage_epochs))
    return each if len(stage_epochs) == 1 else f"{each} ({sum(stage_epochs)})"


def ranks(setting: Setting) -> str:
    """The ranks of the adapters, equal ones once: ``8``, ``16/4``."""
    return joined(setting.ranks)


def joined(numbers: tuple[int, ...]) -> str:
    """Numbers as ``16/4``."""
    return "/".join(map(str, numbers))


def variant(setting: Setting) -> str:
    """The config values that tell a setting from others with its method, epochs and rank."""
    return ", ".join(f"{key}={value}" for key, value in setting.variant.items())


def p_value(value: float) -> str:
    """A p-value, e.g. ``p = 0.034`` or ``p < 0.001``."""
    return "p < 0.001" if value < 0.001 else f"p = {value:#.2g}"


def _with_digits(value: float, digits: int) -> str:
    """A number with some digits that count, however large or small it is."""
    if not value or not math.isfinite(value):
        return f"{value:.0f}"
    rounded = float(f"{value:.{digits}g}")
    behind = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    text = f"{rounded:,.{behind}f}"
    return text.rstrip("0").rstrip(".") if behind else text


def named(setting: Setting) -> dict[str, str]:
    """The cells of a table that say which setting a row is of, by their headings."""
    return {
        "method": "untouched model" if setting.method == "base" else setting.method,
        "epochs": epochs(setting.epochs),
        "rank": ranks(setting),
        "setting": variant(setting),
    }


def always(section: Section) -> str:
    """The name of the constant answer: ``always “true”``, or over tasks each one's own."""
    if section.strata is not None:
        return "always the most frequent answer"
    return (
        f"always \N{LEFT DOUBLE QUOTATION MARK}{section.majority[0]}\N{RIGHT DOUBLE QUOTATION MARK}"
    )
