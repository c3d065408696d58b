"""Calling sbatch, through submitit: the flags of a job and the call itself."""

import contextlib
import dataclasses
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from heft_pipeline.data.other_text import OtherText
from heft_pipeline.errors import UserError
from heft_pipeline.plan.stage_spec import StageSpec, to_json
from heft_pipeline.store.sweep_folders import Sweep
from launch.slurm.jobs import ReportJob, StageJob
from launch.slurm.settings import SlurmSettings

#: The flags that also the small job for the report gets.
_WHERE = ("partition", "account", "qos", "constraint", "exclude", "nodelist")


def stage_flags(settings: SlurmSettings, dependency: str | None) -> dict[str, Any]:
    """The flags of sbatch for a stage's job.

    Args:
        settings: The launcher's settings.
        dependency: For ``--dependency``, or None.

    Returns:
        Flags without their dashes. Those that are left to the cluster are absent.
    """
    flags = _given(settings, (*_WHERE, "mem"))
    if settings.gres != "none":
        flags["gres"] = settings.gres or f"gpu:{settings.gpus_per_stage}"
    if settings.cpus_per_gpu is not None:
        flags["cpus-per-task"] = settings.cpus_per_gpu
    flags |= {
        "time": settings.time,
        "nodes": 1,
        "ntasks-per-node": settings.gpus_per_stage,
        "requeue": True,
    }
    if dependency is not None:
        flags |= {"dependency": dependency, "kill-on-invalid-dep": "yes"}
    return flags | dict(settings.sbatch)


def report_flags(settings: SlurmSettings, job_ids: Iterable[str]) -> dict[str, Any]:
    """The flags of sbatch for the job that makes the report.

    Args:
        settings: The launcher's settings.
        job_ids: The jobs that it comes after, however they end.

    Returns:
        Flags without their dashes.
    """
    flags = _given(settings, _WHERE)
    flags |= {"time": "30", "nodes": 1, "ntasks": 1, "cpus-per-task": 1}
    arrays = sorted({job.split("_")[0] for job in job_ids})
    if arrays:
        flags["dependency"] = f"afterany:{':'.join(arrays)}"
    return flags


def sbatch_stages(
    stages: Sequence[StageSpec],
    sweep: Sweep,
    settings: SlurmSettings,
    dependency: str | None,
    upcoming: Mapping[str, Sequence[StageSpec]],
    texts: Mapping[str, OtherText],
) -> list[str]:
    """Submit stages in one call of sbatch, as a job or an array of jobs.

    Args:
        stages: The stages, which wait for the same job or for none.
        sweep: The sweep that asks.
        settings: The launcher's settings.
        dependency: For ``--dependency``, or None.
        upcoming: The stages that will be trained on each of them, by fingerprint.
        texts: The text that each of them is measured on, by fingerprint.

    Returns:
        The id of each stage's job.

    Raises:
        UserError: SLURM refuses; the message has its words.
    """
    executor = _executor(sweep, settings, stage_flags(settings, dependency))
    executor.update_parameters(
        job_name=f"heft-{sweep.name}",
        array_parallelism=settings.max_parallel,
        srun_args=["--kill-on-bad-exit=1"],  # tasks that train together wait for each other
    )
    output_dir = str(sweep.store.output_dir.resolve())
    to_track = None if settings.wait else str(sweep.folder.resolve())
    with _refusals_in_slurms_words(), executor.batch():
        jobs = []
        for stage in stages:
            later = tuple(to_json(one) for one in upcoming.get(stage.fingerprint, ()))
            text = texts.get(stage.fingerprint)
            note = dataclasses.asdict(text) if text else None
            job = StageJob(to_json(stage), output_dir, to_track, later, note)
            jobs.append(executor.submit(job))
    return [str(job.job_id) for job in jobs]


def sbatch_report(sweep: Sweep, settings: SlurmSettings, job_ids: Iterable[str]) -> str:
    """Submit the job that makes the report once all others have ended.

    Args:
        sweep: The sweep.
        settings: The launcher's settings.
        job_ids: The jobs of its stages.

    Returns:
        The job's id.

    Raises:
        UserError: SLURM refuses; the message has its words.
    """
    executor = _executor(sweep, settings, report_flags(settings, job_ids))
    executor.update_parameters(job_name=f"heft-{sweep.name}-report")
    with _refusals_in_slurms_words():
        return str(executor.submit(ReportJob(str(sweep.folder.resolve()))).job_id)


def _given(settings: SlurmSettings, names: Iterable[str]) -> dict[str, Any]:
    values = {name: getattr(settings, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _executor(
    sweep: Sweep, settings: SlurmSettings, flags: Mapping[str, Any]
) -> submitit.SlurmExecutor:
    # submitit counts each requeue of a job against max_num_timeout.
    executor = submitit.SlurmExecutor(
        folder=sweep.folder / "slurm", max_num_timeout=settings.max_requeues
    )
    executor.update_parameters(
        additional_parameters=dict(flags),
        signal_delay_s=settings.signal_seconds,
        setup=list(settings.setup) or None,
    )
    return executor


@contextlib.contextmanager
def _refusals_in_slurms_words() -> Iterator[None]:
    try:
        yield
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
        text = str(getattr(error, "stderr", None) or error).strip()
        lines = text.splitlines()
        telling = [line for line in lines if "error" in line.lower()] or lines
        words = " ".join(line.strip() for line in telling[:3])
        raise UserError(f"SLURM refused a job: {words}") from error
