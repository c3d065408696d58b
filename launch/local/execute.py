"""Executing a plan's stages on this machine: in this process, or in workers side by side."""

import contextlib
import signal
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from heft_pipeline.data.other_text import OtherText
from heft_pipeline.plan.graph import Plan, descendants
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.store.sweep_folders import Sweep
from launch.attempt import Attempt, StopRequest, attempt, said_accuracy
from launch.local.pool import Pool, Worker
from launch.local.settings import LocalSettings
from launch.measure_forgetting import texts
from launch.progress import StageProgress

_POLL_SECONDS = 0.5


class Execution:
    """Which stages of a plan are waiting, finished or failed.

    Args:
        plan: The plan.
        store: Where stages are.
        progress: Where changes are shown.
        texts: The text that each stage is measured on, by fingerprint.
    """

    def __init__(
        self, plan: Plan, store: Store, progress: StageProgress, texts: Mapping[str, OtherText]
    ) -> None:
        self._store, self._progress = store, progress
        self._waiting, self._texts = dict(plan.stages), texts
        self._upcoming = descendants(plan.stages.values())
        self._done: set[str] = set()
        self.failures: dict[str, str] = {}
        self.interrupted = False

    def next_stage(self) -> StageSpec | None:
        """Take a stage that has to be run and whose parent is finished.

        Returns:
            The stage, or None where all that are left wait for one that is running.
        """
        for key, stage in list(self._waiting.items()):
            parent = stage.parent.fingerprint if stage.parent else None
            if parent in self.failures:
                del self._waiting[key]
                self._progress.end(key, "failed")
                label = self._progress.label
                self.failures[key] = f"its parent stage failed ({label(stage.chain[-2])})"
                self._progress.say("[red]✗[/]", f"{label(stage)}: not trained, its parent failed")
            elif parent is None or parent in self._done:
                del self._waiting[key]
                result = self._store.result(key)
                if result is None:
                    return stage
                self._done.add(key)
                self._progress.end(key, "done", result.get("accuracy"))
                text = f"{self._progress.label(stage)}: reused, {said_accuracy(result)}"
                self._progress.say("[cyan]=[/]", text)
        return None

    def upcoming(self, stage: StageSpec) -> list[StageSpec]:
        """The stages that will be trained on a stage."""
        return self._upcoming.get(stage.fingerprint, [])

    def text(self, stage: StageSpec) -> OtherText | None:
        """The text that a stage is measured on; None for none."""
        return self._texts.get(stage.fingerprint)

    def take(self, stage: StageSpec, tried: Attempt) -> None:
        """Note and show how an attempt at a stage ended."""
        key = stage.fingerprint
        state = {"interrupted": "again", "failed": "failed"}.get(tried.status, "done")
        result = self._store.result(key) if state == "done" else None
        self._progress.end(key, state, result.get("accuracy") if result else None)
        if tried.status == "interrupted":
            # Where this process was told to stop too, nothing that comes after this is looked at.
            self.interrupted = True
            self.failures[key] = f"interrupted ({tried.text})"
            text = f"{tried.text}; run the same command to resume there"
            self._progress.say("[yellow]■[/]", text)
        elif tried.status == "failed":
            self.failures[key] = tried.text
            self._progress.say("[red]✗[/]", f"{self._progress.label(stage)}: {tried.text}")
            self._progress.say(" ", f"  log: {self._store.folder(key) / 'stage.log'}")
        else:
            self._done.add(key)
            other = ", trained by another process" if tried.status == "reused" else ""
            mark = "[cyan]=[/]" if tried.status == "reused" else "[green]✓[/]"
            self._progress.say(mark, f"{self._progress.label(stage)}: {tried.text}{other}")

    def died(self, stage: StageSpec, how: str, stopping: bool) -> None:
        """Note and show that a stage's process died; it may have left the reason in the store.

        Args:
            stage: The stage.
            how: How the process ended.
            stopping: Whether it had been told to stop, which ends it before it listens for that.
        """
        noted = self._store.failure(stage.fingerprint)
        if stopping and not noted:
            self.take(stage, Attempt("interrupted", f"{self._progress.label(stage)} stopped"))
            return
        self.take(stage, Attempt("failed", noted["reason"] if noted else how))

    def waits(self, stage: StageSpec, owner: str) -> None:
        """Show that another process is training a stage."""
        text = f"{self._progress.label(stage)}: being trained by {owner}; waiting for it"
        self._progress.say("[yellow]…[/]", text)


def execute_here(
    plan: Plan, sweep: Sweep, settings: LocalSettings, console: Console
) -> dict[str, str]:
    """Run every stage of a plan that is not finished yet, parents first.

    A failed stage fails only the stages that need it; the others go on.

    Args:
        plan: The plan.
        sweep: The sweep that it belongs to; its folder gets the workers' logs.
        settings: The launcher's settings. A single worker of one process is this process.
        console: Where progress is shown.

    Returns:
        Why stages failed, by fingerprint; empty where all are finished.

    Raises:
        UserError: There are fewer GPUs than the workers need.
        SystemExit: A signal came; the stages that were running have checkpoints.
    """
    store, stop = sweep.store, StopRequest(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    with StageProgress(console, plan.stages.values()) as progress, stop.listening():
        execution = Execution(plan, store, progress, texts(sweep, plan.stages.values()))
        if settings.workers * settings.gpus_per_stage == 1:
            _in_this_process(execution, store, progress, stop)
        else:
            pool = Pool(store.output_dir, sweep.folder / "workers", settings)
            stop.at_once = pool.kill
            _in_workers(execution, pool, progress, stop)
    if stop.signal is not None:
        if not execution.interrupted:
            text = "Stopped between two stages. Run the same command to go on with the next."
            console.print(text, highlight=False, soft_wrap=True)
        raise SystemExit(128 + stop.signal)
    return execution.failures


def _in_this_process(
    execution: Execution, store: Store, progress: StageProgress, stop: StopRequest
) -> None:
    while not stop() and (stage := execution.next_stage()) is not None:
        progress.begin(stage)
        tried = attempt(
            stage,
            store,
            upcoming=execution.upcoming(stage),
            text=execution.text(stage),
            progress=progress.of(stage),
            should_stop=stop,
            on_wait=lambda owner, waiting=stage: execution.waits(waiting, owner),  # type: ignore[misc]
        )
        execution.take(stage, tried)


def _in_workers(
    execution: Execution, pool: Pool, progress: StageProgress, stop: StopRequest
) -> None:
    asked_to_stop = False
    with contextlib.closing(pool):
        while True:
            while not stop() and (worker := pool.idle()) is not None:
                stage = execution.next_stage()
                if stage is None:
                    break
                progress.begin(stage)
                pool.give(worker, stage, execution.upcoming(stage), execution.text(stage))
            if all(worker.stage is None for worker in pool.workers):
                return
            if stop() and not asked_to_stop:
                asked_to_stop = True
                pool.interrupt()
            happened = pool.next_event(_POLL_SECONDS)
            if happened is not None:
                _take_event(execution, pool, progress, asked_to_stop, *happened)


def _take_event(
    execution: Execution,
    pool: Pool,
    progress: StageProgress,
    stopping: bool,
    worker: Worker,
    event: dict[str, Any],
) -> None:
    stage, kind = worker.stage, event.pop("event")
    if stage is None:  # a late event of a worker that has been stopped
        return
    if kind == "progress":
        progress.of(stage)(**event)
    elif kind == "waiting":
        execution.waits(stage, event["owner"])
    else:
        worker.stage = None
        # An interrupted one ends by itself, and one that fails leaves others that wait for it.
        if kind in ("died", "interrupted") or (kind == "failed" and len(worker.processes) > 1):
            pool.bury(worker)
        if kind == "died":
            execution.died(stage, event["text"], stopping)
        else:
            execution.take(stage, Attempt(kind, event["text"]))
