"""``report.tex``: the comparison and the claims as tables that a paper can input."""

import re
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from heft_pipeline.adapters.kind import kinds
from heft_pipeline.command_line.printable import printable
from heft_pipeline.evidence.claims import ACCURACY
from heft_pipeline.report import words
from heft_pipeline.report.content import Report
from heft_pipeline.report.over_tasks import SectionOverTasks, SettingOverTasks
from heft_pipeline.report.sections import Section, Setting
from heft_pipeline.report.verdicts import CONTRADICTED, ONE_RUN, OPEN, SUPPORTED, Verdict

_ESCAPED = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    '"': r"\symbol{34}",  # \textquotedbl is not in every encoding
    "\N{MINUS SIGN}": "$-$",
    "\N{EN DASH}": "--",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{GREATER-THAN OR EQUAL TO}": r"$\geq$",
    "\N{LESS-THAN OR EQUAL TO}": r"$\leq$",
    "\N{HORIZONTAL ELLIPSIS}": r"\dots{}",
    "\N{LEFT DOUBLE QUOTATION MARK}": "``",
    "\N{RIGHT DOUBLE QUOTATION MARK}": "''",
    "\n": " ",
    # Behind the end of a row, a bracket would be a length.
    "[": "{[}",
    "]": "{]}",
}
#: Signs of several characters, which claims are typed with.
_SIGNS = {">=": r"$\geq$", "<=": r"$\leq$", "+-": r"$\pm$", " - ": " $-$ "}
_SPECIAL = re.compile("|".join(map(re.escape, [*_SIGNS, *_ESCAPED])))
#: How each verdict is marked, and what the caption says of the mark.
_MARKS = {
    SUPPORTED: (r"\checkmark", "supported"),
    CONTRADICTED: (r"$\times$", "contradicted"),
    OPEN: ("?", "not decided by this data"),
}
_DAGGER = r"$^{\dagger}$"
_NOT_TESTED = ("--", "not tested")


def latex(report: Report) -> str:
    """Write a report's tables for LaTeX.

    Args:
        report: The report.

    Returns:
        The text of ``report.tex``: of each section a table of the comparison, and one of the
        claims where there are any. It needs the packages booktabs and amssymb, and
        graphicx for a section over tasks.
    """
    environment = Environment(
        loader=PackageLoader("heft_pipeline.report"),
        # LaTeX is full of braces and percent signs.
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["tex"] = escape
    environment.finalize = lambda value: printable(value) if isinstance(value, str) else value
    return environment.get_template("report.tex.j2").render(
        report=report,
        several=any(content.tasks for content in report.sections),
        words=words,
        titled=titled,
        breakable=_breakable,
        cells=_cells,
        references=_references,
        costs=_costs,
        units=_units,
        measured=_measured,
        mark=_mark,
        legend=_legend,
    )


def escape(text: str) -> str:
    """Text as LaTeX is to be given it, with signs as mathematics."""
    return _SPECIAL.sub(lambda match: (_SIGNS | _ESCAPED)[match[0]], text)


def titled(text: str) -> str:
    """A method or a claim with methods as papers write them, e.g. ``HEFT@3 > LoRA@20``."""
    titles = {"heft": "HEFT", **{name: kind.title for name, kind in kinds().items()}}
    names = "|".join(map(re.escape, titles))
    return re.sub(rf"\b({names})(?=[@+]|$)", lambda match: titles[match[1]], text)


def _breakable(values: str) -> str:
    """Config values in a narrow column, where lines may end within a name."""
    parts = re.split(r"(?<=[._=])", values)
    return r"\raggedright " + r"\allowbreak{}".join(map(escape, parts))


def _accuracy(share: float) -> str:
    return f"{100 * share:.1f}"


def _ends(interval: tuple[float, float]) -> str:
    """An interval of shares in percent, e.g. ``58.0--64.1``."""
    return words.interval(*interval).replace("-", "--")


def _references(section: Section) -> list[tuple[str, list[str]]]:
    """The name of what was not trained, and its cells as in :func:`_cells`."""
    found = []
    if section.gold:
        each = [(part.majority[1], part.majority_interval) for part in _parts(section)]
        measured = (_accuracy(section.majority[1]), _ends(section.majority_interval))
        found.append((words.always(section), [*_by_task(each), *measured]))
    if section.base:
        found.append(("untouched model", _cells(section.base)))
    return found


def _cells(setting: Setting) -> list[str]:
    """The accuracy of a setting on each of several tasks, its accuracy, and its interval."""
    on = setting.on if isinstance(setting, SettingOverTasks) else ()
    each = _by_task([(one.accuracy, one.interval) for one in on])
    return [*each, _accuracy(setting.accuracy), _ends(setting.interval)]


def _by_task(each: Sequence[tuple[float, tuple[float, float]]]) -> list[str]:
    # The interval stands below, since there is little room for columns.
    return [
        rf"\shortstack[r]{{{_accuracy(share)}\\({_ends(interval)})}}" for share, interval in each
    ]


def _parts(section: Section) -> tuple[Section, ...]:
    return section.parts if isinstance(section, SectionOverTasks) else ()


def _units(verdicts: Sequence[Verdict]) -> str:
    """What all differences are counted in; empty where it is not the same for all."""
    metrics = {verdict.claim.metric for verdict in verdicts if verdict.comparison is not None}
    if len(metrics) != 1:
        return ""
    return "points of accuracy" if metrics == {ACCURACY} else "nats"


def _measured(verdict: Verdict, unit: bool) -> tuple[str, str, str]:
    """The difference, its interval and its p-value."""
    found, metric = verdict.comparison, verdict.claim.metric
    assert found is not None
    low, high = (escape(words.amount(end, metric)) for end in verdict.interval)
    difference = escape(words.amount(found.difference, metric))
    counted = f"~{words.unit(metric)}" if unit else ""
    p = escape(words.p_value(verdict.adjusted).removeprefix("p ").removeprefix("= "))
    return f"{difference}{counted}", f"[{low}, {high}]", p


def _costs(setting: Setting) -> tuple[str, str, str]:
    """The trainable parameters, seconds and operations of a setting."""
    costs = setting.costs
    return (
        words.fixed(costs["trainable_params"]),
        words.fixed(costs["train_seconds"], 1),
        words.number(costs["train_tflop"]),
    )


def _mark(verdict: Verdict) -> str:
    if verdict.verdict == ONE_RUN:
        if verdict.holds is None:
            return f"?{_DAGGER}"
        return (r"\checkmark" if verdict.holds else r"$\times$") + _DAGGER
    return _MARKS.get(verdict.verdict, _NOT_TESTED)[0]


def _legend(verdicts: Sequence[Verdict]) -> str:
    """What the marks of some verdicts mean, in one sentence."""
    found = [verdict.verdict for verdict in verdicts]
    known = [_MARKS[SUPPORTED], _MARKS[CONTRADICTED], _MARKS[OPEN]]
    used = {_mark(verdict).removesuffix(_DAGGER) for verdict in verdicts}
    said = [f"{mark}~{meaning}" for mark, meaning in [*known, _NOT_TESTED] if mark in used]
    if ONE_RUN in found:
        said.append(f"{_DAGGER}~of these runs only: other seeds may differ")
    return f"Verdicts: {'; '.join(said)}."
