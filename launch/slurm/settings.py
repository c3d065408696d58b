"""The settings of ``hydra/launcher=slurm``."""

from dataclasses import dataclass
from typing import Any, ClassVar

from heft_pipeline.declare_settings import Settings, setting
from heft_pipeline.errors import UserError
from launch.gpus import gpu_setting, utilisation_setting


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
        10, "how often one stage may be preempted or run out of time", least=0, identity=False
    )
    signal_seconds: int = setting(
        120,
        "how long before the time limit a stage is told to write a checkpoint",
        least=0,
        identity=False,
    )
    poll_seconds: float = setting(
        10.0, "how often the waiting process looks", above=0, identity=False
    )
    wait: bool = setting(
        True, "false: leave after submitting; a last small job makes the report", identity=False
    )
    dry_run: bool = setting(
        False, "show what would be submitted, and submit nothing", identity=False
    )
    dry_run_gpu: str = gpu_setting()
    dry_run_utilisation: float = utilisation_setting()
