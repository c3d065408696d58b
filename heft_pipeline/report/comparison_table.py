"""The table that compares settings: their accuracy with its interval, and what they cost."""

from collections.abc import Sequence
from dataclasses import dataclass

from heft_pipeline.report import words
from heft_pipeline.report.over_tasks import SectionOverTasks, SettingOverTasks
from heft_pipeline.report.paper_numbers import SOURCE, paper_row
from heft_pipeline.report.records import RunRecord
from heft_pipeline.report.sections import Section, Setting

#: The heading of a table's column, and whether its cells are numbers.
Column = tuple[str, bool]
_ACCURACY, _INTERVAL, _MEAN = "accuracy", "95 % interval", "mean over tasks"
_COSTS = ("trainable parameters", "train seconds", "train TFLOP")
#: These are shown for single tasks only.
_OF_ONE = ("examples/s", "peak MiB", "stages shared")
_PAPERS, _PAPERS_TIME = f"{SOURCE} (its accuracy)", f"{SOURCE} (its time)"


@dataclass(frozen=True)
class Row:
    """A row of the comparison.

    Attributes:
        cells: One for each column.
        kind: ``reference`` (the majority class or the untouched model), ``setting``, or ``open``
            (runs that are not complete).
    """

    cells: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class ComparisonTable:
    """The table of a section.

    Attributes:
        columns: Its columns.
        rows: Its rows.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def comparison_table(section: Section) -> ComparisonTable:
    """Compare a section's settings.

    Args:
        section: The section; over tasks, the table has a column for each task as well.

    Returns:
        The table, with the references first.
    """
    tasks = section.tasks if isinstance(section, SectionOverTasks) else ()
    papers = [None if tasks else paper_row(section, setting) for setting in section.settings]
    columns: list[Column] = [("method", False), ("epochs", True), ("rank", True)]
    columns += [("setting", False)] if section.variants else []
    columns += [("seeds", True)] if section.seeds > 1 else []
    columns += [(_MEAN if tasks else _ACCURACY, True), (_INTERVAL, True)]
    columns += [(_PAPERS, True), (_PAPERS_TIME, True)] if any(papers) else []
    # Many tasks are wider than a page; the mean and its cost are seen without scrolling.
    columns += [(name, True) for name in (*_COSTS, *(tasks or _OF_ONE))]
    known = [("reference", cells) for cells in _references(section)]
    for setting, paper in zip(section.settings, papers, strict=True):
        cells = _measured(setting, tasks) | _costs(setting)
        if paper is not None:
            cells |= {_PAPERS: words.percent(paper.accuracy)}
            cells |= {_PAPERS_TIME: words.seconds(paper.seconds)}
        known.append(("setting", cells))
    known += [("open", _unfinished(runs)) for runs in open_runs(section)]
    return ComparisonTable(
        tuple(columns),
        tuple(
            Row(tuple(cells.get(name, "") for name, _ in columns), kind) for kind, cells in known
        ),
    )


def open_runs(section: Section) -> list[list[RunRecord]]:
    """Group the runs of a section that are not complete, all seeds of a setting together.

    Args:
        section: The section.

    Returns:
        Lists of runs that have method, epochs, rank and status in common; none over tasks, where
        each is listed with its task.
    """
    groups: dict[object, list[RunRecord]] = {}
    for run in section.open if section.strata is None else ():
        key = (run.method, run.stage_epochs, run.ranks, run.status)
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _references(section: Section) -> list[dict[str, str]]:
    """The cells of what was not trained."""
    found = []
    tasks = section.tasks if isinstance(section, SectionOverTasks) else ()
    if section.gold:
        _, majority = section.majority
        cells = {"method": words.always(section)}
        if isinstance(section, SectionOverTasks):
            each = [(part.majority[1], part.majority_interval) for part in section.parts]
            cells |= _by_task(tasks, each)
        found.append(cells | _accuracy(majority, section.majority_interval, tasks))
        if section.chance is not None and not tasks:
            found.append({"method": "chance", _ACCURACY: words.share(section.chance)})
    if section.base:
        found.append(_measured(section.base, tasks))
    return found


def _measured(setting: Setting, tasks: Sequence[str]) -> dict[str, str]:
    cells = words.named(setting) | {"seeds": str(len(setting.seeds)) if setting.epochs else ""}
    if isinstance(setting, SettingOverTasks):
        cells |= _by_task(tasks, [(one.accuracy, one.interval) for one in setting.on])
    return cells | _accuracy(setting.accuracy, setting.interval, tasks)


def _accuracy(share: float, interval: tuple[float, float], tasks: Sequence[str]) -> dict[str, str]:
    heading = _MEAN if tasks else _ACCURACY
    return {heading: words.share(share), _INTERVAL: words.interval(*interval)}


def _by_task(
    tasks: Sequence[str], each: Sequence[tuple[float, tuple[float, float]]]
) -> dict[str, str]:
    return {
        task: f"{words.share(share)} ({words.interval(*interval)})"
        for task, (share, interval) in zip(tasks, each, strict=True)
    }


def _costs(setting: Setting) -> dict[str, str]:
    costs = setting.costs
    asked = sum(len(run.stages) for run in setting.runs)
    return {
        "trainable parameters": words.fixed(costs["trainable_params"]),
        "train seconds": words.fixed(costs["train_seconds"], 1),
        "train TFLOP": words.number(costs["train_tflop"]),
        "examples/s": words.number(costs["examples_per_second"]),
        "peak MiB": words.fixed(costs["peak_memory_mb"]),
        "stages shared": f"{sum(run.reused for run in setting.runs)} of {asked}",
    }


def _unfinished(runs: Sequence[RunRecord]) -> dict[str, str]:
    first = runs[0]
    return {
        "method": first.method,
        "epochs": words.epochs(first.stage_epochs),
        "rank": words.joined(first.ranks),
        "seeds": str(len(runs)),
        _ACCURACY: first.status,
    }
