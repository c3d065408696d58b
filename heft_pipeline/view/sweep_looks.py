"""What a store's sweeps and stages look like now."""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from heft_pipeline.command_line.secrets_kept import masked
from heft_pipeline.errors import reason
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.report.records import RunRecord, planned_runs, read_run
from heft_pipeline.store.example_clusters import CLUSTERS, interval_of
from heft_pipeline.store.sweep_folders import PLAN
from heft_pipeline.view.guarded_store import GuardedStore, GuardedSweep, guarded_sweeps
from heft_pipeline.view.remembered import Remembered
from launch.slurm.job_life import Job
from launch.slurm.job_notes import JobNote
from launch.status import StageStatus, ask_slurm, stages_status

#: How long SLURM's answers stay good; its controller has better things to do.
_SLURM_SECONDS = 20.0
_LONGEST = 400
REPORT = "report.html"


def sentence(error: Exception) -> str:
    """What went wrong, in one sentence in the place of what would be shown.

    Args:
        error: What was raised.
    """
    said = reason(error) or f"{type(error).__name__}: {error}"
    line = " ".join(said.split()) or type(error).__name__
    return masked(line[:_LONGEST] + (" ..." if len(line) > _LONGEST else ""))


@dataclass(frozen=True)
class SweepLook:
    """A sweep's runs at a glance.

    Attributes:
        name: The sweep's name.
        asked: When its command was last run, in seconds since 1970.
        records: Its runs, then its baselines; empty where they cannot be read.
        why: Why they cannot; empty where they can.
        has_report: Whether its report is made.
        stages: The status of each of its stages by fingerprint.
        intervals: The 95 % interval of each complete run's accuracy, by its name.
        foreign: Why stages are not read, by fingerprint.
        note: What else the reader should know; empty for nothing.
        sweep: The sweep; None where it cannot be read.
    """

    name: str
    asked: float
    records: tuple[RunRecord, ...] = ()
    why: str = ""
    has_report: bool = False
    stages: Mapping[str, StageStatus] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    foreign: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    sweep: GuardedSweep | None = None

    @property
    def key(self) -> str:
        """What the ids of its elements end with; names may hold any character."""
        return hashlib.sha256(os.fsencode(self.name)).hexdigest()[:12]

    @property
    def runs(self) -> tuple[RunRecord, ...]:
        """Its runs without baselines."""
        return tuple(record for record in self.records if record.name != "base")

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many runs are ``done``, ``running``, ``failed`` or ``to do``."""
        found = Counter(record.status for record in self.runs)
        return {
            "done": found["complete"],
            "running": found["running"],
            "failed": found["failed"] + found["damaged"],
            "to do": found["incomplete"],
        }

    @cached_property
    def best(self) -> RunRecord | None:
        """The complete run with the highest accuracy."""
        done = [record for record in self.runs if record.complete]
        return max(done, key=lambda record: float(record.results[-1]["accuracy"]), default=None)

    @property
    def what(self) -> tuple[str, str]:
        """Its models and its tasks."""
        models = dict.fromkeys(str(record.last.model.name) for record in self.records)
        tasks = dict.fromkeys(str(record.last.data.name) for record in self.records)
        return _some(list(models), "models"), _some(list(tasks), "tasks")


def _some(names: list[str], noun: str) -> str:
    return ", ".join(names) if len(names) < 3 else f"{len(names)} {noun}"


class Looks:
    """Looks at a store for many readers at once.

    Args:
        output_dir: The store's folder.
    """

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self._remembered = Remembered()
        self._kept_intervals = Remembered(most=20_000)

    def sweeps(self) -> list[SweepLook]:
        """All sweeps, the one that was asked for last first."""
        return [self._sweep(folder) for folder in guarded_sweeps(self.output_dir)]

    def sweep(self, name: str) -> SweepLook | None:
        """A sweep with the status of each of its stages.

        Args:
            name: Its name.

        Returns:
            The sweep; None where there is none of that name.
        """
        folder = next((f for f in guarded_sweeps(self.output_dir) if f.name == name), None)
        if folder is None:
            return None
        return self._remembered.get(("stages", name), lambda: self._with_stages(folder))

    def _sweep(self, folder: Path) -> SweepLook:
        return self._remembered.get(("runs", folder.name), lambda: self._look(folder))

    def _look(self, folder: Path) -> SweepLook:
        name, changed = folder.name, (folder / PLAN).lstat()
        asked = changed.st_mtime
        try:
            sweep = GuardedSweep(folder)
            key = ("plan", name, changed.st_ino, changed.st_mtime_ns, changed.st_size)
            planned = self._remembered.get(key, lambda: planned_runs(sweep), least=math.inf)
            records = tuple(
                read_run(replace(record, sweep=sweep), closely=False) for record in planned
            )
            keys = {stage.fingerprint for record in records for stage in record.stages}
            foreign = {key: why for key in keys if (why := sweep.store.foreign(key))}
            note = f"{PLAN} is broken, and its copy is shown" if sweep.from_copy else ""
            has_report = (folder / REPORT).is_file()
            look = SweepLook(
                name, asked, records, "", has_report, foreign=foreign, note=note, sweep=sweep
            )
            _ = look.best, look.counts  # a result that is no number is found here
        except Exception as error:  # whatever a broken or foreign file leads to, others are shown
            return SweepLook(name, asked, why=sentence(error))
        return look

    def _with_stages(self, folder: Path) -> SweepLook:
        look = self._sweep(folder)
        if look.sweep is None:
            return look
        stages = {stage.fingerprint: stage for record in look.records for stage in record.stages}
        try:
            found = stages_status(look.sweep.store, stages, self._ask)
        except Exception as error:  # the runs are shown, whatever a stage's notes hold
            return replace(look, note=f"the stages' progress is not known: {sentence(error)}")
        return replace(
            look,
            stages={status.fingerprint: status for status in found},
            intervals=dict(self._intervals(look.sweep, look.records)),
        )

    def _intervals(
        self, sweep: GuardedSweep, records: Iterable[RunRecord]
    ) -> Iterator[tuple[str, tuple[float, float]]]:
        clusters = sweep.folder / CLUSTERS
        changed = clusters.stat().st_mtime_ns if clusters.is_file() else 0
        for record in records:
            if not record.complete:
                continue
            result = record.results[-1]
            find = partial(interval_of, sweep, record.last, result)
            key = (sweep.name, changed, record.last.fingerprint, result["accuracy"])
            try:
                yield record.name, self._kept_intervals.get(key, find, least=math.inf)
            except Exception:  # the row shows the accuracy without an interval
                continue

    def status(self, store: GuardedStore, stage: StageSpec) -> StageStatus:
        """The status of a stage."""
        return self._remembered.get(
            ("stage", stage.fingerprint),
            lambda: stages_status(store, {stage.fingerprint: stage}, self._ask)[0],
        )

    def users(self, fingerprint: str) -> list[tuple[str, list[str]]]:
        """The sweeps that need a stage, each with the names of its runs that stand on it.

        Args:
            fingerprint: The stage's.
        """
        found = []
        for folder in guarded_sweeps(self.output_dir):
            changed = (folder / PLAN).lstat()
            key = ("users", folder.name, changed.st_mtime_ns, changed.st_size)
            find = partial(_runs_by_stage, folder)
            runs = self._remembered.get(key, find, least=math.inf)
            if fingerprint in runs:
                found.append((folder.name, runs[fingerprint]))
        return found

    def _ask(self, notes: Mapping[str, JobNote]) -> Mapping[str, Job]:
        if not notes:
            return {}
        key = ("slurm", *sorted(notes))
        return self._remembered.get(key, lambda: ask_slurm(notes), least=_SLURM_SECONDS)


def _runs_by_stage(folder: Path) -> dict[str, list[str]]:
    """The names of a sweep's runs by the stages that they stand on; none of a broken sweep."""
    found: dict[str, list[str]] = {}
    try:
        plan = GuardedSweep(folder).plan(any_version=True)
        for run in plan["runs"]:
            for key in run["stages"]:
                found.setdefault(str(key), []).append(str(run["name"]))
        for key in plan.get("baselines", []):
            found.setdefault(str(key), []).append("the untouched model")
    except Exception:  # its own page says what is wrong with it
        return {}
    return found
