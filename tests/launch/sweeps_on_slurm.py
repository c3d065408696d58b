"""Asking for sweeps on a real SLURM as a user does, and looking at what they leave."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.slurm_cluster import Cluster, missing_program, started
from heft_pipeline.store.stage_folders import Store

SECONDS = 240


def cluster_or_skip(folder: Path, accounting: bool, **given: Any) -> Cluster:
    missing = missing_program(accounting)
    if missing:
        pytest.skip(f"no {missing} here; Debian: slurm-wlm slurmdbd munge mariadb-server")
    return Cluster(folder, accounting, **given)


def running(cluster: Cluster) -> Iterator[Cluster]:
    """Start a cluster and end it, for fixtures."""
    with started(cluster):
        yield cluster


def command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "heft_pipeline", "-m", *overrides]


def start(*overrides: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command(*overrides), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def sweep(*overrides: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*overrides), capture_output=True, text=True, timeout=SECONDS, check=False
    )


def launch(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "launch", *arguments],
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip


def wait_for(true: Callable[[], Any], what: str, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.2)


def adapter(store: Store, fingerprint: str) -> dict[str, bytes]:
    folder = store.folder(fingerprint) / "adapter"
    return {p.name: p.read_bytes() for p in folder.glob("*.safetensors")}


def notes(store: Store, name: str) -> dict[str, Any]:
    return {
        path.parent.name: json.loads(path.read_text())
        for path in store.output_dir.glob(f"stages/*/{name}")
    }
