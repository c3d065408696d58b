"""What a closed terminal, a killed command or a lost reader leave: checkpoints, and no failures."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from heft_pipeline.plan.graph import Run
from heft_pipeline.store.stage_folders import Store
from launch.attempt import attempt

ComposeRun = Callable[..., Run]
Started = Callable[..., "subprocess.Popen[str]"]
METHODS, EPOCHS = "method=lora,reft", "epochs=30"


def wait_until(true: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def start(small: list[str], tmp_path: Path) -> Iterator[Started]:
    """Start a sweep of a LoRA and a ReFT stage that train for some seconds; returns its process."""
    started: list[subprocess.Popen[str]] = []

    def begin(workers: int, *more: str, stdout: int = subprocess.PIPE) -> "subprocess.Popen[str]":
        asked = [*small, METHODS, EPOCHS, "sweep=s", "report.base_model=false"]
        asked += [f"output_dir={tmp_path / 'out'}", f"hydra.launcher.workers={workers}", *more]
        command = [sys.executable, "-m", "heft_pipeline", "-m", *asked]
        process = subprocess.Popen(
            command, stdout=stdout, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def undisturbed(
    small_model: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, float]:
    """The accuracy of each stage where nothing happens, by fingerprint."""
    out = tmp_path_factory.mktemp("undisturbed")
    from tests.conftest import composed_run

    store = Store(out)
    found = {}
    for method in ("lora", "reft"):
        stage = composed_run(*overrides(small_model, small_data), f"method={method}", EPOCHS).last
        assert attempt(stage, store).status == "complete"
        result = store.result(stage.fingerprint)
        assert result is not None
        found[stage.fingerprint] = result["accuracy"]
    return found


def overrides(model: Path, data: Path) -> list[str]:
    """As the fixture ``small`` has them, for a fixture of the whole module."""
    return [
        f"model.id={model}",
        "model.dtype=float32",
        "data=boolq",
        f"data.path={data}",
        "data.name=small",
        "data.prompt='{passage} Question: {question} Answer:'",
        "lora.learning_rate=3e-3",
        "reft.learning_rate=3e-3",
    ]


def in_training(out: Path, count: int) -> bool:
    notes = [json.loads(path.read_text()) for path in out.glob("stages/*/progress.json")]
    return sum(note["phase"] == "train" for note in notes) >= count


def nobody_holds_a_stage(out: Path) -> bool:
    return not any(Store(out).owner(path.name) for path in out.glob("stages/*"))


def assert_interrupted(out: Path, count: int) -> None:
    assert not list(out.glob("stages/*/failure.json"))
    assert len(list(out.glob("stages/*/checkpoint/last.safetensors"))) == count


def assert_completes_as(undisturbed: dict[str, float], start: Started, out: Path) -> None:
    """The same command resumes, and comes to the same results."""
    process = start(2)
    said, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "resumed" in said
    table = pd.read_csv(out / "sweeps/s/results.csv")
    assert table.status.tolist() == ["complete", "complete"]
    store = Store(out)
    found = {key: (store.result(key) or {})["accuracy"] for key in undisturbed}
    assert found == pytest.approx(undisturbed, abs=0.03)


def test_workers_of_a_killed_command_stop_with_checkpoints_and_it_can_go_on(
    start: Started, tmp_path: Path, undisturbed: dict[str, float]
) -> None:
    out = tmp_path / "out"
    process = start(2)
    wait_until(lambda: in_training(out, 2))
    process.kill()
    process.wait()
    wait_until(lambda: nobody_holds_a_stage(out))
    assert_interrupted(out, 2)
    logs = "".join(path.read_text() for path in out.glob("sweeps/s/workers/*.log"))
    assert logs.count("run the same command to go on") == 2
    assert "Traceback" not in logs
    assert_completes_as(undisturbed, start, out)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_closed_terminal_leaves_checkpoints_and_the_command_can_go_on(
    start: Started, tmp_path: Path, undisturbed: dict[str, float], workers: int
) -> None:
    out = tmp_path / "out"
    terminal, inside = pty.openpty()
    process = start(workers, stdout=inside)
    os.close(inside)
    wait_until(lambda: in_training(out, workers))
    os.close(terminal)  # from here on, what is shown cannot be written
    for _ in range(2):  # the kernel sends one, and often the shell another
        process.send_signal(signal.SIGHUP)
        time.sleep(0.7)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGHUP, err
    assert not err
    assert_interrupted(out, workers)
    assert_completes_as(undisturbed, start, out)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reader_that_has_gone_loses_no_stage(
    start: Started, tmp_path: Path, workers: int
) -> None:
    process = start(workers, "epochs=2")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    assert process.wait(timeout=120) == 0, err
    table = pd.read_csv(tmp_path / "out/sweeps/s/results.csv")
    assert table.status.tolist() == ["complete", "complete"]
    assert not err


def test_a_log_on_a_full_disk_loses_no_stage_and_is_said(start: Started, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        process = start(1, "epochs=2", stdout=full.fileno())
        _, err = process.communicate(timeout=120)
    assert pd.read_csv(tmp_path / "out/sweeps/s/results.csv").status.tolist() == ["complete"] * 2
    assert process.returncode == 1
    assert err == "Error: standard output: No space left on device\n"


def test_nohup_outlives_its_terminal(small: list[str], tmp_path: Path) -> None:
    asked = [*small, "method=lora", "epochs=30", "sweep=s", f"output_dir={tmp_path}"]
    command = ["nohup", sys.executable, "-m", "heft_pipeline", *asked]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: in_training(tmp_path, 1))
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


def test_a_worker_that_dies_while_it_is_idle_is_replaced(
    start: Started, tmp_path: Path, compose_run: ComposeRun
) -> None:
    out = tmp_path / "out"
    # ReFT is trained on LoRA, so that the second worker has nothing to do at the end of its own.
    process = start(2, "method=heft,reft", "lora.epochs=60", "reft.epochs=1")
    wait_until(lambda: list(out.glob("stages/*/result.json")))

    def idle() -> list[int]:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        busy = {(Store(out).owner(path.name) or {}).get("pid") for path in out.glob("stages/*")}
        return [pid for pid in map(int, children) if pid not in busy]

    wait_until(lambda: len(idle()) == 1)  # a finished stage is held for a moment more
    os.kill(idle()[0], signal.SIGKILL)
    said, err = process.communicate(timeout=200)
    assert process.returncode == 0, said + err


def test_a_second_signal_ends_at_once_and_says_what_is_kept(start: Started, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(2)
    wait_until(lambda: in_training(out, 2))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in children:  # so that they do not stop when they are told to
        os.kill(int(pid), signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.splitlines() == [
        "Ended at once. Finished stages and the last checkpoints are kept; run the same command to "
        "go on from there."
    ]
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    assert not list(out.glob("stages/*/failure.json"))


def test_workers_that_are_stopped_while_they_start_have_not_failed(
    start: Started, tmp_path: Path
) -> None:
    process = start(2)
    out = tmp_path / "out"
    wait_until(lambda: list(out.glob("sweeps/s/workers/*.log")))
    process.send_signal(signal.SIGTERM)
    said, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "signal 15" not in said
    assert not list(out.glob("stages/*/failure.json"))
