"""Send all runs of a sweep to their trackers, while they are trained and when they have ended."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from heft_pipeline.errors import reason
from heft_pipeline.settings.tracking import TrackingSettings
from heft_pipeline.store.sweep_folders import PLAN, Sweep
from heft_pipeline.tracking.backend import Backend, TrackerError, Unreachable
from heft_pipeline.tracking.payload import PlannedRun, planned_runs
from heft_pipeline.tracking.send import Session, make_backend, send_run

log = logging.getLogger(__name__)

#: How long to wait before a tracker that could not be reached is tried again.
_RETRY_SECONDS = 60.0
#: What to do where a sweep's folder cannot be written to.
_ELSEWHERE = "send a copy of the sweep from another place"
#: At the end it is tried once more, unless the last try is less than this long ago.
_LAST_TRY_SECONDS = 10.0


@dataclass(frozen=True)
class Event:
    """What happened to a run.

    Attributes:
        run: Its name.
        status: ``open`` (it is shown while it is trained), ``sent``, ``unchanged``, ``skipped``
            or ``problem``.
        text: Where it is, or why it was not accepted.
        tracker: What people call the tracker.
        mode: ``online`` or ``offline``; empty for a tracker without modes.
        see: How to look at runs that were accepted; see :meth:`Backend.see`.
    """

    run: str
    status: str
    text: str
    tracker: str = ""
    mode: str = ""
    see: str = ""


Report = Callable[[Event], None]


class Sender:
    """Sends a sweep's runs and reports what happens to each; a problem with one stops no other.

    Args:
        sweep: The sweep.
        report: Called with each event.
        only: The only run to send; None for all.
        overrides: Tracking settings that replace those of the runs' configs.
        again: Whether to send runs that have not changed as well.
    """

    def __init__(
        self,
        sweep: Sweep,
        report: Report,
        only: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        again: bool = False,
    ) -> None:
        self._sweep, self._report, self._only = sweep, report, only
        self._overrides, self._again = dict(overrides or {}), again
        self._runs: Sequence[PlannedRun] = []
        self._plan_time = -1.0
        self._backends: dict[str, Backend | None] = {}
        self._unreachable: dict[str, tuple[float, str]] = {}
        self._open: dict[str, Session] = {}
        self._problems: set[str] = set()
        self._done: set[str] = set()

    def follow(self, ended: threading.Event, every: float) -> None:
        """Send runs as they become complete, show those in training, and then send what remains.

        A stage in training is shown in the first run that stands on it.

        Args:
            ended: Set when nothing is trained any more.
            every: How often to look at the files, in seconds.
        """
        while not ended.wait(every):
            at_work: set[str] = set()
            for planned in self._left():
                key = planned.stage_at_work
                if key is None:
                    if planned.name not in self._problems:
                        self._send(planned)
                    continue
                first = key not in at_work
                at_work.add(key)
                if planned.name in self._open or (first and self._has_metrics(planned, key)):
                    self._attempt(planned, self._show)
        for planned in self._left():
            if planned.name in self._open or planned.status in ("complete", "failed"):
                self._send(planned, last=True)

    def send_all(self) -> None:
        """Send every run as far as it has come."""
        for planned in self._left():
            self._send(planned, last=True)

    def _left(self) -> list[PlannedRun]:
        changed = (self._sweep.folder / PLAN).stat().st_mtime
        if changed != self._plan_time:
            self._plan_time = changed
            self._runs = planned_runs(self._sweep)
        chosen = [run for run in self._runs if self._only in (None, run.name)]
        return [run for run in chosen if run.name not in self._done]

    def _has_metrics(self, planned: PlannedRun, key: str) -> bool:
        path = self._sweep.store.folder(key) / "metrics.jsonl"
        return planned.name not in self._problems and path.is_file() and path.stat().st_size > 0

    def _tracking(self, planned: PlannedRun) -> TrackingSettings:
        return replace(planned.config.tracking, **self._overrides)

    def _backend(self, tracking: TrackingSettings) -> Backend | None:
        key = repr(tracking)
        if key not in self._backends:
            self._backends[key] = make_backend(tracking)
        return self._backends[key]

    def _show(self, planned: PlannedRun, tracking: TrackingSettings, backend: Backend) -> None:
        """Send the lines of a run that is not complete."""
        if not backend.live:
            return
        run = planned.tracked(tracking)
        if planned.name not in self._open:
            if self._silent_for(backend) < _RETRY_SECONDS:
                return
            self._open[planned.name] = Session(planned, tracking, backend, run)
            self._tell(planned, "open", "", backend)
        self._open[planned.name].feed(run)

    def _send(self, planned: PlannedRun, last: bool = False) -> None:
        """Send a run as far as it has come, and close it."""

        def action(planned: PlannedRun, tracking: TrackingSettings, backend: Backend) -> None:
            if self._silent_for(backend) < (_LAST_TRY_SECONDS if last else _RETRY_SECONDS):
                if last:
                    raise Unreachable(self._unreachable[backend.name][1])
                return
            session = self._open.pop(planned.name, None)
            sent = (
                send_run(planned, tracking, backend, self._again)
                if session is None
                else session.close(planned.tracked(tracking))
            )
            self._done.add(planned.name)
            self._tell(planned, sent.status, sent.text, backend)

        self._attempt(planned, action)

    def _silent_for(self, backend: Backend) -> float:
        """How many seconds ago the tracker could not be reached."""
        since, _ = self._unreachable.get(backend.name, (float("-inf"), ""))
        return time.monotonic() - since

    def _attempt(
        self,
        planned: PlannedRun,
        action: Callable[[PlannedRun, TrackingSettings, Backend], None],
    ) -> None:
        backend = None
        try:
            tracking = self._tracking(planned)
            backend = self._backend(tracking)
            if backend is None:
                self._done.add(planned.name)
            else:
                action(planned, tracking, backend)
        except Exception as error:  # whatever a tracker raises, it may accept the next run
            self._open.pop(planned.name, None)
            if isinstance(error, Unreachable) and backend is not None:
                if self._silent_for(backend) > _LAST_TRY_SECONDS:
                    self._unreachable[backend.name] = (time.monotonic(), str(error))
            else:
                self._problems.add(planned.name)
            text = str(error) if isinstance(error, TrackerError) else reason(error, _ELSEWHERE)
            if text is None:
                log.exception("%s was not accepted", planned.name)
                text = f"{type(error).__name__}: {error}"
            self._tell(planned, "problem", text, backend)

    def _tell(self, planned: PlannedRun, status: str, text: str, backend: Backend | None) -> None:
        mode = str(backend.target.get("mode", "")) if backend else ""
        name = backend.name if backend else ""
        accepted = backend is not None and status in ("sent", "unchanged")
        see = backend.see(self._sweep.folder, text) if backend is not None and accepted else ""
        self._report(Event(planned.name, status, text, name, mode, see))
