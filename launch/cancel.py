"""Stopping a sweep, but not what others wait for."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from heft_pipeline.errors import UserError
from heft_pipeline.store.json_files import read_json
from heft_pipeline.store.sweep_folders import PLAN, Sweep
from launch.slurm.ask import NoAnswer, Patience
from launch.slurm.job_notes import JobNote, read_note
from launch.slurm.job_states import cancel_jobs, job_states

_PATIENCE_SECONDS = 60.0
_CANCELLED = ".cancelled"


def cancel_sweep(sweep: Sweep, everything: bool, console: Console) -> None:
    """Stop a sweep's jobs and the process on this machine that executes it.

    Args:
        sweep: The sweep.
        everything: Whether to cancel jobs as well that other sweeps wait for.
        console: Where to say what was done.

    Raises:
        UserError: SLURM does not answer; the message says what stands.
    """
    from launch.slurm.submit import submit_lock  # imports submitit

    written, store = sweep.plan(any_version=True), sweep.store

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    patience = Patience(_PATIENCE_SECONDS, say)
    with submit_lock(store, say):
        notes = {key: note for key in written["stages"] if (note := read_note(store, key))}
        waiting = {} if everything else _others(sweep, set(notes))
        cancelled = _cancel(sweep, notes, waiting, written, patience)
        (sweep.folder / _CANCELLED).touch()
    processes = list(_processes(written))
    for pid in processes:
        os.kill(pid, signal.SIGTERM)
    say(
        f"{cancelled} jobs cancelled, {len(processes)} processes on this machine told to stop; "
        "running stages write a checkpoint, finished ones are kept"
    )
    if waiting:
        others = ", ".join(sorted(set(waiting.values()))[:5])
        say(
            f"{len(waiting)} jobs are kept, because other sweeps ask for their stages ({others}); "
            "--all cancels them too"
        )


def is_cancelled(sweep: Sweep) -> bool:
    """Whether a sweep was cancelled and has not been asked for since."""
    return (sweep.folder / _CANCELLED).is_file()


def no_longer_cancelled(sweep: Sweep) -> None:
    """Note that a sweep is asked for again."""
    (sweep.folder / _CANCELLED).unlink(missing_ok=True)


def _cancel(
    sweep: Sweep,
    notes: dict[str, JobNote],
    waiting: dict[str, str],
    written: dict[str, Any],
    patience: Patience,
) -> int:
    from launch.slurm.report_job import read_report_note  # imports submitit

    report = read_report_note(sweep, written)
    mine = {key: note for key, note in notes.items() if key not in waiting}
    try:
        # The report's job first: it would run as soon as the others have ended.
        first = cancel_jobs({"report": report} if report else {}, patience)
        jobs = cancel_jobs(mine, patience)
        states = job_states({key: notes[key] for key in waiting}, patience)
    except NoAnswer as error:
        raise UserError(
            f"SLURM does not answer ({error}); whether all jobs of {sweep.name} are cancelled is "
            "not known: run the same command again"
        ) from error
    for key, job in states.items():
        if job.over:
            del waiting[key]
    return len(first) + len(jobs)


def _others(sweep: Sweep, keys: set[str]) -> dict[str, str]:
    """The name of another sweep that asks for each of some stages, by fingerprint."""
    found: dict[str, str] = {}
    for path in sorted(sweep.folder.parent.glob(f"*/{PLAN}")):
        other = Sweep(path.parent)
        if path.parent == sweep.folder or is_cancelled(other):
            continue
        plan = read_json(path) or {}  # a broken plan cannot be waited for
        found |= dict.fromkeys(keys & set(plan.get("stages", {})), other.name)
    return found


def _processes(written: dict[str, Any]) -> Iterator[int]:
    """The process on this machine that executes a sweep, if there is one."""
    launcher = written.get("launcher") or {}
    pid = launcher.get("pid")
    if launcher.get("host") != socket.gethostname() or not pid:
        return
    command = Path(f"/proc/{pid}/cmdline")
    if command.is_file() and b"heft_pipeline" in command.read_bytes():
        yield int(pid)
