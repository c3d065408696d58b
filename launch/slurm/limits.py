"""What a cluster allows, read before anything is checked or submitted."""

import getpass
import shutil
from collections.abc import Mapping
from pathlib import Path

from heft_pipeline.errors import UserError
from launch.slurm.ask import NoAnswer, Patience
from launch.slurm.job_states import cluster_config
from launch.slurm.settings import SlurmSettings, limit_seconds

_DEFAULT_ARRAY_SIZE = 1001  # slurm.conf's manual, MaxArraySize
_SUBMIT_LIMITS = ("MaxSubmitJobs", "GrpSubmitJobs")


def require_slurm(settings: SlurmSettings, jobs: int, patience: Patience) -> None:
    """Refuse to go on without SLURM, or with what the cluster does not allow.

    Args:
        settings: The launcher's settings.
        jobs: How many jobs are to be submitted at most.
        patience: How long to go on asking where SLURM does not answer.

    Raises:
        UserError: There is no sbatch, SLURM does not answer, the partition is unknown, the time
            limit is past the partition's, or there are more jobs than may be submitted.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "hydra/launcher=slurm: this machine has no sbatch; start from a login node of the "
            "cluster, or use hydra/launcher=local"
        )
    try:
        limits = partition_limits(patience)
        most_jobs = cluster_config(patience).get("MaxJobCount", "")
    except NoAnswer as error:
        raise UserError(f"SLURM does not answer: {error}; nothing was submitted") from error
    asked = settings.partition
    names = asked.split(",") if asked else [n for n, (_, default) in limits.items() if default]
    for name in names:
        if name not in limits:
            raise UserError(
                f"hydra.launcher.partition={name} is not a partition of this cluster; it has "
                f"{', '.join(sorted(limits))}"
            )
    longest = max((limits[name][0] for name in names), default=float("inf"))
    if limit_seconds(settings.time) > longest:
        raise UserError(
            f"hydra.launcher.time={settings.time} is past the limit of partition "
            f"{','.join(names)} ({longest / 60:.0f} minutes); a stage that needs longer is "
            "requeued and resumed, so ask for less"
        )
    _refuse_too_many(jobs, {"MaxJobCount": most_jobs} | submit_limits())


def require_plain_path(folder: Path) -> None:
    """Refuse a folder whose path SLURM and submitit would read as a pattern.

    Args:
        folder: The sweep's folder.

    Raises:
        UserError: The path holds ``%``, a backslash or a line break.
    """
    path = str(folder.resolve())
    for character in ("%", "\\", "\n"):
        if character in path:
            raise UserError(
                f"{path!r} has {character!r} in it, which SLURM replaces in paths of logs; choose "
                "another output_dir=DIR or sweep=NAME"
            )


def _refuse_too_many(jobs: int, limits: Mapping[str, str]) -> None:
    for name, value in limits.items():
        if value.isdigit() and jobs > int(value):
            raise UserError(
                f"{jobs:,} jobs are to be submitted, and this cluster's {name} is {int(value):,}; "
                "ask for fewer runs at a time (finished stages are kept and shared), or use "
                "hydra/launcher=local within an allocation"
            )


def partition_limits(patience: Patience) -> dict[str, tuple[float, bool]]:
    """Ask SLURM for its partitions.

    Args:
        patience: How long to go on asking.

    Returns:
        Each partition's time limit in seconds, and whether it is the default.

    Raises:
        NoAnswer: SLURM does not answer.
    """
    limits = {}
    for line in patience.ask(["sinfo", "--noheader", "--format=%P|%l"]).split():
        name, limit = line.split("|")
        limits[name.rstrip("*")] = (limit_seconds(limit), name.endswith("*"))
    return limits


def submit_limits() -> dict[str, str]:
    """The limits on jobs in the queue that the cluster's accounts have for this user.

    Returns:
        Each limit's value; absent where accounting does not tell or does not limit. They are
        SLURM's to enforce; what is read here only gives the words before anything is done.
    """
    user = getpass.getuser()
    fields = ",".join(_SUBMIT_LIMITS)
    command = ["sacctmgr", "-nP", "show", "assoc", "where", f"user={user}", f"format={fields}"]
    try:
        rows = [line.split("|") for line in Patience().ask(command).splitlines()]
    except NoAnswer:
        return {}
    found: dict[str, str] = {}
    for number, name in enumerate(_SUBMIT_LIMITS):
        values = [row[number] for row in rows if len(row) > number]
        if values and all(value.isdigit() for value in values):  # an association without allows it
            found[name] = str(max(map(int, values)))
    return found


def largest_array() -> int:
    """How many elements a job array may have: ``MaxArraySize`` bounds their numbers, from 0.

    Returns:
        At least 1; SLURM's default where it does not answer.
    """
    try:
        value = cluster_config().get("MaxArraySize", "")
    except NoAnswer:
        value = ""
    return max(1, int(value)) if value.isdigit() else _DEFAULT_ARRAY_SIZE


def largest_memory(partition: str | None) -> int | None:
    """The most memory that a node has.

    Args:
        partition: The partitions, separated by commas; None for all.

    Returns:
        Megabytes; None where SLURM does not answer.
    """
    words = _sinfo(partition, "--format=%m")
    return max((int(word.rstrip("+")) for word in words), default=None)


def other_nodes(partition: str | None, excluded: set[str]) -> int:
    """How many nodes remain for a job that avoids some.

    Args:
        partition: The partitions, separated by commas; None for all.
        excluded: The names of the nodes to avoid.

    Returns:
        Their number, whatever they are doing now, as long as they are not down.
    """
    return len(set(_sinfo(partition, "--Node", "--responding", "--format=%N")) - excluded)


def _sinfo(partition: str | None, *arguments: str) -> list[str]:
    """The words that sinfo prints of some partitions; none where SLURM does not answer."""
    where = [f"--partition={partition}"] if partition else []
    try:
        return Patience().ask(["sinfo", "--noheader", *arguments, *where]).split()
    except NoAnswer:
        return []
