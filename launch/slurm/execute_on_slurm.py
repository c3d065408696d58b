"""Executing a plan on SLURM: submit what is unfinished and, if asked to, wait for it."""

import signal
from collections.abc import Mapping
from typing import cast

from rich.console import Console

from heft_pipeline.plan.graph import Plan
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.sweep_folders import Sweep
from launch.attempt import StopRequest
from launch.later import later
from launch.slurm.recover import Again
from launch.slurm.report_job import submit_report
from launch.slurm.settings import SlurmSettings
from launch.slurm.submit import Stopped, Terms, submit, submit_lock
from launch.slurm.wait import wait_for_jobs

#: How long to go on asking a controller that is away before giving a submission up.
PATIENCE_SECONDS = 600.0
#: How long to wait for jobs that are about to end to say how.
_ENDING_SECONDS = 300.0


def execute_on_slurm(
    plan: Plan, sweep: Sweep, settings: SlurmSettings, console: Console
) -> dict[str, str] | None:
    """Submit a plan's unfinished stages and, if asked to, wait for them.

    Args:
        plan: The plan.
        sweep: The sweep.
        settings: The launcher's settings.
        console: Where progress is shown.

    Returns:
        Why stages failed, by fingerprint; None where they are not waited for.

    Raises:
        UserError: SLURM refuses a job, or does not answer; what was submitted before that is
            cancelled.
        SystemExit: Ctrl-C: while submitting, what was submitted is cancelled; while waiting, the
            jobs keep running.
    """
    stop = StopRequest(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    terms = Terms.of(plan, sweep, settings, stop, console)
    stages = list(plan.stages.values())
    report = None
    with stop.listening():
        with submit_lock(sweep.store, terms.say):
            try:
                jobs, submitted = submit(stages, sweep, terms)
            except Stopped as said:
                terms.say(f"Stopped while submitting. {said or 'No job stands.'}")
                raise SystemExit(128 + cast(signal.Signals, stop.signal)) from None
            if not settings.wait:
                report = submit_report(sweep, terms, jobs.values())
        terms.say(
            f"{len(submitted)} jobs submitted, {len(jobs) - len(submitted)} already on the "
            f"cluster; logs: {sweep.folder / 'slurm'}"
        )
        if report is None:
            return _wait(plan, sweep, terms, jobs, stop, console)
    terms.say(f"{report} Meanwhile: {later(sweep, 'status')}")
    return None


def _wait(
    plan: Plan,
    sweep: Sweep,
    terms: Terms,
    jobs: Mapping[str, str],
    stop: StopRequest,
    console: Console,
) -> dict[str, str]:
    """Wait for jobs, and submit those again that the cluster has lost."""

    def submit_again(stages: list[StageSpec], again: Mapping[str, Again]) -> dict[str, str]:
        with submit_lock(sweep.store, terms.say):
            return submit(stages, sweep, terms, again)[0]

    stages = {key: plan.stages[key] for key in jobs}
    return wait_for_jobs(stages, sweep, terms.settings, submit_again, stop, console)
