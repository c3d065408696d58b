"""One round: a sweep that is disturbed a few times, gone on with, and compared with another."""

import json
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.chaos import faults
from benchmarks.chaos.commands import NAME, Command, Ended, report, sweep, verify
from benchmarks.same_results import differences
from benchmarks.slurm_cluster import Cluster
from heft_pipeline.files.replaced import leftovers

_DISK_MEGABYTES = 48
#: How long a fault lasts that does not end by itself.
_LASTS_SECONDS = 0.5, 8.0
#: After the last fault, the same command must succeed; what was flipped may be found only then.
_TRIES = 3
#: What takes as long as it takes; everything else in the table of results must be equal.
_TIMES = ["train_seconds", "peak_memory_mb", "stages_reused"]
_INTERRUPTED = (-2, -9, -15, 129, 130, 137, 143)


@dataclass(frozen=True)
class Undisturbed:
    """The sweep that nothing happens to.

    Attributes:
        outputs: Its output folder.
        seconds: How long its command took.
    """

    outputs: Path
    seconds: float

    @property
    def stages(self) -> list[str]:
        return sorted(path.name for path in self.outputs.glob("stages/*"))


@dataclass
class Round:
    """What happened in a round, and what came of it.

    Attributes:
        number: Of the round.
        launcher: ``local`` or ``slurm``.
        faults: What was done, in order.
        commands: How many commands were run.
        statuses: Their exit statuses, in order.
        set_aside: How many times damaged files were found and set aside.
        stages: How many stages were compared with those of the undisturbed sweep.
        mismatches: In what they differ.
        flaws: What else is not as it should be, such as a traceback or a command that hangs.
        seconds: How long the round took.
    """

    number: int
    launcher: str
    faults: list[str] = field(default_factory=list)
    commands: int = 0
    statuses: list[int | None] = field(default_factory=list)
    set_aside: int = 0
    stages: int = 0
    mismatches: list[str] = field(default_factory=list)
    flaws: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Arena:
    """A place for one round: a disk of its own, logs beside it, and the faults that it can take.

    Args:
        folder: A new folder for it.
        undisturbed: What the round is compared with.
        cluster: Where jobs run; None for workers on this machine.
        kinds: The names of the faults that may happen; empty for all.
    """

    def __init__(
        self, folder: Path, undisturbed: Undisturbed, cluster: Cluster | None, kinds: Sequence[str]
    ) -> None:
        self._folder, self._undisturbed, self._cluster = folder, undisturbed, cluster
        self._kinds = kinds
        self._outputs, self._clock = folder / "disk" / "outputs", folder / "clock"

    def play(self, number: int, seed: int) -> Round:
        """Play a round.

        Args:
            number: Its number.
            seed: With the number, it decides what is left to chance.
        """
        began = time.monotonic()
        source = random.Random(f"{seed}/{number}")
        self._played = Round(number, "slurm" if self._cluster else "local")
        self._folder.mkdir(parents=True)
        with _disk(self._folder / "disk") as small:
            for _ in range(source.randint(1, 4)):
                self._disturb(source, self._drawn(source, small))
            if small and "full_disk" in (self._kinds or ["full_disk"]) and source.random() < 0.3:
                self._disturb_report(source)
            self._go_on()
            self._compare()
            if small and (self._played.mismatches or self._played.flaws):
                shutil.copytree(self._folder / "disk", self._folder / "kept", symlinks=True)
        self._played.seconds = round(time.monotonic() - began, 1)
        return self._played

    def _drawn(self, source: random.Random, small: bool) -> list[faults.Fault]:
        left_out = faults.missing(small)
        weights = {
            fault: weight
            for fault, weight in faults.ON[self._played.launcher].items()
            if fault not in left_out and (not self._kinds or fault.__name__ in self._kinds)
        }
        return source.choices(list(weights), list(weights.values()), k=source.choice([1, 1, 2]))

    def _disturb(self, source: random.Random, drawn: Sequence[faults.Fault]) -> None:
        """Run the sweep's command once, and let faults happen to it at random moments."""
        environment = {}
        if faults.clock in drawn:
            faults.set_clock(self._clock, 0)
            environment = faults.clock_environment(self._clock)
        workers = [] if self._cluster else [f"hydra.launcher.workers={source.choice([1, 2])}"]
        command = self._start(sweep(self._outputs, self._played.launcher, *workers), environment)
        with ExitStack() as undo:
            scene = faults.Scene(
                self._outputs, self._undisturbed.stages, command, self._cluster, self._clock,
                source, undo,
            )  # fmt: skip
            for fault in drawn:
                command.wait(source.uniform(0, 0.9 * self._undisturbed.seconds / len(drawn)))
                done = fault(scene)
                if done:
                    self._played.faults.append(done)
            command.wait(source.uniform(*_LASTS_SECONDS))
        self._ended(command)

    def _disturb_report(self, source: random.Random) -> None:
        """Finish the sweep, and let the disk be full while its report is written."""
        self._run(sweep(self._outputs, "local"))
        command = self._start(report(self._outputs))
        with ExitStack() as undo:
            command.wait(source.uniform(0, 6))
            scene = faults.Scene(
                self._outputs, self._undisturbed.stages, command, None, self._clock, source, undo
            )
            faults.full_disk(scene)
            self._played.faults.append("full disk while the report is written")
            command.wait(60)
        self._ended(command)

    def _go_on(self) -> None:
        """Run the sweep's command until all is well, as somebody would."""
        for _ in range(_TRIES):
            ended = self._run(sweep(self._outputs, self._played.launcher))
            if ended.status == 0 and self._run(verify(self._outputs)).status == 0:
                return
        self._played.flaws.append(f"not whole after {_TRIES} undisturbed commands")

    def _run(self, arguments: Sequence[str]) -> Ended:
        return self._ended(self._start(arguments))

    def _start(self, arguments: Sequence[str], environment: Any = None) -> Command:
        self._played.commands += 1
        log = self._folder / f"{self._played.commands}-{arguments[0]}.log"
        return Command(arguments, log, environment)

    def _ended(self, command: Command) -> Ended:
        ended, played = command.ended(), self._played
        played.statuses.append(ended.status)
        played.set_aside += ended.said.count(" has what was there")
        if "Traceback (most recent call last)" in ended.said:
            played.flaws.append(f"command {played.commands} printed a traceback")
        if ended.status is None:
            played.flaws.append(f"command {played.commands} hung")
        elif ended.status not in (0, 1, *_INTERRUPTED):
            played.flaws.append(f"command {played.commands} ended with {ended.status}")
        return ended

    def _compare(self) -> None:
        mine = self._outputs
        self._played.mismatches += mismatches(mine, self._undisturbed.outputs)
        for key in self._undisturbed.stages:
            self._played.stages += 1
            if (mine / "stages" / key / "checkpoint").exists():
                self._played.flaws.append(f"{key} still has its checkpoint")
            lease = mine / "stages" / key / ".lock.held"
            # That of a dead host stays beside a finished stage, which nobody needs to lock.
            if lease.exists() and faults.DEAD_HOST not in lease.read_text():
                self._played.flaws.append(f"{key} is still held")
        parts = sum(len(list(leftovers(path))) for path in mine.rglob("*") if path.is_dir())
        if parts and not re.search("kill", " ".join(self._played.faults), re.IGNORECASE):
            self._played.flaws.append(f"{parts} parts of files, although nothing was killed")


def mismatches(mine: Path, others: Path) -> list[str]:
    """In what the stages, plan and table of one output folder differ from another's.

    Args:
        mine: The one.
        others: The other, whose sweep is whole.
    """
    found = []
    for folder in sorted(others.glob("stages/*")):
        try:
            wrong = list(differences(folder, mine / "stages" / folder.name))
        except (OSError, ValueError) as error:
            wrong = [f"{type(error).__name__}: {error}"]
        found += [f"{folder.name}: {what}" for what in wrong]
    try:
        if _runs(mine) != _runs(others):
            found.append("plan.json: the runs")
        if not _table(mine).equals(_table(others)):
            found.append("results.csv")
    except (OSError, ValueError) as error:
        found.append(f"{type(error).__name__}: {error}")
    return found


def make_undisturbed(folder: Path) -> Undisturbed:
    """Run the sweep once with nothing that happens to it.

    Args:
        folder: A new folder.

    Raises:
        RuntimeError: The sweep failed.
    """
    folder.mkdir(parents=True)
    ended = Command(sweep(folder / "outputs", "local"), folder / "log").ended()
    if ended.status != 0:
        raise RuntimeError(f"the undisturbed sweep failed: {ended.said[-2000:]}")
    return Undisturbed(folder / "outputs", ended.seconds)


@contextmanager
def _disk(folder: Path) -> Iterator[bool]:
    """A small disk that is mounted at a new folder; says whether it could be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MEGABYTES}m", "tmpfs", str(folder)]
    try:
        small = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        small = False
    with ExitStack() as stack:
        if small:
            stack.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)
        yield small


def _runs(outputs: Path) -> list[tuple[str, list[str]]]:
    data = json.loads((outputs / "sweeps" / NAME / "plan.json").read_text())
    return sorted((run["name"], run["stages"]) for run in data["runs"])


def _table(outputs: Path) -> pd.DataFrame:
    return pd.read_csv(outputs / "sweeps" / NAME / "results.csv").drop(columns=_TIMES)
