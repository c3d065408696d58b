"""Send one run to one tracker, once: a run that was sent and has not changed is not sent again."""

import contextlib
import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from heft_pipeline.errors import UserError
from heft_pipeline.files.json_files import read_json, write_json
from heft_pipeline.files.locks import file_lock, take
from heft_pipeline.settings.tracking import TrackingSettings
from heft_pipeline.tracking.backend import Backend, TrackerError, Writer
from heft_pipeline.tracking.mlflow_backend import MlflowBackend, database_or_server
from heft_pipeline.tracking.payload import PlannedRun, TrackedRun
from heft_pipeline.tracking.tensorboard_backend import TensorboardBackend
from heft_pipeline.tracking.trackio_backend import TrackioBackend, check_project
from heft_pipeline.tracking.wandb_account import resolve_mode
from heft_pipeline.tracking.wandb_backend import WandbBackend

NOTE = "tracking.json"
#: The modules of trackers that are not installed with this project, and a package that has them.
_EXTRAS = {
    "tensorboard": (("tensorboardX",), "tensorboardX"),
    "trackio": (("trackio",), "trackio"),
    # mlflow-skinny has the first without what it needs for a database.
    "mlflow": (("mlflow", "sqlalchemy", "alembic"), "mlflow"),
}


@dataclass(frozen=True)
class Sent:
    """What became of a run that was to be sent.

    Attributes:
        status: ``sent``, ``unchanged`` (the tracker had it already) or ``skipped``.
        text: Why it was skipped, or else where it is.
    """

    status: str
    text: str


def require_tracker(tracking: TrackingSettings) -> None:
    """Refuse a tracker that cannot work here, so that this is known before training.

    Args:
        tracking: The settings.

    Raises:
        UserError: Its package is not installed, it needs an account and there is none, or a
            setting is none that it takes.
    """
    modules, package = _EXTRAS.get(tracking.name, ((), ""))
    for module in modules:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:  # the latter is a folder of that name
            raise UserError(
                f"tracking={tracking.name} needs the package {module}; "
                f"pip install 'heft-pipeline[{tracking.name}]' (or: pip install {package})"
            )
    if tracking.name == "wandb":
        resolve_mode(tracking.mode)
    elif tracking.name == "mlflow":
        database_or_server(tracking)
    elif tracking.name == "trackio":
        check_project(tracking.project)


def make_backend(tracking: TrackingSettings) -> Backend | None:
    """The tracker that settings ask for.

    Args:
        tracking: The settings.

    Returns:
        The tracker; None for ``name=none`` and ``mode=disabled``.

    Raises:
        UserError: The tracker cannot work here.
    """
    require_tracker(tracking)
    if tracking.name == "none" or tracking.mode == "disabled":
        return None
    if tracking.name == "tensorboard":
        return TensorboardBackend()
    if tracking.name == "trackio":
        return TrackioBackend(tracking)
    if tracking.name == "mlflow":
        return MlflowBackend(tracking)
    mode = resolve_mode(tracking.mode)
    return None if mode == "disabled" else WandbBackend(replace(tracking, mode=mode))


class Session:
    """A run that is open at a tracker and locked by this process.

    Args:
        planned: The run.
        tracking: The settings.
        backend: The tracker.
        run: The run as it is now.
    """

    def __init__(
        self, planned: PlannedRun, tracking: TrackingSettings, backend: Backend, run: TrackedRun
    ) -> None:
        self._planned, self._tracking, self._backend = planned, tracking, backend
        planned.folder.mkdir(parents=True, exist_ok=True)
        self._lock = file_lock(planned.folder / ".tracking.lock")
        if not take(self._lock):
            raise TrackerError("another process is sending it")
        try:
            self._writer: Writer = backend.open(run, planned.folder)
        except BaseException:
            self._lock.release()
            raise

    def feed(self, run: TrackedRun) -> None:
        """Send the new lines.

        Args:
            run: The run as it is now.
        """
        for number in range(self._writer.next_line, len(run.lines)):
            self._writer.log(number, run.lines[number])
        self._writer.flush()

    def close(self, run: TrackedRun) -> Sent:
        """Send what remains, and note what was sent.

        Args:
            run: The run as it is now.

        Returns:
            Where it is.

        Raises:
            TrackerError: The tracker did not accept it.
        """
        try:
            self.feed(run)
            where = self._writer.finish(run)
        finally:
            self._lock.release()
        note = {"digest": run.digest(**self._backend.target), "where": where, "id": run.id}
        notes = _notes(self._planned.folder) | {
            self._tracking.name: note | dict(self._backend.target)
        }
        write_json(self._planned.folder / NOTE, notes, durable=False)
        return Sent("sent", where)


def send_run(
    planned: PlannedRun, tracking: TrackingSettings, backend: Backend, again: bool = False
) -> Sent:
    """Send a run as far as it has come.

    Args:
        planned: The run.
        tracking: The settings.
        backend: The tracker.
        again: Whether to send it even if nothing has changed.

    Returns:
        What became of it.

    Raises:
        TrackerError: The tracker did not accept it.
        UserError: Its config cannot be read.
    """
    run = planned.tracked(tracking)
    if run.status != "complete" and not run.lines:
        return Sent("skipped", f"{run.status}, and nothing is trained yet")
    note = _notes(planned.folder).get(tracking.name)
    if note and not again and note.get("digest") == run.digest(**backend.target):
        with contextlib.suppress(KeyError):
            if backend.still_has(note):
                return Sent("unchanged", note["where"])
    return Session(planned, tracking, backend, run).close(run)


def _notes(folder: Path) -> dict[str, Any]:
    """What was sent where; nothing if the note is broken, so that runs are sent once more."""
    found = read_json(folder / NOTE) or {}
    return {name: note for name, note in found.items() if isinstance(note, dict)}
