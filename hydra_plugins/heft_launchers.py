"""This project's launchers and sweeper, in the one namespace that Hydra accepts them from.

Hydra imports this file whenever it starts, so it imports nothing heavy; ``launch`` does the work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from launch.local.settings import LocalSettings
from launch.slurm.settings import SlurmSettings


class LocalLauncher(Launcher):
    """Executes a sweep's unique stages on this machine."""

    settings_class: ClassVar[type[LocalSettings | SlurmSettings]] = LocalSettings

    def __init__(self, **settings: Any) -> None:
        plain = OmegaConf.to_container(OmegaConf.create(settings), resolve=True)
        self.settings = self.settings_class(**plain)  # type: ignore[arg-type]

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra gives; see Hydra's ``Launcher``."""
        self.hydra_context, self.config = hydra_context, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run a batch of jobs; see :func:`launch.run_sweep.launch_sweep`."""
        from launch.run_sweep import launch_sweep

        return launch_sweep(
            self.hydra_context, self.config, job_overrides, initial_job_idx, self.settings
        )


class SlurmLauncher(LocalLauncher):
    """Submits a sweep's unique stages to SLURM."""

    settings_class = SlurmSettings


class Sweeper(BasicSweeper):
    """Hydra's basic sweeper, which otherwise composes each job once more to see that it can be.

    The launchers compose and check all jobs before they execute the first.
    """

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Leave it to the launcher."""


@dataclass
class SweeperConf(BasicSweeperConf):
    """The keys of ``hydra/sweeper=heft``: those of Hydra's basic sweeper."""

    _target_: str = "hydra_plugins.heft_launchers.Sweeper"


def _schema(launcher: type[LocalLauncher]) -> DictConfig:
    """The schema of a launcher's settings, with the class that Hydra makes from them."""
    schema: DictConfig = OmegaConf.structured(launcher.settings_class)
    OmegaConf.set_readonly(schema, None)  # a frozen dataclass's is read-only
    with open_dict(schema):
        schema._target_ = f"{launcher.__module__}.{launcher.__qualname__}"
    if "sbatch" in schema:
        OmegaConf.set_struct(schema.sbatch, False)  # any flag may be added, without Hydra's +
    return schema


_store = ConfigStore.instance()
_store.store("local_schema", _schema(LocalLauncher), "hydra/launcher", provider="heft_pipeline")
_store.store("slurm_schema", _schema(SlurmLauncher), "hydra/launcher", provider="heft_pipeline")
_store.store("heft", SweeperConf, "hydra/sweeper", provider="heft_pipeline")
