"""The last job of a sweep that nobody waits for: it makes the report."""

import dataclasses
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from heft_pipeline.command_line.console import TextConsole
from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Plan, read_plan
from heft_pipeline.store.sweep_folders import Sweep
from launch.attempt import StopRequest
from launch.finish import finish_sweep
from launch.slurm.ask import NoAnswer
from launch.slurm.job_life import Life
from launch.slurm.job_notes import (
    REPORT_JOB,
    JobNote,
    new_token,
    note_to_json,
    read_notes,
    read_report_note,
)
from launch.slurm.job_states import cancel_jobs, cluster_name, job_states
from launch.slurm.recover import Again, what_follows
from launch.slurm.sbatch import prepared, report_flags
from launch.slurm.settings import SlurmSettings
from launch.slurm.submit import Terms, call_sbatch, submit, submit_lock

#: How long to wait for jobs that are about to end to say how.
_ENDING_SECONDS = 300.0


@dataclass
class ReportJob:
    """What the job runs; submitit pickles it by name.

    Attributes:
        folder: The sweep's folder, absolute.
    """

    folder: str

    def __call__(self) -> None:
        """Track the runs and write the report, unless stages are lost and can be run again."""
        sweep, console = Sweep(Path(self.folder)), TextConsole()
        if not submit_what_got_lost(sweep, console):
            finish_sweep(sweep, console)


def submit_report(sweep: Sweep, terms: Terms, job_ids: Iterable[str]) -> str:
    """Submit the job that makes the report once all others have ended.

    One that an earlier call has submitted is cancelled, because it does not wait for the new jobs,
    unless it is this process.

    Args:
        sweep: The sweep.
        terms: How to submit.
        job_ids: The jobs of its stages.

    Returns:
        A sentence that says who makes the report.
    """
    before = read_report_note(sweep.name, sweep.plan())
    note = JobNote(f"{sweep.name}-report", time.time(), submission=new_token())
    if before and before.job_id == os.environ.get("SLURM_JOB_ID"):
        before = None
    try:
        cancel_jobs({"": before} if before else {}, terms.patience)
        note = dataclasses.replace(note, cluster=cluster_name(terms.patience))
        sweep.record(Plan(()), **{REPORT_JOB: note_to_json(note)})
        flags = report_flags(terms.settings, job_ids)
        runs = ReportJob(str(sweep.folder.resolve()))
        job = call_sbatch(prepared([runs], note, sweep, terms.settings, flags), terms)
    except UserError as error:
        sweep.record(Plan(()), **{REPORT_JOB: None})
        return f"There is no job for the report ({error}); the last stage that ends makes it."
    except NoAnswer as error:
        return f"Whether a job makes the report is not known ({error})."
    sweep.record(Plan(()), **{REPORT_JOB: note_to_json(dataclasses.replace(note, job_id=job))})
    return f"Job {job} makes the report when all others have ended."


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
    terms = Terms.of(plan, sweep, settings, StopRequest(), console)
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
        return read_report_note(sweep.name, sweep.plan()) is not None


def _ends(plan: Plan, sweep: Sweep, terms: Terms) -> tuple[dict[str, Again], dict[str, str]]:
    """How to submit lost stages again, and why others have failed."""
    store, again, failed = sweep.store, dict[str, Again](), dict[str, str]()
    unfinished = {k: s for k, s in plan.stages.items() if not store.is_complete(k)}
    notes = read_notes(store, unfinished)
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
