"""Trackio: a run in a database on this machine for each run of the sweep."""

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from heft_pipeline.errors import UserError
from heft_pipeline.settings.tracking import TrackingSettings
from heft_pipeline.tracking.backend import TrackerError, on_own_step
from heft_pipeline.tracking.payload import TrackedRun


def check_project(project: str) -> None:
    """Refuse a project whose name Trackio would change, so that it could meet another one's.

    Args:
        project: The name.

    Raises:
        UserError: It has other characters than Trackio keeps, or is reserved.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", project) or project.startswith("registry-"):
        raise UserError(
            f"tracking.project={project!r} must be letters, digits, - and _ for Trackio, and must "
            "not begin with registry-, e.g. tracking.project=heft"
        )


class TrackioBackend:
    """Trackio's own folder: ``$TRACKIO_DIR``, or ``trackio`` in Hugging Face's cache.

    Its storage is called, and not ``trackio.init``: that asks Hugging Face who the token in the
    environment belongs to, gives every run a new id, has one run open at a time, and drops what it
    cannot write with a warning.

    Args:
        tracking: The settings.
    """

    name = "Trackio"
    live = True

    def __init__(self, tracking: TrackingSettings) -> None:
        self._project = tracking.project

    @property
    def target(self) -> Mapping[str, Any]:
        """The project, and the folder that has it."""
        from trackio.utils import TRACKIO_DIR

        return {"project": self._project, "folder": str(Path(TRACKIO_DIR).resolve())}

    def see(self, sweep: Path, where: str) -> str:
        """The command that shows the project."""
        return f"; trackio show --project {self._project}"

    def open(self, run: TrackedRun, folder: Path) -> "TrackioWriter":
        """Start a run from scratch.

        Results are a line like any other, so a run is written again from its first line, as for
        TensorBoard.

        Args:
            run: The run.
            folder: Its folder in the sweep.

        Returns:
            Its writer.

        Raises:
            TrackerError: Trackio's folder cannot be written to.
        """
        from trackio.sqlite_storage import SQLiteStorage

        try:
            SQLiteStorage.validate_project_name(self._project)
            SQLiteStorage.delete_run(self._project, run.name, run_id=run.id)
            # It says nothing where the database is locked.
            if SQLiteStorage.get_log_count(self._project, run_id=run.id):
                raise TrackerError("the run's earlier lines could not be removed")
        except Exception as error:  # it raises many types; the run's own files are complete
            raise _refused(error) from error
        return TrackioWriter(self._project, run)

    def still_has(self, note: Mapping[str, Any]) -> bool:
        """Whether the run is in the database, or may be in files that become part of it."""
        from trackio.sqlite_storage import SQLiteStorage
        from trackio.utils import get_storage_mode

        if get_storage_mode() == "jsonl":
            return True
        return bool(SQLiteStorage.get_log_count(self._project, run_id=note["id"]))


class TrackioWriter:
    """A run while it is written.

    Args:
        project: The project.
        run: The run as it is now.
    """

    def __init__(self, project: str, run: TrackedRun) -> None:
        from trackio.fragments import FragmentWriter

        self._project, self._run = project, run
        self._began = datetime.now(UTC).isoformat()
        self._fragments = FragmentWriter()
        self._unwritten: list[dict[str, Any]] = []
        self.next_line = 0

    def log(self, number: int, values: Mapping[str, float]) -> None:
        """Take a line; the curves of each stage have its own steps as their x axis.

        Args:
            number: Its number in the run.
            values: Its values.
        """
        self._take(str(number), *on_own_step(number, values))
        self.next_line = number + 1

    def flush(self) -> None:
        """Write the lines so far.

        Raises:
            TrackerError: They cannot be written.
        """
        self._write(self._run)

    def finish(self, run: TrackedRun) -> str:
        """Write the config as it is now, and the results of a complete run.

        Args:
            run: The run; all its lines have been written.

        Returns:
            The database.

        Raises:
            TrackerError: They cannot be written.
        """
        from trackio.sqlite_storage import SQLiteStorage

        results = {k: float(v) for k, v in run.summary.items() if isinstance(v, int | float)}
        if results:
            digest = hashlib.sha256(json.dumps(results).encode()).hexdigest()[:8]
            self._take(f"results-{digest}", run.config["total_epochs"], results)
        self._write(run)
        return str(SQLiteStorage.get_project_db_path(self._project).resolve())

    def _take(self, mark: str, step: int, metrics: Mapping[str, float]) -> None:
        """Keep a line until the next flush; one of the same id and mark is never stored twice."""
        self._unwritten.append(
            {
                "project": self._project,
                "run": self._run.name,
                "run_id": self._run.id,
                "metrics": dict(metrics),
                "step": step,
                "timestamp": datetime.now(UTC).isoformat(),
                "log_id": f"{self._run.id}-{mark}",
            }
        )

    def _write(self, run: TrackedRun) -> None:
        from trackio.fragments import metric_record
        from trackio.sqlite_storage import SQLiteStorage
        from trackio.utils import get_storage_mode

        lines, config = self._unwritten, self._config(run)
        if not lines:
            return
        try:
            if get_storage_mode() == "jsonl":  # a network file system, where SQLite is not safe
                records = [metric_record({**line, "config": config}) for line in lines]
                self._fragments.write_local(records)
            else:
                SQLiteStorage.bulk_log(
                    self._project,
                    self._run.name,
                    [line["metrics"] for line in lines],
                    steps=[line["step"] for line in lines],
                    timestamps=[line["timestamp"] for line in lines],
                    config=config,
                    log_ids=[line["log_id"] for line in lines],
                    run_id=self._run.id,
                )
        except Exception as error:  # it raises many types; the run's own files are complete
            raise _refused(error) from error
        self._unwritten = []

    def _config(self, run: TrackedRun) -> dict[str, Any]:
        """The config, with what Trackio groups and orders runs by (the names with ``_``)."""
        config = json.loads(json.dumps(dict(run.config), default=str))
        own = {"status": run.status, "tags": list(run.tags)}
        return config | own | {"_Group": run.sweep, "_Created": self._began, "_Username": None}


def _refused(error: Exception) -> TrackerError:
    from trackio.utils import TRACKIO_DIR

    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return TrackerError(f"{text} (Trackio's folder is {TRACKIO_DIR}; $TRACKIO_DIR names another)")
