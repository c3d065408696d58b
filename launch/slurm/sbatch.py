"""The flags and the scripts of jobs, and the call of sbatch.

submitit writes the scripts, and runs in the jobs. What a job will run is in files whose names are
known before sbatch is called, so that a job needs nothing of the process that submitted it, however
that ends.
"""

import ctypes
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission

from heft_pipeline.errors import UserError
from heft_pipeline.store.sweep_folders import Sweep
from launch.slurm.ask import CALL_SECONDS, NoAnswer, plain_environment, said_by_slurm
from launch.slurm.job_notes import JobNote
from launch.slurm.settings import SlurmSettings, limit_seconds

#: The flags that also the small job for the report gets.
_WHERE = ("partition", "account", "qos", "constraint", "exclude", "nodelist")
#: Variables that SLURM and submitit set in a job.
_OF_A_JOB = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")
#: The variables of sbatch that are not named after their flag (its manual, INPUT ENVIRONMENT).
_VARIABLES = {"ARRAY": "ARRAY_INX", "TIME": "TIMELIMIT", "MEM": "MEM_PER_NODE"}
_REPORT_MINUTES = 30
#: What sbatch says where the controller has not answered, so that the job may stand all the same.
_NO_ANSWER = re.compile(
    "timed out|unable to contact|connection refused|connection failure|connection reset"
    "|connect failure|zero bytes|not connected|temporarily unavailable|no route to host|try again"
    "|broken pipe|unexpected message",
    re.IGNORECASE,
)


def stage_flags(settings: SlurmSettings, note: JobNote | None = None) -> dict[str, Any]:
    """The flags of sbatch for a stage's job.

    Args:
        settings: The launcher's settings.
        note: What the job waits for and, where it is submitted again, what it asks for beyond the
            settings; None for a first job that waits for nothing.

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
    flags |= dict(settings.sbatch)
    if note is None:
        return flags
    if note.after is not None:
        flags |= {"dependency": f"afterok:{note.after}", "kill-on-invalid-dep": "yes"}
    if note.mem is not None:
        flags = {key: value for key, value in flags.items() if not key.startswith("mem-per-")}
        flags["mem"] = note.mem
    if note.exclude:
        flags["exclude"] = ",".join(filter(None, [flags.get("exclude"), *note.exclude]))
    return flags


def report_flags(settings: SlurmSettings, job_ids: Iterable[str]) -> dict[str, Any]:
    """The flags of sbatch for the job that makes the report.

    Args:
        settings: The launcher's settings.
        job_ids: The jobs that it comes after, however they end.

    Returns:
        Flags without their dashes.
    """
    flags = _given(settings, _WHERE)
    # The stages' limit is within the partition's, which may be a short one.
    short = limit_seconds(settings.time) < _REPORT_MINUTES * 60
    limit = settings.time if short else str(_REPORT_MINUTES)
    flags |= {"time": limit, "nodes": 1, "ntasks": 1, "cpus-per-task": 1}
    arrays = sorted({job.split("_")[0] for job in job_ids})
    if arrays:
        flags["dependency"] = f"afterany:{':'.join(arrays)}"
    return flags


@dataclass(frozen=True)
class Submission:
    """A call of sbatch that is ready to be made.

    Attributes:
        folder: The sweep's folder for SLURM's files, absolute.
        note: The note of its first job, which names it.
        script: What sbatch is given.
    """

    folder: Path
    note: JobNote
    script: str

    def sbatch(self) -> str:
        """Call sbatch once.

        The call is not reached by Ctrl-C, and ends with this process.

        Returns:
            The job's id, or that of the array.

        Raises:
            UserError: SLURM refuses; the message has its words, and no job stands.
            NoAnswer: SLURM did not answer; whether the job stands is not known.
        """
        path = self.folder / f"{self.note.submission}.sh"
        path.write_text(self.script, encoding="utf-8")
        try:
            done = subprocess.run(
                ["sbatch", str(path)], env=_environment(self.script),
                capture_output=True, text=True, check=False, timeout=CALL_SECONDS,
                start_new_session=True, preexec_fn=_ends_with_this_process(),
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoAnswer(f"sbatch: {error}") from error
        answer = re.search(r"job (\d+)", done.stdout)
        if done.returncode == 0 and answer:
            return answer.group(1)
        words = said_by_slurm(done.stderr) or done.stdout.strip() or "sbatch failed"
        if done.returncode == 0 or _NO_ANSWER.search(words):
            raise NoAnswer(words)
        raise UserError(f"SLURM refused a job: {words}")


def prepared(
    jobs: Sequence[Callable[[], Any]],
    note: JobNote,
    sweep: Sweep,
    settings: SlurmSettings,
    flags: Mapping[str, Any],
    **parameters: Any,
) -> Submission:
    """Prepare a call of sbatch: a job, or an array of jobs.

    Args:
        jobs: What each job calls; submitit pickles it.
        note: The note of the first job.
        sweep: The sweep that asks.
        settings: The launcher's settings.
        flags: The flags of sbatch, without their dashes.
        **parameters: Further parameters of submitit's.

    Returns:
        The call; the files that its jobs read are written.
    """
    folder = (sweep.folder / "slurm").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # submitit counts each requeue of a job against max_num_timeout.
    executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=settings.max_requeues)
    executor.update_parameters(
        job_name=note.job_name,
        additional_parameters=dict(flags),
        signal_delay_s=settings.signal_seconds,
        setup=[*settings.setup, _link(folder / note.submission, folder)],
        **{"array_parallelism": settings.max_parallel} | parameters,
    )
    if len(jobs) > 1:
        executor.parameters["map_count"] = len(jobs)
    for index, job in enumerate(jobs):
        delayed = DelayedSubmission(job)
        delayed.set_timeout(executor.parameters.get("time", 5), settings.max_requeues)
        delayed.dump(folder / f"{note.submission}_{index}.pkl")
    text = executor._make_submission_file_text(executor._submitit_command_str, note.submission)
    return Submission(folder, note, text)


def _link(files: Path, folder: Path) -> str:
    """A shell line that gives a job's file the name that submitit looks for.

    A requeued job finds there what submitit has written since.
    """
    wanted = f"{shlex.quote(str(folder))}/$HEFT_JOB'_submitted.pkl'"
    return (
        "HEFT_JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; "
        "HEFT_JOB=${HEFT_JOB:-$SLURM_JOB_ID}; "
        f"[ -e {wanted} ] || "
        f"ln -s {shlex.quote(str(files))}_${{SLURM_ARRAY_TASK_ID:-0}}.pkl {wanted}"
    )


def _given(settings: SlurmSettings, names: Iterable[str]) -> dict[str, Any]:
    values = {name: getattr(settings, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _environment(script: str) -> dict[str, str]:
    """This process's environment without what would override a script's flags.

    sbatch puts its variables above the flags of a script, and hands the environment on to the job:
    what SLURM told this process, where it is a job itself, does not hold for the new one.
    """
    flags = re.findall("^#SBATCH --([a-z-]+)", script, re.MULTILINE)
    words = {flag.upper().replace("-", "_") for flag in [*flags, "clusters", "wait"]}
    names = {f"SBATCH_{_VARIABLES.get(word, word)}" for word in words}
    return {
        key: value
        for key, value in plain_environment().items()
        if key not in names
        and not (key.startswith(_OF_A_JOB) and key not in ("SLURM_CONF", "SLURM_CLUSTERS"))
    }


def _ends_with_this_process() -> Callable[[], None]:
    """Lets the kernel end a child when this process ends (prctl's manual, PR_SET_PDEATHSIG)."""
    libc = ctypes.CDLL(None, use_errno=True)

    def set_it() -> None:
        libc.prctl(1, signal.SIGKILL)

    return set_it
