"""Writing a sweep's report, and its table for the terminal."""

import os
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock
from rich.table import Table

from heft_pipeline.report.figures import accuracy_over
from heft_pipeline.report.table import COLUMNS, groups_table, runs_table
from heft_pipeline.sweep import Sweep


def write_report(sweep: Sweep) -> Table:
    """Write ``results.csv``, ``report.md`` and ``figures/``.

    Args:
        sweep: The sweep; runs that are not complete are marked.

    Returns:
        The table for the terminal.
    """
    runs = runs_table(sweep)
    groups = groups_table(runs, sweep.store)
    with FileLock(sweep.folder / ".report.lock"):
        _replace(sweep.folder / "results.csv", runs[COLUMNS].to_csv(index=False))
        figures = _figures(sweep, groups) if len(groups) else []
        _replace(sweep.folder / "report.md", _markdown(sweep, runs, groups, figures))
    return terminal_table(sweep, runs, groups)


def terminal_table(sweep: Sweep, runs: pd.DataFrame, groups: pd.DataFrame) -> Table:
    """The comparison as a table of at most 80 columns.

    Args:
        sweep: The sweep.
        runs: What :func:`~heft_pipeline.report.table.runs_table` gives.
        groups: What :func:`~heft_pipeline.report.table.groups_table` gives.

    Returns:
        A rich table.
    """
    table = Table(title=f"{sweep.name}", title_justify="left", caption_justify="left")
    table.caption = _caption(runs, groups)
    table.add_column("method", no_wrap=True)
    for heading in ("epochs", "rank", "accuracy (95 %)", "params", "train s", "TFLOP"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in groups.itertuples():
        table.add_row(
            str(row.method),
            _epochs(row),
            _rank(row),
            _accuracy(row),
            _short(row.trainable_params),
            f"{row.train_seconds:.1f}",
            f"{row.train_tflop:.3g}",
        )
    for row in runs[runs.status != "complete"].itertuples():
        table.add_row(str(row.method), _epochs(row), _rank(row), f"[red]{row.status}[/]")
    return table


def _caption(runs: pd.DataFrame, groups: pd.DataFrame) -> str:
    parts = []
    for (model, data), group in (
        groups.groupby(["model", "data"], sort=False) if len(groups) else ()
    ):
        majority = group.majority.iloc[0]
        seeds = f", {group.seeds.max()} seeds" if group.seeds.max() > 1 else ""
        parts.append(
            f"{model} on {data}: {group.n_eval.iloc[0]} examples{seeds}; "
            f"always the majority class {majority:.1%}"
        )
    unfinished = (runs.status != "complete").sum()
    if unfinished:
        parts.append(f"{unfinished} of {len(runs)} runs are not complete")
    return "\n".join(parts)


def _figures(sweep: Sweep, groups: pd.DataFrame) -> list[tuple[str, Path]]:
    folder = sweep.folder / "figures"
    drawn = [
        ("epochs", "epochs of each stage", "Accuracy over epochs", "accuracy_over_epochs"),
        (
            "train_tflop",
            "training compute of all stages (TFLOP)",
            "Accuracy over compute",
            "accuracy_over_compute",
        ),
    ]
    figures = []
    for column, label, title, name in drawn:
        if (groups[column] > 0).any():
            png, _, _ = accuracy_over(groups, column, label, title, folder / name)
            figures.append((title, png))
    return figures


def _markdown(
    sweep: Sweep, runs: pd.DataFrame, groups: pd.DataFrame, figures: list[tuple[str, Path]]
) -> str:
    lines = [f"# {sweep.name}", "", f"Made by `{sweep.plan()['command']}`.", ""]
    lines += [line for part in _caption(runs, groups).splitlines() for line in (part + ".", "")]
    header = [
        "method", "epochs", "rank", "seeds", "accuracy", "95 % interval", "trainable parameters",
        "train seconds", "train TFLOP", "peak memory (MiB)",
    ]  # fmt: skip
    lines += ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    for row in groups.itertuples():
        cells = [
            row.method, _epochs(row), _rank(row), row.seeds, f"{row.accuracy:.2%}",
            f"{row.low:.2%} to {row.high:.2%}", f"{row.trainable_params:,}",
            f"{row.train_seconds:.1f}", f"{row.train_tflop:.4g}", f"{row.peak_memory_mb:.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    for row in runs[runs.status != "complete"].itertuples():
        cells = [row.method, _epochs(row), _rank(row), "", row.status, *[""] * 5]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        "Epochs are of each stage (their sum in brackets). Parameters, seconds and operations are "
        "those of all stages that a run stands on, reused ones included. The interval is "
        "Wilson's for one seed, and a bootstrap over seeds and examples for more.",
    ]
    for title, path in figures:
        lines += ["", f"![{title}]({path.relative_to(sweep.folder)})"]
    reused, asked = int(runs.stages_reused.sum()), int(runs.stages.str.count(r"\+").add(1).sum())
    lines += [
        "",
        f"Of {asked} stages asked for, {reused} were complete already or shared with another run. "
        "Every run: [results.csv](results.csv).",
    ]
    return "\n".join(lines) + "\n"


def _accuracy(row: Any) -> str:
    return f"{row.accuracy:.1%} ({100 * row.low:.1f}-{100 * row.high:.1f})"


def _epochs(row: Any) -> str:
    epochs, total = int(row.epochs), int(row.total_epochs)
    return f"{epochs}" if epochs == total else f"{epochs} ({total})"


def _rank(row: Any) -> str:
    ranks = [row.lora_rank, row.reft_rank]
    return "/".join(dict.fromkeys(str(rank) for rank in ranks if not pd.isna(rank)))


def _short(number: Any) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)
