"""What a report says, before it becomes a page, a Markdown file or a terminal's table."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from heft_pipeline.adapters.kind import kinds
from heft_pipeline.report.beside_accuracy import BesideAccuracy, beside_accuracy
from heft_pipeline.report.claim_records import claim_records
from heft_pipeline.report.comparison_table import Column, Row, comparison_table
from heft_pipeline.report.curves import training_curves
from heft_pipeline.report.deciding_command import Advice, advice
from heft_pipeline.report.default_claims import default_claims
from heft_pipeline.report.disagreement import Disagreement, disagreement
from heft_pipeline.report.drawing import FORMATS, Figure, style
from heft_pipeline.report.edit_figure import edit_figure
from heft_pipeline.report.figures import (
    accuracy_against_compute,
    accuracy_over_epochs,
    accuracy_over_rank,
)
from heft_pipeline.report.forest_plot import effects
from heft_pipeline.report.made_differently import MadeDifferently, made_differently
from heft_pipeline.report.noise_figure import noise_figure
from heft_pipeline.report.options import ReportOptions, noted_options
from heft_pipeline.report.over_tasks import SectionOverTasks, sections_over_tasks
from heft_pipeline.report.paper_numbers import paper_row, what_it_supports
from heft_pipeline.report.provenance import Fact, provenance
from heft_pipeline.report.records import RunRecord, read_runs
from heft_pipeline.report.sections import Section, check_examples, sections
from heft_pipeline.report.sentences import how_they_were_made
from heft_pipeline.report.verdicts import (
    CONTRADICTED,
    MISSING,
    ONE_RUN,
    OPEN,
    SUPPORTED,
    UNFINISHED,
    UNMEASURED,
    Verdict,
    judge,
)
from heft_pipeline.store.sweep_folders import Sweep

#: What the page and Markdown show of a section; a browser, and a reader, can do with no more.
MOST_VERDICTS, MOST_ROWS = 200, 1000
#: Drawing takes most of a report's time, so of very many sections the first are drawn, and of many
#: the first in all formats.
_MOST_DRAWN, _IN_ALL_FORMATS = 40, 6
_UNDRAWN = (
    f"Figures are drawn of the first {_MOST_DRAWN} comparisons alone; results.csv has all runs."
)


@dataclass(frozen=True)
class SectionContent:
    """A section with everything that is shown of it.

    Attributes:
        section: The compared runs.
        verdicts: What they say of the claims.
        about: What the verdicts rest on and speak of; empty where no claim could be tested.
        claims: The verdicts for machines, as in ``claims.json``.
        columns: The table's columns.
        rows: The table's rows.
        effects: The figure of the claims' effects; None where no claim could be tested.
        figures: The other figures.
        disagreement: Where two of the settings disagree; None without two to compare.
        differently: In which ways runs were made differently: dtype, device, threads, versions.
        paper: What the paper's own numbers can support, where they are in the table.
        beside: What there is to say beside accuracy; None for nothing.
        noise: The figure of where the claims' noise comes from; None where no claim could be
            tested.
        tasks: The names of the tasks that it is over; empty for a single one.
        notes: What is left out of a section over tasks, and what differs between them.
    """

    section: Section
    verdicts: tuple[Verdict, ...]
    about: str
    claims: tuple[dict[str, Any], ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    effects: Figure | None
    figures: tuple[Figure, ...]
    disagreement: Disagreement | None
    differently: tuple[MadeDifferently, ...]
    paper: tuple[str, ...] = ()
    beside: BesideAccuracy | None = None
    noise: Figure | None = None
    tasks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def shown_verdicts(self) -> tuple[Verdict, ...]:
        """The verdicts that the page and Markdown have room for."""
        return self.verdicts[:MOST_VERDICTS]

    @property
    def shown_rows(self) -> tuple[Row, ...]:
        """The rows of the table that the page and Markdown have room for."""
        return self.rows[:MOST_ROWS]

    @property
    def cut(self) -> str:
        """What is not shown, and where it is, in a sentence; empty where everything is shown."""
        parts = []
        if more := len(self.verdicts) - MOST_VERDICTS:
            parts += [f"{more:,} more claims, all in claims.json"] if more > 0 else []
        if more := len(self.rows) - MOST_ROWS:
            parts += [f"{more:,} more rows; results.csv has all runs"] if more > 0 else []
        return f"Not shown: {', and '.join(parts)}." if parts else ""


@dataclass(frozen=True)
class Report:
    """A report of one or more sweeps.

    Attributes:
        title: The sweeps' names.
        made: When it was made, in local time.
        state: What is not complete, in a sentence; empty where everything is.
        options: What it was asked to show.
        advice: The command that would decide what is open; None where none would.
        sections: The runs, a section for each group that may be compared with each other; before
            them, one over the tasks of each model that has several.
        facts: How the runs were made.
        records: All runs.
    """

    title: str
    made: str
    state: str
    options: ReportOptions
    advice: Advice | None
    sections: tuple[SectionContent, ...]
    facts: tuple[Fact, ...]
    records: tuple[RunRecord, ...]

    @property
    def tested(self) -> int:
        """How many claims could be tested."""
        return sum(v.comparison is not None for one in self.sections for v in one.verdicts)

    @property
    def summary(self) -> str:
        """What the verdicts are, in a sentence; empty where there are no claims."""
        verdicts = [v for content in self.sections for v in content.verdicts]
        if not verdicts:
            return ""
        counts = Counter(verdict.verdict for verdict in verdicts)
        if counts[ONE_RUN] == len(verdicts):
            return "Each of these runs is one seed's: no claim about a method can be decided."
        order = (SUPPORTED, CONTRADICTED, OPEN, ONE_RUN, UNFINISHED, MISSING, UNMEASURED)
        parts = [f"{counts[word] or 'none'} {word}" for word in order[:2]]
        parts += [f"{counts[word]} {word}" for word in order[2:] if counts[word]]
        claims = f"{len(verdicts)} claim{'s' if len(verdicts) > 1 else ''}"
        return f"Of {claims}: {', '.join(parts)}."


def make_report(
    sweeps: Sequence[Sweep], options: ReportOptions | None, figures: Path | None
) -> Report:
    """Read sweeps, compare their runs, and draw the figures.

    Args:
        sweeps: At least one.
        options: What to test, and how; None for what the sweeps were given.
        figures: The folder for figures; None to draw none.

    Returns:
        The report.
    """
    options = options or noted_options(sweeps)
    records = check_examples([record for sweep in sweeps for record in read_runs(sweep)])
    alone = sections(records, options.cluster_column)
    parts = [*sections_over_tasks(alone), *alone]
    asked = options.claims
    claims = [default_claims(part.settings) if asked is None else asked for part in parts]
    judged = judge(claims, parts, options.scope)
    tested = sum(verdict.comparison is not None for verdicts in judged for verdict in verdicts)
    contents = []
    for number, (part, verdicts) in enumerate(zip(parts, judged, strict=True), start=1):
        suffix = f"-{number}" if number > 1 else ""
        with style(FORMATS if number <= _IN_ALL_FORMATS else ["svg"]):
            drawn = figures if number <= _MOST_DRAWN else None
            content = _content(part, verdicts, (tested, options), drawn, suffix)
        if figures and not drawn:
            content = replace(content, notes=(*content.notes, _UNDRAWN))
        contents.append(content)
    return Report(
        title=", ".join(sweep.name for sweep in sweeps),
        made=time.strftime("%Y-%m-%d %H:%M %Z"),
        state=_state(records),
        options=options,
        advice=advice([v for own in judged for v in own], sweeps[-1].plan().get("command", "")),
        sections=tuple(contents),
        facts=tuple(provenance(sweeps, records)),
        records=tuple(records),
    )


def _state(records: Sequence[RunRecord]) -> str:
    runs = [record for record in records if record.name != "base" and not record.complete]
    if not runs:
        return ""
    total = sum(record.name != "base" for record in records)
    counts = {status: sum(r.status == status for r in runs) for status in ("running", "failed")}
    counts["damaged"] = sum(r.status == "damaged" for r in runs)
    others = len(runs) - sum(counts.values())
    parts = [f"{count} {status}" for status, count in counts.items() if count]
    parts += [f"{others} not begun or interrupted"] if others else []
    running = "This sweep is still running: " if counts["running"] else ""
    return f"{running}{total - len(runs)} of {total} runs are complete ({', '.join(parts)})."


def _content(
    section: Section,
    verdicts: Sequence[Verdict],
    asked: tuple[int, ReportOptions],
    folder: Path | None,
    suffix: str,
) -> SectionContent:
    tested, options = asked
    table = comparison_table(section)
    about = how_they_were_made(verdicts, section.clustered, tested)
    records = tuple(claim_records(verdicts, section, options.pointwise))
    text = (section, tuple(verdicts), about, records, table.columns, table.rows)
    if isinstance(section, SectionOverTasks):
        # Curves, edits, calibration and single answers are shown with the task that they are of.
        return SectionContent(
            *text,
            effects=effects(verdicts, records, folder / f"effects{suffix}") if folder else None,
            figures=(),
            disagreement=None,
            differently=(),
            noise=noise_figure(verdicts, folder / f"noise{suffix}") if folder else None,
            tasks=section.tasks,
            notes=section.notes,
        )
    differently = made_differently(section)
    rows_of = (paper_row(section, setting) for setting in section.settings)
    paper = tuple(what_it_supports(row for row in rows_of if row is not None))
    beside = beside_accuracy(section)
    if folder is None:
        return SectionContent(
            *text,
            effects=None,
            figures=(),
            disagreement=None,
            differently=differently,
            paper=paper,
            beside=beside,
        )
    draws: dict[str, Callable[[Section, Path], Figure | None]] = {
        "accuracy_over_epochs": accuracy_over_epochs,
        "accuracy_over_rank": accuracy_over_rank,
        "accuracy_against_compute": accuracy_against_compute,
        "training_curves": training_curves,
        **{f"{name}_edits": partial(edit_figure, kind=kind) for name, kind in kinds().items()},
    }
    drawn = [draw(section, folder / f"{name}{suffix}") for name, draw in draws.items()]
    return SectionContent(
        *text,
        effects=effects(verdicts, records, folder / f"effects{suffix}"),
        figures=tuple(figure for figure in drawn if figure is not None),
        disagreement=disagreement(section, verdicts, folder / f"disagreement{suffix}"),
        differently=differently,
        paper=paper,
        beside=beside,
        noise=noise_figure(verdicts, folder / f"noise{suffix}"),
    )
