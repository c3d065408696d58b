"""Ctrl-C at any moment of any command line: one line, exit status 130, and what is done is kept."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from heft_pipeline.store.stage_folders import Store


def interrupted(
    command: list[str], delay: float, presses: int = 1
) -> "subprocess.CompletedProcess[str]":
    """Start a command, send SIGINT after a while, and again each 0.6 s; returns how it ended."""
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(delay)
    for _ in range(presses):
        process.send_signal(signal.SIGINT)
        time.sleep(0.6 if presses > 1 else 0)
    try:
        out, err = process.communicate(timeout=100)
    finally:
        process.kill()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def assert_one_line(done: "subprocess.CompletedProcess[str]") -> None:
    """It ended by Ctrl-C with at most one line, or had ended before."""
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    assert done.returncode in (130, 0, -signal.SIGINT), (done.returncode, done.stderr)
    if done.returncode == 130:
        assert done.stderr.count("\n") <= 1, done.stderr
        assert "the same command" in (done.stderr + done.stdout) or "Interrupted" in done.stderr


def started_python(delay: float) -> float:
    """The delay, counted from when Python itself has started, which this project cannot guard."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import heft_pipeline"], check=True)
    return time.perf_counter() - begun + delay


# From the imports, over composing, checking inputs, loading and training, to the report.
@pytest.mark.parametrize(
    ("delay", "presses"),
    [(0.05, 1), (0.4, 1), (1.2, 1), (2.5, 1), (5, 1), (8, 1), (0.2, 3), (1.8, 3), (3.5, 3)],
)
def test_a_sweep_ends_in_one_line_at_any_moment(
    small: list[str], tmp_path: Path, delay: float, presses: int
) -> None:
    asked = ["-m", *small, "method=lora,reft", "epochs=1", "sweep=s", f"output_dir={tmp_path}"]
    command = ["-m", "heft_pipeline", *asked]
    assert_one_line(interrupted(command, started_python(delay), presses))
    assert not list(tmp_path.glob("stages/*/failure.json"))
    store = Store(tmp_path)
    assert not [path for path in tmp_path.glob("stages/*") if store.owner(path.name)]


@pytest.mark.parametrize("delay", [1.5, 5])
def test_workers_end_in_one_line_too(small: list[str], tmp_path: Path, delay: float) -> None:
    asked = ["-m", *small, "method=lora,reft", "epochs=200", "sweep=s", f"output_dir={tmp_path}"]
    command = ["-m", "heft_pipeline", *asked, "hydra.launcher.workers=2"]
    assert_one_line(interrupted(command, started_python(delay)))
    assert not list(tmp_path.glob("stages/*/failure.json"))


@pytest.mark.parametrize("delay", [0.1, 0.5])
@pytest.mark.parametrize(
    "command",
    [
        ["launch", "status", "--watch"],
        ["heft_pipeline.report"],
        ["heft_pipeline.tracking", "nothing"],
        ["heft_pipeline.settings", "--markdown"],
        ["heft_pipeline.use.export", "0", "--to", "x"],
        ["heft_pipeline.dashboard"],
    ],
    ids=lambda command: command[0],
)
def test_other_command_lines_end_in_one_line(command: list[str], delay: float) -> None:
    done = interrupted(["-m", *command], started_python(delay))
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1
    # At the very end Python listens no more, and the signal ends what has nothing left to do.
    assert done.returncode in (130, 1, 0, -signal.SIGINT)
