"""MLflow: a run in the sweep's database, or at a server, for each run of the sweep."""

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from heft_pipeline.command_line.secrets_kept import masked
from heft_pipeline.errors import UserError
from heft_pipeline.files.locks import file_lock
from heft_pipeline.plan.run_names import shortened
from heft_pipeline.settings.tracking import TrackingSettings
from heft_pipeline.tracking.backend import TrackerError, Unreachable, on_own_step
from heft_pipeline.tracking.payload import TrackedRun, own_files

#: The most metrics and settings in one request, and the most characters of a setting's value.
_METRICS, _SETTINGS, _VALUE = 1000, 100, 6000
#: The longest time for one request; a short tracking.finish_seconds lowers it.
_REQUEST_SECONDS = 10.0
#: What MLflow takes as the name of a setting.
_NAME = re.compile(r"[\w.\- /:]+", re.ASCII)
_ENDINGS = {"complete": "FINISHED", "failed": "FAILED", "incomplete": "KILLED"}
_IN_SWEEP = Path("mlflow") / "mlflow.db"


def database_or_server(tracking: TrackingSettings) -> str | None:
    """Where MLflow's runs go.

    Args:
        tracking: The settings.

    Returns:
        An address; None for the database in the sweep's folder.

    Raises:
        UserError: It is none that MLflow writes to from everywhere.
    """
    if tracking.mode == "offline":
        return None
    variable = os.environ.get("MLFLOW_TRACKING_URI")
    uri = tracking.uri or variable
    if not uri:
        if tracking.mode == "online":
            raise UserError(
                "tracking.mode=online needs MLflow's server: give tracking.uri=http://HOST:5000 "
                "or set MLFLOW_TRACKING_URI"
            )
        return None
    given = "tracking.uri" if tracking.uri else "MLFLOW_TRACKING_URI"
    if ("://" not in uri and uri != "databricks") or uri.startswith("file:"):
        raise UserError(
            f"{given}={masked(uri)} is a folder, and MLflow writes to servers and databases; "
            "give e.g. tracking.uri=http://localhost:5000 or "
            "tracking.uri=sqlite:////home/me/mlflow.db, or tracking.mode=offline for a database "
            "in the sweep's folder"
        )
    if uri.startswith("sqlite:") and not uri.startswith("sqlite:////"):
        raise UserError(
            f"{given}={uri} depends on the folder that a command is run in; "
            "give the whole path, e.g. tracking.uri=sqlite:////home/me/mlflow.db"
        )
    return uri


class MlflowBackend:
    """MLflow's client, which needs only mlflow-skinny.

    Args:
        tracking: The settings.
    """

    name = "MLflow"
    live = True

    def __init__(self, tracking: TrackingSettings) -> None:
        self._uri = database_or_server(tracking)
        self._project = tracking.project
        self._seconds = min(_REQUEST_SECONDS, tracking.finish_seconds / 3)
        self._client: Any = None
        self._experiment = ""

    @property
    def target(self) -> Mapping[str, Any]:
        """The server or database, and the experiment."""
        return {"uri": masked(self._uri or ""), "project": self._project}

    def see(self, sweep: Path, where: str) -> str:
        """The experiment's address at a server, or the command that shows a database."""
        if self._uri and self._uri.startswith("http"):
            return f" at {where.split('/runs/')[0]}"
        uri = masked(self._uri or f"sqlite:///{sweep / _IN_SWEEP}")
        return f"; mlflow ui --backend-store-uri {uri}"

    def open(self, run: TrackedRun, folder: Path) -> "MlflowWriter":
        """Begin an MLflow run, or continue it after the last line that MLflow has.

        MLflow lets no setting of a run change. A run with other settings is begun again, and the
        old one moves to MLflow's deleted runs.

        Args:
            run: The run.
            folder: Its folder in the sweep.

        Returns:
            Its writer.

        Raises:
            Unreachable: The server cannot be reached or does not accept the account.
            TrackerError: MLflow does not accept this run.
        """
        with _explained(Unreachable if self._uri else TrackerError):
            self._connect(folder.parent.parent)
        with _explained():
            made = self._found(run.id)
            settings = _settings(run.config)
            if made is not None and dict(made.data.params) != settings:
                self._client.delete_run(made.info.run_id)
                made = None
            if made is None:
                made = self._begun(run, settings)
            else:
                self._client.update_run(made.info.run_id, status="RUNNING")
        return MlflowWriter(self._client, made, self._address(made.info.run_id))

    def still_has(self, note: Mapping[str, Any]) -> bool:
        """Whether the sweep's database still exists; a server is assumed to have the run."""
        return self._uri is not None or Path(note["where"]).is_file()

    def _address(self, id: str) -> str:
        """Where people find a run; a database has no addresses."""
        if self._uri and self._uri.startswith("http"):
            return f"{masked(self._uri).rstrip('/')}/#/experiments/{self._experiment}/runs/{id}"
        return masked(self._uri) if self._uri else str(self._database)

    def _connect(self, sweep: Path) -> None:
        if self._client is not None:
            return
        _set_environment(self._seconds)
        from mlflow import MlflowClient

        self._database = (sweep / _IN_SWEEP).resolve()
        uri = self._uri or _made_database(self._database)
        client = MlflowClient(uri, uri)
        found = client.get_experiment_by_name(self._project)
        if found is None:
            artifacts = None if self._uri else (self._database.parent / "artifacts").as_uri()
            self._experiment = client.create_experiment(self._project, artifacts)
        else:
            self._experiment = found.experiment_id
        self._client = client

    def _found(self, id: str) -> Any:
        found = self._client.search_runs([self._experiment], f"tags.heft_id = '{id}'")
        return found[0] if found else None

    def _begun(self, run: TrackedRun, settings: Mapping[str, str]) -> Any:
        from mlflow.entities import Param

        tags = {
            "heft_id": run.id,
            "sweep": run.sweep,
            "method": run.method,
            "tags": ", ".join(run.tags),
            "mlflow.source.name": "heft_pipeline",
        }
        made = self._client.create_run(self._experiment, run_name=run.name, tags=tags)
        params = [Param(name, value) for name, value in settings.items()]
        for first in range(0, len(params), _SETTINGS):
            self._client.log_batch(made.info.run_id, params=params[first : first + _SETTINGS])
        return made


class MlflowWriter:
    """An MLflow run while it is sent.

    Args:
        client: MLflow's client.
        made: The run as MLflow has it.
        address: Where people find it.
    """

    def __init__(self, client: Any, made: Any, address: str) -> None:
        self._client, self._id, self._address = client, made.info.run_id, address
        self._start = int(made.info.start_time)
        self._had = dict(made.data.metrics)
        self._unsent: list[Any] = []
        self.next_line = int(made.data.tags.get("heft_lines", 0))

    def log(self, number: int, values: Mapping[str, float]) -> None:
        """Take a line; the curves of each stage have its own steps as their x axis.

        Args:
            number: Its number in the run.
            values: Its values.

        Raises:
            TrackerError: MLflow did not accept the lines before it.
        """
        from mlflow.entities import Metric

        if len(self._unsent) + len(values) > _METRICS:
            self.flush()
        step, rest = on_own_step(number, values)
        # A line that is sent again, because the process ended before it noted that it was sent,
        # has the same time, and MLflow keeps one of two equal points.
        at = self._start + number
        self._unsent += [Metric(name, float(value), at, step) for name, value in rest.items()]
        self.next_line = number + 1

    def flush(self) -> None:
        """Send the lines so far.

        Raises:
            TrackerError: MLflow did not accept them.
        """
        from mlflow.entities import RunTag

        if not self._unsent:
            return
        with _explained():
            self._client.log_batch(self._id, metrics=self._unsent)
            self._client.log_batch(self._id, tags=[RunTag("heft_lines", str(self.next_line))])
        self._unsent = []

    def finish(self, run: TrackedRun) -> str:
        """Send the summary and the optional extras, and close the run in its current state.

        Args:
            run: The run; all its lines have been sent.

        Returns:
            The run's address at a server, or else the database.

        Raises:
            TrackerError: MLflow did not accept everything.
        """
        from mlflow.entities import Metric

        self.flush()
        now = int(time.time() * 1000)
        results = {k: float(v) for k, v in run.summary.items() if isinstance(v, int | float)}
        # The newest of a metric's points is the one that MLflow's table of runs has.
        changed = [
            Metric(name, value, now, run.config["total_epochs"])
            for name, value in results.items()
            if self._had.get(name) != value
        ]
        with _explained():
            if changed:
                self._client.log_batch(self._id, metrics=changed)
            self._client.set_tag(self._id, "status", run.status)
            self._send_files(run)
            if run.status in _ENDINGS:
                self._client.set_terminated(self._id, _ENDINGS[run.status])
        return self._address

    def _send_files(self, run: TrackedRun) -> None:
        if run.predictions is not None:
            self._client.log_artifact(self._id, str(run.predictions))
        for prefix, stage, folder in run.adapters:
            place = Path(f"{prefix}-{stage.fingerprint}")
            for file in own_files(folder):
                inside = (place / file.relative_to(folder)).parent
                self._client.log_artifact(self._id, str(file), inside.as_posix())


def _set_environment(seconds: float) -> None:
    """Have MLflow report nothing to its makers, and answer soon where its server does not."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, round(seconds)))
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"


def _made_database(path: Path) -> str:
    """The address of a database with MLflow's tables, which is made where it does not exist."""
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path.with_name(".mlflow.lock")):
        if not path.is_file():
            # MLflow cannot use tables that it was stopped in the middle of making.
            partial = path.with_name(f"partial-{os.getpid()}.db")
            partial.unlink(missing_ok=True)
            MlflowClient(_address_of(partial)).search_experiments()
            partial.replace(path)
    return _address_of(path)


def _address_of(database: Path) -> str:
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=str(database)).render_as_string()


def _settings(config: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """A config as MLflow's settings: ``lora.rank`` and so on, to text."""
    found: dict[str, str] = {}
    for name, value in config.items():
        key = before + str(name)
        if isinstance(value, Mapping) and all(_NAME.fullmatch(str(own)) for own in value):
            found |= _settings(value, key + ".")
        elif value is not None:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            found[key] = shortened(text, _VALUE)
    return found


@contextlib.contextmanager
def _explained(kind: type[TrackerError] = TrackerError) -> Iterator[None]:
    """Say in one line what MLflow did not accept; it raises many types."""
    try:
        yield
    except Exception as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if re.search(r"\b40[13]\b|PERMISSION_DENIED|UNAUTHENTICATED", text):
            text += (
                "; is it the right account? Set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            )
        raise kind(masked(text)) from error
