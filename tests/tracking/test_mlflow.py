"""MLflow's database, read back with MLflow's client."""

import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from heft_pipeline.errors import UserError
from heft_pipeline.settings.tracking import TrackingSettings
from heft_pipeline.tracking.mlflow_backend import _made_database, _settings
from heft_pipeline.tracking.send import require_tracker
from heft_pipeline.training.metrics import read_metrics
from tests.conftest import CliResult
from tests.tracking.conftest import HEFT, LORA, Track, set_tracking, stage_folders

Cli = Callable[..., CliResult]
SETTINGS = TrackingSettings(name="mlflow")


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which take MLflow seconds to make."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    _made_database(path)
    return path


@pytest.fixture
def sweep(sweep: Path, empty_database: Path) -> Path:
    """The trained sweep with an empty database."""
    (sweep / "mlflow").mkdir()
    shutil.copy(empty_database, sweep / "mlflow")
    return sweep


def client(sweep: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{sweep}/mlflow/mlflow.db")


def runs(client: Any, experiment: str = "heft") -> dict[str, Any]:
    """The runs by name, which no two may share."""
    id = client.get_experiment_by_name(experiment).experiment_id
    found = client.search_runs([id])
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def curve(client: Any, run: Any, name: str) -> list[tuple[int, float]]:
    history = client.get_metric_history(run.info.run_id, name)
    return sorted((point.step, point.value) for point in history)


def points(sweep: Path, stage: int, name: str) -> list[tuple[int, float]]:
    lines = read_metrics(stage_folders(sweep, HEFT)[stage] / "metrics.jsonl")
    return [(line["step"], line[name]) for line in lines if name in line]


def test_each_stages_curves_are_over_its_own_steps(sweep: Path, track: Track) -> None:
    done = track(sweep, "--to", "mlflow")
    assert done.returncode == 0, done.stderr
    database = f"sqlite:///{sweep}/mlflow/mlflow.db"
    assert f"MLflow: 2 runs; mlflow ui --backend-store-uri {database}" in done.stdout
    mlflow = client(sweep)
    found = runs(mlflow)
    assert set(found) == {LORA, HEFT}
    run = found[HEFT]
    for at, prefix in enumerate(("lora", "reft")):
        for name in ("loss", "learning_rate", "grad_norm", "dev_accuracy"):
            assert curve(mlflow, run, f"{prefix}/{name}") == points(sweep, at, name)
    result = json.loads((stage_folders(sweep, HEFT)[1] / "result.json").read_text())
    assert curve(mlflow, run, "accuracy") == [(4, result["accuracy"])]
    assert run.info.status == "FINISHED"
    tags = run.data.tags
    assert (tags["sweep"], tags["method"], tags["status"]) == ("s", "heft", "complete")
    assert (run.data.params["lora.rank"], run.data.params["seed"]) == ("8", "0")
    assert run.data.params["data.choices.true"] == " yes"
    assert str(sweep.parent) not in json.dumps([run.data.params, tags])
    assert not (Path.cwd() / "mlruns").exists()


def test_a_run_goes_on_after_the_last_line_that_mlflow_has(sweep: Path, track: Track) -> None:
    _, reft = stage_folders(sweep, HEFT)
    result, metrics = reft / "result.json", reft / "metrics.jsonl"
    written = metrics.read_text()
    result.rename(result.with_name("kept.json"))
    metrics.write_text(written[: len(written) // 2])
    assert track(sweep, "--to", "mlflow").returncode == 0
    mlflow = client(sweep)
    before = runs(mlflow)[HEFT]
    part = curve(mlflow, before, "reft/loss")
    assert (before.info.status, before.data.tags["status"]) == ("KILLED", "incomplete")
    assert "accuracy" not in before.data.metrics
    metrics.write_text(written)
    result.with_name("kept.json").rename(result)
    assert "1 unchanged" in track(sweep, "--to", "mlflow").stdout
    after = runs(mlflow)[HEFT]
    assert after.info.run_id == before.info.run_id
    whole = curve(mlflow, after, "reft/loss")
    assert whole == points(sweep, 1, "loss")
    assert len(part) < len(whole)
    assert curve(mlflow, after, "lora/loss") == points(sweep, 0, "loss")
    assert after.info.status == "FINISHED"


def test_lines_that_were_sent_but_not_noted_are_not_doubled(sweep: Path, track: Track) -> None:
    track(sweep, "--to", "mlflow")
    mlflow = client(sweep)
    run = runs(mlflow)[HEFT]
    mlflow.set_tag(run.info.run_id, "heft_lines", "3")
    assert track(sweep, "--to", "mlflow", "--again").returncode == 0
    for at, prefix in enumerate(("lora", "reft")):
        assert curve(mlflow, run, f"{prefix}/loss") == points(sweep, at, "loss")
    assert len(curve(mlflow, run, "accuracy")) == 1
    assert runs(mlflow)[HEFT].info.run_id == run.info.run_id


def test_a_run_with_another_setting_takes_the_place_of_the_old_one(
    sweep: Path, track: Track
) -> None:
    track(sweep, "--to", "mlflow")
    mlflow = client(sweep)
    before = runs(mlflow)[LORA]
    path = sweep / "runs" / LORA / ".hydra" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["evaluation"]["batch_size"] = 3
    path.write_text(yaml.safe_dump(config))
    assert "1 unchanged" in track(sweep, "--to", "mlflow").stdout
    after = runs(mlflow)[LORA]
    assert after.data.params["evaluation.batch_size"] == "3"
    assert mlflow.get_run(before.info.run_id).info.lifecycle_stage == "deleted"


def test_predictions_and_adapters_are_artifacts_where_they_are_asked_for(
    sweep: Path, track: Track, tmp_path: Path
) -> None:
    set_tracking(sweep, HEFT, name="mlflow", log_predictions=True, log_adapter=True)
    lora, _ = stage_folders(sweep, HEFT)
    (tmp_path / "private").write_text("mine")
    (lora / "adapter" / "link").symlink_to(tmp_path / "private")
    track(sweep, "--run", HEFT)
    mlflow = client(sweep)
    id = runs(mlflow)[HEFT].info.run_id
    found = {item.path for item in mlflow.list_artifacts(id)}
    assert {name.split("-")[0] for name in found} == {"predictions.parquet", "lora", "reft"}
    (folder,) = [name for name in found if name.startswith("lora")]
    files = {Path(item.path).name for item in mlflow.list_artifacts(id, folder)}
    assert "adapter_model.safetensors" in files
    assert "link" not in files
    assert (sweep / "mlflow" / "artifacts").is_dir()


def test_a_tracked_sweep_is_there_when_it_has_ended(
    cli: Cli, small: list[str], tmp_path: Path
) -> None:
    asked = [*small, "method=lora", "lora.epochs=2", "tracking=mlflow", "sweep=s"]
    status, out, err = cli(*asked, "tracking.project=mine")
    assert status == 0, out + err
    assert "MLflow: 1 run" in out
    mlflow = client(tmp_path / "outputs/sweeps/s")
    (run,) = runs(mlflow, "mine").values()
    assert len(curve(mlflow, run, "lora/dev_loss")) == 2


def test_a_folder_may_be_called_anything(sweep: Path, track: Track, tmp_path: Path) -> None:
    outputs = sweep.parents[1].rename(tmp_path / "100% größe #1?")
    assert track(outputs / "sweeps" / "s", "--to", "mlflow", "--run", LORA).returncode == 0
    database = sqlite3.connect(outputs / "sweeps" / "s" / "mlflow" / "mlflow.db")
    assert database.execute("select name, status from runs").fetchall() == [(LORA, "FINISHED")]


def test_a_database_is_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    class Stopped:
        def __init__(self, uri: str) -> None:
            Path(uri.removeprefix("sqlite:///")).write_text("half")

        def search_experiments(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(mlflow, "MlflowClient", Stopped)
    with pytest.raises(KeyboardInterrupt):
        _made_database(tmp_path / "mlflow.db")
    assert not (tmp_path / "mlflow.db").exists()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_a_server_that_is_not_there_is_one_line_and_the_runs_are_sent_later(
    sweep: Path, track: Track, tmp_path: Path, empty_database: Path
) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    done = track(sweep, "--to", "mlflow", "--uri", uri)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("! ")]
    assert line.startswith("! MLflow did not accept 2 runs: ")
    assert f"To send later: python -m heft_pipeline.tracking {sweep}" in line
    assert "Traceback" not in done.stderr
    shared = tmp_path / "shared.db"
    shutil.copy(empty_database, shared)
    later = track(sweep, "--to", "mlflow", "--uri", f"sqlite:///{shared}")
    assert later.returncode == 0, later.stdout + later.stderr
    from mlflow import MlflowClient

    assert set(runs(MlflowClient(f"sqlite:///{shared}"))) == {LORA, HEFT}


def test_a_server_that_refuses_the_account_says_what_to_set(
    sweep: Path, track: Track, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(str(self.headers["Authorization"]))
            self.send_error(401)

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t" * 20)
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        done = track(sweep, "--to", "mlflow", "--uri", uri)
        server.shutdown()
    assert done.returncode == 1
    assert "MLFLOW_TRACKING_USERNAME" in done.stdout
    assert "t" * 20 not in done.stdout + done.stderr
    assert asked == [f"Bearer {'t' * 20}"], "it is not asked again for each run"


def test_settings_with_names_that_mlflow_does_not_take_are_one_setting() -> None:
    config = {"data": {"choices": {"#1 = größer": "a"}, "path": None}, "seed": 0}
    assert _settings(config) == {"data.choices": '{"#1 = gr\\u00f6\\u00dfer": "a"}', "seed": "0"}


def test_mlflow_reports_nothing_to_its_makers() -> None:
    code = (
        "from heft_pipeline.tracking.mlflow_backend import _set_environment\n"
        "_set_environment(5.0)\n"
        "import mlflow\n"
        "from mlflow.telemetry import get_telemetry_client\n"
        "print(get_telemetry_client())"
    )
    hidden = {key: value for key, value in os.environ.items() if not re.match("MLFLOW|CI$", key)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=hidden, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "None", done.stderr


@pytest.mark.parametrize(
    ("settings", "variable", "said"),
    [
        (TrackingSettings(name="mlflow", uri="./mlruns"), "", "tracking.uri=./mlruns is a folder"),
        (SETTINGS, "file:///tmp/x", "MLFLOW_TRACKING_URI=file:///tmp/x is a folder"),
        (TrackingSettings(name="mlflow", uri="sqlite:///mlflow.db"), "", "give the whole path"),
        (TrackingSettings(name="mlflow", mode="online"), "", "give tracking.uri=http://HOST:5000"),
    ],
)
def test_places_that_mlflow_cannot_write_to_are_refused_before_training(
    settings: TrackingSettings, variable: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    with pytest.raises(UserError, match=re.escape(said)):
        require_tracker(settings)


def test_offline_is_the_sweeps_own_database_whatever_server_is_set(
    sweep: Path, track: Track, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    assert track(sweep, "--to", "mlflow", "--mode", "offline", "--run", LORA).returncode == 0
    assert set(runs(client(sweep))) == {LORA}


@pytest.mark.parametrize("module", ["mlflow", "sqlalchemy"])
def test_without_its_packages_it_is_refused_with_what_to_type(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_tracker(SETTINGS)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"pip install 'heft-pipeline\[mlflow\]'"):
        require_tracker(SETTINGS)
