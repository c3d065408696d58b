"""The last job of a sweep that nobody waits for: it makes the report, whoever submits it."""

import dataclasses
import os
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console

from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Plan, read_plan
from heft_pipeline.store.sweep_folders import Sweep
from launch.finish import finish_sweep
from launch.slurm.ask import NoAnswer
from launch.slurm.job_notes import JobNote, new_token, note_from_json, note_to_json
from launch.slurm.job_states import cancel_jobs, cluster_name
from launch.slurm.sbatch import report_submission
from launch.slurm.submit import Terms, call_sbatch

REPORT_JOB = "report_job"


def read_report_note(sweep: Sweep, written: dict[str, Any]) -> JobNote | None:
    """What is noted about the job that makes a sweep's report.

    Args:
        sweep: The sweep.
        written: Its ``plan.json``.

    Returns:
        The note; None where there is no such job.
    """
    noted = written.get(REPORT_JOB)
    if isinstance(noted, str):  # as earlier versions wrote it
        return JobNote(sweep.name, 0.0, job_id=noted)
    return note_from_json(noted)


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
    before = read_report_note(sweep, sweep.plan())
    note = JobNote(f"{sweep.name}-report", time.time(), submission=new_token())
    if before and before.job_id == os.environ.get("SLURM_JOB_ID"):
        before = None
    try:
        cancel_jobs({"": before} if before else {}, terms.patience)
        after = ":".join(sorted({job.split("_")[0] for job in job_ids}))
        cluster = cluster_name(terms.patience)
        note = dataclasses.replace(note, cluster=cluster, after=after or None)
        sweep.record(Plan(()), **{REPORT_JOB: note_to_json(note)})
        job = call_sbatch(report_submission(note, sweep, terms.settings), terms)
    except UserError as error:
        sweep.record(Plan(()), **{REPORT_JOB: None})
        return f"There is no job for the report ({error}); the last stage that ends makes it."
    except NoAnswer as error:
        return f"Whether a job makes the report is not known ({error})."
    sweep.record(Plan(()), **{REPORT_JOB: note_to_json(dataclasses.replace(note, job_id=job))})
    return f"Job {job} makes the report when all others have ended."


def report_if_last(sweep: Sweep, console: Console) -> bool:
    """Make the report in a stage's job, where no job was submitted for it and no stage is left.

    Args:
        sweep: The sweep.
        console: Where to show it.

    Returns:
        Whether it was made.
    """
    written = sweep.plan()
    if REPORT_JOB not in written or written[REPORT_JOB] is not None:
        return False
    store, over = sweep.store, set[str]()
    for key, stage in read_plan(written).stages.items():
        parent = stage.parent.fingerprint if stage.parent else None
        lost = parent in over and not store.is_complete(str(parent))
        if lost or store.is_complete(key) or store.failure(key):
            over.add(key)
    if over != set(written["stages"]):
        return False
    finish_sweep(sweep, console)
    return True
