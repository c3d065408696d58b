"""Stopping a sweep, but not what others wait for."""

import functools
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from heft_pipeline.errors import UserError
from heft_pipeline.files.json_files import read_json
from heft_pipeline.store.sweep_folders import PLAN, Sweep
from launch.progress import say_line
from launch.slurm.ask import NoAnswer, Patience
from launch.slurm.job_notes import JobNote, read_notes, read_report_note
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

    say = functools.partial(say_line, console)
    patience = Patience(_PATIENCE_SECONDS, say)
    written, store = sweep.plan(any_version=True), sweep.store
    with submit_lock(store, say):
        notes = read_notes(store, written["stages"])
        others = {} if everything else _others(sweep, set(notes))
        try:
            cancelled, kept = _cancel(sweep, notes, others, written, patience)
        except NoAnswer as error:
            raise UserError(
                f"SLURM does not answer ({error}); whether all jobs of {sweep.name} are cancelled "
                "is not known: run the same command again"
            ) from error
        (sweep.folder / _CANCELLED).touch()
    processes = list(_processes(written))
    for pid in processes:
        os.kill(pid, signal.SIGTERM)
    say(
        f"{cancelled} jobs cancelled, {len(processes)} processes on this machine told to stop; "
        "running stages write a checkpoint, finished ones are kept"
    )
    if kept:
        names = ", ".join(sorted({others[key] for key in kept})[:5])
        say(
            f"{len(kept)} jobs are kept, because other sweeps ask for their stages ({names}); "
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
    notes: Mapping[str, JobNote],
    others: Mapping[str, str],
    written: Mapping[str, Any],
    patience: Patience,
) -> tuple[int, list[str]]:
    """Cancel a sweep's jobs but those of stages that others ask for.

    Returns:
        (how many were cancelled, the stages whose jobs go on).
    """
    report = read_report_note(sweep.name, written)
    # The report's job first: it would run as soon as the others have ended.
    first = cancel_jobs({"report": report} if report else {}, patience)
    jobs = cancel_jobs({k: note for k, note in notes.items() if k not in others}, patience)
    states = job_states({key: notes[key] for key in others}, patience)
    return len(first) + len(jobs), [key for key, job in states.items() if not job.over]


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
