"""Executing a plan's stages on this machine: in this process, or in workers side by side."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Plan
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store
from launch.attempt import Attempt, StopRequest, attempt
from launch.local.pool import Pool, Worker, choose_gpus
from launch.progress import StageProgress, announce

_POLL_SECONDS = 0.5


class Execution:
    """A plan on its way to completion.

    Args:
        plan: The plan.
        store: Where stages are.
        progress: Where to show it.
    """

    def __init__(self, plan: Plan, store: Store, progress: StageProgress) -> None:
        self._store, self._progress = store, progress
        self._waiting = dict(plan.stages)
        self._done: set[str] = set()
        self.failures: dict[str, str] = {}

    def next_stage(self) -> StageSpec | None:
        """Take a stage whose parent is complete; those that need no work are passed over.

        Returns:
            The stage, or None where all that are left wait for one at work.
        """
        for key, stage in list(self._waiting.items()):
            parent = stage.parent.fingerprint if stage.parent else None
            if parent in self.failures:
                del self._waiting[key]
                self.failures[key] = f"its parent stage failed ({stage.chain[-2].label})"
                self._progress.say("[red]✗[/]", f"{stage.label}: not trained, its parent failed")
            elif parent is None or parent in self._done:
                del self._waiting[key]
                result = self._store.result(key)
                if result is None:
                    return stage
                self._done.add(key)
                text = f"{stage.label}: reused, accuracy {result['accuracy']:.1%}"
                self._progress.say("[cyan]=[/]", text)
        return None

    def take(self, stage: StageSpec, tried: Attempt) -> None:
        """Note and show what a try at a stage came to."""
        key = stage.fingerprint
        self._progress.end(key)
        if tried.status == "interrupted":
            text = f"{tried.text}; the same command goes on from there"
            self._progress.say("[yellow]■[/]", text)
        elif tried.status == "failed":
            self.failures[key] = tried.text
            self._progress.say("[red]✗[/]", f"{stage.label}: {tried.text}")
            self._progress.say(" ", f"  log: {self._store.folder(key) / 'stage.log'}")
        else:
            self._done.add(key)
            other = ", trained by another process" if tried.status == "reused" else ""
            mark = "[cyan]=[/]" if tried.status == "reused" else "[green]✓[/]"
            self._progress.say(mark, f"{stage.label}: {tried.text}{other}")

    def died(self, stage: StageSpec, how: str) -> None:
        """Note and show that a stage's process ended without a word, or said why in the store."""
        noted = self._store.failure(stage.fingerprint)
        self.take(stage, Attempt("failed", noted["reason"] if noted else how))

    def waits(self, stage: StageSpec, owner: str) -> None:
        """Show that another process is training a stage."""
        text = f"{stage.label}: being trained by {owner}; waiting for it"
        self._progress.say("[yellow]…[/]", text)


def execute(
    plan: Plan, store: Store, console: Console, logs: Path, settings: dict[str, Any]
) -> dict[str, str]:
    """Make every stage of a plan complete, parents first.

    A stage that fails takes only the stages that stand on it with it; the others go on.

    Args:
        plan: The plan.
        store: Where stages are.
        console: Where progress is shown.
        logs: The folder for what worker processes print.
        settings: The launcher's ``workers``, ``gpus_per_stage`` and ``gpus``. With one of each,
            stages are made in this process.

    Returns:
        Why stages failed, by fingerprint; empty where all are complete.

    Raises:
        UserError: A stage cannot work as configured; raised before anything is trained.
        SystemExit: A signal came; the stages at work have checkpoints.
    """
    store.require_writable()
    announce(console, plan, store)
    check_missing(plan, store, console)
    workers, size, gpus = _checked(settings)
    stop = StopRequest(signal.SIGINT, signal.SIGTERM)
    with StageProgress(console, len(plan.stages)) as progress, stop.listening():
        execution = Execution(plan, store, progress)
        if workers * size == 1:
            _in_this_process(execution, store, progress, stop)
        else:
            numbers = choose_gpus(gpus, workers, size)
            pool = Pool(store.output_dir, logs, workers, size, numbers)
            _in_workers(execution, pool, progress, stop)
    if stop.signal is not None:
        raise SystemExit(128 + stop.signal)
    return execution.failures


def check_missing(plan: Plan, store: Store, console: Console) -> None:
    """Check the stages that are to be trained against their models and data.

    Args:
        plan: The plan.
        store: Where stages are.
        console: Where to show that it takes a moment.

    Raises:
        UserError: A stage cannot work as configured.
    """
    missing = [s for key, s in plan.stages.items() if not store.is_complete(key)]
    if missing:
        with console.status("checking models and data"):
            from heft_pipeline.stage.preflight import preflight  # imports torch

            preflight(missing, store.tokenized)


def _checked(settings: dict[str, Any]) -> tuple[int, int, Any]:
    for key in ("workers", "gpus_per_stage"):
        if settings[key] < 1:
            raise UserError(f"hydra.launcher.{key}={settings[key]} must be 1 or more")
    gpus = settings["gpus"]
    if isinstance(gpus, str) and gpus != "auto":
        raise UserError(f"hydra.launcher.gpus={gpus} must be auto or a list, e.g. [0,1]")
    return settings["workers"], settings["gpus_per_stage"], gpus


def _in_this_process(
    execution: Execution, store: Store, progress: StageProgress, stop: StopRequest
) -> None:
    while not stop() and (stage := execution.next_stage()) is not None:
        progress.begin(stage)
        tried = attempt(
            stage,
            store,
            progress=progress.of(stage),
            should_stop=stop,
            on_wait=lambda owner, waiting=stage: execution.waits(waiting, owner),  # type: ignore[misc]
        )
        execution.take(stage, tried)


def _in_workers(
    execution: Execution, pool: Pool, progress: StageProgress, stop: StopRequest
) -> None:
    asked_to_stop = False
    with _closing(pool):
        while True:
            while not stop() and (worker := pool.idle()) is not None:
                stage = execution.next_stage()
                if stage is None:
                    break
                progress.begin(stage)
                pool.give(worker, stage)
            if all(worker.stage is None for worker in pool.workers):
                return
            if stop() and not asked_to_stop:
                asked_to_stop = True
                pool.interrupt()
            happened = pool.next_event(_POLL_SECONDS)
            if happened is not None:
                _take_event(execution, pool, progress, *happened)


def _take_event(
    execution: Execution,
    pool: Pool,
    progress: StageProgress,
    worker: Worker,
    event: dict[str, Any],
) -> None:
    stage, kind = worker.stage, event.pop("event")
    if stage is None:  # the last words of a worker that has been ended
        return
    if kind == "progress":
        progress.of(stage)(**event)
    elif kind == "waiting":
        execution.waits(stage, event["owner"])
    else:
        worker.stage = None
        if kind == "died" or (kind == "failed" and len(worker.processes) > 1):
            pool.bury(worker)
        if kind == "died":
            execution.died(stage, event["text"])
        else:
            execution.take(stage, Attempt(kind, event["text"]))


@contextlib.contextmanager
def _closing(pool: Pool) -> Iterator[None]:
    try:
        yield
    finally:
        pool.close()
