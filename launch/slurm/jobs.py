"""What runs inside SLURM's jobs; submitit pickles these classes by name."""

import signal
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from rich.console import Console
from submitit.core.utils import UncompletedJobError

from heft_pipeline.data.other_text import OtherText
from heft_pipeline.plan.stage_spec import StageSpec, from_json
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.store.sweep_folders import Sweep
from launch.attempt import StopRequest, attempt
from launch.check_inputs import refuse_changed_inputs
from launch.finish import finish_sweep
from launch.tracker import Tracker, tracked


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
            raise RuntimeError(tried.text)
        if tried.status == "interrupted":
            if stop.signal == signal.SIGTERM:
                # Cancelled, or preempted by a SLURM that requeues by itself.
                sys.exit(128 + signal.SIGTERM)
            self._requeue(stage, store, requeue)
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
        return tracked(sweep, Console(), only=runs[0]) if runs else nullcontext()

    def _requeue(self, stage: StageSpec, store: Store, requeue: Any) -> None:
        try:
            requeue(signal.SIGUSR2, None)
        except UncompletedJobError as error:
            reason = (
                "was preempted or ran out of time too often; its checkpoint is kept; run the "
                "same command with a larger hydra.launcher.time or hydra.launcher.max_requeues"
            )
            store.fail(stage.fingerprint, {"reason": reason, "time": time.time()})
            raise RuntimeError(reason) from error


@dataclass
class ReportJob:
    """The last job of a sweep that nobody waits for: it tracks the runs and writes the report.

    Attributes:
        folder: The sweep's folder, absolute.
    """

    folder: str

    def __call__(self) -> None:
        """Track the runs and write the report."""
        finish_sweep(Sweep(Path(self.folder)), Console())
