"""What a tracker must be able to do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from heft_pipeline.tracking.payload import TrackedRun


class TrackerError(Exception):
    """A tracker did not accept a run; the text is for people."""


class Unreachable(TrackerError):
    """A tracker accepts nothing at the moment, so there is no point in trying the next run."""


class Writer(Protocol):
    """One run while it is being sent.

    Attributes:
        next_line: The number of the first line that the tracker does not have yet.
    """

    next_line: int

    def log(self, number: int, values: Mapping[str, float]) -> None:
        """Send a line.

        Args:
            number: Its number in the run, at least ``next_line``.
            values: Its values.
        """

    def flush(self) -> None:
        """Make the lines so far visible to people."""

    def finish(self, run: TrackedRun) -> str:
        """Send everything that is not a line, and close the run in its current state.

        Args:
            run: The run; all its lines have been sent.

        Returns:
            Where people find it: an address or a folder.

        Raises:
            TrackerError: The tracker did not accept it.
        """


def on_own_step(number: int, values: Mapping[str, float]) -> tuple[int, dict[str, float]]:
    """A line's step on its stage's own axis, for trackers with one axis for each curve.

    Args:
        number: The line's number in the run, which is the step of a line without one.
        values: Its values, with the step under ``STAGE/step``.

    Returns:
        The step, and the other values.
    """
    steps = {name: value for name, value in values.items() if name.endswith("/step")}
    rest = {name: value for name, value in values.items() if name not in steps}
    return int(next(iter(steps.values()), number)), rest


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
        """Where runs are sent, as JSON-ready data; a run that is sent elsewhere counts as new."""

    def see(self, sweep: Path, where: str) -> str:
        """How to look at a sweep's runs: the end of the sentence that says how many were sent.

        Args:
            sweep: The sweep's folder, as the user would type it.
            where: Where the last run is, as its writer said.
        """

    def open(self, run: TrackedRun, folder: Path) -> Writer:
        """Begin a run, or continue it.

        Args:
            run: The run.
            folder: Its folder in the sweep.

        Returns:
            Its writer.

        Raises:
            TrackerError: The tracker does not accept it.
        """

    def still_has(self, note: Mapping[str, Any]) -> bool:
        """Whether a run that was sent is still where it was put, as far as can be seen from here.

        Args:
            note: The note that was made when it was sent.
        """
