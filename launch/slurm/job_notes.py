"""Which SLURM job a stage was submitted as: ``job.json`` in the stage's folder.

The note is written before sbatch is called, without a job id, and again with it. Whatever happens
in between, the job can be found again: its name ends with the submission's token.
"""

import dataclasses
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from heft_pipeline.files.json_files import read_json, write_json
from heft_pipeline.store.stage_folders import Store

JOB = "job.json"
#: The key of ``plan.json`` that has the note of the report's job.
REPORT_JOB = "report_job"
_LONGEST_NAME = 60


@dataclass(frozen=True)
class JobNote:
    """What is noted about a stage's job, or about the job of a sweep's report.

    Attributes:
        sweep: The name of the sweep that submitted it.
        submitted: When, in seconds since 1970.
        job_id: Its id; None until sbatch has answered.
        submission: The token of the call of sbatch; empty in notes of earlier versions.
        index: Its place in the call's array.
        count: How many jobs the call submits.
        cluster: The cluster's name; empty in notes of earlier versions.
        after: The id of the job that it waits for; None for none.
        attempt: How often the stage was submitted again because of the cluster.
        mem: The memory that it asks for because less was not enough; None: as the settings say.
        exclude: The nodes that it avoids because it failed on them.
    """

    sweep: str
    submitted: float
    job_id: str | None = None
    submission: str = ""
    index: int = 0
    count: int = 1
    cluster: str = ""
    after: str | None = None
    attempt: int = 0
    mem: str | None = None
    exclude: tuple[str, ...] = ()

    @property
    def job_name(self) -> str:
        """The name that the job is submitted under."""
        return f"heft-{_plain(self.sweep)}-{self.submission}"

    def numbered(self, array: str) -> str:
        """The job's id, given the id that the call of sbatch was answered with."""
        return f"{array}_{self.index}" if self.count > 1 else array


def new_token() -> str:
    """A token for a call of sbatch."""
    return secrets.token_hex(5)


def note_to_json(note: JobNote) -> dict[str, Any]:
    """A note as JSON-ready data."""
    return dataclasses.asdict(note)


def note_from_json(data: Any) -> JobNote | None:
    """A note from JSON data; None where that is no note.

    Args:
        data: What :func:`note_to_json` gave, here or in an earlier version.
    """
    names = {one.name for one in dataclasses.fields(JobNote)}
    if not isinstance(data, dict) or not {"sweep", "submitted"} <= set(data):
        return None
    known = {key: value for key, value in data.items() if key in names}
    return JobNote(**known | {"exclude": tuple(known.get("exclude", ()))})


def write_note(store: Store, fingerprint: str, note: JobNote) -> None:
    """Note what a stage is or was submitted as.

    Args:
        store: Where stages are.
        fingerprint: The stage's.
        note: The note.
    """
    write_json(store.folder(fingerprint) / JOB, note_to_json(note))


def remove_note(store: Store, fingerprint: str) -> None:
    """Forget that a stage was to be submitted."""
    (store.folder(fingerprint) / JOB).unlink(missing_ok=True)


def read_note(store: Store, fingerprint: str) -> JobNote | None:
    """What a stage was last submitted as.

    Args:
        store: Where stages are.
        fingerprint: The stage's.

    Returns:
        The note; None where there is none, or only a broken one.
    """
    return note_from_json(read_json(store.folder(fingerprint) / JOB))


def read_notes(store: Store, fingerprints: Iterable[str]) -> dict[str, JobNote]:
    """What stages were last submitted as.

    Args:
        store: Where stages are.
        fingerprints: The stages'.

    Returns:
        The notes by fingerprint; stages without one are absent.
    """
    return {key: note for key in fingerprints if (note := read_note(store, key))}


def read_report_note(sweep: str, written: Mapping[str, Any]) -> JobNote | None:
    """What is noted about the job that makes a sweep's report.

    Args:
        sweep: The sweep's name.
        written: Its ``plan.json``.

    Returns:
        The note; None where there is no such job.
    """
    noted = written.get(REPORT_JOB)
    if isinstance(noted, str):  # as earlier versions wrote it
        return JobNote(sweep, 0.0, job_id=noted)
    return note_from_json(noted)


def _plain(name: str) -> str:
    """A sweep's name with the characters alone that every SLURM takes in a job's name."""
    return re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)[:_LONGEST_NAME]
