"""Waiting for SLURM's jobs and seeing how they ended."""

import signal
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from heft_pipeline.plan.graph import Plan
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.store.sweep_folders import Sweep
from launch.attempt import StopRequest, said_accuracy
from launch.progress import StageProgress
from launch.slurm.squeue import accounted_state, job_states

#: How often to look for the result of a job that SLURM no longer lists: NFS may show it late.
_LOOKS_BEFORE_LOST = 3


def wait_for_jobs(
    plan: Plan, sweep: Sweep, jobs: Mapping[str, str], poll_seconds: float, console: Console
) -> dict[str, str]:
    """Show progress until all jobs have ended.

    Args:
        plan: The plan.
        sweep: The sweep.
        jobs: The job of each stage, by fingerprint.
        poll_seconds: How long to wait between two looks.
        console: Where progress is shown.

    Returns:
        Why stages failed, by fingerprint.

    Raises:
        SystemExit: Ctrl-C or SIGTERM; the jobs keep running.
    """
    stages = {key: plan.stages[key] for key in jobs if key in plan.stages}
    stop = StopRequest(signal.SIGINT, signal.SIGTERM)
    with StageProgress(console, stages.values()) as progress, stop.listening():
        waiting = _Waiting(sweep.store, stages, jobs, progress, sweep.folder / "slurm")
        while waiting.stages:
            waiting.look()
            _sleep(poll_seconds if waiting.stages else 0, stop)
            if stop.signal is not None:
                _say_goodbye(console, sweep)
                raise SystemExit(128 + stop.signal)
    return waiting.failures


class _Waiting:
    """The stages whose jobs have not ended, and the failures of those whose jobs have."""

    def __init__(
        self,
        store: Store,
        stages: dict[str, StageSpec],
        jobs: Mapping[str, str],
        progress: StageProgress,
        logs: Path,
    ) -> None:
        self.stages = stages
        self.failures: dict[str, str] = {}
        self._store, self._jobs, self._progress, self._logs = store, jobs, progress, logs
        self._shown: set[str] = set()
        self._looks: dict[str, int] = {}

    def look(self) -> None:
        """Ask SLURM and the store once, and show what has changed."""
        alive = job_states(self._jobs[key] for key in self.stages)
        for key, stage in list(self.stages.items()):
            if alive.get(self._jobs[key]) == "RUNNING":
                self._show_running(stage)
            ended = self._how_it_ended(key, alive)
            if ended is not None:
                del self.stages[key]
                self._show_ended(stage, ended)

    def _show_running(self, stage: StageSpec) -> None:
        note = self._store.progress(stage.fingerprint)
        if not note:
            return
        if stage.fingerprint not in self._shown:
            self._shown.add(stage.fingerprint)
            self._progress.begin(stage)
        self._progress.of(stage)(note["phase"], note["done"], note["total"], note["note"])

    def _how_it_ended(self, key: str, alive: Mapping[str, str]) -> str | None:
        """``complete``, why it failed, or None where it has not ended."""
        if self._store.is_complete(key):
            return "complete"
        if self._jobs[key] in alive:
            self._looks.pop(key, None)
            return None
        failure = self._store.failure(key)
        if failure is not None:
            return str(failure["reason"])
        self._looks[key] = self._looks.get(key, 0) + 1
        if self._looks[key] < _LOOKS_BEFORE_LOST:
            return None
        state = accounted_state(self._jobs[key])
        return f"job {self._jobs[key]} ended without a result" + (f" ({state})" if state else "")

    def _show_ended(self, stage: StageSpec, ended: str) -> None:
        key, job_id = stage.fingerprint, self._jobs[stage.fingerprint]
        self._progress.end(key)
        if ended == "complete":
            result = self._store.result(key) or {}
            text = f"{self._progress.label(stage)}: {said_accuracy(result)}, job {job_id}"
            self._progress.say("[green]✓[/]", text)
            return
        self.failures[key] = ended
        self._progress.say("[red]✗[/]", f"{self._progress.label(stage)}: {ended}")
        self._progress.say(" ", f"  log: {self._logs / f'{job_id}_0_log.err'}")


def _say_goodbye(console: Console, sweep: Sweep) -> None:
    console.print(
        f"The jobs keep running. python -m launch status {sweep.name} shows them, the same command "
        f"waits for them again, and python -m launch cancel {sweep.name} ends them.",
        soft_wrap=True,
    )


def _sleep(seconds: float, stop: StopRequest) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not stop():
        time.sleep(0.2)
