"""The settings of ``hydra/launcher=local``."""

from dataclasses import dataclass
from typing import Any, ClassVar

from heft_pipeline.declare_settings import Settings, setting
from heft_pipeline.errors import UserError
from launch.gpus import gpu_setting, utilisation_setting
from launch.stored_only import train_setting


def _check_gpus(key: str, value: Any) -> None:
    numbers = isinstance(value, list | tuple) and all(
        isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in value
    )
    if value != "auto" and not numbers:
        raise UserError(f"{key}={value} must be auto or a list of GPU numbers, e.g. {key}=[0,1]")


@dataclass(frozen=True)
class LocalSettings(Settings):
    """How a sweep's stages are executed on this machine."""

    kind: ClassVar[str] = "local"

    workers: int = setting(
        1,
        "processes that train stages side by side; CPU threads are divided among them",
        least=1,
        identity=False,
    )
    gpus_per_stage: int = setting(
        1,
        "processes that train one stage together, each on its own GPU where there are any",
        least=1,
        identity=False,
    )
    gpus: Any = setting(
        "auto",
        "auto: all visible GPUs, dealt out to the workers; or a list of their numbers",
        rule=_check_gpus,
        identity=False,
    )
    train: str = train_setting()
    dry_run: bool = setting(False, "show what would be trained, and train nothing", identity=False)
    dry_run_gpu: str = gpu_setting()
    dry_run_utilisation: float = utilisation_setting()
