"""What arrives at a W&B server, of a sweep that is trained and of one that is sent again."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tracking.conftest import HEFT, LORA, Track, stage_folders
from tests.tracking.wandb_server import WandbServer


def test_each_run_arrives_once_with_the_curves_of_all_its_stages(
    sweep: Path, track: Track, server: WandbServer
) -> None:
    done = track(sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"W&B: 2 runs at {server.url}" in done.stdout
    lora, heft = server.named(LORA), server.named(HEFT)
    assert len(server.runs) == 2
    begun = heft.first
    assert (begun["groupName"], begun["jobType"], begun["project"]) == ("s", "heft", "heft")
    assert begun["tags"] == ["heft"]
    assert not any(begun[key] for key in ("host", "repo", "commit")), "of the sender's machine"
    assert begun["program"] == "heft_pipeline"
    assert str(sweep.parent.parent) not in str(heft.upserts)
    assert lora.curve("lora/loss") == heft.curve("lora/loss")
    assert len(lora.curve("lora/loss")) > 10
    assert len(heft.curve("reft/dev_accuracy")) == 2
    assert heft.steps == list(range(len(heft.lines)))
    assert 0 <= heft.summary["accuracy_low"] < heft.summary["accuracy"]
    assert heft.summary["status"] == "complete"
    assert heft.summary["total_epochs"] == 4
    assert heft.exit_code == 0
    assert not list(sweep.glob("runs/*/wandb/*run-*")), "W&B's copies are gone once it has all"

    before = {id: list(run.steps) for id, run in server.runs.items()}
    requests = len(server.requests)
    assert "2 unchanged" in track(sweep).stdout
    assert len(server.requests) == requests, "what has not changed needs no request"
    assert track(sweep, "--again").returncode == 0
    assert len(server.requests) > requests
    assert {id: run.steps for id, run in server.runs.items()} == before


def test_a_run_that_goes_on_continues_after_the_last_line_that_the_server_has(
    sweep: Path, track: Track, server: WandbServer
) -> None:
    result = stage_folders(sweep, HEFT)[1] / "result.json"
    result.rename(result.with_name("kept.json"))
    done = track(sweep, "--run", HEFT)
    assert done.returncode == 0, done.stdout + done.stderr
    run = server.named(HEFT)
    assert (run.summary["status"], run.preempting, run.exit_code) == ("incomplete", True, 1)
    assert "accuracy" not in run.summary
    whole = list(run.steps)
    # Lines that did not arrive before the sender was killed.
    del run.lines[5:]
    run.summary = {"_step": 4}
    result.with_name("kept.json").rename(result)
    assert track(sweep, "--run", HEFT).returncode == 0
    assert len(server.runs) == 1
    assert run.steps == whole
    assert (run.summary["status"], run.exit_code) == ("complete", 0)


def test_lines_arrive_while_training_goes_on_and_a_resumed_run_adds_the_rest(
    small: list[str], tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked = [
        *small,
        "method=lora",
        "lora.epochs=6",
        "training.log_every_steps=1",
        "tracking=wandb",
        "sweep=s",
    ]
    command = [sys.executable, "-m", "heft_pipeline", *asked, f"output_dir={tmp_path}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    wait_until(lambda: written_lines(tmp_path) > 3, process)
    process.send_signal(signal.SIGSTOP)  # training goes on as long as the test wants
    wait_until(lambda: any(len(run.lines) > 3 for run in server.runs.values()), process)
    assert not list(tmp_path.glob("stages/*/result.json")), "training is over"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, out
    (run,) = server.runs.values()
    stopped = len(run.lines)
    assert run.preempting
    assert run.exit_code == 1
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    written = written_lines(tmp_path)
    assert stopped < written
    assert run.steps == list(range(written))
    assert len(server.runs) == 1
    assert run.exit_code == 0


def written_lines(outputs: Path) -> int:
    return sum(len(p.read_text().splitlines()) for p in outputs.glob("stages/*/metrics.jsonl"))


def wait_until(true: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 90
    while not true():
        assert process.poll() is None, "it ended too soon"
        assert time.monotonic() < deadline
        time.sleep(0.02)
