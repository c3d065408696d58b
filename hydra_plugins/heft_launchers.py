"""Hydra accepts launchers from this namespace only; the work is done in the package `launch`.

Hydra imports this file at every start, so it imports nothing heavy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class LocalLauncherConf:
    """The keys of ``hydra/launcher=local``."""

    _target_: str = "hydra_plugins.heft_launchers.LocalLauncher"


class LocalLauncher(Launcher):
    """Executes a sweep's unique stages in this process."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra gives; see Hydra's ``Launcher``."""
        self.hydra_context, self.config = hydra_context, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run a batch of jobs; see :func:`launch.sweep.launch_sweep`."""
        from launch.sweep import launch_sweep

        return launch_sweep(self.hydra_context, self.config, job_overrides, initial_job_idx)


ConfigStore.instance().store(
    group="hydra/launcher", name="local_schema", node=LocalLauncherConf, provider="heft_pipeline"
)
