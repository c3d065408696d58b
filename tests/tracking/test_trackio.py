"""Trackio's database, read back with Trackio."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heft_pipeline.errors import UserError
from heft_pipeline.settings.tracking import TrackingSettings
from heft_pipeline.tracking.send import require_tracker
from heft_pipeline.training.metrics import read_metrics
from tests.conftest import CliResult
from tests.tracking.conftest import HEFT, LORA, Track, stage_folders
from tests.tracking.wandb_server import serving

Cli = Callable[..., CliResult]

_READ = """
import json, sys
import trackio
from trackio.fragments import import_inbox_dir
from trackio.sqlite_storage import SQLiteStorage
import_inbox_dir()
runs = trackio.Api().runs(sys.argv[1])
lines = {r.id: SQLiteStorage.get_logs(r.project, r.name, run_id=r.id) for r in runs}
print(json.dumps([{"name": r.name, "config": r.config, "lines": lines[r.id]} for r in runs]))
"""


@pytest.fixture(autouse=True)
def trackio_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.delenv("TRACKIO_STORAGE_MODE", raising=False)
    return tmp_path / "trackio"


def kept(project: str = "heft") -> dict[str, dict[str, Any]]:
    """What Trackio has of each run, by name, which no two may share."""
    command = [sys.executable, "-c", _READ, project]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    runs = json.loads(done.stdout.splitlines()[-1])
    assert len({run["name"] for run in runs}) == len(runs)
    return {run["name"]: run for run in runs}


def curve(run: dict[str, Any], name: str) -> list[tuple[int, float]]:
    return [(line["step"], line[name]) for line in run["lines"] if name in line]


def test_each_stages_curves_are_over_its_own_steps(sweep: Path, track: Track) -> None:
    done = track(sweep, "--to", "trackio")
    assert done.returncode == 0, done.stderr
    assert "Trackio: 2 runs; trackio show --project heft" in done.stdout
    runs = kept()
    assert set(runs) == {LORA, HEFT}
    for prefix, folder in zip(("lora", "reft"), stage_folders(sweep, HEFT), strict=True):
        lines = read_metrics(folder / "metrics.jsonl")
        for name in ("loss", "learning_rate", "grad_norm", "dev_accuracy"):
            expected = [(line["step"], line[name]) for line in lines if name in line]
            assert curve(runs[HEFT], f"{prefix}/{name}") == expected
    ((step, accuracy),) = curve(runs[HEFT], "accuracy")
    result = json.loads((stage_folders(sweep, HEFT)[1] / "result.json").read_text())
    assert (step, accuracy) == (4, result["accuracy"])
    config = runs[HEFT]["config"]
    assert config["_Group"] == "s", "Trackio groups by it"
    assert (config["lora"]["rank"], config["status"], config["tags"]) == (8, "complete", ["heft"])
    assert config["_Username"] is None
    assert str(sweep.parent) not in json.dumps(config)


def test_a_run_is_written_again_whole_when_it_has_changed(sweep: Path, track: Track) -> None:
    result = stage_folders(sweep, HEFT)[1] / "result.json"
    result.rename(result.with_name("kept.json"))
    assert track(sweep, "--to", "trackio").returncode == 0
    assert kept()[HEFT]["config"]["status"] == "incomplete"
    assert not curve(kept()[HEFT], "accuracy")
    result.with_name("kept.json").rename(result)
    assert "1 unchanged" in track(sweep, "--to", "trackio").stdout
    run = kept()[HEFT]
    assert len(curve(run, "accuracy")) == 1
    lines = read_metrics(stage_folders(sweep, HEFT)[0] / "metrics.jsonl")
    assert len(curve(run, "lora/loss")) == sum("loss" in line for line in lines)


def test_a_run_that_was_deleted_there_is_sent_again(
    sweep: Path, track: Track, trackio_folder: Path
) -> None:
    track(sweep, "--to", "trackio")
    (trackio_folder / "heft.db").unlink()
    assert "unchanged" not in track(sweep, "--to", "trackio").stdout
    assert set(kept()) == {LORA, HEFT}


def test_runs_of_the_same_name_in_two_sweeps_are_two_runs(
    sweep: Path, track: Track, trackio_folder: Path
) -> None:
    track(sweep, "--to", "trackio", "--run", LORA)
    other = sweep.rename(sweep.with_name("other"))
    track(other, "--to", "trackio", "--run", LORA)
    code = "import trackio; print([r.config['_Group'] for r in trackio.Api().runs('heft')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert sorted(json.loads(done.stdout.replace("'", '"'))) == ["other", "s"]


def test_on_a_network_file_system_lines_come_as_files_and_are_taken_once(
    sweep: Path, track: Track, trackio_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_STORAGE_MODE", "jsonl")
    assert track(sweep, "--to", "trackio").returncode == 0
    assert not (trackio_folder / "heft.db").exists()
    assert "2 unchanged" in track(sweep, "--to", "trackio").stdout
    assert track(sweep, "--to", "trackio", "--again").returncode == 0
    lines = read_metrics(stage_folders(sweep, HEFT)[0] / "metrics.jsonl")
    expected = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    for _ in range(2):
        run = kept()[HEFT]
        assert curve(run, "lora/loss") == expected
        assert len(curve(run, "accuracy")) == 1
        assert track(sweep, "--to", "trackio", "--again").returncode == 0


def test_a_folder_that_cannot_be_written_to_is_one_line_and_sent_later(
    sweep: Path, track: Track, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with monkeypatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(tmp_path / "file" / "trackio"))
        done = track(sweep, "--to", "trackio")
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("! ")]
    assert line.startswith("! Trackio did not accept 2 runs: ")
    assert "$TRACKIO_DIR names another" in line
    assert f"To send later: python -m heft_pipeline.tracking {sweep}" in line
    assert "Traceback" not in done.stderr
    assert track(sweep, "--to", "trackio").returncode == 0
    assert set(kept()) == {LORA, HEFT}


def test_a_tracked_sweep_is_there_when_it_has_ended_and_nobody_was_asked(
    cli: Cli, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as elsewhere:
        monkeypatch.setenv("HF_ENDPOINT", elsewhere.url)
        monkeypatch.setenv("HF_TOKEN", "hf_" + "s" * 30)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("TRACKIO_SPACE_ID", "me/space")
        asked = [*small, "method=lora", "lora.epochs=2", "tracking=trackio", "sweep=s"]
        status, out, err = cli(*asked, "tracking.tags=[pilot]", "tracking.project=mine")
        assert status == 0, out + err
        assert "Trackio: 1 run; trackio show --project mine" in out
        assert not elsewhere.requests
    run = kept("mine")["lora-3-r8-s0"]
    assert len(curve(run, "lora/dev_loss")) == 2
    assert run["config"]["tags"] == ["lora", "pilot"]


def test_names_that_trackio_would_change_are_refused() -> None:
    for project in ("my.project", "registry-x", "größe"):
        with pytest.raises(UserError, match=r"for Trackio.*tracking\.project=heft"):
            require_tracker(TrackingSettings(name="trackio", project=project))


def test_without_its_package_it_is_refused_with_what_to_type(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    require_tracker(TrackingSettings(name="trackio"))
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match=r"pip install 'heft-pipeline\[trackio\]'"):
        require_tracker(TrackingSettings(name="trackio"))


def test_a_folder_of_its_packages_name_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "mlflow").mkdir()
    code = (
        "import sys, importlib.machinery as m\n"
        "sys.meta_path.insert(0, type('Hide', (), {'find_spec': staticmethod(lambda n, p, t=None:"
        " m.PathFinder.find_spec(n, ['.']) if n == 'mlflow' else None)}))\n"
        "from heft_pipeline.settings.tracking import TrackingSettings\n"
        "from heft_pipeline.tracking.send import require_tracker\n"
        "require_tracker(TrackingSettings(name='mlflow'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "needs the package mlflow" in done.stderr
