"""What a tracker must be able to do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from heft_pipeline.tracking.runs import TrackedRun


class TrackerError(Exception):
    """A tracker did not take a run; the text is for people."""


class Unreachable(TrackerError):
    """A tracker takes nothing at all now: there is no use in trying the next run."""


class Writer(Protocol):
    """One run while it is being sent.

    Attributes:
        next_line: The number of the first line that the tracker has not taken.
    """

    next_line: int

    def log(self, number: int, values: Mapping[str, float]) -> None:
        """Send a line.

        Args:
            number: Its number in the run, at least ``next_line``.
            values: Its values.
        """

    def finish(self, run: TrackedRun) -> str:
        """Send what is not a line, and close the run in the state that it is in.

        Args:
            run: The run with all its lines sent.

        Returns:
            Where people find it: an address or a folder.

        Raises:
            TrackerError: It was not taken.
        """


class Backend(Protocol):
    """A tracker.

    Attributes:
        name: What people call it.
        live: Whether a run can be shown while it is trained.
    """

    name: str
    live: bool

    @property
    def target(self) -> Mapping[str, Any]:
        """Where runs go, JSON-ready; a run sent elsewhere is another run."""

    def open(self, run: TrackedRun, folder: Path) -> Writer:
        """Begin a run, or go on with it.

        Args:
            run: The run.
            folder: Its folder in the sweep.

        Returns:
            Its writer.

        Raises:
            TrackerError: The tracker does not take it.
        """

    def still_has(self, note: Mapping[str, Any]) -> bool:
        """Whether what was sent is where it was put, as far as that can be seen from here.

        Args:
            note: What was noted then.
        """
