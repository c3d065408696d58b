"""Processes as they write themselves down, so that others can tell whether they have ended."""

import functools
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """What tells this process from others: JSON-ready data for :func:`has_ended`.

    Returns:
        ``pid``, ``host``, ``since`` (now), ``started`` (by the machine's clock; None if unknown)
        and ``numbered_in`` (what gives processes their numbers: a machine or a container, since it
        was started), and under SLURM ``job_id`` and ``requeues``.
    """
    note = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.time(),
        "started": _started(os.getpid()),
        "numbered_in": _numbered_in(),
    }
    if "SLURM_JOB_ID" in os.environ:
        note["job_id"] = os.environ["SLURM_JOB_ID"]
        note["requeues"] = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    return note


def has_ended(note: Mapping[str, Any]) -> bool:
    """Whether a process is known to have ended.

    Args:
        note: What :func:`this_process` gave there.

    Returns:
        True for a process of this machine that is gone, and for an earlier start of the SLURM job
        that this process belongs to; false for any other, because nothing is known of it.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is not None and note.get("job_id") == job:
        now = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if isinstance(note.get("requeues"), int) and note["requeues"] < now:
            return True
    pid = note.get("pid")
    if not is_here(note) or not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # somebody else's
    started = _started(pid)
    return None not in (started, note.get("started")) and started != note["started"]


def is_here(note: Mapping[str, Any]) -> bool:
    """Whether a process is, or was, one of this machine and container since its last start.

    Args:
        note: What :func:`this_process` gave there.
    """
    same_numbers = note.get("numbered_in", _numbered_in()) == _numbered_in()
    return note.get("host") == socket.gethostname() and same_numbers


def _started(pid: int) -> int | None:
    """When a process was started, in ticks since the machine was; its number may be used again."""
    try:
        said = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(said.rpartition(")")[2].split()[19])  # field 22 of proc(5); the name is the 2nd
    except (OSError, ValueError, IndexError):
        return None


@functools.cache
def _numbered_in() -> str | None:
    """What gives processes their numbers: the machine since its last start, and the container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def named(note: Mapping[str, Any] | None) -> str:
    """The name of a process for people.

    Args:
        note: What :func:`this_process` gave there; None or incomplete where it is not known.
    """
    if not note or not {"pid", "host"} <= set(note):
        return "another process"
    return f"process {note['pid']} on {note['host']}"
