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

from heft_pipeline.command_line.interrupts import SAME_SECONDS, is_plain_handler, leave
from heft_pipeline.command_line.secrets_kept import MaskedFormatter, masked
from heft_pipeline.data.other_text import OtherText
from heft_pipeline.errors import Interrupted, reason
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store

ShowProgress = Callable[..., None]
_NOTE_SECONDS = 1.0
_AT_ONCE = (
    "Ended at once. Finished stages and the last checkpoints are kept; run the same command to go "
    "on from there."
)


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

    After it, signals that another program listened for have their usual effect again. Others end
    this process at once, with one line, except those that only repeat the first: a terminal that
    is closed sends several SIGHUPs, and some programs pass on a Ctrl-C that has come already.

    Args:
        numbers: The signals to listen for. A SIGHUP that is ignored stays so; that is ``nohup``.

    Attributes:
        signal: The first signal that came, or None.
        at_once: Called before this process is ended at once.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self.numbers = numbers
        self.signal: signal.Signals | None = None
        self.at_once: Callable[[], None] = lambda: None
        self._since = 0.0
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
        found = {number: signal.getsignal(number) for number in self.numbers}
        if found.get(signal.SIGHUP) == signal.SIG_IGN:
            del found[signal.SIGHUP]
        self._before = found
        for number in found:
            signal.signal(number, self._take)
        try:
            yield
        finally:
            for number, handler in found.items():
                # More SIGHUPs may follow, and this process is about to end in good order.
                repeated = number == self.signal == signal.SIGHUP
                signal.signal(number, signal.SIG_IGN if repeated else handler)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = signal.Signals(number), time.monotonic()
            for one, handler in self._before.items():
                if not is_plain_handler(handler):
                    signal.signal(one, handler)
        elif number != signal.SIGHUP and time.monotonic() - self._since > SAME_SECONDS:
            self.at_once()
            leave(128 + number, _AT_ONCE)


class _Noting:
    """Shows a stage's progress, and notes it in the store now and then.

    Args:
        store: Where stages are.
        fingerprint: The stage's.
        show: Called with each progress.
    """

    def __init__(self, store: Store, fingerprint: str, show: ShowProgress) -> None:
        self._store, self._fingerprint, self._show = store, fingerprint, show
        self._noted = 0.0
        self._phase = ""
        self._first: dict[str, float] = {}

    def __call__(self, phase: str, done: int, total: int, note: str = "") -> None:
        self._show(phase, done, total, note)
        # Speed is that of one phase, and a resumed stage does not begin it at step 0.
        if phase != self._phase:
            self._phase, self._first = phase, {"first": done, "first_time": time.time()}
        if os.environ.get("RANK", "0") == "0" and time.monotonic() - self._noted > _NOTE_SECONDS:
            self._noted = time.monotonic()
            what = {"phase": phase, "done": done, "total": total, "note": note}
            what |= self._first | {"time": time.time()}
            with contextlib.suppress(OSError):  # only displays of progress read it
                self._store.note_progress(self._fingerprint, what)


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

    try:
        with stage_log(store.folder(stage.fingerprint)):
            outcome = run_stage(
                stage,
                store,
                upcoming=upcoming,
                text=text,
                progress=_Noting(store, stage.fingerprint, progress),
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
    why = masked(reason(error) or f"{type(error).__name__}: {error}")
    detail = masked("".join(traceback.format_exception(error)))
    log = store.folder(stage.fingerprint) / "stage.log"
    try:
        with log.open("a", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(detail)
        store.fail(stage.fingerprint, {"reason": why, "traceback": detail, "time": time.time()})
    except OSError as unnoted:  # what stopped the stage, such as a full disk, may stop this too
        why += f" (nor could this be noted in {log.parent}: {unnoted.strerror})"
    return why


@contextlib.contextmanager
def stage_log(folder: Path) -> Iterator[None]:
    """Write log records to a stage's ``stage.log`` while the block runs.

    Args:
        folder: The stage's folder; created if it is missing.

    Yields:
        Nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handler = _StageLog(folder / "stage.log", encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(MaskedFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


class _StageLog(logging.FileHandler):
    """A log whose lines are lost where the disk is full, because training can do without them."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing; the default prints a traceback for each line that is lost."""

    def close(self) -> None:
        """Close the file, whether or not there is room for its last lines."""
        with contextlib.suppress(OSError):
            super().close()
