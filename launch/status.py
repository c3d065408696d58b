"""What a sweep's stages are doing, as the store's files and SLURM tell it."""

import time
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from heft_pipeline.plan.graph import labelled
from heft_pipeline.plan.stage_spec import from_json
from heft_pipeline.store.sweep_folders import Sweep
from heft_pipeline.training.metrics import read_metrics
from launch.attempt import said_accuracy
from launch.slurm.job_notes import read_job
from launch.slurm.squeue import job_states

_MOST_ROWS = 60
_COLOURS = {"complete": "green", "running": "cyan", "failed": "red", "lost": "red"}


@dataclass(frozen=True)
class StageStatus:
    """What is known about a stage.

    Attributes:
        fingerprint: The stage's.
        label: Its short name.
        state: ``complete``, ``running``, ``pending``, ``failed``, ``interrupted``, ``to do``, or
            ``lost`` (its job has ended without a result).
        job_id: Its SLURM job, or None.
        node: Where it runs, or None.
        requeues: How often SLURM has restarted it.
        progress: ``PHASE DONE/TOTAL``, or empty.
        loss: The last logged training loss, or None.
        examples_per_second: The last logged speed, or None.
        eta_seconds: Until training ends at that speed, or None.
        text: The accuracy, or why it failed.
    """

    fingerprint: str
    label: str
    state: str
    job_id: str | None = None
    node: str | None = None
    requeues: int = 0
    progress: str = ""
    loss: float | None = None
    examples_per_second: float | None = None
    eta_seconds: float | None = None
    text: str = ""


def sweep_status(sweep: Sweep) -> list[StageStatus]:
    """Look at every stage of a sweep.

    Args:
        sweep: The sweep.

    Returns:
        The status of each stage, in the plan's order.
    """
    plan, store = sweep.plan(), sweep.store
    notes = {key: read_job(store, key) for key in plan["stages"]}
    alive = job_states(note["job_id"] for note in notes.values() if note)
    found = []
    stages = {key: from_json(data) for key, data in plan["stages"].items()}
    label = labelled(stages.values())
    for key, stage in stages.items():
        note = notes[key]
        job_id = note["job_id"] if note else None
        state = store.state(key)
        if state != "complete" and job_id in alive:
            state = "running" if alive[job_id] == "RUNNING" else "pending"
        elif state in ("to do", "interrupted") and job_id:
            state = "lost"
        found.append(_status(sweep, key, label(stage), state, job_id))
    return found


def status_table(sweep: Sweep) -> Table:
    """The statuses as a table; of very many stages, those that are doing something come first.

    Args:
        sweep: The sweep.

    Returns:
        A rich table.
    """
    stages = sweep_status(sweep)
    states = [s.state for s in stages]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    runs = sweep.plan()["runs"]
    complete = {s.fingerprint for s in stages if s.state == "complete"}
    done = sum(complete >= set(run["stages"]) for run in runs)
    table = Table(
        title=f"{sweep.name}: {done} of {len(runs)} runs complete; stages: {counts}",
        title_justify="left",
    )
    table.add_column("stage")
    table.add_column("state", no_wrap=True)
    for heading in ("job", "progress", "loss", "ex/s", "ETA"):
        table.add_column(heading, justify="right")
    order = sorted(stages, key=lambda s: s.state in ("complete", "pending", "to do"))
    for status in order[:_MOST_ROWS]:
        table.add_row(*_cells(status))
    if len(stages) > _MOST_ROWS:
        table.caption = f"and {len(stages) - _MOST_ROWS} more"
    return table


def _status(sweep: Sweep, key: str, label: str, state: str, job_id: str | None) -> StageStatus:
    store = sweep.store
    if state == "complete":
        result = store.result(key) or {}
        text = said_accuracy(result)
        return StageStatus(key, label, state, job_id, text=text, requeues=result["resumes"])
    failure = store.failure(key) if state == "failed" else None
    if state != "running":
        return StageStatus(key, label, state, job_id, text=str((failure or {}).get("reason", "")))
    owner: dict[str, Any] = store.owner(key) or {}
    progress = store.progress(key) or {}
    steps = [m for m in read_metrics(store.folder(key) / "metrics.jsonl") if m["event"] == "step"]
    last = steps[-1] if steps else {}
    shown = f"{progress['phase']} {progress['done']}/{progress['total']}" if progress else ""
    return StageStatus(
        key,
        label,
        state,
        job_id,
        node=owner.get("host"),
        requeues=owner.get("requeues", 0),
        progress=f"{shown} epoch {last['epoch']}" if last else shown,
        loss=last.get("loss"),
        examples_per_second=last.get("examples_per_second"),
        eta_seconds=_eta(progress, owner),
    )


def _eta(progress: dict[str, Any], owner: dict[str, Any]) -> float | None:
    """Seconds to the end of training, at the mean speed since the process took the stage."""
    if progress.get("phase") != "train" or not owner or "first" not in progress:
        return None
    done = progress["done"] - progress["first"]
    if done <= 0:
        return None
    speed = done / max(1e-9, progress["time"] - progress["first_time"])
    waited = max(0.0, time.time() - progress["time"])
    return float(max(0.0, (progress["total"] - progress["done"]) / speed - waited))


def _cells(status: StageStatus) -> list[str]:
    colour = _COLOURS.get(status.state, "default")
    job = " ".join(filter(None, [status.job_id, status.node]))
    if status.requeues:
        job += f" (requeued {status.requeues}x)"
    return [
        f"{status.fingerprint[:8]} {status.label}",
        f"[{colour}]{status.state}[/]",
        job,
        status.progress or status.text,
        f"{status.loss:.3f}" if status.loss is not None else "",
        f"{status.examples_per_second:.1f}" if status.examples_per_second is not None else "",
        _clock(status.eta_seconds) if status.eta_seconds is not None else "",
    ]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
