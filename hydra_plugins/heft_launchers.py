"""This project's launchers and sweeper, in the one namespace that Hydra accepts them from.

Hydra imports this file whenever it starts, so it imports nothing heavy; ``launch`` does the work.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
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
        plain = {key: _plain(value) for key, value in settings.items()}
        self.settings = self.settings_class(**plain)

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
    """Hydra's basic sweeper, which can also sweep over particular points.

    Args:
        max_batch_size: As for Hydra's sweeper.
        params: As for Hydra's sweeper.
        points: See :func:`launch.points.jobs_at`; empty for the full product only.
    """

    def __init__(
        self,
        max_batch_size: int | None,
        params: dict[str, str] | None = None,
        points: Sequence[str] = (),
    ) -> None:
        super().__init__(max_batch_size, params)
        self._points = points

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep; a sweep's folder that nothing is recorded in is not left behind.

        Hydra creates it before the jobs are checked, and for a dry run.
        """
        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        missing = [one for one in (folder, *folder.parents) if not one.exists()]
        try:
            return super().sweep(arguments)
        finally:
            if missing and {path.name for path in folder.glob("*")} == {"multirun.yaml"}:
                (folder / "multirun.yaml").unlink()
                for one in missing:
                    if not any(one.iterdir()):
                        one.rmdir()

    def split_arguments(  # type: ignore[override]  # the original is a static method
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """The jobs of a sweep, in batches."""
        from launch.points import jobs_at, refuse_too_many

        refuse_too_many(overrides)
        if not self._points:
            return BasicSweeper.split_arguments(overrides, max_batch_size)
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        jobs = jobs_at(self._points, overrides, parser, self.params)
        return list(self.split_overrides_to_chunks(jobs, max_batch_size))

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Leave it to the launchers, which compose and check all jobs before the first runs."""


@dataclass
class SweeperConf(BasicSweeperConf):
    """The keys of ``hydra/sweeper=heft``: those of Hydra's basic sweeper, and ``points``."""

    _target_: str = "hydra_plugins.heft_launchers.Sweeper"
    points: list[str] = field(default_factory=list)


def _plain(value: Any) -> Any:
    """A setting as Python's own lists and dicts, whichever containers Hydra hands over.

    These are OmegaConf's, or Python's own, or tuples, depending on Hydra's version.
    """
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


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
