"""Waiting for SLURM's jobs and seeing how they ended."""

import time
from collections.abc import Callable, Mapping

from rich.console import Console

from heft_pipeline.errors import UserError
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.sweep_folders import Sweep
from launch.attempt import StopRequest, said_accuracy
from launch.later import later
from launch.progress import StageProgress, say_line
from launch.slurm.job_life import Job, Life
from launch.slurm.job_notes import JobNote, read_notes
from launch.slurm.job_states import job_states
from launch.slurm.recover import Again, what_follows
from launch.slurm.settings import SlurmSettings
from launch.slurm.submit import Stopped

#: How often to look for the result of a job that has ended: NFS may show it late.
_LOOKS_BEFORE_LOST = 3
#: The longest pause between two looks while SLURM does not answer.
_LONGEST_PAUSE_SECONDS = 60.0

#: Submits stages again; returns the job of each unfinished stage by fingerprint.
SubmitAgain = Callable[[list[StageSpec], Mapping[str, Again]], dict[str, str]]


def wait_for_jobs(
    stages: dict[str, StageSpec],
    sweep: Sweep,
    settings: SlurmSettings,
    submit_again: SubmitAgain,
    stop: StopRequest,
    console: Console,
) -> dict[str, str]:
    """Show progress until all jobs have ended; those that the cluster ends are submitted again.

    While SLURM does not answer, nothing is decided.

    Args:
        stages: The stages that have jobs, by fingerprint, parents before children.
        sweep: The sweep.
        settings: The launcher's settings.
        submit_again: Submits stages again.
        stop: Listens for signals.
        console: Where progress is shown.

    Returns:
        Why stages failed, by fingerprint.

    Raises:
        SystemExit: Ctrl-C or SIGTERM; the jobs keep running.
    """
    with StageProgress(console, list(stages.values())) as progress:
        waiting = _Waiting(sweep, stages, settings, submit_again, progress)
        pause = settings.poll_seconds
        while waiting.stages:
            if stop.signal is not None:
                _say_goodbye(console, sweep)
                raise SystemExit(128 + stop.signal)
            answered = waiting.look()
            pause = settings.poll_seconds if answered else min(2 * pause, _LONGEST_PAUSE_SECONDS)
            _sleep(pause if waiting.stages else 0, stop)
    return waiting.failures


class _Waiting:
    """The stages whose jobs have not ended, and the failures of those whose jobs have."""

    def __init__(
        self,
        sweep: Sweep,
        stages: dict[str, StageSpec],
        settings: SlurmSettings,
        submit_again: SubmitAgain,
        progress: StageProgress,
    ) -> None:
        self.stages = dict(stages)
        self.failures: dict[str, str] = {}
        self._store, self._logs = sweep.store, sweep.folder / "slurm"
        self._settings, self._submit_again, self._progress = settings, submit_again, progress
        self._shown: set[str] = set()
        self._looks: dict[str, int] = {}
        self._silent = False

    def look(self) -> bool:
        """Ask SLURM and the store once, and show what has changed.

        Returns:
            Whether SLURM has answered.
        """
        notes = read_notes(self._store, self.stages)
        states = job_states(notes)
        unknown = [job for job in states.values() if job.life is Life.UNKNOWN]
        self._say_silence(unknown)
        again: dict[str, Again] = {}
        undecided: set[str] = set()
        for key, stage in list(self.stages.items()):
            if self._store.is_complete(key):
                self._complete(stage, notes.get(key))
                continue
            job = states.get(key)
            if job is None or job.life not in (Life.ENDED, Life.NOT_SUBMITTED):
                self._looks.pop(key, None)
                if job is not None and job.life is Life.RUNNING:
                    self._show_running(stage)
                continue
            self._decide(stage, notes[key], job, again, undecided)
        if again:
            self._lost(again, undecided)
        return not unknown

    def _decide(
        self,
        stage: StageSpec,
        note: JobNote,
        job: Job,
        again: dict[str, Again],
        undecided: set[str],
    ) -> None:
        """Decide what follows from a job that is over, once its result would have been seen."""
        key, parent = stage.fingerprint, stage.parent.fingerprint if stage.parent else None
        failure = self._store.failure(key)
        if failure is not None:
            self._failed(stage, str(failure["reason"]), job.job_id)
            return
        self._looks[key] = self._looks.get(key, 0) + 1
        if self._looks[key] < _LOOKS_BEFORE_LOST or parent in undecided:
            undecided.add(key)
            return
        follows = what_follows(stage, note, job, self.failures, self._settings)
        if isinstance(follows, Again):
            again[key] = follows
        else:
            self._failed(stage, follows, job.job_id)

    def _lost(self, again: Mapping[str, Again], undecided: set[str]) -> None:
        """Submit lost stages again, among the others, for which some of them wait."""
        stages = [stage for key, stage in self.stages.items() if key not in undecided]
        try:
            jobs = self._submit_again(stages, again)
        except (UserError, Stopped) as error:  # asked again at the next look
            self._progress.say("[yellow]![/]", f"not submitted again: {error}")
            return
        for key, asked in again.items():
            self._looks.pop(key, None)
            self._progress.end(key, "again")
            self._shown.discard(key)
            label = self._progress.label(self.stages[key])
            text = f"{label}: {asked.why}; submitted again as job {jobs.get(key)}"
            self._progress.say("[yellow]↻[/]", text)

    def _say_silence(self, unknown: list[Job]) -> None:
        if unknown and not self._silent:
            text = (
                f"nothing is known of {len(unknown)} jobs ({unknown[0].reason}); they may be "
                "running, and SLURM is asked again"
            )
            self._progress.say("[yellow]?[/]", text)
        elif self._silent and not unknown:
            self._progress.say("[green]✓[/]", "SLURM answers again")
        self._silent = bool(unknown)

    def _show_running(self, stage: StageSpec) -> None:
        note = self._store.progress(stage.fingerprint)
        if not note:
            return
        if stage.fingerprint not in self._shown:
            self._shown.add(stage.fingerprint)
            self._progress.begin(stage)
        self._progress.of(stage)(note["phase"], note["done"], note["total"], note["note"])

    def _complete(self, stage: StageSpec, note: JobNote | None) -> None:
        key = stage.fingerprint
        del self.stages[key]
        result = self._store.result(key) or {}
        self._progress.end(key, "done", result.get("accuracy"))
        job = f", job {note.job_id}" if note else ""
        self._progress.say(
            "[green]✓[/]", f"{self._progress.label(stage)}: {said_accuracy(result)}{job}"
        )

    def _failed(self, stage: StageSpec, why: str, job_id: str | None) -> None:
        key = stage.fingerprint
        del self.stages[key]
        self._progress.end(key, "failed")
        self.failures[key] = why
        self._progress.say("[red]✗[/]", f"{self._progress.label(stage)}: {why}")
        log = self._logs / f"{job_id}_0_log.err"
        if log.is_file():
            self._progress.say(" ", f"  log: {log}")


def _say_goodbye(console: Console, sweep: Sweep) -> None:
    say_line(
        console,
        f"The jobs keep running. {later(sweep, 'status')} shows them, the same command waits for "
        f"them again, and {later(sweep, 'cancel')} ends them.",
    )


def _sleep(seconds: float, stop: StopRequest) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not stop():
        time.sleep(0.2)
