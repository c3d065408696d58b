"""Which SLURM job a stage was submitted as: ``job.json`` in the stage's folder."""

import json
import time
from typing import Any

from heft_pipeline.store.stage_folders import Store, write_json

JOB = "job.json"


def write_job(store: Store, fingerprint: str, job_id: str, sweep: str) -> None:
    """Note that a stage was submitted now.

    Args:
        store: Where stages are.
        fingerprint: The stage's.
        job_id: Its job.
        sweep: The name of the sweep that submitted it.
    """
    note = {"job_id": job_id, "sweep": sweep, "submitted": time.time()}
    write_json(store.folder(fingerprint) / JOB, note)


def read_job(store: Store, fingerprint: str) -> dict[str, Any] | None:
    """The job that a stage was last submitted as.

    Args:
        store: Where stages are.
        fingerprint: The stage's.

    Returns:
        ``job_id``, ``sweep`` and ``submitted`` (a time), or None.
    """
    path = store.folder(fingerprint) / JOB
    if not path.is_file():
        return None
    note: dict[str, Any] = json.loads(path.read_text())
    return note
