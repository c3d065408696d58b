"""From Hydra's jobs to one plan, and back to one return value a job."""

import copy
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, configure_log, filter_overrides, run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict, read_write
from rich.console import Console
from rich.markup import escape

from heft_pipeline.config import typed
from heft_pipeline.errors import UserError
from heft_pipeline.plan import Plan, Run, make_run
from heft_pipeline.sources import Sources
from heft_pipeline.sweep import Sweep
from heft_pipeline.tracking import track_run
from launch.execute import execute

_DIGESTS = Path(".cache") / "digests.json"


def launch_sweep(
    hydra_context: HydraContext,
    config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    initial_job_idx: int,
) -> Sequence[JobReturn]:
    """Execute a batch of Hydra jobs as one plan.

    Args:
        hydra_context: Hydra's, to compose each job's config.
        config: The sweep's own config.
        job_overrides: The overrides of each job.
        initial_job_idx: The number of the first job.

    Returns:
        One return value a job: its accuracy.

    Raises:
        UserError: A job cannot work as configured (raised before anything is trained), or a
            stage failed (raised after the report).
    """
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    console = Console()
    jobs = []
    for number, overrides in enumerate(job_overrides, start=initial_job_idx):
        job = hydra_context.config_loader.load_sweep_config(config, list(overrides))
        with open_dict(job):
            job.hydra.job.id = number
            job.hydra.job.num = number
        jobs.append(job)
    sources = Sources(Path(config.output_dir) / _DIGESTS)
    sweep = Sweep(Path(config.output_dir) / "sweeps" / config.sweep)
    sweep.store.require_writable()
    plan = Plan(tuple(_run_of_job(job, sources) for job in jobs))
    sweep.record(plan, command_line())
    failures = execute(plan, sweep.store, console)
    returns = []
    for job, run in zip(jobs, plan.runs, strict=True):
        returns.append(
            run_job(
                hydra_context=hydra_context,
                task_function=_finished(sweep, run, failures, console),
                config=job,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
        )
        configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    report(sweep, console)
    failed = [run for run in plan.runs if any(s.fingerprint in failures for s in run.stages)]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(plan.runs)} runs failed; the stages' logs are named above. "
            "Mend the cause and give the same command again: what is complete is kept"
        )
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
    plan = Plan((run,))
    sweep.record(plan, command_line())
    failures = execute(plan, sweep.store, console)
    report(sweep, console)
    return _finished(sweep, run, failures, console)(cfg)


def report(sweep: Sweep, console: Console) -> None:
    """Write a sweep's ``results.csv`` and ``report.md`` and show the table.

    Args:
        sweep: The sweep.
        console: Where to show it.
    """
    from heft_pipeline.report import write_report  # imports pandas and matplotlib

    with console.status("writing the report"):
        table = write_report(sweep)
    console.print(table)
    console.print(f"{sweep.folder / 'report.md'}", highlight=False, soft_wrap=True)


def command_line() -> str:
    """The command that started this process, as one would type it."""
    import shlex

    return "python -m heft_pipeline " + shlex.join(sys.argv[1:])


def _run_of_job(job: DictConfig, sources: Sources) -> Run:
    overrides = filter_overrides(list(job.hydra.overrides.task))
    HydraConfig.instance().set_config(job)
    name = Path(str(job.hydra.sweep.subdir)).name
    cfg = copy.deepcopy(job)
    with read_write(cfg), open_dict(cfg):
        del cfg["hydra"]
    try:
        return make_run(typed(cfg), sources, name, overrides)
    except UserError as error:
        raise UserError(f"{error}\n(in the run {' '.join(overrides)})") from error


def _finished(
    sweep: Sweep, run: Run, failures: dict[str, str], console: Console
) -> Callable[[DictConfig], float]:
    """A Hydra task function that tracks a run and returns what its stages came to."""

    def accuracy(cfg: DictConfig) -> float:
        for stage in run.stages:
            if stage.fingerprint in failures:
                raise UserError(
                    f"run {run.name} failed: {stage.label}: {failures[stage.fingerprint]}"
                )
        result = sweep.store.result(run.last.fingerprint)
        if result is None:
            raise UserError(f"run {run.name} is not complete: {run.last.label}")
        config = typed(cfg)
        folder = sweep.folder / "runs" / run.name
        resolved = dataclasses.asdict(config)
        problem = track_run(config.tracking, sweep.store, folder, run.method, run.stages, resolved)
        if problem:
            console.print(f"[yellow]![/] {escape(problem)}", soft_wrap=True)
        return float(result["accuracy"])

    return accuracy
