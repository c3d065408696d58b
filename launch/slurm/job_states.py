"""What SLURM knows of jobs, from squeue and, where the cluster keeps accounts, from sacct."""

import dataclasses
import os
import subprocess
import time
from collections.abc import Iterable, Mapping
from datetime import datetime

from launch.slurm.ask import CALL_SECONDS, NoAnswer, Patience, plain_environment
from launch.slurm.job_life import LIVES, Job, Life
from launch.slurm.job_notes import JobNote

#: All of the user's jobs, because squeue fails when asked for one that is long gone. The job's
#: name comes last: it may hold any character.
_SQUEUE = (
    "squeue", "--noheader", "--array", "--me", "--states=all", "--format=%i|%T|%r|%N|%e|%m|%j",
)  # fmt: skip
_BARS = 6
_SACCT = (
    "sacct", "--noheader", "--parsable2", "--allocations",
    "--format=JobID,State,Reason,ExitCode,NodeList,ReqMem,JobName",
)  # fmt: skip
_JOBS_A_CALL = 500
#: How long a call of sbatch whose caller has been killed may still be on its way.
SETTLE_SECONDS = 60.0
#: Why a job is unknown whose call of sbatch may still be on its way.
MAY_APPEAR = "its submission was interrupted, and it may still appear"
#: How far the clocks of this machine and of the controller may differ.
_CLOCK_SECONDS = 30.0
_CONFIGS: dict[str, dict[str, str]] = {}


class _Listing:
    """Jobs that a command lists.

    Args:
        pairs: Jobs and their names.
    """

    def __init__(self, pairs: Iterable[tuple[Job, str]]) -> None:
        self._by_id: dict[str | None, Job] = {}
        self._by_name: dict[str, list[Job]] = {}
        for job, name in pairs:
            self._by_id[job.job_id] = job
            self._by_name.setdefault(name, []).append(job)

    def find(self, note: JobNote) -> Job | None:
        """A note's job, by its id or, where that is not known, by its name."""
        if note.job_id is not None:
            return self._by_id.get(note.job_id)
        mine = self._by_name.get(note.job_name, []) if note.submission else []
        end = f"_{note.index}" if note.count > 1 else ""
        return next((job for job in mine if str(job.job_id).endswith(end)), None)


def job_states(notes: Mapping[str, JobNote], patience: Patience | None = None) -> dict[str, Job]:
    """What SLURM knows of jobs now.

    Args:
        notes: What is noted about each job, by any key.
        patience: How long to go on asking where SLURM does not answer; None: ask once.

    Returns:
        Each job by its key. All are unknown where squeue does not answer; a job that was
        submitted to another cluster than this machine's always is.
    """
    if not notes:
        return {}
    patience = patience or Patience()
    try:
        here = cluster_name(patience)
        lines = patience.ask(_SQUEUE).splitlines()
    except NoAnswer as error:
        return {key: _unknown(note, str(error)) for key, note in notes.items()}
    # With SLURM_CLUSTERS, squeue writes the cluster's name above its jobs.
    listed = _Listing(_from_squeue(line) for line in lines if line.count("|") >= _BARS)
    found: dict[str, Job] = {}
    for key, note in notes.items():
        if note.cluster and here and note.cluster != here:
            why = f"it is on the cluster {note.cluster}, and this machine asks {here}"
            found[key] = _unknown(note, why)
        elif job := listed.find(note):
            found[key] = job
    ended = {k: n for k, n in notes.items() if k not in found or found[k].life is Life.ENDED}
    accounted = _from_sacct(ended.values())
    for key, note in ended.items():
        found[key] = _ended(note, found.get(key), accounted.find(note))
    return found


def cluster_name(patience: Patience | None = None) -> str:
    """The name of the cluster that this machine's SLURM commands ask.

    Args:
        patience: How long to go on asking; None: ask once.

    Returns:
        The name; empty where SLURM does not tell.

    Raises:
        NoAnswer: SLURM does not answer.
    """
    return cluster_config(patience).get("ClusterName", "")


def cluster_config(patience: Patience | None = None) -> dict[str, str]:
    """SLURM's configuration, which is asked for once in a process.

    Args:
        patience: How long to go on asking; None: ask once.

    Returns:
        Each parameter's value, as ``scontrol show config`` prints it.

    Raises:
        NoAnswer: SLURM does not answer.
    """
    place = os.environ.get("SLURM_CONF", "")
    if place not in _CONFIGS:
        text = (patience or Patience()).ask(["scontrol", "show", "config"])
        pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
        _CONFIGS[place] = {key.strip(): value.strip() for key, _, value in pairs}
    return _CONFIGS[place]


def cancel_jobs(notes: Mapping[str, JobNote], patience: Patience | None = None) -> dict[str, Job]:
    """Cancel those of the jobs that have not ended, and look whether that worked.

    Args:
        notes: What is noted about each job, by any key.
        patience: How long to go on asking where SLURM does not answer; None: ask once.

    Returns:
        The jobs that were cancelled now, as they were before; their ids are known.

    Raises:
        NoAnswer: SLURM does not answer, or has not cancelled a job; the message names it.
    """
    before = job_states(notes, patience)
    silent = [job for job in before.values() if job.life is Life.UNKNOWN]
    if silent:
        raise NoAnswer(silent[0].reason)
    alive = {key: job for key, job in before.items() if job.alive}
    ids = sorted(str(job.job_id) for job in alive.values())
    env = plain_environment()
    for first in range(0, len(ids), _JOBS_A_CALL):
        command = ["scancel", *ids[first : first + _JOBS_A_CALL]]
        subprocess.run(command, capture_output=True, check=False, timeout=CALL_SECONDS, env=env)
    after = job_states({key: notes[key] for key in alive}, patience)
    if left := [str(after[key].job_id) for key in alive if not after[key].over]:
        raise NoAnswer(f"SLURM has not cancelled {', '.join(left[:10])}")
    return alive


def _unknown(note: JobNote, why: str) -> Job:
    return Job(Life.UNKNOWN, note.job_id, reason=why)


def _ended(note: JobNote, listed: Job | None, accounted: Job | None) -> Job:
    """How a job has ended that squeue lists as ended or does not list."""
    if accounted is not None and LIVES.get(accounted.state) is Life.ENDED:
        reason = listed.reason if listed else ""
        return dataclasses.replace(accounted, reason=reason or accounted.reason)
    if listed is not None:
        return listed
    if accounted is not None or note.job_id is not None:
        return Job(Life.ENDED, accounted.job_id if accounted else note.job_id)
    if time.time() - note.submitted < SETTLE_SECONDS:
        return _unknown(note, MAY_APPEAR)
    return Job(Life.NOT_SUBMITTED)


def _from_squeue(line: str) -> tuple[Job, str]:
    """A job and its name from a line of squeue's."""
    job_id, state, reason, node, end, mem, name = line.split("|", _BARS)
    life = LIVES.get(state, Life.UNKNOWN)
    if state == "COMPLETING" and not _is_past(end):
        # It has been requeued: what is ending is its last run, and this is the end of the next.
        life = Life.QUEUED
    words = {"reason": _given(reason), "node": _given(node), "mem": "" if mem == "0" else mem}
    if life is Life.UNKNOWN:
        words["reason"] = f"SLURM calls it {state}"
    return Job(life, job_id, state, **words), name


def _is_past(moment: str) -> bool:
    try:
        return datetime.fromisoformat(moment).timestamp() <= time.time() + _CLOCK_SECONDS
    except ValueError:  # N/A: the next run has no time limit
        return False


def _from_sacct(notes: Iterable[JobNote]) -> _Listing:
    """Jobs and their names as the cluster's accounts have them; empty without accounts."""
    notes = list(notes)
    arrays = sorted({note.job_id.split("_")[0] for note in notes if note.job_id})
    unnumbered = [note for note in notes if note.job_id is None and note.submission]
    questions = [
        ["--jobs", ",".join(arrays[n : n + _JOBS_A_CALL])]
        for n in range(0, len(arrays), _JOBS_A_CALL)
    ]
    if unnumbered:
        day = 86400
        since = datetime.fromtimestamp(min(note.submitted for note in unnumbered) - day)
        names = ",".join(sorted({note.job_name for note in unnumbered}))
        questions.append(["--name", names, "--starttime", f"{since:%Y-%m-%dT%H:%M:%S}"])
    pairs: list[tuple[Job, str]] = []
    for question in questions:
        try:
            text = Patience().ask([*_SACCT, *question])
        except NoAnswer:  # there are no accounts, or they are away
            break
        for line in text.splitlines():
            pairs += _accounted(line) if line.count("|") >= _BARS else []
    return _Listing(pairs)


def _accounted(line: str) -> list[tuple[Job, str]]:
    """The jobs of a line of sacct's: several for elements that were cancelled in the queue."""
    job_id, words, reason, exit_code, node, mem, name = line.split("|", _BARS)
    state, _, by = words.partition(" ")  # e.g. CANCELLED by 1000
    life = LIVES.get(state, Life.UNKNOWN)
    reason = _given(reason) or by
    return [
        (Job(life, one, state, reason, exit_code, _given(node), mem), name)
        for one in expanded(job_id)
    ]


def expanded(job_id: str) -> list[str]:
    """The elements of an array that SLURM writes as one.

    Args:
        job_id: E.g. ``7``, ``7_2`` or ``7_[0-2,5%4]``.

    Returns:
        Their ids, e.g. ``7_0``, ``7_1``, ``7_2`` and ``7_5``.
    """
    array, bracket, rest = job_id.partition("_[")
    if not bracket:
        return [job_id]
    numbers: list[int] = []
    for part in rest.rstrip("]").split("%")[0].split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return [f"{array}_{number}" for number in numbers]


def _given(word: str) -> str:
    return "" if word in ("None", "None assigned", "(null)", "N/A") else word
