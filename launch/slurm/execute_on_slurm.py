"""Executing a plan on SLURM: submit what is unfinished and, if asked to, wait for it."""

import signal
import time
from collections.abc import Mapping
from typing import cast

from rich.console import Console

from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Plan, read_plan
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.sweep_folders import Sweep
from launch.attempt import StopRequest
from launch.later import later
from launch.measure_forgetting import texts
from launch.slurm.ask import Patience
from launch.slurm.job_life import Life
from launch.slurm.job_notes import read_note
from launch.slurm.job_states import job_states
from launch.slurm.recover import Again, what_follows
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
    terms = _terms(plan, sweep, settings, console, stop)
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

    stages = {key: plan.stages[key] for key in jobs if key in plan.stages}
    return wait_for_jobs(stages, sweep, terms.settings, submit_again, stop, console)


def submit_what_got_lost(sweep: Sweep, console: Console) -> bool:
    """Submit the stages of a sweep again whose jobs the cluster has ended.

    Called by the job that makes the report, when all others have ended.

    Args:
        sweep: The sweep.
        console: Where to show it.

    Returns:
        Whether there were any, so that another job makes the report.
    """
    written = sweep.plan()
    launcher = written["launcher"]
    if launcher["kind"] != SlurmSettings.kind:
        return False  # the sweep has been asked for again, with another launcher
    plan, settings = read_plan(written), SlurmSettings(**launcher["settings"])
    terms = _terms(plan, sweep, settings, console, StopRequest())
    with submit_lock(sweep.store, terms.say):
        again, failed = _ends(plan, sweep, terms)
        if not again:
            return False
        try:
            stages = [stage for key, stage in plan.stages.items() if key not in failed]
            jobs, submitted = submit(stages, sweep, terms, again)
        except UserError as error:
            terms.say(f"{len(again)} stages could not be submitted again: {error}")
            return False
        terms.say(f"{len(submitted)} stages are submitted again")
        terms.say(submit_report(sweep, terms, jobs.values()))
        return bool(sweep.plan().get("report_job"))


def _ends(plan: Plan, sweep: Sweep, terms: Terms) -> tuple[dict[str, Again], dict[str, str]]:
    """How to submit lost stages again, and why others have failed."""
    store, again, failed = sweep.store, dict[str, Again](), dict[str, str]()
    unfinished = {k: s for k, s in plan.stages.items() if not store.is_complete(k)}
    notes = {key: note for key in unfinished if (note := read_note(store, key))}
    until = time.monotonic() + _ENDING_SECONDS
    while True:
        states = job_states(notes, terms.patience)
        ending = any(job.life is Life.ENDING for job in states.values())
        if not ending or time.monotonic() > until:
            break
        time.sleep(1.0)
    for key, stage in unfinished.items():
        failure = store.failure(key)
        if failure is not None:
            failed[key] = str(failure["reason"])
        elif key in notes and states[key].over:
            follows = what_follows(stage, notes[key], states[key], failed, terms.settings)
            if isinstance(follows, Again):
                again[key] = follows
            else:
                failed[key] = follows
    return again, failed


def _terms(
    plan: Plan, sweep: Sweep, settings: SlurmSettings, console: Console, stop: StopRequest
) -> Terms:
    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    return Terms(
        settings,
        texts(sweep, plan.stages.values()),
        Patience(PATIENCE_SECONDS, say, stop),
        say,
        stop,
    )
