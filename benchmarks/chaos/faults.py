"""What happens to a sweep in a round: each kind of fault as one thing that is done to it."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos.commands import NAME, Command
from benchmarks.slurm_cluster import Cluster
from heft_pipeline.files.locks import lease_of
from heft_pipeline.store.stage_folders import Store

#: libfaketime lets one process see another time of day; it is in Debian's package faketime.
_FAKETIME = Path("/usr/lib") / f"{os.uname().machine}-linux-gnu" / "faketime/libfaketimeMT.so.1"
_DAY_SECONDS = 86400
DEAD_HOST = "a-host-that-is-gone"


@dataclass(frozen=True)
class Scene:
    """Where a fault happens.

    Attributes:
        outputs: The output folder, on a disk of its own where one can be mounted.
        stages: The fingerprints of the sweep's stages.
        command: The command that runs.
        cluster: Where its jobs run; None for workers on this machine.
        clock: The file that says by how much the command's clock is wrong.
        source: Of all that is left to chance.
        undo: What is to be done when the fault is over.
    """

    outputs: Path
    stages: Sequence[str]
    command: Command
    cluster: Cluster | None
    clock: Path
    source: random.Random
    undo: ExitStack


Fault = Callable[[Scene], str]


def kill(scene: Scene) -> str:
    """A signal to the command, to one of the processes that work for it, or to all."""
    number = scene.source.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    whom = scene.source.choice(["command", "worker", "worker", "all"])
    if whom == "all":
        scene.command.signal_all(number)
        for worker in _workers(scene):
            _signal(worker, number)
    elif whom == "worker" and (workers := _workers(scene)):
        number = signal.SIGKILL
        _signal(scene.source.choice(workers), number)
    else:
        whom = "command"
        _signal(scene.command.process.pid, number)
    return f"{signal.Signals(number).name} to {whom}"


def full_disk(scene: Scene) -> str:
    """No room on the disk until the fault is over."""
    ballast = scene.outputs.parent / "ballast"
    scene.undo.callback(ballast.unlink, missing_ok=True)
    with ballast.open("wb", buffering=0) as file:
        for block in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(b"x" * block)
            except OSError:
                continue
    return "full disk"


def read_only(scene: Scene) -> str:
    """A folder that nobody may write to until the fault is over."""
    folder = scene.source.choice([scene.outputs, *_files(scene.outputs, folders=True)])
    if not folder.is_dir():
        return ""
    mode = folder.stat().st_mode & 0o7777
    scene.undo.callback(_allow, folder, mode)
    folder.chmod(mode & ~0o222)
    return "read-only folder"


def flip(scene: Scene) -> str:
    """A bit of a file changes; its size and times stay, as when a disk forgets."""
    kinds: dict[str, list[Path]] = {}
    for path in _files(scene.outputs):
        if path.is_file() and path.stat().st_size:
            kinds.setdefault(_kind(scene.outputs, path), []).append(path)
    if not kinds:
        return ""
    kind = scene.source.choice(list(kinds))  # runs have many more files than stages
    path = scene.source.choice(kinds[kind])
    try:
        before = path.stat()
        with path.open("r+b") as file:
            file.seek(scene.source.randrange(before.st_size))
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1 << scene.source.randrange(8)]))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    except (OSError, IndexError):  # removed or cut meanwhile
        return ""
    return f"flipped bit in {kind}"


def stale_lock(scene: Scene) -> str:
    """A stage, or the sweep, is held by a process of a host that is gone."""
    store, key = Store(scene.outputs), scene.source.choice(scene.stages)
    folder = store.folder(key)
    lock = scene.source.choice([folder / ".lock", folder / ".lock", _sweep(scene) / ".plan.lock"])
    note = {"pid": 4242, "host": DEAD_HOST, "since": time.time() - _DAY_SECONDS, "token": "0"}
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with lease_of(lock).open("x") as file:
            json.dump(note, file)
    except OSError:  # somebody else holds it just now
        return ""
    return "lock of a dead host"


def clock(scene: Scene) -> str:
    """The time of day jumps for the command, once or again and again."""
    for _ in range(scene.source.randint(1, 3)):
        jump = scene.source.choice([1, 60, 3600, _DAY_SECONDS, 400 * _DAY_SECONDS])
        set_clock(scene.clock, scene.source.choice([-1, 1]) * jump)
        scene.command.wait(scene.source.uniform(0, 2))
    return "clock that jumps"


def set_clock(path: Path, seconds: int) -> None:
    """Let the processes that :func:`clock_environment` is for see another time of day."""
    partial = path.with_name(f"{path.name}.new")
    partial.write_text(f"{seconds:+d}\n")
    partial.replace(path)


def clock_environment(path: Path) -> dict[str, str]:
    """The variables for a command whose clock is as wrong as a file says."""
    return {
        "LD_PRELOAD": str(_FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(path),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def job(scene: Scene) -> str:
    """Something happens to one of the sweep's SLURM jobs, a node or the controller."""
    assert scene.cluster is not None
    what = scene.source.choice(["cancelled", "killed", "requeued", "controller", "node"])
    if what == "controller":
        scene.cluster.stop_controller()
        scene.undo.callback(scene.cluster.start_controller)
        return "controller away"
    if what == "node":
        state = "scontrol", "update", f"nodename={scene.source.choice(scene.cluster.nodes)}"
        _slurm(scene.cluster, *state, "state=down", "reason=chaos")
        scene.undo.callback(_slurm, scene.cluster, *state, "state=resume")
        return "node down"
    if what == "killed":
        workers = _workers(scene)
        if not workers:
            return ""
        _signal(scene.source.choice(workers), signal.SIGKILL)
        return "SIGKILL to a job's process"
    running = _slurm(scene.cluster, "squeue", "-h", "-t", "R", "-o", "%A").split()
    if not running:
        return ""
    act = ["scancel"] if what == "cancelled" else ["scontrol", "requeue"]
    _slurm(scene.cluster, *act, scene.source.choice(running))
    return f"job {what}"


#: What can happen while a command runs, and how often beside the others.
EVERYWHERE: dict[Fault, int] = {kill: 4, full_disk: 2, read_only: 2, flip: 3, stale_lock: 1}
ON: dict[str, dict[Fault, int]] = {
    "local": EVERYWHERE | {clock: 2},
    "slurm": EVERYWHERE | {job: 6},
}


def missing(disk: bool) -> set[Fault]:
    """The faults that cannot be made here: without a disk of one's own, or libfaketime."""
    return {*(() if disk else (full_disk,)), *(() if _FAKETIME.is_file() else (clock,))}


def _sweep(scene: Scene) -> Path:
    return scene.outputs / "sweeps" / NAME


def _files(outputs: Path, folders: bool = False) -> list[Path]:
    """The files, or the folders, of the store in a fixed order, without what was set aside."""
    found = []
    for folder, below, names in os.walk(outputs):
        below[:] = sorted(name for name in below if name != "damaged")
        found += [Path(folder) / name for name in (below if folders else sorted(names))]
    return found


def _kind(outputs: Path, path: Path) -> str:
    """Which file of its stage or sweep it is, or which folder of them it is in."""
    parts = path.relative_to(outputs).parts
    return "/".join([parts[0], *parts[2:3]])


def _workers(scene: Scene) -> list[int]:
    """The processes, other than the command, that work on the sweep."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in (os.getpid(), scene.command.process.pid):
            continue
        try:
            said = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        # Workers and jobs are told the folder that they work in; srun is not one that does.
        if "python" in said[0] and any(str(scene.outputs) in word for word in said):
            found.append(int(entry.name))
    return sorted(found)


def _slurm(cluster: Cluster, *command: str) -> str:
    """What a command of SLURM says; nothing where it fails, as of a job that has just ended."""
    try:
        return cluster.run(*command)
    except subprocess.CalledProcessError:
        return ""


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _allow(folder: Path, mode: int) -> None:
    if folder.is_dir():
        folder.chmod(mode)
