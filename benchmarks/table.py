"""Printing what was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.results import GridRun, Summary

_WIDTH = 100


def show(found: Summary, machine: Mapping[str, Any]) -> None:
    """Print the tables, at most 100 columns wide.

    Args:
        found: What was measured.
        machine: Where: its host, device, threads, CPU the CPU's features, and what
            seconds are if they are not wall time.
    """
    console = Console(width=_WIDTH, highlight=False)
    features = ", ".join(machine["cpu_features"]) or "no AVX-512"
    device = "" if machine["device"] == "cpu" else f", {machine['device']}"
    console.print(
        f"Machine: {machine['host']}, {machine['cpu']} ({features}), "
        f"threads: {machine['threads']}{device}"
        + (f"; seconds are {machine['time']}" if "time" in machine else "")
    )
    for when, gflops in found.peaks.items():
        peaks = ", ".join(f"{value:,.0f} GFLOP/s {dtype}" for dtype, value in gflops.items())
        console.print(f"Matrix-product peak of this machine, measured {when}: {peaks}")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("part", "what", "dtype"):
        table.add_column(name, no_wrap=True)
    for name in ("examples/s", "tokens/s", "MiB", "% peak", "one-off s", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for row in found.rows:
        table.add_row(
            row.part if row.part != previous else "",
            row.who,
            row.dtype,
            _number(row.examples_per_second),
            _number(row.tokens_per_second),
            f"{row.peak_memory_mb:,.0f}",
            _number(row.peak_percent),
            _number(row.one_off_seconds),
            _number(row.ratio),
        )
        previous = row.part
    console.print(table)
    for part, (first, largest, steps) in found.loss_differences.items():
        console.print(
            f"{part}: difference of a step's loss from the peer's, same batches: first step "
            f"{first:.1e}, largest of {steps} steps {largest:.1e}"
        )
    for part, epoch in found.paid_off.items():
        said = f"has paid off after epoch {epoch}" if epoch else "does not pay off"
        console.print(f"{part}: reuse {said}")
    if found.same_predictions:
        same, any_choice = found.same_predictions
        console.print(
            f"eval: pyreft's generation and ours begin with the same choice (or none) for "
            f"{same:.1%} of rows; ours begins with a choice for {any_choice:.1%}"
        )
    for positions, runs in found.grids.items():
        what = f"Six runs with ReFT at {positions}"
        _show_grid(console, what, found.training_rows, runs, "Peers train every run by itself.")
    for how, runs in found.paper_grids.items():
        what = f"The rows of the HEFT paper's table 1, the peers' LoRA padded to {how}"
        _show_grid(console, what, found.training_rows, runs, "The script trains each by itself.")
    for name, ratio in found.others.items():
        console.print(f"{name}={ratio:.3g}")
    for name in found.failed:
        console.print(f"failed: {name}")


def _show_grid(
    console: Console, what: str, rows: int, runs: Sequence[GridRun], peers_do: str
) -> None:
    console.print(
        f"\n{what}, seconds of training on {rows} rows, COMPUTED from the epochs measured above "
        "(one-off + epochs x seconds per epoch); no run of 3 or 20 epochs was made. " + peers_do
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("run", "peers s", "own s", "this project trains"):
        table.add_column(name, justify="right" if name.endswith(" s") else "left")
    for run in runs:
        table.add_row(run.name, _number(run.peers), _number(run.own), run.trained)
    peers = sum(run.peers for run in runs)
    own = sum(run.own for run in runs)
    table.add_row("all", _number(peers), _number(own), f"ratio {peers / own:.3g}")
    console.print(table)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
