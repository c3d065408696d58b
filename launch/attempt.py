"""One attempt at running a stage, in this process."""

import contextlib
import logging
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from heft_pipeline.data.other_text import OtherText
from heft_pipeline.errors import Interrupted, NonFiniteLoss, UserError
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store

ShowProgress = Callable[..., None]
_NOTE_SECONDS = 1.0


@dataclass(frozen=True)
class Attempt:
    """How an attempt ended.

    Attributes:
        status: ``complete``, ``reused``, ``failed`` or ``interrupted`` (with a checkpoint).
        text: For people: the accuracy and time, or the reason.
    """

    status: str
    text: str


class StopRequest:
    """Becomes true on a signal, so that training can stop with a checkpoint.

    A second signal has its usual effect immediately.

    Args:
        numbers: The signals to listen for.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self.numbers = numbers
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen for the signals while the block runs.

        Yields:
            Nothing.
        """
        self._before = {number: signal.signal(number, self._take) for number in self.numbers}
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


def attempt(
    stage: StageSpec,
    store: Store,
    *,
    upcoming: Sequence[StageSpec] = (),
    text: OtherText | None = None,
    progress: ShowProgress = lambda *_, **__: None,
    should_stop: Callable[[], bool] = lambda: False,
    on_wait: Callable[[str], None] = lambda _: None,
) -> Attempt:
    """Run a stage, and report a failure instead of raising it.

    A failure is noted in the store, and its traceback is written to ``stage.log``.

    Args:
        stage: The stage; its parents must be finished.
        store: Where stages are.
        upcoming: The stages that will be trained on it.
        text: The text that forgetting is measured on; None for none.
        progress: Called with the phase, the steps done, all steps and a note.
        should_stop: Called before each step; training stops with a checkpoint when it is true.
        on_wait: Called with the name of the process that is already running the stage, if any.

    Returns:
        How the attempt ended.
    """
    from heft_pipeline.stage.run_stage import run_stage  # imports torch

    noted = 0.0
    first: dict[str, float] = {}

    def note(phase: str, done: int, total: int, note: str = "") -> None:
        nonlocal noted
        progress(phase, done, total, note)
        if not first:  # a resumed stage does not begin at step 0
            first.update(first=done, first_time=time.time())
        if os.environ.get("RANK", "0") == "0" and time.monotonic() - noted > _NOTE_SECONDS:
            noted = time.monotonic()
            what = {"phase": phase, "done": done, "total": total, "note": note}
            store.note_progress(stage.fingerprint, what | first | {"time": time.time()})

    folder = store.folder(stage.fingerprint)
    with stage_log(folder):
        try:
            outcome = run_stage(
                stage,
                store,
                upcoming=upcoming,
                text=text,
                progress=note,
                should_stop=should_stop,
                on_wait=on_wait,
            )
        except Interrupted as error:
            return Attempt("interrupted", str(error))
        except Exception as error:  # stages that do not need this one must still be run
            return Attempt("failed", _note_failure(stage, store, error))
    return _ended(outcome.result, outcome.reused)


def _ended(result: Mapping[str, Any], reused: bool) -> Attempt:
    said = said_accuracy(result)
    if reused:
        return Attempt("reused", said)
    resumed = ", resumed" if result["resumes"] else ""
    return Attempt("complete", f"{said}, {result['wall_seconds']:.1f} s{resumed}")


def said_accuracy(result: Mapping[str, Any]) -> str:
    """A finished stage's accuracy in words, with what qualifies it.

    Args:
        result: The content of its ``result.json``.
    """
    tied = result.get("tied_rows", 0)
    ties = f" ({tied:,} of {result['n_eval']:,} answers are exact ties)" if tied else ""
    lost = result.get("unmatched_rows", 0)
    lacking = "hold no answer" if result.get("written") else "name no choice"
    unmatched = f" ({lost:,} of {result['n_eval']:,} texts {lacking})" if lost else ""
    equal = " (in batches of equal length)" if result.get("padding") else ""
    return f"accuracy {result['accuracy']:.1%}{ties}{unmatched}{equal}"


def _note_failure(stage: StageSpec, store: Store, error: Exception) -> str:
    expected = isinstance(error, UserError | NonFiniteLoss)
    reason = str(error) if expected else f"{type(error).__name__}: {error}"
    detail = "".join(traceback.format_exception(error))
    note = {"reason": reason, "traceback": detail, "time": time.time()}
    store.fail(stage.fingerprint, note)
    with (store.folder(stage.fingerprint) / "stage.log").open("a") as log:
        log.write(detail)
    return reason


@contextlib.contextmanager
def stage_log(folder: Path) -> Iterator[None]:
    """Write log records to a stage's ``stage.log`` while the block runs.

    Args:
        folder: The stage's folder; created if it is missing.

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
