"""Workers on this machine: the same results, failures kept apart, several processes a stage."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Run
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.training.metrics import read_metrics
from launch.local.pool import choose_gpus
from tests.conftest import CliResult

Cli = Callable[..., CliResult]
ComposeRun = Callable[..., Run]


def test_workers_give_the_same_results_as_one_process(
    cli: Cli, small: list[str], tmp_path: Path
) -> None:
    asked = [*small, "-m", "method=lora,reft,heft", "epochs=1", "sweep=s"]
    assert cli(*asked, output_dir=tmp_path / "one")[0] == 0
    status, out, err = cli(*asked, "hydra.launcher.workers=2", output_dir=tmp_path / "two")
    assert status == 0, err
    assert "3 unique stages, not 4" in out
    one, two = (pd.read_csv(tmp_path / x / "sweeps/s/results.csv") for x in ("one", "two"))
    assert two.accuracy.tolist() == pytest.approx(one.accuracy.tolist(), abs=0.05)
    assert two.stages.tolist() == one.stages.tolist()
    results = [json.loads(p.read_text()) for p in tmp_path.glob("two/stages/*/result.json")]
    threads = {result["machine"]["threads"] for result in results}
    assert threads == {max(1, (os.cpu_count() or 1) // 2)}, "threads are divided"


def test_a_failing_stage_in_a_worker_fails_only_what_stands_on_it(
    cli: Cli, small: list[str], tmp_path: Path
) -> None:
    asked = [*small, "-m", "method=heft,reft", "epochs=1", "lora.learning_rate=1e30", "sweep=s"]
    status, out, _ = cli(*asked, "hydra.launcher.workers=2")
    assert status == 1
    assert "its parent failed" in out
    table = pd.read_csv(tmp_path / "outputs/sweeps/s/results.csv")
    assert table.status.tolist() == ["failed", "complete"]


@pytest.mark.parametrize("method", ["lora", "reft"])
def test_processes_that_train_a_stage_together_give_the_single_process_losses(
    cli: Cli, compose_run: ComposeRun, small: list[str], tmp_path: Path, method: str
) -> None:
    made_of = [f"method={method}", "epochs=2", "lora.dropout=0", "training.log_every_steps=1"]
    # Batches that do not divide evenly, down to one with fewer examples than processes.
    made_of += ["lora.batch_size=7", "reft.batch_size=7", "data.max_train_rows=100"]
    made_of += ["data.dev_size=15"]
    asked = ["-m", *small, *made_of, "sweep=s", "hydra.launcher.gpus_per_stage=2"]
    status, _, err = cli(*asked)
    assert status == 0, err
    stage = compose_run(*small, *made_of).last
    together, alone = Store(tmp_path / "outputs"), Store(tmp_path / "alone")
    expected = run_stage(stage, alone).result
    result = together.result(stage.fingerprint)
    assert result is not None
    assert result["processes"] == 2

    def logged(store: Store, event: str, key: str) -> list[float]:
        lines = read_metrics(store.folder(stage.fingerprint) / "metrics.jsonl")
        return [line[key] for line in lines if line["event"] == event]

    for event, key in (("step", "loss"), ("step", "grad_norm"), ("epoch", "dev_loss")):
        assert logged(together, event, key) == pytest.approx(
            logged(alone, event, key), rel=5e-3, abs=1e-3
        )
    assert result["n_eval"] == expected["n_eval"]
    assert result["train_tflop"] == pytest.approx(expected["train_tflop"], rel=0.2)


def test_a_killed_worker_fails_its_stage_and_the_sweep_goes_on(
    small: list[str], tmp_path: Path
) -> None:
    asked = [*small, "method=lora,reft", "lora.epochs=2000", "reft.epochs=1", "sweep=s"]
    asked += [f"output_dir={tmp_path}", "hydra.launcher.workers=2"]
    command = [sys.executable, "-m", "heft_pipeline", "-m", *asked]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    owner = wait_for_lora_owner(Store(tmp_path), process)
    # The other worker has done all that is left: ReFT, and the untouched model.
    wait_until(lambda: len(list(tmp_path.glob("stages/*/result.json"))) == 2)
    os.kill(owner, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "signal 9" in out
    table = pd.read_csv(tmp_path / "sweeps/s/results.csv")
    assert table.status.tolist() == ["incomplete", "complete"]


def test_interrupted_workers_leave_checkpoints(small: list[str], tmp_path: Path) -> None:
    asked = [*small, "method=lora,reft", "epochs=2000", "sweep=s"]
    asked += [f"output_dir={tmp_path}", "hydra.launcher.workers=2"]
    command = [sys.executable, "-m", "heft_pipeline", "-m", *asked]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(list(tmp_path.glob("stages/*/progress.json"))) == 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, err
    assert out.count("run the same command to resume there") == 2
    assert len(list(tmp_path.glob("stages/*/checkpoint/last.safetensors"))) == 2


def test_more_workers_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_gpus("auto", workers=2, gpus_per_stage=2) == [0, 1, 2, 3]
    assert choose_gpus([1, 3], workers=2, gpus_per_stage=1) == [1, 3]
    with pytest.raises(UserError, match=r"hydra\.launcher\.workers=3 .* needs 6 GPUs"):
        choose_gpus("auto", workers=3, gpus_per_stage=2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert choose_gpus([0, 1], workers=2, gpus_per_stage=1) == [5, 7]


@pytest.mark.parametrize(
    "bad", ["workers=0", "gpus_per_stage=0", "gpus=some", "gpus=[-1]", "wrokers=2"]
)
def test_bad_launcher_settings_name_their_key(cli: Cli, small: list[str], bad: str) -> None:
    status, _, err = cli(*small, "-m", "method=lora", f"hydra.launcher.{bad}")
    assert status == 1
    assert f"launcher.{bad.split('=')[0]}" in err
    assert "Traceback" not in err


def wait_until(true: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def wait_for_lora_owner(store: Store, process: "subprocess.Popen[str]") -> int:
    """The process that trains the LoRA stage."""
    found: list[int] = []

    def look() -> bool:
        assert process.poll() is None
        for path in store.output_dir.glob("stages/*/stage.json"):
            owner = store.owner(path.parent.name)
            if owner and json.loads(path.read_text())["kind"] == "lora":
                found.append(owner["pid"])
        return bool(found)

    wait_until(look)
    return found[0]
