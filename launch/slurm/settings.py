"""The settings of ``hydra/launcher=slurm``."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from heft_pipeline.declare_settings import Settings, setting
from heft_pipeline.errors import UserError
from launch.gpus import gpu_setting, utilisation_setting
from launch.stored_only import train_setting

#: Flags that would send a job where this project does not look for it, or make it another job.
_NOT_FLAGS = {
    "clusters": "set SLURM_CLUSTERS in the environment, which all of SLURM's commands read",
    "M": "set SLURM_CLUSTERS in the environment, which all of SLURM's commands read",
    "array": "stages are grouped into arrays by themselves",
    "job-name": "jobs are found again by the names that they are given",
    "J": "jobs are found again by the names that they are given",
    "dependency": "fine stages wait for their coarse stages by themselves",
    "output": "logs are in the sweep's folder, where python -m launch logs finds them",
    "error": "logs are in the sweep's folder, where python -m launch logs finds them",
    "wait": "use hydra.launcher.wait",
    "parsable": "the answer of sbatch is read as it is",
}

_MEGABYTES = {"B": 1 / 1024**2, "K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0**2}


def limit_seconds(limit: str, key: str = "hydra.launcher.time") -> float:
    """Read a time limit in SLURM's notation: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Args:
        limit: The text.
        key: The setting that it comes from, for the message.

    Returns:
        Seconds; infinite for ``UNLIMITED``.

    Raises:
        UserError: It is not a time.
    """
    text = str(limit)
    if text.lower() in ("infinite", "unlimited"):
        return float("inf")
    try:
        days, _, rest = text.rpartition("-")
        parts = [int(part) for part in rest.split(":")]
        if days:
            hours, minutes, seconds = (*parts, 0, 0)[:3]
        elif len(parts) == 3:
            hours, minutes, seconds = parts
        else:
            hours, (minutes, seconds) = 0, (*parts, 0)[:2]
        return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds
    except ValueError:
        raise UserError(
            f"{key}={limit} is not a time; write minutes, H:MM:SS or D-HH:MM:SS, e.g. {key}=4:00:00"
        ) from None


def megabytes(amount: str, bare: str = "M") -> float | None:
    """Read an amount of memory in SLURM's notation, e.g. ``64G``, ``4000M``, ``4Gn`` or ``1234K``.

    Args:
        amount: The amount; an ``n`` or ``c`` behind it says that it is for each node or core.
        bare: The unit of a number without one: sbatch takes megabytes, sacct prints bytes.

    Returns:
        Megabytes; None where there is no amount.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?[nc]?", amount, re.IGNORECASE)
    if found is None:
        return None
    return float(found.group(1)) * _MEGABYTES[found.group(2).upper() or bare]


def _check_time(key: str, value: str) -> None:
    limit_seconds(value, key)


def _flag(help: str, example: str | None = None) -> Any:
    """A flag of sbatch that is left to the cluster unless it is set."""
    return setting(None, f"{help}; null: the cluster's default", example=example, identity=False)


@dataclass(frozen=True)
class SlurmSettings(Settings):
    """How a sweep's stages are submitted to SLURM, and what each job asks for."""

    kind: ClassVar[str] = "slurm"

    partition: str | None = _flag("the partition, or several separated by commas", "gpu")
    account: str | None = _flag("the account that is charged")
    qos: str | None = _flag("the quality of service")
    gres: str | None = setting(
        None,
        "for each node; null: gpu:GPUS_PER_STAGE; none: no GPU",
        example="gpu:a100:1",
        identity=False,
    )
    constraint: str | None = _flag("the features that a node must have")
    exclude: str | None = _flag("the nodes to avoid")
    nodelist: str | None = _flag("the nodes to use")
    gpus_per_stage: int = setting(
        1,
        "processes (one for each GPU) that train one stage together, on one node",
        least=1,
        identity=False,
    )
    cpus_per_gpu: int | None = setting(
        None,
        "CPU cores for each process; null: the cluster's default",
        least=1,
        example=8,
        identity=False,
    )
    mem: str | None = _flag("memory for each node", "64G")
    mem_factor: float = setting(
        2.0,
        "a stage that ran out of memory is submitted again with this many times as much, up to "
        "the largest node's; 1: it fails",
        least=1,
        most=16,
        identity=False,
    )
    time: str = setting(
        "4:00:00",
        "the time limit in SLURM's notation; a stage that needs longer is requeued and resumed",
        rule=_check_time,
        identity=False,
    )
    setup: list[str] = setting(
        [], "shell lines before each job", example=["module load cuda"], identity=False
    )
    sbatch: dict[str, Any] = setting(
        {}, "any other flags of sbatch", example={"reservation": "mine"}, identity=False
    )
    max_parallel: int = setting(
        256, "the most jobs of an array that run at a time", least=1, identity=False
    )
    max_requeues: int = setting(
        10,
        "how often one stage may be preempted, run out of time or memory, or lose its node",
        least=0,
        identity=False,
    )
    signal_seconds: int = setting(
        120,
        "how long before the time limit a stage is told to write a checkpoint",
        least=0,
        most=65535,  # sbatch's manual, --signal
        identity=False,
    )
    poll_seconds: float = setting(
        10.0, "how often the waiting process looks", above=0, identity=False
    )
    wait: bool = setting(
        True, "false: leave after submitting; a last small job makes the report", identity=False
    )
    train: str = train_setting()
    dry_run: bool = setting(
        False, "show what would be submitted, and submit nothing", identity=False
    )
    dry_run_gpu: str = gpu_setting()
    dry_run_utilisation: float = utilisation_setting()

    def check(self, key: str) -> None:
        """Refuse a time limit that leaves no time to train, and flags that cannot be followed."""
        limit = limit_seconds(self.time)
        if limit < 2 * self.signal_seconds:
            raise UserError(
                f"{key}.signal_seconds={self.signal_seconds} is more than half of "
                f"{key}.time={self.time} ({limit:.0f} s), so that a stage would mostly write "
                f"checkpoints; use {key}.signal_seconds={limit // 4:.0f} or a longer time"
            )
        for flag, instead in _NOT_FLAGS.items():
            if flag in self.sbatch:
                raise UserError(f"{key}.sbatch has {flag}, which cannot be given there; {instead}")
