"""SLURM's own commands: squeue, sacct, sinfo and scancel."""

import shutil
import subprocess
from collections.abc import Iterable, Sequence

from heft_pipeline.errors import UserError
from launch.slurm.settings import limit_seconds

_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL")


def job_states(job_ids: Iterable[str]) -> dict[str, str]:
    """The states of the jobs that SLURM still works on, from one call of squeue.

    Args:
        job_ids: Jobs, elements of arrays as ``ARRAY_INDEX``.

    Returns:
        ``PENDING``, ``RUNNING`` and so on by job; jobs that have ended are absent.
    """
    wanted = set(job_ids)
    if not wanted or shutil.which("squeue") is None:
        return {}
    # All of the user's jobs, because squeue fails when asked for one that is long gone.
    command = ["squeue", "--noheader", "--array", "--me", "--states=all", "--format=%i|%T"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    pairs = (line.split("|") for line in done.stdout.split())
    return {job: state for job, state in pairs if job in wanted and state not in _ENDED}


def accounted_state(job_id: str) -> str | None:
    """How a job ended, where the cluster keeps accounts of its jobs.

    Args:
        job_id: The job.

    Returns:
        SLURM's word, e.g. ``TIMEOUT`` or ``CANCELLED by 0``; None where sacct does not know.
    """
    if shutil.which("sacct") is None:
        return None
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=State"]
    done = subprocess.run([*command, "--jobs", job_id], capture_output=True, text=True, check=False)
    words = done.stdout.strip().splitlines()
    return words[-1] if done.returncode == 0 and words else None


def cancel_jobs(job_ids: Sequence[str]) -> None:
    """Cancel those of the jobs that have not ended.

    Args:
        job_ids: The jobs.
    """
    if job_ids:
        subprocess.run(["scancel", *job_ids], capture_output=True, check=False)


def partition_limits() -> dict[str, tuple[float, bool]]:
    """Ask SLURM for its partitions.

    Returns:
        Each partition's time limit in seconds, and whether it is the default.

    Raises:
        UserError: SLURM does not answer.
    """
    command = ["sinfo", "--noheader", "--format=%P|%l"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"SLURM does not answer: {done.stderr.strip() or 'sinfo failed'}")
    limits = {}
    for line in done.stdout.split():
        name, limit = line.split("|")
        limits[name.rstrip("*")] = (limit_seconds(limit), name.endswith("*"))
    return limits
