"""Executing a plan on SLURM: one job for each unfinished stage, all submitted at once."""

import shutil
from collections.abc import Iterable, Mapping, Sequence

from filelock import FileLock
from rich.console import Console

from heft_pipeline.data.other_text import OtherText
from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Plan, descendants
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.sweep_folders import Sweep
from launch.measure_forgetting import texts
from launch.slurm.job_notes import read_job, write_job
from launch.slurm.sbatch import sbatch_report, sbatch_stages
from launch.slurm.settings import SlurmSettings, limit_seconds
from launch.slurm.squeue import cancel_jobs, job_states, partition_limits
from launch.slurm.wait import wait_for_jobs


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
        UserError: SLURM refuses a job; what was submitted before that is cancelled.
        SystemExit: Ctrl-C while waiting; the jobs keep running.
    """
    store = sweep.store
    unfinished = [s for key, s in plan.stages.items() if not store.is_complete(key)]
    with FileLock(store.output_dir / "stages" / ".submit.lock"):
        jobs, submitted = submit(unfinished, sweep, settings, texts(sweep, unfinished))
    _say(
        console,
        f"{len(submitted)} jobs submitted, {len(jobs) - len(submitted)} already on the cluster; "
        f"logs: {sweep.folder / 'slurm'}",
    )
    if settings.wait:
        return wait_for_jobs(plan, sweep, jobs, settings.poll_seconds, console)
    report = sbatch_report(sweep, settings, jobs.values())
    sweep.record(Plan(()), report_job=report)
    _say(
        console,
        f"Job {report} makes the report when all others have ended. "
        f"Meanwhile: python -m launch status {sweep.name}",
    )
    return None


def require_slurm(settings: SlurmSettings) -> None:
    """Refuse to go on without SLURM, or with a partition or time limit that it does not have.

    Args:
        settings: The launcher's settings.

    Raises:
        UserError: There is no sbatch, the partition is unknown, or the time limit is past the
            partition's.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "hydra/launcher=slurm: this machine has no sbatch; start from a login node of the "
            "cluster, or use hydra/launcher=local"
        )
    limits = partition_limits()
    asked = settings.partition
    names = asked.split(",") if asked else [n for n, (_, default) in limits.items() if default]
    for name in names:
        if name not in limits:
            raise UserError(
                f"hydra.launcher.partition={name} is not a partition of this cluster; it has "
                f"{', '.join(sorted(limits))}"
            )
    longest = max((limits[name][0] for name in names), default=float("inf"))
    if limit_seconds(settings.time) > longest:
        raise UserError(
            f"hydra.launcher.time={settings.time} is past the limit of partition "
            f"{','.join(names)} ({longest / 60:.0f} minutes); a stage that needs longer is "
            "requeued and resumed, so ask for less"
        )


def groups(
    stages: Iterable[StageSpec], on_the_cluster: Iterable[str] = ()
) -> dict[str | None, list[StageSpec]]:
    """Stages that can be submitted in one call: those that wait for the same job, or for none.

    Args:
        stages: Stages to be submitted, parents before children.
        on_the_cluster: Stages that have a job already, by fingerprint.

    Returns:
        Lists of stages by the fingerprint of the parent that they wait for, or None; a group
        comes after the group that its parent is in.
    """
    found: dict[str | None, list[StageSpec]] = {}
    jobs = set(on_the_cluster)
    for stage in stages:
        parent = stage.parent.fingerprint if stage.parent else None
        found.setdefault(parent if parent in jobs else None, []).append(stage)
        jobs.add(stage.fingerprint)
    return found


def submit(
    stages: Sequence[StageSpec],
    sweep: Sweep,
    settings: SlurmSettings,
    texts: Mapping[str, OtherText] | None = None,
) -> tuple[dict[str, str], list[str]]:
    """Submit the stages that have no job yet.

    Args:
        stages: Stages that are not finished, parents before children.
        sweep: The sweep that asks.
        settings: The launcher's settings.
        texts: The text that each stage is measured on, by fingerprint; None for no text.

    Returns:
        (the job of each stage by fingerprint, the fingerprints that were submitted now).

    Raises:
        UserError: SLURM refuses; what was submitted now is cancelled again.
    """
    store = sweep.store
    jobs = _jobs_on_the_cluster(stages, sweep)
    new = [stage for stage in stages if stage.fingerprint not in jobs]
    submitted: list[str] = []
    upcoming = descendants(stages)
    try:
        for parent, group in groups(new, jobs).items():
            dependency = f"afterok:{jobs[parent]}" if parent else None
            ids = sbatch_stages(group, sweep, settings, dependency, upcoming, texts or {})
            for stage, job_id in zip(group, ids, strict=True):
                key = stage.fingerprint
                jobs[key] = job_id
                submitted.append(key)
                store.begin(stage)
                write_job(store, key, job_id, sweep.name)
    except UserError as error:
        cancel_jobs([jobs[key] for key in submitted])
        raise UserError(f"{error}\nJobs that were submitted before it are cancelled.") from error
    return jobs, submitted


def _jobs_on_the_cluster(stages: Sequence[StageSpec], sweep: Sweep) -> dict[str, str]:
    """The jobs, by fingerprint, of those stages that SLURM still works on."""
    notes = {s.fingerprint: read_job(sweep.store, s.fingerprint) for s in stages}
    jobs: Mapping[str, str] = {key: note["job_id"] for key, note in notes.items() if note}
    alive = job_states(jobs.values())
    return {key: job_id for key, job_id in jobs.items() if job_id in alive}


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
