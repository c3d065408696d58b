"""The process that sends a sweep to a tracker while its stages run."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import IO, Any

from rich.console import Console

from heft_pipeline.settings.tracking import TrackingSettings
from heft_pipeline.store.sweep_folders import Sweep
from heft_pipeline.tracking.follow import Event
from heft_pipeline.tracking.send import require_tracker
from heft_pipeline.tracking.summary import Summary
from launch.progress import say_line

LOG = "tracking.log"
#: The most that an interrupted sweep waits for its tracker; its checkpoint is already written.
_HURRIED_SECONDS = 10.0
_STOP_SECONDS = 3.0


def tracking_note(trackings: Iterable[TrackingSettings]) -> dict[str, Any] | None:
    """What ``plan.json`` says about tracking; each run's own settings are in its config.

    Args:
        trackings: The settings of the sweep's runs.

    Returns:
        ``name`` and ``finish_seconds``, or None where nothing is tracked.

    Raises:
        UserError: A tracker cannot be used here.
    """
    asked = [t for t in trackings if t.name != "none" and t.mode != "disabled"]
    distinct = {repr(tracking): tracking for tracking in asked}
    for tracking in distinct.values():
        require_tracker(tracking)
    if not distinct:
        return None
    seconds = max(tracking.finish_seconds for tracking in distinct.values())
    return {"name": next(iter(distinct.values())).name, "finish_seconds": seconds}


class Tracker:
    """The process that tracks a sweep.

    Args:
        sweep: The sweep.
        only: The one run to track; None for all.
        seconds: How long to wait for news at the end.
    """

    def __init__(self, sweep: Sweep, only: str | None, seconds: float) -> None:
        self._sweep, self._seconds = sweep, seconds
        self.summary = Summary(sweep.folder)
        self._news: queue.Queue[Event | None] = queue.Queue()
        command = [sys.executable, "-m", "heft_pipeline.tracking", str(sweep.folder), "--follow"]
        command += ["--run", only] if only else []
        with (sweep.folder / LOG).open("a") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C reaches training alone, which then ends this
            )
        assert self._process.stdout is not None
        reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        reader.start()

    def hurry(self) -> None:
        """Wait less at the end, because there is little time."""
        self._seconds = min(self._seconds, _HURRIED_SECONDS)

    def end(self, console: Console) -> None:
        """Let it send what remains, and print how it went.

        Args:
            console: Where to show it.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # the process has already ended
            self._process.stdin.close()
        trouble = ""
        try:
            with console.status("sending to the tracker (Ctrl-C stops waiting)"):
                if not self._take_news():
                    trouble = f"gave no sign for {self._seconds:g} s and was ended"
        except KeyboardInterrupt:  # training is over, so only this is interrupted
            trouble = "was ended before it had sent everything"
        finally:
            self._stop(wait=not trouble)
        if not trouble and self._process.returncode:
            trouble = f"ended with an error, see {self._sweep.folder / LOG}"
        lines = self.summary.lines()
        if trouble:
            later = f"python -m heft_pipeline.tracking {self._sweep.folder}"
            lines.append(f"! tracking {trouble}. To send later: {later}")
        for line in lines:
            say_line(console, line)

    def _take_news(self) -> bool:
        """Read events until the process ends; false if none came for too long."""
        while True:
            try:
                event = self._news.get(timeout=self._seconds)
            except queue.Empty:
                return False
            if event is None:
                return True
            self.summary.add(event)

    def _read(self, stream: IO[str]) -> None:
        try:
            for line in stream:
                self._news.put(Event(**json.loads(line)))
        finally:
            self._news.put(None)

    def _stop(self, wait: bool) -> None:
        """Make sure that the process, and whatever it has started, is gone."""
        # It leads a process group of its own; W&B's service is in it.
        for number in (None, signal.SIGTERM, signal.SIGKILL)[not wait :]:
            if number is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
                return


@contextlib.contextmanager
def tracked(sweep: Sweep, console: Console, only: str | None = None) -> Iterator[Tracker | None]:
    """Track a sweep while the block runs its stages.

    Failures of the tracker are printed and never raised.

    Args:
        sweep: The sweep; its ``plan.json`` says whether it is tracked.
        console: Where to print how it went.
        only: The one run to track; None for all.

    Yields:
        The tracker, or None where nothing is tracked.
    """
    note = sweep.plan().get("tracking")
    if note is None:
        yield None
        return
    try:
        tracker = Tracker(sweep, only, note["finish_seconds"])
    except OSError as error:
        say_line(console, f"! tracking could not be started: {error}")
        yield None
        return
    try:
        yield tracker
    except BaseException:
        tracker.hurry()
        raise
    finally:
        tracker.end(console)
