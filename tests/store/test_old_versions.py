"""Stages and sweeps that another version wrote are recognised, refused and left alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Plan, Run
from heft_pipeline.plan.stage_spec import RESULT_VERSION
from heft_pipeline.report.__main__ import main as report
from heft_pipeline.report.records import read_runs
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.store.sweep_folders import Sweep
from heft_pipeline.tracking.__main__ import main as track

ComposeRun = Callable[..., Run]

#: A stage as version 2 wrote it, cut to what tells the layouts apart.
OLD_STAGE: dict[str, Any] = {
    "fingerprint": "044da0d013719253",
    "version": 2,
    "kind": "lora",
    "model": {"id": "tiny", "revision": None, "name": "tiny", "content": "sha256:00"},
    "data": {"location": "demo", "name": "demo", "choices": [["true", " yes"], ["false", " no"]]},
    "lora": {"rank": 8, "alpha": 16.0, "learning_rate": 0.0003},
    "reft": None,
    "training": {"epochs": 3, "batch_size": 16, "warmup_ratio": 0.1},
    "evaluation": {"mode": "logprob", "batch_size": 64},
    "seed": 0,
    "parent": None,
    "device": "auto",
}


@pytest.fixture
def old_sweep(tmp_path: Path) -> Sweep:
    """A complete sweep of one LoRA run, in the files of version 2."""
    key = OLD_STAGE["fingerprint"]
    stage = tmp_path / "stages" / key
    stage.mkdir(parents=True)
    (stage / "stage.json").write_text(json.dumps(OLD_STAGE, indent=2))
    (stage / "result.json").write_text('{"accuracy": 0.5}')
    run = {
        "name": "0-lora-e3-r8-s0", "overrides": ["method=lora"], "method": "lora", "epochs": 3,
        "total_epochs": 3, "lora_rank": 8, "reft_rank": None, "seed": 0, "model": "tiny",
        "data": "demo", "stages": [key],
    }  # fmt: skip
    plan = {
        "sweep": "old", "command": "python -m heft_pipeline method=lora", "claims": [],
        "tracking": None, "complete_before": [], "runs": [run], "baselines": [],
        "stages": {key: OLD_STAGE},
    }  # fmt: skip
    folder = tmp_path / "sweeps" / "old"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps(plan, indent=2))
    return Sweep(folder)


def test_stages_of_other_versions_are_counted(
    compose_run: ComposeRun, old_sweep: Sweep, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    assert store.other_versions() == 1
    store.begin(compose_run("method=lora").last)
    assert store.other_versions() == 1
    (store.folder("no-stage-yet")).mkdir()
    assert store.other_versions() == 1
    assert Store(tmp_path / "nothing").other_versions() == 0


def test_a_version_is_found_in_whatever_is_read_of_a_stage(
    compose_run: ComposeRun, store: Store
) -> None:
    """The count reads only the beginning of each file, where the version must be."""
    folder = store.begin(compose_run("method=heft").last)
    path = folder / "stage.json"
    text = path.read_text()
    now, other = f'"version": {RESULT_VERSION}', f'"version": {RESULT_VERSION + 1}'
    # The last version is the parent's, which says nothing about this file.
    start, end = text.rsplit(now, 1)
    path.write_text(start + other + end)
    assert store.other_versions() == 0
    path.write_text(text.replace(now, other, 1))
    assert store.other_versions() == 1


def test_an_old_plan_is_one_error_that_names_the_sweep_and_the_way_out(old_sweep: Sweep) -> None:
    said = rf"sweep old .*version 2.* reads {RESULT_VERSION}.*sweep=NAME"
    for read in (old_sweep.plan, lambda: read_runs(old_sweep)):
        with pytest.raises(UserError, match=said):
            read()


@pytest.mark.parametrize("main", [report, track])
def test_commands_that_read_a_sweep_say_so_without_a_traceback(
    main: Callable[[list[str]], int], old_sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(old_sweep.folder)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: the sweep old ")
    assert "Traceback" not in said


def test_a_sweep_is_not_added_to_an_old_one_of_its_name(
    compose_run: ComposeRun, old_sweep: Sweep, tmp_path: Path
) -> None:
    run = compose_run("method=lora")
    path = old_sweep.folder / "plan.json"
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"sweep=old: .*choose another sweep=NAME or output_dir"):
        old_sweep.record(Plan((run,)))
    assert path.read_bytes() == before
    new = Sweep(tmp_path / "sweeps" / "new")
    new.record(Plan((run,)))
    assert [entry["name"] for entry in new.plan()["runs"]] == ["run"]


def test_a_sweep_of_this_version_takes_more_runs(compose_run: ComposeRun, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "sweeps" / "s")
    one, two = compose_run("method=lora"), compose_run("method=heft")
    sweep.record(Plan((one,)), command="first")
    sweep.record(Plan((Run("other", two.overrides, two.method, two.epochs, two.stages),)))
    plan = sweep.plan()
    assert [run["name"] for run in plan["runs"]] == ["run", "other"]
    assert len(plan["stages"]) == 2
    assert plan["command"] == "first"


def test_jobs_of_an_old_sweep_can_still_be_cancelled(
    old_sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    from launch.__main__ import main

    status = main(["cancel", str(old_sweep.folder)])
    said = capsys.readouterr()
    assert "another version" not in said.err
    assert status == 0, said.err
