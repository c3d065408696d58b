"""Executing a plan with one of the launchers."""

import dataclasses
import functools
import os
import socket
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from heft_pipeline.plan.graph import Plan
from heft_pipeline.store.sweep_folders import Sweep
from launch.cancel import no_longer_cancelled
from launch.check_inputs import check_inputs
from launch.local.execute import execute_here
from launch.local.settings import LocalSettings
from launch.look_over import look_over
from launch.measure_forgetting import NOTE, check_texts, measure_lacking, say_lacking
from launch.near_twins import say_near_twin
from launch.progress import announce, say_line
from launch.slurm.ask import Patience
from launch.slurm.settings import SlurmSettings
from launch.stored_only import NEVER

#: How long to go on asking SLURM for its limits, with somebody before the terminal.
_PATIENCE_SECONDS = 60.0

LauncherSettings = LocalSettings | SlurmSettings


def execute_plan(
    plan: Plan, sweep: Sweep, launcher: LauncherSettings, console: Console
) -> dict[str, str] | None:
    """Run every stage of a plan that is not finished yet, parents first.

    Args:
        plan: The plan.
        sweep: The sweep that it belongs to.
        launcher: The launcher's settings, which say where stages run.
        console: Where progress is shown.

    Returns:
        Why stages failed, by fingerprint; None where nobody waits for them.

    Raises:
        UserError: A stage cannot work as configured, or SLURM refuses it.
        SystemExit: A signal came; stages that were running here have checkpoints.
    """
    if launcher.train == NEVER:
        return {}
    sweep.store.require_writable()
    look_over(plan, sweep.store, console)  # before unfinished stages are counted
    if isinstance(launcher, LocalSettings):
        _begin(plan, sweep, launcher, console)
        failures = execute_here(plan, sweep, launcher, console)
        measure_lacking(sweep, plan, console)
        return failures
    from launch.slurm.execute_on_slurm import execute_on_slurm  # imports submitit
    from launch.slurm.limits import require_plain_path, require_slurm

    require_plain_path(sweep.folder)
    say = functools.partial(say_line, console)
    unfinished = sum(not sweep.store.is_complete(key) for key in plan.stages)
    require_slurm(launcher, unfinished, Patience(_PATIENCE_SECONDS, say))
    _begin(plan, sweep, launcher, console)
    ended = execute_on_slurm(plan, sweep, launcher, console)
    say_lacking(sweep, plan, console)
    return ended


def _begin(plan: Plan, sweep: Sweep, launcher: LauncherSettings, console: Console) -> None:
    """Say what will be done, and refuse what cannot be done."""
    no_longer_cancelled(sweep)
    say_near_twin(plan, sweep.store, console)
    announce(console, plan, sweep.store)
    check_inputs(plan, sweep.store, console, launcher)
    check_texts(sweep.plan().get(NOTE), sweep, plan)


def launcher_note(launcher: LauncherSettings) -> dict[str, Any]:
    """What ``plan.json`` says about the launcher and the process that executes the sweep.

    Args:
        launcher: The launcher's settings.

    Returns:
        JSON-ready data.
    """
    return {
        "kind": launcher.kind,
        "settings": dataclasses.asdict(launcher),
        "pid": os.getpid(),
        "host": socket.gethostname(),
    }


def read_launcher(note: Mapping[str, Any]) -> LauncherSettings:
    """The launcher's settings as :func:`launcher_note` wrote them.

    Args:
        note: What ``plan.json`` says about the launcher.

    Returns:
        The settings.
    """
    known: tuple[type[LauncherSettings], ...] = (LocalSettings, SlurmSettings)
    kinds = {one.kind: one for one in known}
    return kinds[note["kind"]](**note["settings"])
