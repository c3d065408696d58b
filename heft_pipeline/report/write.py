"""Write a report: the page, Markdown, results.csv, and the terminal's table."""

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from heft_pipeline.command_line.printable import printable
from heft_pipeline.files.locks import file_lock
from heft_pipeline.files.replaced import replaced
from heft_pipeline.report import markdown_text, sentences, words
from heft_pipeline.report.comparison_table import open_runs
from heft_pipeline.report.content import MOST_ROWS, Report, make_report
from heft_pipeline.report.latex import latex
from heft_pipeline.report.options import ReportOptions
from heft_pipeline.report.page_policy import SORT_SCRIPT, content_policy
from heft_pipeline.report.pictures import Pictures
from heft_pipeline.report.records import results_table
from heft_pipeline.report.sections import Section, Setting
from heft_pipeline.report.spreadsheet import csv_text
from heft_pipeline.report.verdicts import (
    CONTRADICTED,
    MISSING,
    ONE_RUN,
    OPEN,
    SUPPORTED,
    UNFINISHED,
    UNMEASURED,
    Verdict,
)
from heft_pipeline.store.sweep_folders import Sweep

_MARKS = {
    SUPPORTED: "\N{CHECK MARK}",
    CONTRADICTED: "\N{BALLOT X}",
    OPEN: "?",
    MISSING: "\N{EN DASH}",
    UNMEASURED: "\N{EN DASH}",
    UNFINISHED: "\N{HORIZONTAL ELLIPSIS}",
}
_CLASSES = {
    SUPPORTED: "supported",
    CONTRADICTED: "contradicted",
    OPEN: "undecided",
    ONE_RUN: "undecided",
    MISSING: "missing",
    UNMEASURED: "missing",
    UNFINISHED: "missing",
}
_COLOURS = {
    SUPPORTED: "green",
    CONTRADICTED: "red",
    OPEN: "yellow",
    ONE_RUN: "cyan",
    MISSING: "dim",
    UNMEASURED: "dim",
    UNFINISHED: "dim",
}
_MOST_ROWS = 60
_NOTES_OVER_TASKS = (
    "The mean counts each task the same, however many examples it has. Its interval is of other "
    "examples of these tasks, and with several seeds of other seeds, too; it says nothing of other "
    "tasks. Brackets hold each task's own 95 % interval. Seconds and operations are sums over "
    "tasks, each with all stages that a run stands on; parameters are those of one task."
)


def write_report(
    sweeps: Sequence[Sweep], folder: Path, options: ReportOptions | None = None
) -> Group:
    """Write ``report.html``, ``.md`` and ``.tex``, ``results.csv``, ``claims.json``, ``figures/``.

    Args:
        sweeps: One or more sweeps; runs that are not complete are marked.
        folder: Where to write: a sweep's own folder, or one for several together.
        options: What to test, and how; None for what the sweeps were given.

    Returns:
        The comparison, for a terminal of 80 columns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / ".report.lock"):
        report = make_report(sweeps, options, folder / "figures")
        _replace(folder / "results.csv", csv_text(results_table(report.records)))
        claims = [record for content in report.sections for record in content.claims]
        _replace(folder / "claims.json", json.dumps(claims, indent=2) + "\n")
        _replace(folder / "report.tex", latex(report))
        _replace(folder / "report.md", _markdown(report, folder))
        _replace(folder / "report.html", _page(report, folder))
    return terminal(report)


def terminal(report: Report) -> Group:
    """The comparison and the verdicts in at most 80 columns.

    Args:
        report: The report.

    Returns:
        What rich is to print.
    """
    shown: list[Any] = []
    for content in report.sections:
        section = content.section
        shown.append(_terminal_table(report.title, section))
        if section.apart:
            shown.append(Text(f"kept apart: {section.apart}", style="yellow"))
        shown += [Text(note, style="yellow") for note in content.notes]
        shown += [Text(one.said, style="yellow") for one in content.differently]
        shown += [Text(sentence) for sentence in content.paper]
        if content.beside and content.beside.summary:
            shown.append(Text(content.beside.summary))
        told = content.verdicts[:_MOST_ROWS]
        shown += [line for verdict in told for line in _terminal_verdict(verdict)]
        if more := len(content.verdicts) - len(told):
            shown.append(Text(f"and {more:,} more claims in claims.json"))
        if content.about:
            shown.append(Text(content.about, style="dim"))
    if report.state:
        shown.append(Text(report.state, style="yellow"))
    if report.advice:
        # The command is to be copied, and so is not broken into lines.
        command = Text(f"  {report.advice.command}", no_wrap=True, overflow="ignore")
        shown += [Text(report.advice.why), command]
    return Group(*shown)


def _page(report: Report, folder: Path) -> str:
    environment = _environment(autoescape=True, finalize=_printable)
    script = SORT_SCRIPT.read_text(encoding="utf-8")
    pictures, policy = Pictures(folder), f"policy-{secrets.token_hex(16)}"
    page = environment.get_template("report.html.j2").render(
        report=report,
        words=words,
        sentences=sentences,
        mark=_mark,
        classes=_CLASSES,
        picture=pictures,
        most_rows=MOST_ROWS,
        notes=notes,
        script=Markup(script),
        policy=policy,
    )
    # Whether figures lie beside the page is known when it is written.
    return page.replace(policy, content_policy(script, pictures.linked))


def _markdown(report: Report, folder: Path) -> str:
    environment = _environment(finalize=markdown_text.escape)
    return environment.get_template("report.md.j2").render(
        report=report,
        words=words,
        sentences=sentences,
        code=markdown_text.code,
        block=markdown_text.block,
        most_rows=MOST_ROWS,
        notes=notes,
        relative=lambda path: Markup(path.relative_to(folder).as_posix()),
    )


def _environment(**options: Any) -> Environment:
    return Environment(
        loader=PackageLoader("heft_pipeline.report"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        **options,
    )


def _printable(value: object) -> object:
    """A value of the page; one that is markup stays so."""
    return type(value)(printable(value)) if isinstance(value, str) else value


def notes(section: Section) -> str:
    """How to read a section's table.

    Args:
        section: The section.

    Returns:
        A paragraph.
    """
    if section.strata is not None:
        return _NOTES_OVER_TASKS
    how = (
        "Intervals are Wilson's. With one seed they say nothing about how much other seeds would "
        "differ."
        if section.seeds <= 1
        else "Accuracy is the mean over seeds. Its interval treats both seeds and examples as "
        "random samples (Wilson's interval for one seed), and is of this accuracy alone: whether "
        "two differ is said by the claims."
    )
    return (
        f"{how} Epochs are those of each stage, with their sum in brackets. Parameters, seconds, "
        "operations and examples count all stages that a run stands on, including reused ones. "
        "Stages shared: how many of the stages that these runs stand on were already complete, or "
        "were also trained for another run."
    )


def _terminal_table(title: str, section: Section) -> Table:
    table = Table(title=Text(title, "table.title"), title_justify="left", caption_justify="left")
    table.caption = Text(_caption(section), "table.caption")
    table.add_column("method", no_wrap=True)
    accuracy = "accuracy (95 %)" if section.strata is None else "mean (95 %)"
    for heading in ("epochs", "rank", accuracy, "params", "train s", "TFLOP"):
        table.add_column(heading, justify="right", no_wrap=True)
    if section.variants:
        table.add_column("setting", overflow="fold")
    unfinished = open_runs(section)
    if section.base:
        table.add_row("untouched", "", "", _accuracy(section.base), style="dim")
    for setting in section.settings[:_MOST_ROWS]:
        costs = setting.costs
        table.add_row(
            setting.method,
            words.epochs(setting.epochs),
            words.ranks(setting),
            _accuracy(setting),
            words.short(costs["trainable_params"]),
            words.fixed(costs["train_seconds"], 1),
            words.number(costs["train_tflop"]),
            *([Text(words.variant(setting))] if section.variants else []),
        )
    for runs in unfinished[:_MOST_ROWS]:
        first = runs[0]
        what = f"{len(runs)} {first.status}" if len(runs) > 1 else first.status
        table.add_row(
            first.method,
            words.epochs(first.stage_epochs),
            words.joined(first.ranks),
            Text(what, style="red"),
        )
    return table


def _caption(section: Section) -> str:
    seeds = f", {section.seeds} seeds" if section.seeds > 1 else ""
    rows = (len(section.settings), len(open_runs(section)))
    hidden = sum(max(0, count - _MOST_ROWS) for count in rows)
    lines = []
    if section.gold:
        answer, majority = section.majority
        always = f"always {answer!r}" if section.strata is None else words.always(section)
        lines.append(
            f"{section.title}: {len(section.ids):,} examples{seeds}; "
            f"{always} {words.share(majority)}"
            + (f", chance {words.share(section.chance)}" if section.chance is not None else "")
        )
    if hidden:
        lines.append(f"and {hidden:,} more rows in report.html")
    return "\n".join(lines)


def _accuracy(setting: Setting) -> str:
    return f"{words.share(setting.accuracy)} ({words.interval(*setting.interval)})"


def _terminal_verdict(verdict: Verdict) -> list[RenderableType]:
    text = Text()
    text.append(f"{_mark(verdict)} {verdict.what}: ", style="bold")
    said = sentences.statement(verdict)
    word, rest = said[: len(verdict.verdict)], said[len(verdict.verdict) :]
    if verdict.verdict == ONE_RUN:
        word, rest = "", said
    text.append(word, style=_COLOURS[verdict.verdict])
    text.append(rest)
    if verdict.comparison is None:
        return [text]
    details = filter(None, [sentences.noise(verdict), sentences.would_decide(verdict)])
    return [text, Padding(Text("; ".join(details), style="dim"), (0, 0, 0, 2))]


def _mark(verdict: Verdict) -> str:
    """A character for a verdict; of one run's result, an arrow."""
    if verdict.verdict == ONE_RUN:
        if verdict.holds is None:
            return "?"
        if verdict.claim.margin:
            return "\N{BULLET}"
        return "\N{UPWARDS ARROW}" if verdict.holds else "\N{DOWNWARDS ARROW}"
    return _MARKS[verdict.verdict]


def _replace(path: Path, text: str) -> None:
    with replaced(path) as partial:
        partial.write_text(text, encoding="utf-8")
