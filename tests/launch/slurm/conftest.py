"""Commands of SLURM's that answer what a test has written down."""

import contextlib
import fcntl
import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.slurm import job_states as asked

COMMANDS = ("squeue", "sacct", "scontrol", "sinfo", "scancel", "sbatch", "sacctmgr", "srun")
CONFIG = "ClusterName             = here\nMaxArraySize            = 1001\n"

_RECORDED = """#!/bin/sh
echo "$0 $*" >> {folder}/calls
sleep $(cat {folder}/{name}.seconds 2>/dev/null || echo 0)
cat {folder}/{name}.err >&2 2>/dev/null
cat {folder}/{name}.out 2>/dev/null
exit $(cat {folder}/{name}.status 2>/dev/null || echo 0)
"""


class Recorded:
    """Commands in a folder of their own, which answer what was recorded.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in COMMANDS:
            self.write(name, _RECORDED.format(folder=folder, name=name))
        self.answers("scontrol", CONFIG)

    def write(self, name: str, script: str) -> None:
        """Make a command from a script."""
        path = self.folder / name
        path.write_text(script)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def answers(
        self, name: str, out: str = "", err: str = "", status: int = 0, seconds: float = 0
    ) -> None:
        """Let a command answer."""
        for kind, value in (("out", out), ("err", err), ("status", status), ("seconds", seconds)):
            (self.folder / f"{name}.{kind}").write_text(str(value))

    def is_missing(self, name: str) -> None:
        """Let a command be missing."""
        (self.folder / name).unlink()

    @property
    def calls(self) -> list[str]:
        """The calls so far, without folders."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.is_file() else []
        return [line.removeprefix(f"{self.folder}/") for line in lines]


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """Recorded answers instead of SLURM's commands."""
    made = Recorded(tmp_path / "recorded")
    monkeypatch.setenv("PATH", f"{made.folder}:/usr/bin:/bin")
    monkeypatch.setattr(asked, "_CONFIGS", {})
    monkeypatch.delenv("SLURM_CONF", raising=False)
    return made


_SIMULATED = """#!/bin/sh
exec {python} {script} {folder} {name} "$@"
"""


class Simulated(Recorded):
    """A queue of jobs in a file, with sbatch, squeue and scancel."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        script = Path(__file__).with_name("simulation.py")
        for name in ("sbatch", "squeue", "scancel"):
            words = {"python": sys.executable, "script": script, "folder": folder, "name": name}
            self.write(name, _SIMULATED.format(**words))
        self.answers("sacct", err="Slurm accounting storage is disabled", status=1)
        self.answers("sinfo", "main*|1:00:00\n")
        self.jobs = {}

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @property
    def jobs(self) -> dict[str, dict[str, str]]:
        """What is in the queue: each job's ``name``, ``state`` and ``after``."""
        with self._locked():
            return self._read()

    @jobs.setter
    def jobs(self, jobs: dict[str, dict[str, str]]) -> None:
        with self._locked():
            (self.folder / "jobs.json").write_text(json.dumps(jobs))

    def _read(self) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = json.loads((self.folder / "jobs.json").read_text())
        return found

    @property
    def alive(self) -> dict[str, dict[str, str]]:
        """The jobs that wait or run."""
        return {k: job for k, job in self.jobs.items() if job["state"] in ("PENDING", "RUNNING")}

    def end(self, job_id: str, state: str) -> None:
        """Let a job end in a state; those that wait for it are cancelled."""
        with self._locked():
            jobs = self._read()
            jobs[job_id]["state"] = state
            for job in jobs.values():
                if job["after"] == f"afterok:{job_id}" and state != "COMPLETED":
                    job.update(state="CANCELLED", reason="DependencyNeverSatisfied")
            (self.folder / "jobs.json").write_text(json.dumps(jobs))

    def when(self, command: str, behaviour: str) -> None:
        """Let a command behave: ``silent``, ``silent-after``, ``refuses``, ``slow``, ``hangs``."""
        (self.folder / f"{command}.behaviour").write_text(behaviour)


@pytest.fixture
def simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulated]:
    """A simulated queue instead of SLURM."""
    made = Simulated(tmp_path / "simulated")
    monkeypatch.setenv("PATH", f"{made.folder}:{os.environ['PATH']}")
    monkeypatch.setattr(asked, "_CONFIGS", {})
    monkeypatch.delenv("SLURM_CONF", raising=False)
    yield made
