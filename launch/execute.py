"""Executing a plan's stages in this process, one after the other."""

import contextlib
import logging
import signal
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from heft_pipeline.errors import Interrupted, NonFiniteLoss, UserError
from heft_pipeline.plan import Plan
from heft_pipeline.spec import StageSpec
from heft_pipeline.store import Store
from launch.progress import StageProgress, announce

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Becomes true on SIGINT or SIGTERM, so that training can end with a checkpoint.

    A second signal has its usual effect at once.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen for the signals inside.

        Yields:
            Nothing.
        """
        self._before = {number: signal.signal(number, self._take) for number in _SIGNALS}
        try:
            yield
        finally:
            self._restore()

    def _take(self, number: int, _frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def execute(plan: Plan, store: Store, console: Console) -> dict[str, str]:
    """Make every stage of a plan complete, parents first.

    A stage that fails takes only the stages that stand on it with it; the others go on.

    Args:
        plan: The plan.
        store: Where stages are.
        console: Where progress is shown.

    Returns:
        Why stages failed, by fingerprint; empty where all are complete.

    Raises:
        UserError: A stage cannot work as configured; raised before anything is trained.
        SystemExit: A signal came; the stage at work has a checkpoint.
    """
    store.require_writable()
    announce(console, plan, store)
    missing = [s for key, s in plan.stages.items() if not store.is_complete(key)]
    failures: dict[str, str] = {}
    if missing:
        with console.status("checking models and data"):
            from heft_pipeline.preflight import preflight  # imports torch

            preflight(missing)
    stop = StopRequest()
    with StageProgress(console) as progress, stop.listening():
        for key, stage in plan.stages.items():
            if stage.parent and stage.parent.fingerprint in failures:
                failures[key] = f"its parent stage failed ({stage.parent.label})"
                progress.say("[red]✗[/]", f"{stage.label}: not trained, {failures[key]}")
                continue
            failure = _execute_one(stage, store, progress, stop)
            if failure is not None:
                failures[key] = failure
    return failures


def _execute_one(
    stage: StageSpec, store: Store, progress: StageProgress, stop: StopRequest
) -> str | None:
    """Make one stage complete and say so; return why it failed, if it did."""
    key = stage.fingerprint
    result = store.result(key)
    if result is not None:
        progress.say("[cyan]=[/]", f"{stage.label}: reused, accuracy {result['accuracy']:.1%}")
        return None
    from heft_pipeline.stage import run_stage

    progress.begin(stage)
    try:
        with stage_log(store.folder(key)):
            outcome = run_stage(
                stage,
                store,
                progress=progress,
                should_stop=stop,
                on_wait=lambda owner: progress.say(
                    "[yellow]…[/]", f"{stage.label}: being trained by {owner}; waiting for it"
                ),
            )
    except Interrupted as error:
        progress.end()
        progress.say("[yellow]■[/]", f"{error}; the same command goes on from there")
        number = stop.signal or signal.SIGINT
        raise SystemExit(128 + number) from error
    except Exception as error:  # whatever it is, the stages that do not stand on this one go on
        progress.end()
        return _failed(stage, store, progress, error)
    progress.end()
    result = outcome.result
    text = f"{stage.label}: accuracy {result['accuracy']:.1%}"
    if outcome.reused:
        progress.say("[cyan]=[/]", f"{text}, trained by another process")
    else:
        resumed = ", resumed" if result["resumes"] else ""
        progress.say("[green]✓[/]", f"{text}, {result['wall_seconds']:.1f} s{resumed}")
    return None


def _failed(stage: StageSpec, store: Store, progress: StageProgress, error: Exception) -> str:
    folder = store.folder(stage.fingerprint)
    expected = isinstance(error, UserError | NonFiniteLoss)
    reason = str(error) if expected else f"{type(error).__name__}: {error}"
    detail = "".join(traceback.format_exception(error))
    store.fail(stage.fingerprint, {"reason": reason, "traceback": detail, "time": time.time()})
    with (folder / "stage.log").open("a") as log:
        log.write(detail)
    progress.say("[red]✗[/]", f"{stage.label}: {reason}")
    progress.say(" ", f"  log: {folder / 'stage.log'}")
    return reason


@contextlib.contextmanager
def stage_log(folder: Path) -> Iterator[None]:
    """Write log records to a stage's ``stage.log`` inside.

    Args:
        folder: The stage's folder; made where missing.

    Yields:
        Nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / "stage.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
