"""The command line: send a sweep to a tracker, from its files."""

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.text import Text

from heft_pipeline.command_line.console import TextConsole
from heft_pipeline.command_line.run import run_command
from heft_pipeline.declare_settings import check
from heft_pipeline.errors import UserError
from heft_pipeline.settings.tracking import TrackingSettings
from heft_pipeline.store.sweep_folders import Sweep
from heft_pipeline.tracking.follow import Event, Sender
from heft_pipeline.tracking.payload import PlannedRun, planned_runs
from heft_pipeline.tracking.send import require_tracker
from heft_pipeline.tracking.summary import Summary

_MODES = TrackingSettings.__dataclass_fields__["mode"].metadata["bounds"].choices
_TRACKERS = tuple(
    name
    for name in TrackingSettings.__dataclass_fields__["name"].metadata["bounds"].choices
    if name != "none"
)
_MARKS = {"sent": ("✓", "green"), "unchanged": ("=", "cyan"), "skipped": ("-", "dim")}
_EPILOG = """\
Everything is read from the sweep's files, so this works at any time, also for a
sweep that was not tracked, and can be repeated: a run that was sent and has not
changed is not sent again, and no line of a curve is sent twice. A run that is
not complete is sent as far as it has come; its summary says so (status), and W&B
shows it as failed or preempted until it is sent again. The runs' configs say
which tracker and project are used, unless they are given here.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Send a sweep.

    Args:
        arguments: The command line; None for this process's own.

    Returns:
        The exit status: 1 where a run was not accepted.
    """
    kept = "What was sent is not sent again when the same command is run."
    return run_command(
        _track, arguments, elsewhere="give a copy of the sweep in another place", kept=kept
    )


def _track(arguments: Sequence[str]) -> int:
    asked = _parser().parse_args(arguments)
    # A program that has used W&B and starts this one hands its own service on, in which a run that
    # it has sent counts as in use.
    os.environ.pop("WANDB_SERVICE", None)
    sweep = Sweep(asked.sweep)
    runs = planned_runs(sweep)
    if asked.run and asked.run not in [run.name for run in runs]:
        names = ", ".join(run.name for run in runs[:5])
        raise UserError(f"--run {asked.run} is not a run of {sweep.folder}; it has {names}")
    if asked.follow:
        return _follow(sweep, asked)
    return _send(sweep, runs, asked)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m heft_pipeline.tracking",
        description="Send a sweep to W&B or MLflow, or write it for TensorBoard or Trackio.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("sweep", type=Path, metavar="SWEEP", help="the sweep's folder, e.g. outputs/sweeps/NAME")
    add(
        "--to",
        choices=_TRACKERS,
        help="default: the config's, else wandb",
    )
    add("--mode", choices=_MODES, help="W&B's mode; default: the config's")
    add("--project", metavar="P", help="the project (MLflow: experiment); default: the config's")
    add("--uri", metavar="U", help="MLflow's server or database; default: the config's")
    add("--entity", metavar="E", help="the W&B user or team; default: the config's")
    add("--run", metavar="NAME", help="send only this run, e.g. heft-3-r8-s0")
    add("--again", action="store_true", help="also send what has not changed")
    add(
        "--follow",
        action="store_true",
        help="keep sending runs while they are trained, until standard input ends or says "
        "'end'; print events as lines of JSON",
    )
    add("--every", type=float, default=2.0, metavar="S", help=argparse.SUPPRESS)
    return parser


def _given(asked: argparse.Namespace) -> dict[str, Any]:
    """The tracking settings that are given on the command line."""
    names = {"name": "to"} | {key: key for key in ("mode", "project", "uri", "entity")}
    values = {key: getattr(asked, option) for key, option in names.items()}
    return {key: value for key, value in values.items() if value is not None}


def _overrides(asked: argparse.Namespace, runs: Sequence[PlannedRun]) -> dict[str, Any]:
    """The checked settings from the command line; W&B for a sweep that was not tracked."""
    found = _given(asked)
    if runs and "name" not in found and runs[0].config.tracking.name == "none":
        found["name"] = "wandb"
    merged = dataclasses.replace(
        runs[0].config.tracking if runs else TrackingSettings(name="wandb"), **found
    )
    check(merged, "tracking")
    require_tracker(merged)
    return found


def _send(sweep: Sweep, runs: Sequence[PlannedRun], asked: argparse.Namespace) -> int:
    console = TextConsole(highlight=False)
    summary = Summary(sweep.folder)
    chosen = [run for run in runs if asked.run in (None, run.name)]
    overrides = _overrides(asked, chosen)

    def show(event: Event) -> None:
        summary.add(event)
        status = event.status + (f": {event.text}" if event.status == "skipped" else "")
        mark = _MARKS.get(event.status, ("✗", "red"))
        console.print(Text.assemble(mark, f" {event.run}  {status}"), soft_wrap=True)

    with console.status("sending"):
        Sender(sweep, show, asked.run, overrides, asked.again).send_all()
    if not summary.events:
        console.print("nothing was sent: the mode is disabled")
    for line in summary.lines():
        console.print(Text(line), soft_wrap=True)
    return 1 if summary.problems else 0


def _follow(sweep: Sweep, asked: argparse.Namespace) -> int:
    """Send runs until the process that trains closes standard input."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # What libraries print goes to the log, so that standard output has nothing but events.
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    ended = threading.Event()
    threading.Thread(target=_wait_for_end, args=(sys.stdin, ended), daemon=True).start()

    def report(event: Event) -> None:
        # What remains is sent even where nobody reads the events any more.
        with contextlib.suppress(BrokenPipeError):
            reports.write(json.dumps(dataclasses.asdict(event)) + "\n")

    Sender(sweep, report, asked.run, _given(asked), asked.again).follow(ended, asked.every)
    return 0  # runs that were not accepted are reported as events; other statuses mean a crash


def _wait_for_end(stream: TextIO, ended: threading.Event) -> None:
    for line in stream:
        if line.strip() == "end":
            break
    ended.set()


if __name__ == "__main__":
    sys.exit(main())
