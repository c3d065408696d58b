"""From Hydra's jobs to one plan, and back to one return value a job."""

import os
import shlex
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from heft_pipeline.config import HeftConfig, run_name
from heft_pipeline.errors import UserError
from heft_pipeline.plan import Plan, make_run, untouched
from heft_pipeline.sources import Sources
from heft_pipeline.sweep import Sweep
from heft_pipeline.validation import typed
from launch.compose import Composer
from launch.dry_run import show_plan
from launch.execute import execute
from launch.finish import report
from launch.tracking import tracked, tracking_note

_COMPLETED = JobStatus.COMPLETED
#: How a run by itself is executed: in this process.
_ALONE: dict[str, Any] = {"workers": 1, "gpus_per_stage": 1, "gpus": "auto"}
_DIGESTS = Path(".cache") / "digests.json"


def launch_sweep(
    hydra_context: HydraContext,
    config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    initial_job_idx: int,
    kind: str,
    settings: dict[str, Any],
) -> Sequence[JobReturn]:
    """Execute a batch of Hydra jobs as one plan.

    Args:
        hydra_context: Hydra's, to compose each job's config.
        config: The sweep's own config.
        job_overrides: The overrides of each job.
        initial_job_idx: The number of the first job.
        kind: ``local`` or ``slurm``.
        settings: The launcher's own config.

    Returns:
        One return value a job: its accuracy, or None where its stages were not waited for.

    Raises:
        UserError: A job cannot work as configured (raised before anything is trained), or a
            stage failed (raised after the report).
    """
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    console = Console()
    composer = Composer(hydra_context.config_loader, config)
    numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
    configs = [composer.typed(overrides) for overrides in job_overrides]
    sweep = Sweep(Path(config.output_dir) / "sweeps" / config.sweep)
    sources = Sources(Path(config.output_dir) / _DIGESTS)
    runs = [
        make_run(typed_config, sources, _name(number, typed_config), overrides)
        for number, typed_config, overrides in zip(numbers, configs, job_overrides, strict=True)
    ]
    plan = Plan(tuple(runs), untouched(runs) if configs[0].report.base_model else ())
    if settings["dry_run"]:
        show_plan(plan, sweep.store, kind, settings, console)
        return [JobReturn(status=_COMPLETED) for _ in runs]
    sweep.store.require_writable()
    sweep.record(
        plan,
        command=command_line(),
        launcher=_launcher(kind, settings),
        claims=list(dict.fromkeys(text for c in configs for text in c.report.claims)),
        tracking=tracking_note(config.tracking for config in configs),
    )
    # Written first, so that whatever ends this process, the runs' own configs are there.
    returns = []
    for number, overrides in zip(numbers, job_overrides, strict=True):
        job = composer.job(overrides)
        with open_dict(job):
            job.hydra.job.id = job.hydra.job.num = number
        returns.append(
            run_job(
                hydra_context=hydra_context,
                task_function=_nothing,
                config=job,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
        )
        configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    if kind == "slurm" and not settings["wait"]:
        execute_plan(plan, sweep, kind, settings, console)  # the jobs track and report
        return returns
    with tracked(sweep, console):
        failures = execute_plan(plan, sweep, kind, settings, console)
    if failures is None:
        return returns
    report(sweep, console)
    failed = [run for run in runs if any(s.fingerprint in failures for s in run.stages)]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed; the stages' logs are named above. "
            "Mend the cause and give the same command again: what is complete is kept"
        )
    for run, returned in zip(runs, returns, strict=True):
        returned.return_value = sweep.accuracy(run.last.fingerprint)
    return returns


def run_point(cfg: DictConfig) -> float:
    """Execute one job by itself: without a sweep, or under a launcher that is not this project's.

    Args:
        cfg: The job's config, without its ``hydra`` node.

    Returns:
        The accuracy.

    Raises:
        UserError: The job cannot work as configured, or one of its stages failed.
    """
    console = Console()
    hydra = HydraConfig.get()
    config = typed(cfg)
    sweep = Sweep(Path(config.output_dir) / "sweeps" / config.sweep)
    sweep.store.require_writable()
    sources = Sources(Path(config.output_dir) / _DIGESTS)
    run = make_run(config, sources, Path(hydra.runtime.output_dir).name, hydra.overrides.task)
    plan = Plan((run,), untouched([run]) if config.report.base_model else ())
    sweep.record(
        plan,
        command=command_line(),
        launcher=_launcher("local", _ALONE),
        claims=config.report.claims,
        tracking=tracking_note([config.tracking]),
    )
    with tracked(sweep, console, only=run.name):
        failures = execute(plan, sweep.store, console, sweep.folder / "workers", _ALONE)
    report(sweep, console)
    for stage in run.stages:
        if stage.fingerprint in failures:
            raise UserError(f"{stage.label} failed: {failures[stage.fingerprint]}")
    return sweep.accuracy(run.last.fingerprint)


def execute_plan(
    plan: Plan, sweep: Sweep, kind: str, settings: dict[str, Any], console: Console
) -> dict[str, str] | None:
    """Make a plan's stages complete, here or on SLURM.

    Args:
        plan: The plan.
        sweep: The sweep that it belongs to.
        kind: ``local`` or ``slurm``.
        settings: The launcher's own config.
        console: Where progress is shown.

    Returns:
        Why stages failed, by fingerprint; None where they are not waited for.

    Raises:
        UserError: A stage cannot work as configured, or SLURM refuses it.
    """
    if kind == "slurm":
        from launch.slurm import run_on_slurm  # submitit

        return run_on_slurm(plan, sweep, settings, console)
    return execute(plan, sweep.store, console, sweep.folder / "workers", settings)


def command_line() -> str:
    """The command that started this process, as one would type it."""
    return "python -m heft_pipeline " + shlex.join(sys.argv[1:])


def _launcher(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What ``plan.json`` says of who executes the sweep."""
    plain = OmegaConf.to_container(OmegaConf.create(settings), resolve=True)
    return {"kind": kind, "settings": plain, "pid": os.getpid(), "host": socket.gethostname()}


def _name(number: int, config: HeftConfig) -> str:
    return run_name(number, config.method.stages, config.epochs, config.rank, config.seed)


def _nothing(_cfg: DictConfig) -> None:
    """Hydra's task function while it writes a run's config; stages are executed by the plan."""
