"""A sweep on a real SLURM that nobody waits for: its jobs track it."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.slurm_cluster import Cluster
from tests.launch.sweeps_on_slurm import cluster_or_skip, running
from tests.tracking.wandb_server import WandbServer


@pytest.fixture
def cluster(tmp_path: Path, server: WandbServer) -> Iterator[Cluster]:
    """A cluster whose jobs get the W&B account of the submitting process."""
    yield from running(cluster_or_skip(tmp_path / "slurm", accounting=False))


def test_each_run_arrives_once_from_the_jobs(
    cluster: Cluster, small: list[str], tmp_path: Path, server: WandbServer
) -> None:
    asked = [*small, "method=lora,heft", "epochs=1", "sweep=s", "hydra.launcher.wait=false"]
    asked += ["hydra/launcher=slurm", "hydra.launcher.time=5", "training.log_every_steps=1"]
    asked += [f"output_dir={tmp_path}/out", "tracking=wandb"]
    command = [sys.executable, "-m", "heft_pipeline", "-m", *asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    report = tmp_path / "out/sweeps/s/report.md"
    deadline = time.monotonic() + 180
    while not report.is_file():
        assert time.monotonic() < deadline, "no report"
        time.sleep(0.5)
    assert len(server.runs) == 2
    heft = server.named("heft-1-r8-s0")
    assert heft.summary["status"] == "complete"
    assert heft.curve("lora/loss") == server.named("lora-1-r8-s0").curve("lora/loss")
    for run in server.runs.values():
        assert run.steps == list(range(len(run.lines)))
        assert run.exit_code == 0
