"""Submitting stages to SLURM: one job for each, all at once, as a transaction.

What is about to be submitted is noted first (``launch/slurm/job_notes.py``), so that whoever comes
next finds the jobs of a submission that was cut off, and submits nothing twice.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from rich.console import Console

from heft_pipeline.data.other_text import OtherText
from heft_pipeline.errors import UserError
from heft_pipeline.files.locks import file_lock, take
from heft_pipeline.plan.graph import Plan, descendants
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.store.sweep_folders import Sweep
from launch.attempt import StopRequest
from launch.measure_forgetting import texts
from launch.progress import say_line
from launch.slurm.ask import NoAnswer, Patience, no_notice
from launch.slurm.job_life import Job, Life
from launch.slurm.job_notes import JobNote, new_token, read_notes, remove_note, write_note
from launch.slurm.job_states import MAY_APPEAR, cancel_jobs, cluster_name, job_states
from launch.slurm.jobs import stage_submission
from launch.slurm.limits import largest_array
from launch.slurm.recover import Again, asked_again
from launch.slurm.sbatch import Submission
from launch.slurm.settings import SlurmSettings

#: How long to go on asking a controller that is away before giving a submission up.
_PATIENCE_SECONDS = 600.0
_LOOK_SECONDS = 1.0
_CALLS_WITHOUT_ANSWER = 3


class Stopped(Exception):
    """The person at the keyboard stopped a submission; what it had submitted is cancelled."""


@dataclass
class Terms:
    """How to submit.

    Attributes:
        settings: The launcher's settings.
        texts: The text that each stage is measured on, by fingerprint.
        patience: How long to go on asking where SLURM does not answer.
        say: Where to say what takes time.
        should_stop: Becomes true when the person at the keyboard wants to stop.
    """

    settings: SlurmSettings
    texts: Mapping[str, OtherText] = field(default_factory=dict)
    patience: Patience = field(default_factory=Patience)
    say: Callable[[str], None] = no_notice
    should_stop: Callable[[], bool] = lambda: False

    @classmethod
    def of(
        cls, plan: Plan, sweep: Sweep, settings: SlurmSettings, stop: StopRequest, console: Console
    ) -> Self:
        """The terms on which a sweep's stages are submitted.

        Args:
            plan: The stages.
            sweep: The sweep.
            settings: The launcher's settings.
            stop: Says when the person at the keyboard wants to stop.
            console: Where to say what takes time.
        """
        say = functools.partial(say_line, console)
        patience = Patience(_PATIENCE_SECONDS, say, stop)
        return cls(settings, texts(sweep, plan.stages.values()), patience, say, stop)


@contextlib.contextmanager
def submit_lock(store: Store, say: Callable[[str], None] = no_notice) -> Iterator[None]:
    """Be the only process that submits stages of a store.

    Args:
        store: The store.
        say: Where to say that another process is submitting.

    Yields:
        Nothing.
    """
    path = store.output_dir / "stages" / ".submit.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = file_lock(path)
    if not take(lock):
        say("another process is submitting stages; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def groups(
    stages: Iterable[StageSpec], on_the_cluster: Iterable[str] = ()
) -> dict[str | None, list[StageSpec]]:
    """Stages that wait for the same job, or for none.

    Args:
        stages: Stages to be submitted, parents before children.
        on_the_cluster: Stages that have a job already, by fingerprint.

    Returns:
        Lists of stages by the fingerprint of the parent that they wait for, or None; a group
        comes after the group that its parent is in.
    """
    found: dict[str | None, list[StageSpec]] = {}
    jobs = set(on_the_cluster)
    for stage in stages:
        parent = stage.parent.fingerprint if stage.parent else None
        found.setdefault(parent if parent in jobs else None, []).append(stage)
        jobs.add(stage.fingerprint)
    return found


def submit(
    stages: Sequence[StageSpec],
    sweep: Sweep,
    terms: Terms,
    again: Mapping[str, Again] | None = None,
) -> tuple[dict[str, str], list[str]]:
    """Submit the stages that have no job; the caller holds :func:`submit_lock`.

    Args:
        stages: Stages, parents before children; finished ones are left out.
        sweep: The sweep that asks.
        terms: How to submit.
        again: For stages that are submitted again because of how their jobs ended, what to ask
            for; others ask for what their last job's end suggests.

    Returns:
        (the job of each unfinished stage by fingerprint, the fingerprints that were submitted).

    Raises:
        UserError: SLURM refuses, or does not answer, or a job's state is not known. What was
            submitted now is cancelled again, unless SLURM does not answer that either.
        Stopped: The person at the keyboard stopped it; what was submitted now is cancelled.
    """
    store = sweep.store
    stages = [stage for stage in stages if not store.is_complete(stage.fingerprint)]
    call = _Call(sweep, terms, stages, again or {})
    try:
        for batch, calls in call.batches():
            if terms.should_stop():
                raise Stopped
            call.submit(batch, calls)
    except (UserError, Stopped, NoAnswer) as error:
        said = call.undo()
        if isinstance(error, Stopped):
            raise Stopped(said) from None
        raise UserError(f"{error}\n{said}" if said else str(error)) from error
    return call.jobs, [stage.fingerprint for stage in call.submitted]


def settled(notes: Mapping[str, JobNote], terms: Terms) -> dict[str, Job]:
    """What SLURM knows of jobs, once it is known of each.

    Args:
        notes: What is noted about each job, by any key.
        terms: How long to go on asking.

    Returns:
        Each job by its key; none is unknown.

    Raises:
        UserError: That of a job stays unknown; nothing was submitted.
    """
    states = _looked_for(notes, terms, "looking for the jobs of a submission that was interrupted")
    unknown = [job.reason for job in states.values() if job.life is Life.UNKNOWN]
    if unknown:
        reason = next((reason for reason in unknown if reason != MAY_APPEAR), MAY_APPEAR)
        raise UserError(
            f"what has become of {len(unknown)} jobs that were submitted before is not known "
            f"({reason}); nothing is submitted while that is so: run the same command later"
        )
    return states


def _looked_for(
    notes: Mapping[str, JobNote], terms: Terms, saying: str | None = None
) -> dict[str, Job]:
    """What SLURM knows of jobs, once none of them may still appear; or once it does not answer."""
    while True:
        states = job_states(notes, terms.patience)
        unknown = {job.reason for job in states.values() if job.life is Life.UNKNOWN}
        if unknown != {MAY_APPEAR} or terms.should_stop():
            return states
        if saying is not None:
            terms.say(saying)
            saying = None
        time.sleep(_LOOK_SECONDS)


class _Call:
    """One submission: what stands, what is new, and what has been submitted so far."""

    def __init__(
        self, sweep: Sweep, terms: Terms, stages: list[StageSpec], again: Mapping[str, Again]
    ) -> None:
        self._sweep, self._terms, self._store = sweep, terms, sweep.store
        self._upcoming = descendants(stages)
        notes = self._before = read_notes(self._store, (stage.fingerprint for stage in stages))
        states = settled(notes, terms)
        self.jobs: dict[str, str] = {}
        self.submitted: list[StageSpec] = []
        self._new: list[StageSpec] = []
        self._again: dict[str, Again] = {}
        stale: dict[str, JobNote] = {}
        new: set[str] = set()
        for stage in stages:
            key, job = stage.fingerprint, states.get(stage.fingerprint)
            if job is not None and job.alive and not self._is_stale(stage, job, new):
                self.jobs[key] = str(job.job_id)
                if notes[key].job_id is None:  # found again by its name
                    write_note(self._store, key, dataclasses.replace(notes[key], job_id=job.job_id))
                continue
            if job is not None and job.alive:
                stale[key] = notes[key]
            new.add(key)
            self._new.append(stage)
            self._again[key] = again.get(key) or self._suggested(notes.get(key), job)
        try:
            cancel_jobs(stale, terms.patience)
        except NoAnswer as error:
            raise UserError(f"SLURM does not answer ({error}); nothing was submitted") from error

    def _is_stale(self, stage: StageSpec, job: Job, new: set[str]) -> bool:
        """Whether a job waits for one that is gone."""
        parent = stage.parent
        if parent is None or job.life is not Life.QUEUED:
            return False
        if self._store.is_complete(parent.fingerprint):
            return False
        current = self.jobs.get(parent.fingerprint)
        after = self._before[stage.fingerprint].after
        return parent.fingerprint in new or after not in (None, current)

    def _suggested(self, note: JobNote | None, job: Job | None) -> Again:
        """What a job's end suggests to a person who submits it again."""
        if note is None or job is None:
            return Again("")
        asked = asked_again(note, job, self._terms.settings)
        return dataclasses.replace(asked, attempt=0) if isinstance(asked, Again) else Again("")

    def batches(self) -> Iterator[tuple[list[StageSpec], int]]:
        """The stages of each call of sbatch, and how many calls share ``max_parallel`` with it.

        Arrays are no larger than the cluster allows, and a call's jobs ask for the same.
        """
        most = largest_array()
        for group in groups(self._new, self.jobs).values():
            alike: dict[tuple[str | None, tuple[str, ...]], list[StageSpec]] = {}
            for stage in group:
                asked = self._again[stage.fingerprint]
                alike.setdefault((asked.mem, asked.exclude), []).append(stage)
            calls = [
                batch[first : first + most]
                for batch in alike.values()
                for first in range(0, len(batch), most)
            ]
            yield from ((call, len(calls)) for call in calls)

    def submit(self, batch: list[StageSpec], calls: int) -> None:
        """Note what will be submitted, submit it, and note its jobs."""
        notes, settings = self._notes(batch), self._terms.settings
        share = max(1, settings.max_parallel // calls)
        settings = dataclasses.replace(settings, max_parallel=share)
        submission = stage_submission(
            batch, notes, self._sweep, settings, self._upcoming, self._terms.texts
        )
        for stage, note in zip(batch, notes, strict=True):
            self._store.begin(stage)
            write_note(self._store, stage.fingerprint, note)
        try:
            array = call_sbatch(submission, self._terms)
        except UserError:  # nothing stands
            for stage in batch:
                self._restore(stage.fingerprint)
            raise
        for stage, note in zip(batch, notes, strict=True):
            job_id = note.numbered(array)
            write_note(self._store, stage.fingerprint, dataclasses.replace(note, job_id=job_id))
            self.jobs[stage.fingerprint] = job_id
            self.submitted.append(stage)

    def undo(self) -> str:
        """Cancel what was submitted, and say so."""
        if not self.submitted:
            return ""
        notes = read_notes(self._store, (stage.fingerprint for stage in self.submitted))
        try:
            cancel_jobs(notes, self._terms.patience)
        except NoAnswer as error:
            return (
                f"{len(notes)} jobs that were submitted before it may still stand ({error}); "
                "the same command goes on with them"
            )
        return f"The {len(notes)} jobs that were submitted before it are cancelled."

    def _notes(self, batch: list[StageSpec]) -> list[JobNote]:
        parent = batch[0].parent
        after = self.jobs.get(parent.fingerprint) if parent else None
        first = JobNote(
            self._sweep.name,
            time.time(),
            submission=new_token(),
            count=len(batch),
            cluster=cluster_name(self._terms.patience),
            after=after,
        )
        notes = []
        for index, stage in enumerate(batch):
            asked = self._again[stage.fingerprint]
            notes.append(
                dataclasses.replace(
                    first,
                    index=index,
                    attempt=asked.attempt,
                    mem=asked.mem,
                    exclude=asked.exclude,
                )
            )
        return notes

    def _restore(self, key: str) -> None:
        if key in self._before:
            write_note(self._store, key, self._before[key])
        else:
            remove_note(self._store, key)


def call_sbatch(submission: Submission, terms: Terms) -> str:
    """Call sbatch until it is known whether its jobs stand.

    Args:
        submission: The call, which is noted.
        terms: How long to go on asking.

    Returns:
        The id of the job or of the array.

    Raises:
        UserError: SLURM refuses; no job stands.
        NoAnswer: Whether the jobs stand stays unknown.
    """
    for _ in range(_CALLS_WITHOUT_ANSWER):
        try:
            return submission.sbatch()
        except NoAnswer as error:
            terms.say(f"sbatch has not answered ({error}); looking whether its jobs stand")
            job = _looked_for({"": submission.note}, terms)[""]
            if job.life is Life.UNKNOWN:
                raise NoAnswer(
                    f"SLURM does not answer ({job.reason}), and whether the last "
                    f"{submission.note.count} jobs were submitted is not known; the same command "
                    "finds that out"
                ) from error
            if job.life is not Life.NOT_SUBMITTED:
                return str(job.job_id).split("_")[0]
    raise UserError(
        f"SLURM has not answered {_CALLS_WITHOUT_ANSWER} calls of sbatch; no job of theirs stands"
    )
