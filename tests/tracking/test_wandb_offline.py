"""What W&B really wrote: its offline files, decoded with its own protobuf."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from heft_pipeline.training.metrics import read_metrics
from tests.tracking import wandb_files
from tests.tracking.conftest import HEFT, LORA, Track, set_tracking, stage_folders


def written(sweep: Path, run: str) -> list[Any]:
    """The records of the one offline folder of a run."""
    (file,) = (sweep / "runs" / run / "wandb").glob("offline-run-*/*.wandb")
    return wandb_files.records(file)


def test_without_an_account_runs_are_written_for_wandb_sync(sweep: Path, track: Track) -> None:
    done = track(sweep)
    assert done.returncode == 0, done.stderr
    assert "2 runs written offline" in done.stdout
    assert "wandb login" in done.stdout
    assert f"python -m heft_pipeline.tracking {sweep} --mode online" in done.stdout
    lora, heft = written(sweep, LORA), written(sweep, HEFT)
    begun = wandb_files.begun(heft)
    assert (begun.run_group, begun.job_type, begun.project) == ("s", "heft", "heft")
    assert (begun.display_name, list(begun.tags)) == (HEFT, ["heft"])
    coarse = wandb_files.curve(lora, "lora/loss")
    assert len(coarse) > 10
    assert wandb_files.curve(heft, "lora/loss") == coarse, "a shared stage is whole in each run"
    assert not wandb_files.curve(lora, "reft/loss")


def test_every_number_that_training_logged_is_a_curve_over_its_stages_steps(
    sent_once: Path,
) -> None:
    log = written(sent_once, HEFT)
    for prefix, folder in zip(("lora", "reft"), stage_folders(sent_once, HEFT), strict=True):
        lines = read_metrics(folder / "metrics.jsonl")
        names = {name for line in lines for name in line} - {"event"}
        assert {"loss", "learning_rate", "grad_norm", "examples_per_second"} <= names
        assert {"dev_accuracy", "dev_loss"} <= names
        for name in names:
            logged = [line[name] for line in lines if name in line]
            assert wandb_files.curve(log, f"{prefix}/{name}") == logged, name
    axes = {r.metric.name or r.metric.glob_name: r.metric for r in log if r.HasField("metric")}
    assert axes["lora/*"].step_metric == "lora/step"
    assert axes["reft/*"].step_metric == "reft/step"


def test_the_config_tells_what_was_trained_and_nothing_of_this_machine(
    sent_once: Path, small_data: Path, small_model: Path
) -> None:
    log = written(sent_once, HEFT)
    config = wandb_files.config(log)
    assert config["model"]["id"] == small_model.name
    assert config["model"]["content"].startswith("sha256:")
    assert config["data"]["path"] == small_data.name
    assert config["data"]["content"].startswith("sha256:")
    assert config["lora"]["learning_rate"] == 3e-3
    assert config["total_epochs"] == 4
    fingerprints = [folder.name for folder in stage_folders(sent_once, HEFT)]
    assert list(config["stages"].values()) == fingerprints
    assert not {"tracking", "output_dir"} & set(config)
    everything = "\n".join(str(record) for record in log)
    for secret in (
        str(sent_once / "runs"),
        str(small_data),
        str(small_model),
        "hf_secret",
    ):
        assert secret not in everything
    assert not [r for r in log if r.HasField("stats")], "the sender's own load is not training's"


def test_the_summary_holds_the_result_with_its_interval_and_its_costs(
    sent_once: Path,
) -> None:
    summary = wandb_files.summary(written(sent_once, HEFT))
    assert 0 <= summary["accuracy_low"] <= summary["accuracy"] <= summary["accuracy_high"] <= 1
    assert summary["n_eval"] == 50
    assert summary["total_epochs"] == 4
    assert summary["status"] == "complete"
    lora = wandb_files.summary(written(sent_once, LORA))
    for cost in ("trainable_params", "train_seconds", "train_tflop"):
        assert summary[cost] > lora[cost] > 0, cost
    assert summary["peak_memory_mb"] > 0
    assert summary["examples_per_second"] > 0


def test_predictions_and_adapters_are_added_where_asked_for(sent_once: Path) -> None:
    log = written(sent_once, HEFT)
    assert wandb_files.curve(log, "predictions/_type") == ["table-file"]
    assert wandb_files.curve(log, "predictions/nrows") == [50]
    artifacts = {r.artifact.name: r.artifact for r in log if r.HasField("artifact")}
    adapters = {name: a for name, a in artifacts.items() if a.type == "adapter"}
    lora, reft = (folder.name for folder in stage_folders(sent_once, HEFT))
    assert set(adapters) == {f"lora-{lora}", f"reft-{reft}"}
    names = {entry.path for entry in adapters[f"lora-{lora}"].manifest.contents}
    assert "adapter_model.safetensors" in names
    assert not wandb_files.curve(written(sent_once, LORA), "predictions/nrows")


def test_only_what_has_changed_is_written_again_in_the_place_of_the_old(
    sweep: Path, track: Track
) -> None:
    assert track(sweep).returncode == 0
    before = {folder.name for folder in sweep.glob("runs/*/wandb/offline-run-*")}
    assert "2 unchanged" in track(sweep).stdout
    assert {folder.name for folder in sweep.glob("runs/*/wandb/offline-run-*")} == before
    set_tracking(sweep, LORA, tags=["pilot"])
    done = track(sweep, "--to", "wandb")
    assert "1 unchanged" in done.stdout, done.stdout + done.stderr
    assert len(list(sweep.glob("runs/*/wandb/offline-run-*"))) == 2
    assert list(wandb_files.begun(written(sweep, LORA)).tags) == ["lora", "pilot"]
    # A folder that someone has removed is written again.
    shutil.rmtree(next((sweep / "runs" / HEFT / "wandb").glob("offline-run-*")))
    assert "1 unchanged" in track(sweep, "--to", "wandb").stdout
    assert written(sweep, HEFT)


def test_wandbs_own_variable_for_the_mode_is_respected(
    sweep: Path, track: Track, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    done = track(sweep)
    assert done.returncode == 0
    assert "the mode is disabled" in done.stdout
    assert not list(sweep.glob("runs/*/wandb"))
