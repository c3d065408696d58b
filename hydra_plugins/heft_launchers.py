"""Hydra accepts launchers and sweepers from this namespace only; the work is done in `launch`.

Hydra imports this file at every start, so it imports nothing heavy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class LocalLauncherConf:
    """The keys of ``hydra/launcher=local``; conf/hydra/launcher/local.yaml says what they mean."""

    _target_: str = "hydra_plugins.heft_launchers.LocalLauncher"
    workers: int = 1
    gpus_per_stage: int = 1
    gpus: Any = "auto"
    dry_run: bool = False


@dataclass
class SlurmLauncherConf:
    """The keys of ``hydra/launcher=slurm``; conf/hydra/launcher/slurm.yaml says what they mean."""

    _target_: str = "hydra_plugins.heft_launchers.SlurmLauncher"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    gres: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    nodelist: str | None = None
    gpus_per_stage: int = 1
    cpus_per_gpu: int | None = None
    mem: str | None = None
    time: str = "4:00:00"
    setup: list[str] = field(default_factory=list)
    sbatch: dict[str, Any] = field(default_factory=dict)
    max_parallel: int = 256
    max_requeues: int = 10
    signal_seconds: int = 120
    poll_seconds: float = 10.0
    wait: bool = True
    dry_run: bool = False


class LocalLauncher(Launcher):
    """Executes a sweep's unique stages on this machine."""

    kind = "local"

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

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

        return launch_sweep(
            self.hydra_context,
            self.config,
            job_overrides,
            initial_job_idx,
            self.kind,
            self.settings,
        )


class SlurmLauncher(LocalLauncher):
    """Submits a sweep's unique stages to SLURM."""

    kind = "slurm"


@dataclass
class SweeperConf(BasicSweeperConf):
    """The keys of ``hydra/sweeper=heft``: those of Hydra's basic sweeper."""

    _target_: str = "hydra_plugins.heft_launchers.Sweeper"


class Sweeper(BasicSweeper):
    """Hydra's basic sweeper, without composing each job one more time just to see that it can be.

    The launchers compose and check all jobs before the first is executed.
    """

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Leave it to the launcher."""


for _group, _name, _node in (
    ("hydra/launcher", "local_schema", LocalLauncherConf),
    ("hydra/launcher", "slurm_schema", SlurmLauncherConf),
    ("hydra/sweeper", "heft", SweeperConf),
):
    ConfigStore.instance().store(group=_group, name=_name, node=_node, provider="heft_pipeline")
