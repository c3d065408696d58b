"""What runs inside the jobs of stages; submitit pickles it by name."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from rich.console import Console
from submitit.core.utils import UncompletedJobError

from heft_pipeline.command_line.console import TextConsole
from heft_pipeline.command_line.streams import prepare_streams
from heft_pipeline.data.other_text import OtherText
from heft_pipeline.plan.graph import read_plan
from heft_pipeline.plan.stage_spec import StageSpec, from_json, to_json
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.store.sweep_folders import Sweep
from launch.attempt import StopRequest, attempt
from launch.check_inputs import refuse_changed_inputs
from launch.finish import finish_sweep
from launch.slurm.ask import NoAnswer, Patience
from launch.slurm.job_notes import REPORT_JOB, JobNote
from launch.slurm.limits import other_nodes
from launch.slurm.node_faults import node_fault
from launch.slurm.sbatch import Submission, prepared, stage_flags
from launch.slurm.settings import SlurmSettings
from launch.tracker import Tracker, tracked

#: How long to try to be requeued by a controller that does not answer.
_REQUEUE_SECONDS = 600.0


@dataclass
class StageJob:
    """A job that runs one stage; a job of several tasks runs it in all of them together.

    Attributes:
        stage: The stage as JSON-ready data.
        output_dir: Where the store is, absolute.
        sweep: The folder, absolute, of the sweep that the job tracks; None where a waiting process
            does that.
        upcoming: The stages that will be trained on it, as JSON-ready data.
        text: The text that it is measured on, as JSON-ready data; None for none.
    """

    stage: dict[str, Any]
    output_dir: str
    sweep: str | None = None
    upcoming: tuple[dict[str, Any], ...] = ()
    text: dict[str, str] | None = None

    def __call__(self) -> str:
        """Run the stage.

        Returns:
            Its accuracy and time, for people.

        Raises:
            RuntimeError: The stage failed; the reason is in the store. SLURM then cancels the
                jobs that depend on this one.
        """
        prepare_streams()
        stage, store = from_json(self.stage), Store(Path(self.output_dir))
        environment = submitit.JobEnvironment()
        if environment.num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's: checkpoint, requeue, exit
        stop = StopRequest(signal.SIGUSR2, signal.SIGTERM)
        with stop.listening():
            if environment.global_rank == 0:
                refuse_changed_inputs(stage, store)
            with self._tracked(environment.global_rank) as tracker:
                upcoming = [from_json(one) for one in self.upcoming]
                text = OtherText(**self.text) if self.text else None
                tried = attempt(stage, store, upcoming=upcoming, text=text, should_stop=stop)
                if tracker is not None and tried.status == "interrupted":
                    tracker.hurry()  # SLURM will end this job soon
        if tried.status == "failed":
            self._leave_a_bad_node(tried.text, stage, store, requeue)
            self._report_if_last(environment.global_rank)
            raise RuntimeError(tried.text)
        if tried.status == "interrupted":
            if stop.signal == signal.SIGTERM:
                # Cancelled, or preempted by a SLURM that requeues by itself.
                sys.exit(128 + signal.SIGTERM)
            self._requeue(stage, store, requeue)
        self._report_if_last(environment.global_rank)
        return tried.text

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit runs after requeueing: the same job, which resumes its checkpoint."""
        return submitit.helpers.DelayedSubmission(self)

    def _tracked(self, rank: int) -> AbstractContextManager[Tracker | None]:
        """Track the first run that needs the stage, if this is the process to do so."""
        if self.sweep is None or rank != 0:
            return nullcontext()
        sweep, key = Sweep(Path(self.sweep)), self.stage["fingerprint"]
        runs = [run["name"] for run in sweep.plan()["runs"] if key in run["stages"]]
        return tracked(sweep, TextConsole(), only=runs[0]) if runs else nullcontext()

    def _requeue(self, stage: StageSpec, store: Store, requeue: Any) -> None:
        """Be requeued; what ends this process is ``SystemExit``, or SLURM."""
        until, pause = time.monotonic() + _REQUEUE_SECONDS, 1.0
        while True:
            try:
                requeue(signal.SIGUSR2, None)
                return
            except UncompletedJobError as error:
                reason = (
                    "was preempted, ran out of time or lost its node too often; its checkpoint is "
                    "kept; run the same command with a larger hydra.launcher.time or "
                    "hydra.launcher.max_requeues"
                )
                cause: Exception = error
            except (subprocess.SubprocessError, OSError) as error:  # SLURM does not answer
                if time.monotonic() + pause < until:
                    time.sleep(pause)
                    pause = min(2 * pause, 30.0)
                    continue
                reason = (
                    f"SLURM could not be asked to requeue it ({error}); its checkpoint is kept; "
                    "run the same command again"
                )
                cause = error
            store.fail(stage.fingerprint, {"reason": reason, "time": time.time()})
            raise RuntimeError(reason) from cause

    def _leave_a_bad_node(self, failure: str, stage: StageSpec, store: Store, requeue: Any) -> None:
        """Be requeued without this node, where it is to blame for a failure and there are others.

        Returns where that is not so.
        """
        fault, host = node_fault(failure), os.environ.get("SLURMD_NODENAME", socket.gethostname())
        partition = os.environ.get("SLURM_JOB_PARTITION")
        if fault is None or not other_nodes(partition, {host}):
            return
        store.forget_failure(stage.fingerprint)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # SLURM sends it as soon as it has requeued
        try:
            self._requeue(stage, store, requeue)
        except SystemExit:
            job = submitit.JobEnvironment().job_id
            command = ["scontrol", "update", f"JobId={job}", f"ExcNodeList={_with(host, job)}"]
            subprocess.run(command, capture_output=True, check=False, timeout=60)
            print(f"{host} is left out from now on: {fault}", file=sys.stderr, flush=True)
            raise

    def _report_if_last(self, rank: int) -> None:
        """Make the report, where SLURM took no job for it and this was the last stage."""
        if self.sweep is not None and rank == 0:
            try:
                report_if_last(Sweep(Path(self.sweep)), TextConsole())
            except Exception:  # the stage has its result all the same
                traceback.print_exc()


def stage_submission(
    stages: Sequence[StageSpec],
    notes: Sequence[JobNote],
    sweep: Sweep,
    settings: SlurmSettings,
    upcoming: Mapping[str, Sequence[StageSpec]],
    texts: Mapping[str, OtherText],
) -> Submission:
    """Prepare a call of sbatch for stages: a job, or an array of jobs.

    Args:
        stages: The stages.
        notes: Their notes, of which the first one's flags hold for all.
        sweep: The sweep that asks.
        settings: The launcher's settings.
        upcoming: The stages that will be trained on each of them, by fingerprint.
        texts: The text that each of them is measured on, by fingerprint.

    Returns:
        The call; the files that its jobs read are written.
    """
    output_dir = str(sweep.store.output_dir.resolve())
    to_track = None if settings.wait else str(sweep.folder.resolve())
    jobs = []
    for stage in stages:
        later = tuple(to_json(one) for one in upcoming.get(stage.fingerprint, ()))
        text = texts.get(stage.fingerprint)
        note = dataclasses.asdict(text) if text else None
        jobs.append(StageJob(to_json(stage), output_dir, to_track, later, note))
    flags = stage_flags(settings, notes[0])
    srun = ["--kill-on-bad-exit=1"]  # tasks that train together wait for each other
    return prepared(jobs, notes[0], sweep, settings, flags, srun_args=srun)


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


def _with(host: str, job: str) -> str:
    """The nodes that a job avoids, and another one."""
    try:
        before = Patience().ask(["squeue", "--noheader", "--jobs", job, "--Format=ExcNodes:1000"])
    except NoAnswer:
        before = ""
    before = before.strip()
    return host if before in ("", "N/A") else f"{before},{host}"
