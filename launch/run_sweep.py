"""From Hydra's jobs to one plan, and back to one return value for each job."""

import contextlib
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig
from rich.console import Console

from heft_pipeline.command_line.console import TextConsole
from heft_pipeline.command_line.secrets_kept import refuse_variables
from heft_pipeline.declare_settings import check
from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Plan, Run, make_run, untouched
from heft_pipeline.plan.run_names import added, identity_of
from heft_pipeline.plan.sources import Sources
from heft_pipeline.settings.checks import typed
from heft_pipeline.settings.report import report_note
from heft_pipeline.settings.schema import STARTING, HeftConfig, run_name
from heft_pipeline.store.example_clusters import record_clusters
from heft_pipeline.store.sweep_folders import Sweep
from launch.check_inputs import refuse_unfit
from launch.compose import Composer, Job
from launch.dry_run import show_plan
from launch.execute_plan import LauncherSettings, execute_plan, launcher_note
from launch.failed_runs import refuse_failed
from launch.finish import report
from launch.local.settings import LocalSettings
from launch.measure_forgetting import forgetting_note
from launch.progress import say_line
from launch.slurm.settings import SlurmSettings
from launch.stored_only import NEVER, require_stored
from launch.tracker import tracked, tracking_note

#: Sweepers that do not look at what runs return; others, as Optuna's, choose their next runs by it.
_SWEEPERS_WITHOUT_RETURNS = (
    "hydra_plugins.heft_launchers.Sweeper",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
)


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
    refuse_variables("hydra.job.env_set", config.hydra.job.env_set)
    _refuse_to_leave(launcher, config)
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    console, sweep = TextConsole(), _sweep(config)
    composer = Composer(hydra_context.config_loader, config)
    jobs = [composer.job(number, given) for number, given in enumerate(job_overrides, first_number)]
    asked = _plan(sweep, [(job.overrides, job.settings) for job in jobs])
    if launcher.dry_run:
        forgetting_note(job.settings.report for job in jobs)  # refuses what would be refused
        show_plan(sweep.named(asked), sweep.store, launcher, console)
        return [JobReturn(status=JobStatus.COMPLETED) for _ in jobs]
    if launcher.train == NEVER:
        require_stored(asked, sweep.store)
    plan = _record(sweep, asked, [job.settings for job in jobs], launcher, console)
    known = {identity_of(run): run for run in plan.runs}
    runs = [known[identity_of(run)] for run in asked.runs]
    # Written before anything runs, so that they are there whatever ends this process.
    returns = _write_run_configs(jobs, runs, hydra_context, config)
    failures = _execute_and_report(plan, sweep, launcher, console)
    if failures is None:
        return returns
    refuse_failed(plan.runs, failures)
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
    hydra, launcher, console = HydraConfig.get(), LocalSettings(), TextConsole()
    starting, sweep = Path(hydra.runtime.output_dir), _sweep(cfg)
    try:
        refuse_variables("hydra.job.env_set", hydra.job.env_set)
        settings = typed(cfg)
        asked = _plan(sweep, [(hydra.overrides.task, settings)])
        plan = _record(sweep, asked, [settings], launcher, console)
    except BaseException:
        _remove_starting(starting, sweep)
        raise
    (run,) = plan.runs
    _rename_starting(starting, sweep, run)
    failures = _execute_and_report(plan, sweep, launcher, console, only=run.name) or {}
    refuse_failed(plan.runs, failures)
    return sweep.accuracy(run.last.fingerprint)


def _sweep(config: DictConfig | HeftConfig) -> Sweep:
    return Sweep(Path(config.output_dir) / "sweeps" / config.sweep)


def _refuse_to_leave(launcher: LauncherSettings, config: DictConfig) -> None:
    """Refuse to leave after submitting where the sweeper goes on with what runs return."""
    target = str(config.hydra.sweeper.get("_target_", ""))
    leaves = isinstance(launcher, SlurmSettings) and not launcher.wait
    if leaves and target not in _SWEEPERS_WITHOUT_RETURNS:
        raise UserError(
            f"hydra.launcher.wait=false returns before a run has an accuracy, and the sweeper "
            f"{target} chooses its next runs by it; use hydra.launcher.wait=true"
        )


def _remove_starting(folder: Path, sweep: Sweep) -> None:
    """Remove what Hydra has created for a run that is refused, and folders that are empty then."""
    if not folder.name.startswith(STARTING):
        return  # hydra.run.dir was set
    shutil.rmtree(folder, ignore_errors=True)
    for empty in (folder.parent, sweep.folder, sweep.folder.parent, sweep.store.output_dir):
        with contextlib.suppress(OSError):
            empty.rmdir()


def _rename_starting(folder: Path, sweep: Sweep, run: Run) -> None:
    """Call the folder that Hydra has created for a run what the run is called."""
    final = sweep.folder / "runs" / run.name
    if not folder.name.startswith(STARTING):
        return
    if not final.exists():
        folder.rename(final)
        return
    for path in folder.iterdir():  # the run is asked for again: its newest config counts
        old = final / path.name
        if old.is_dir():
            shutil.rmtree(old)
        path.replace(old)
    folder.rmdir()


def _plan(sweep: Sweep, asked: Sequence[tuple[Sequence[str], HeftConfig]]) -> Plan:
    """The plan for runs, each given as its overrides and its settings."""
    sources = Sources(sweep.store.digests)
    runs = tuple(make_run(one, sources, run_name(one), given) for given, one in asked)
    with_base = asked[0][1].report.base_model
    return Plan(runs, untouched(runs) if with_base else ())


def _record(
    sweep: Sweep,
    asked: Plan,
    settings: Sequence[HeftConfig],
    launcher: LauncherSettings,
    console: Console,
) -> Plan:
    """Write ``plan.json``, and refuse a store or a tracker that cannot work.

    Returns:
        The plan with the names that its runs have in the sweep.
    """
    sweep.store.require_writable()
    before = sweep.known()
    refuse_unfit(asked, sweep.store, console)
    plan = sweep.record(
        asked,
        command="python -m heft_pipeline " + shlex.join(sys.argv[1:]),
        launcher=launcher_note(launcher),
        report=report_note(one.report for one in settings),
        tracking=tracking_note(one.tracking for one in settings),
        forgetting=forgetting_note(one.report for one in settings),
    )
    if said := added(before, plan.runs):
        say_line(console, said)
    record_clusters(sweep, [stage.data for stage in plan.stages.values()])
    return plan


def _write_run_configs(
    jobs: Sequence[Job], runs: Sequence[Run], hydra_context: HydraContext, config: DictConfig
) -> list[JobReturn]:
    """Let Hydra write each job's ``.hydra`` folder and log, and call its callbacks."""
    returns = []
    for job, run in zip(jobs, runs, strict=True):
        cfg = job.hydra_config()
        if Path(cfg.hydra.sweep.subdir).name.startswith(STARTING):  # it was not set
            cfg.hydra.sweep.subdir = f"runs/{run.name}"
        returns.append(
            run_job(
                hydra_context=hydra_context,
                task_function=_nothing,
                config=cfg,
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
