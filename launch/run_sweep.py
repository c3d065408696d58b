"""From Hydra's jobs to one plan, and back to one return value for each job."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig
from rich.console import Console

from heft_pipeline.declare_settings import check
from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Plan, Run, make_run, untouched
from heft_pipeline.settings.checks import typed
from heft_pipeline.settings.report import report_note
from heft_pipeline.settings.schema import HeftConfig, run_name
from heft_pipeline.store.example_clusters import record_clusters
from heft_pipeline.store.sweep_folders import Sweep
from launch.check_inputs import sources_for
from launch.compose import Composer, Job
from launch.dry_run import show_plan
from launch.execute_plan import LauncherSettings, execute_plan, launcher_note
from launch.finish import report
from launch.local.settings import LocalSettings
from launch.slurm.settings import SlurmSettings
from launch.tracker import tracked, tracking_note


def launch_sweep(
    hydra_context: HydraContext,
    config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    first_number: int,
    launcher: LauncherSettings,
) -> Sequence[JobReturn]:
    """Execute a batch of Hydra jobs as one plan.

    Args:
        hydra_context: Hydra's, to compose the jobs' configs.
        config: The sweep's own config.
        job_overrides: The overrides of each job.
        first_number: The number of the first job.
        launcher: The launcher's settings.

    Returns:
        A return value for each job: its accuracy, or None where nobody waits for its stages.

    Raises:
        UserError: A job cannot work as configured (raised before anything is trained), or a
            stage failed (raised after the report).
    """
    check(launcher, "hydra.launcher")
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    console, sweep = Console(), _sweep(config)
    composer = Composer(hydra_context.config_loader, config)
    jobs = [composer.job(number, given) for number, given in enumerate(job_overrides, first_number)]
    plan = _plan(sweep, [(_name(job), job.overrides, job.settings) for job in jobs])
    if launcher.dry_run:
        show_plan(plan, sweep.store, launcher, console)
        return [JobReturn(status=JobStatus.COMPLETED) for _ in jobs]
    _record(sweep, plan, [job.settings for job in jobs], launcher)
    # Written before anything runs, so that they are there whatever ends this process.
    returns = _write_run_configs(jobs, hydra_context, config)
    failures = _execute_and_report(plan, sweep, launcher, console)
    if failures is None:
        return returns
    _refuse_failed_runs(plan.runs, failures)
    for run, returned in zip(plan.runs, returns, strict=True):
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
    settings, hydra = typed(cfg), HydraConfig.get()
    console, sweep, launcher = Console(), _sweep(settings), LocalSettings()
    name = Path(hydra.runtime.output_dir).name
    plan = _plan(sweep, [(name, hydra.overrides.task, settings)])
    _record(sweep, plan, [settings], launcher)
    failures = _execute_and_report(plan, sweep, launcher, console, only=name) or {}
    (run,) = plan.runs
    for stage in run.stages:
        if stage.fingerprint in failures:
            raise UserError(f"{stage.label} failed: {failures[stage.fingerprint]}")
    return sweep.accuracy(run.last.fingerprint)


def _sweep(config: DictConfig | HeftConfig) -> Sweep:
    return Sweep(Path(config.output_dir) / "sweeps" / config.sweep)


def _name(job: Job) -> str:
    settings = job.settings
    stages = settings.method.stages
    return run_name(job.number, stages, settings.epochs, settings.rank, settings.seed)


def _plan(sweep: Sweep, asked: Sequence[tuple[str, Sequence[str], HeftConfig]]) -> Plan:
    """The plan for runs, each given as its name, its overrides and its settings."""
    sources = sources_for(sweep.store)
    runs = tuple(make_run(settings, sources, name, given) for name, given, settings in asked)
    with_base = asked[0][2].report.base_model
    return Plan(runs, untouched(runs) if with_base else ())


def _record(
    sweep: Sweep, plan: Plan, settings: Sequence[HeftConfig], launcher: LauncherSettings
) -> None:
    """Write ``plan.json``, and refuse a store or a tracker that cannot work."""
    sweep.store.require_writable()
    sweep.record(
        plan,
        command="python -m heft_pipeline " + shlex.join(sys.argv[1:]),
        launcher=launcher_note(launcher),
        report=report_note(one.report for one in settings),
        tracking=tracking_note(one.tracking for one in settings),
    )
    record_clusters(sweep, [stage.data for stage in plan.stages.values()])


def _write_run_configs(
    jobs: Sequence[Job], hydra_context: HydraContext, config: DictConfig
) -> list[JobReturn]:
    """Let Hydra write each job's ``.hydra`` folder and log, and call its callbacks."""
    returns = []
    for job in jobs:
        returns.append(
            run_job(
                hydra_context=hydra_context,
                task_function=_nothing,
                config=job.hydra_config(),
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
        )
        configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    return returns


def _nothing(_cfg: DictConfig) -> None:
    """The task function that Hydra calls while it writes a run's config; the plan is run later."""


def _execute_and_report(
    plan: Plan,
    sweep: Sweep,
    launcher: LauncherSettings,
    console: Console,
    only: str | None = None,
) -> dict[str, str] | None:
    """Run a plan, track it (or only one of its runs), and write the sweep's report.

    Returns:
        Why stages failed, by fingerprint; None where nobody waits for them.
    """
    if isinstance(launcher, SlurmSettings) and not launcher.wait:
        return execute_plan(plan, sweep, launcher, console)  # the jobs track and report
    with tracked(sweep, console, only):
        failures = execute_plan(plan, sweep, launcher, console)
    report(sweep, console)
    return failures


def _refuse_failed_runs(runs: Sequence[Run], failures: dict[str, str]) -> None:
    failed = [run for run in runs if any(s.fingerprint in failures for s in run.stages)]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed; the logs of their stages are named above. "
            "Fix the cause and run the same command again: finished stages are kept"
        )
