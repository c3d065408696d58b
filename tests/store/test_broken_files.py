"""A stage's or sweep's file that is cut off or broken stops nothing that can do without it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from heft_pipeline.errors import UserError
from heft_pipeline.files.sealed import copy_of
from heft_pipeline.plan.graph import Plan, Run
from heft_pipeline.report.__main__ import main as report
from heft_pipeline.store.integrity import forget_result
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.store.sweep_folders import Sweep
from heft_pipeline.tracking.payload import planned_runs
from heft_pipeline.training.metrics import MetricsLog, read_metrics
from launch.__main__ import main as launch
from tests.conftest import CliResult

ComposeRun = Callable[..., Run]
BROKEN = ["", '{"accuracy": 0.', "\0\0\0\0", "[]"]


@pytest.fixture(params=BROKEN)
def broken(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def test_broken_notes_count_as_absent(broken: str, store: Store) -> None:
    folder = store.folder("key")
    folder.mkdir(parents=True)
    names = ("progress.json", "failure.json", "forgetting.json")
    for name in names:
        (folder / name).write_text(broken)
    assert store.state("key") == "to do"
    assert store.owner("key") is None
    assert store.progress("key") is None
    assert store.failure("key") is None
    assert store.text_losses("key") == {}
    with store.lock("key", lambda _: None):
        assert store.owner("key")
    (folder / "result.json").write_text(broken)
    assert store.state("key") == "damaged"
    assert store.result("key") is None
    assert not store.is_complete("key")
    assert list(store.damage("key")) == ["result.json"]


def test_a_result_is_looked_at_again_when_it_has_changed(store: Store) -> None:
    folder = store.folder("key")
    folder.mkdir(parents=True)
    (folder / "predictions.parquet").write_bytes(b"")
    file = folder / "result.json"
    assert not store.damage("key")
    file.write_text('{"accuracy": 0.')
    assert not store.is_complete("key")
    file.write_text('{"accuracy": 0.5}')  # as versions before there were manifests wrote it
    assert store.is_complete("key")
    assert not store.damage("key")
    (folder / "predictions.parquet").unlink()
    assert store.damage("key") == {"predictions.parquet": "is missing"}


@pytest.mark.parametrize("last", ['{"event": "st', "\0\0\0", "7", "{}", "\udcff"])
def test_a_broken_last_line_of_metrics_is_left_out(last: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write("step", 1, 1, loss=0.5)
    with path.open("ab") as file:
        file.write(last.encode("utf-8", "surrogateescape"))
    assert [line["loss"] for line in read_metrics(path)] == [0.5]
    MetricsLog(path, keep_steps=1).write("step", 2, 1, loss=0.25)
    assert [line["loss"] for line in read_metrics(path)] == [0.5, 0.25]


def test_a_broken_plan_is_one_message_that_names_it_and_the_way_out(
    broken: str, compose_run: ComposeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Sweep(tmp_path / "sweeps" / "s")
    sweep.record(Plan((compose_run("method=lora"),)))
    path = sweep.folder / "plan.json"
    path.write_text(broken)
    assert Sweep(sweep.folder).plan()["runs"], "its copy is used"
    copy_of(path).write_text(broken)
    for read in (sweep.plan, lambda: sweep.plan(any_version=True), lambda: planned_runs(sweep)):
        with pytest.raises(UserError, match=rf"{path} .*every stage is kept: run the sweep's"):
            read()
    assert path.read_text() == broken
    for main, arguments in ((report, [str(sweep.folder)]), (launch, ["status", str(sweep.folder)])):
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert error.splitlines()[-1].startswith(f"Error: {path} ")
        assert "Traceback" not in error
    sweep.record(Plan((compose_run("method=lora"),)))
    assert f"{path} is cut off or broken" in capsys.readouterr().err
    assert [run["name"] for run in sweep.plan()["runs"]] == ["run"]


@pytest.mark.parametrize("key", ["runs", "stages", "complete_before"])
def test_a_plan_of_another_layout_says_what_it_lacks(
    key: str, compose_run: ComposeRun, tmp_path: Path
) -> None:
    sweep = Sweep(tmp_path / "sweeps" / "s")
    sweep.record(Plan((compose_run("method=heft"),)))
    path = sweep.folder / "plan.json"
    plan = json.loads(path.read_text())
    del plan["sha256"]
    whole = json.dumps(plan)
    del plan[key]
    path.write_text(json.dumps(plan))
    with pytest.raises(UserError, match=rf"plan\.json lacks {key}, so another version wrote it"):
        sweep.plan()
    plan = json.loads(whole)
    del plan["runs"][0]["overrides"]
    path.write_text(json.dumps(plan))
    with pytest.raises(UserError, match=r"lacks a run's overrides"):
        sweep.plan()
    plan = json.loads(whole)
    stage = next(iter(plan["stages"].values()))
    del stage["adapters"]
    path.write_text(json.dumps(plan))
    with pytest.raises(UserError, match=r"lacks a stage's adapters.*sweep=NAME"):
        sweep.plan()


def test_a_broken_checkpoint_is_not_resumed_from(
    cli: Callable[..., CliResult], small: list[str], tmp_path: Path
) -> None:
    outputs = tmp_path / "outputs"
    assert cli(*small, "method=lora", "epochs=1", "sweep=s")[0] == 0
    coarse = next(outputs.glob("stages/*/adapter/adapter_model.safetensors"))
    weights, folder = coarse.read_bytes(), coarse.parents[1]
    forget_result(folder)
    (folder / "checkpoint").mkdir()
    for name in ("last", "best", "constants"):
        (folder / "checkpoint" / f"{name}.safetensors").write_bytes(weights[:100])
    status, _, err = cli(*small, "method=lora", "epochs=1", "sweep=s")
    assert status == 0, err
    assert coarse.read_bytes() == weights
    assert "training starts from the beginning" in (folder / "stage.log").read_text()
