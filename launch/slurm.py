"""Executing a plan on SLURM: one job a unique stage, submitted at once through submitit."""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import submitit
from filelock import FileLock
from rich.console import Console
from submitit.core.utils import FailedJobError, FailedSubmissionError

from heft_pipeline.errors import UserError
from heft_pipeline.plan import Plan
from heft_pipeline.spec import StageSpec, to_json
from heft_pipeline.store import Store, write_json
from heft_pipeline.sweep import Sweep
from launch.execute import check_missing
from launch.job import StopRequest
from launch.progress import StageProgress, announce
from launch.slurm_commands import (
    accounted_state,
    cancel_jobs,
    job_states,
    partition_limits,
    seconds,
)
from launch.slurm_job import ReportJob, StageJob

JOB = "job.json"
#: A job that SLURM no longer lists is given this many looks to show its result (NFS is slow).
_LOOKS_BEFORE_LOST = 3


def run_on_slurm(
    plan: Plan, sweep: Sweep, settings: Mapping[str, Any], console: Console
) -> dict[str, str] | None:
    """Submit a plan's missing stages and, where asked to, wait for them.

    Args:
        plan: The plan.
        sweep: The sweep.
        settings: The config of ``hydra/launcher=slurm``.
        console: Where progress is shown.

    Returns:
        Why stages failed, by fingerprint; None where they are not waited for.

    Raises:
        UserError: There is no SLURM here, a stage cannot work as configured, or SLURM refuses a
            job; what was submitted before that is cancelled.
        SystemExit: Ctrl-C while waiting; the jobs go on.
    """
    require_slurm(settings)
    store = sweep.store
    announce(console, plan, store)
    check_missing(plan, store, console)
    missing = [s for key, s in plan.stages.items() if not store.is_complete(key)]
    with FileLock(store.output_dir / "stages" / ".submit.lock"):
        jobs, submitted = submit(missing, sweep, settings)
    console.print(
        f"{len(submitted)} jobs submitted, {len(jobs) - len(submitted)} already on the cluster; "
        f"logs: {sweep.folder / 'slurm'}",
        highlight=False,
        soft_wrap=True,
    )
    if not settings["wait"]:
        report = _submit_report(sweep, settings, jobs)
        sweep.record(Plan(()), report_job=report)
        console.print(
            f"Job {report} makes the report when all have ended. "
            f"Meanwhile: python -m launch status {sweep.name}",
            highlight=False,
            soft_wrap=True,
        )
        return None
    return _wait(plan, sweep, jobs, settings, console)


def require_slurm(settings: Mapping[str, Any]) -> None:
    """Refuse to go on where SLURM is not, or has not what is asked for.

    Args:
        settings: The config of ``hydra/launcher=slurm``.

    Raises:
        UserError: No sbatch, an unknown partition, or a time limit past the partition's.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "hydra/launcher=slurm: this machine has no sbatch; start from a login node of the "
            "cluster, or use hydra/launcher=local"
        )
    if settings["gpus_per_stage"] < 1 or settings["max_parallel"] < 1:
        raise UserError("hydra.launcher.gpus_per_stage and max_parallel must be 1 or more")
    limits = partition_limits()
    name = settings["partition"]
    names = name.split(",") if name else [n for n, (_, default) in limits.items() if default]
    for one in names:
        if one not in limits:
            raise UserError(
                f"hydra.launcher.partition={one} is not a partition of this cluster; it has "
                f"{', '.join(sorted(limits))}"
            )
    longest = max((limits[one][0] for one in names), default=float("inf"))
    if seconds(settings["time"]) > longest:
        raise UserError(
            f"hydra.launcher.time={settings['time']} is past the limit of partition "
            f"{','.join(names)} ({longest / 60:.0f} minutes); a stage that needs longer is "
            "requeued and goes on, so ask for less"
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


def sbatch_parameters(settings: Mapping[str, Any], dependency: str | None) -> dict[str, Any]:
    """The flags of sbatch for a stage's job.

    Args:
        settings: The config of ``hydra/launcher=slurm``.
        dependency: For ``--dependency``, or None.

    Returns:
        Flags without their dashes. Those that the user leaves to the cluster are absent.
    """
    size = settings["gpus_per_stage"]
    flags: dict[str, Any] = {
        key: settings[key]
        for key in ("partition", "account", "qos", "constraint", "exclude", "nodelist", "mem")
        if settings[key] is not None
    }
    if settings["gres"] != "none":
        flags["gres"] = settings["gres"] or f"gpu:{size}"
    if settings["cpus_per_gpu"] is not None:
        flags["cpus-per-task"] = settings["cpus_per_gpu"]
    flags |= {"time": settings["time"], "nodes": 1, "ntasks-per-node": size, "requeue": True}
    if dependency is not None:
        flags |= {"dependency": dependency, "kill-on-invalid-dep": "yes"}
    return flags | dict(settings["sbatch"])


def submit(
    stages: Sequence[StageSpec], sweep: Sweep, settings: Mapping[str, Any]
) -> tuple[dict[str, str], list[str]]:
    """Submit stages that have no job yet.

    Args:
        stages: Stages that are not complete, parents before children.
        sweep: The sweep that asks.
        settings: The config of ``hydra/launcher=slurm``.

    Returns:
        (the job of each stage by fingerprint, the fingerprints that were submitted now).

    Raises:
        UserError: SLURM refuses; what was submitted now is cancelled again.
    """
    store = sweep.store
    noted = {s.fingerprint: read_job(store, s.fingerprint) for s in stages}
    alive = job_states([note["job_id"] for note in noted.values() if note])
    jobs = {key: note["job_id"] for key, note in noted.items() if note and note["job_id"] in alive}
    to_submit = [stage for stage in stages if stage.fingerprint not in jobs]
    submitted: list[str] = []
    try:
        for parent, group in groups(to_submit, jobs).items():
            dependency = f"afterok:{jobs[parent]}" if parent else None
            ids = _sbatch(group, sweep, settings, dependency)
            for stage, job_id in zip(group, ids, strict=True):
                key = stage.fingerprint
                jobs[key] = job_id
                submitted.append(key)
                store.begin(stage)
                note = {"job_id": job_id, "sweep": sweep.name, "submitted": time.time()}
                write_json(store.folder(key) / JOB, note)
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
        cancel_jobs([jobs[key] for key in submitted])
        raise UserError(
            f"SLURM refused a job, and what was submitted before it is cancelled: "
            f"{_slurms_words(error)}"
        ) from error
    return jobs, submitted


def _sbatch(
    stages: list[StageSpec], sweep: Sweep, settings: Mapping[str, Any], dependency: str | None
) -> list[str]:
    """One call of sbatch, for one job or an array; returns a job id a stage."""
    executor = _executor(sweep, settings, sbatch_parameters(settings, dependency))
    executor.update_parameters(
        job_name=f"heft-{sweep.name}",
        array_parallelism=settings["max_parallel"],
        setup=list(settings["setup"]) or None,
        srun_args=["--kill-on-bad-exit=1"],  # tasks that train together wait for each other
    )
    output_dir = str(sweep.store.output_dir.resolve())
    follow = None if settings["wait"] else str(sweep.folder.resolve())
    with executor.batch():
        jobs = [executor.submit(StageJob(to_json(stage), output_dir, follow)) for stage in stages]
    return [str(job.job_id) for job in jobs]


def _executor(
    sweep: Sweep, settings: Mapping[str, Any], flags: Mapping[str, Any]
) -> submitit.SlurmExecutor:
    # submitit counts each requeue of a job against this number.
    executor = submitit.SlurmExecutor(
        folder=sweep.folder / "slurm", max_num_timeout=settings["max_requeues"]
    )
    executor.update_parameters(
        additional_parameters=dict(flags), signal_delay_s=settings["signal_seconds"]
    )
    return executor


def _submit_report(sweep: Sweep, settings: Mapping[str, Any], jobs: Mapping[str, str]) -> str:
    """Submit the job that makes the report, after all others, whatever their outcome."""
    kept = ("partition", "account", "qos", "constraint", "exclude", "nodelist")
    flags = {key: settings[key] for key in kept if settings[key] is not None}
    flags |= {"time": "30", "nodes": 1, "ntasks": 1, "cpus-per-task": 1}
    if jobs:
        arrays = sorted({job.split("_")[0] for job in jobs.values()})
        flags["dependency"] = f"afterany:{':'.join(arrays)}"
    executor = _executor(sweep, settings, flags)
    executor.update_parameters(
        job_name=f"heft-{sweep.name}-report", setup=list(settings["setup"]) or None
    )
    return str(executor.submit(ReportJob(str(sweep.folder.resolve()))).job_id)


def _wait(
    plan: Plan,
    sweep: Sweep,
    jobs: Mapping[str, str],
    settings: Mapping[str, Any],
    console: Console,
) -> dict[str, str]:
    """Show progress until all jobs have ended; return why stages failed."""
    store, failures, looks = sweep.store, dict[str, str](), dict[str, int]()
    open_stages = {key: plan.stages[key] for key in jobs if key in plan.stages}
    stop = StopRequest(signal.SIGINT, signal.SIGTERM)
    with StageProgress(console, len(open_stages)) as progress, stop.listening():
        shown: set[str] = set()
        while open_stages:
            alive = job_states(jobs[key] for key in open_stages)
            for key, stage in list(open_stages.items()):
                note = store.progress(key)
                if note and alive.get(jobs[key]) == "RUNNING":
                    if key not in shown:
                        shown.add(key)
                        progress.begin(stage)
                    progress.of(stage)(note["phase"], note["done"], note["total"], note["note"])
                ended = _how_it_ended(store, key, jobs[key], alive, looks)
                if ended is None:
                    continue
                del open_stages[key]
                progress.end(key)
                if ended == "complete":
                    result = store.result(key) or {}
                    text = f"{stage.label}: accuracy {result['accuracy']:.1%}"
                    progress.say("[green]✓[/]", f"{text}, job {jobs[key]}")
                else:
                    failures[key] = ended
                    log = f"{sweep.folder / 'slurm'}/{jobs[key]}_0_log.err"
                    progress.say("[red]✗[/]", f"{stage.label}: {ended}")
                    progress.say(" ", f"  log: {log}")
            _sleep(settings["poll_seconds"] if open_stages else 0, stop)
            if stop.signal is not None:
                _say_goodbye(console, sweep)
                raise SystemExit(128 + stop.signal)
    return failures


def _say_goodbye(console: Console, sweep: Sweep) -> None:
    console.print(
        f"The jobs go on. python -m launch status {sweep.name} shows them, the same command waits "
        f"for them again, python -m launch cancel {sweep.name} ends them.",
        soft_wrap=True,
    )


def _sleep(seconds: float, stop: StopRequest) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not stop():
        time.sleep(0.2)


def _how_it_ended(
    store: Store, key: str, job_id: str, alive: Mapping[str, str], looks: dict[str, int]
) -> str | None:
    """``complete``, why it failed, or None where it has not ended."""
    if store.is_complete(key):
        return "complete"
    if job_id in alive:
        looks.pop(key, None)
        return None
    failure = store.failure(key)
    if failure is not None:
        return str(failure["reason"])
    looks[key] = looks.get(key, 0) + 1
    if looks[key] < _LOOKS_BEFORE_LOST:
        return None
    state = accounted_state(job_id)
    return f"job {job_id} ended without a result" + (f" ({state})" if state else "")


def read_job(store: Store, fingerprint: str) -> dict[str, Any] | None:
    """The job that a stage was last submitted as.

    Args:
        store: Where stages are.
        fingerprint: The stage's.

    Returns:
        ``job_id``, ``sweep`` and ``submitted`` (a time), or None.
    """
    path = store.folder(fingerprint) / JOB
    if not path.is_file():
        return None
    note: dict[str, Any] = json.loads(path.read_text())
    return note


def _slurms_words(error: Exception) -> str:
    text = str(getattr(error, "stderr", None) or error).strip()
    lines = [line for line in text.splitlines() if "error" in line.lower()] or text.splitlines()
    return " ".join(line.strip() for line in lines[:3])
