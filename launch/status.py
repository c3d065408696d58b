"""What a sweep's stages are doing, as the store's files and SLURM tell it."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from heft_pipeline.plan.graph import labelled
from heft_pipeline.plan.stage_spec import StageSpec, from_json
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.store.sweep_folders import Sweep
from heft_pipeline.training.metrics import read_metrics
from launch.attempt import said_accuracy
from launch.slurm.ask import Patience
from launch.slurm.job_life import Job, Life
from launch.slurm.job_notes import JobNote, read_notes
from launch.slurm.job_states import job_states

_MOST_ROWS = 60
_COLOURS = {"complete": "green", "running": "cyan", "failed": "red"}
#: The states of stages that will go on by themselves, or have nothing to do yet.
_QUIET = ("complete", "pending", "to do", "ending", "unknown", "running", "interrupted")
_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class StageStatus:
    """What is known about a stage.

    Attributes:
        fingerprint: The stage's.
        label: Its short name.
        state: ``complete``, ``running``, ``pending``, ``ending``, ``failed``, ``interrupted``,
            ``to do``, ``unknown`` (SLURM does not answer), or, where its job has ended without a
            result, SLURM's word for how (``timeout``, ``cancelled`` and so on) or ``lost``.
        job_id: Its SLURM job, or None.
        job: SLURM's state, reason, exit code and node of that job, in words; or empty.
        node: Where it runs, or None.
        requeues: How often SLURM has restarted it.
        progress: ``PHASE DONE/TOTAL``, or empty.
        done: How much of the phase is done, as a share; None where nothing is known.
        loss: The last logged training loss, or None.
        dev_accuracy: The last epoch's accuracy on the dev split, or None.
        examples_per_second: The last logged speed, or None.
        eta_seconds: Until training ends at that speed, or None.
        text: The accuracy, or why it failed.
    """

    fingerprint: str
    label: str
    state: str
    job_id: str | None = None
    job: str = ""
    node: str | None = None
    requeues: int = 0
    progress: str = ""
    done: float | None = None
    loss: float | None = None
    dev_accuracy: float | None = None
    examples_per_second: float | None = None
    eta_seconds: float | None = None
    text: str = ""


def ask_slurm(notes: Mapping[str, JobNote]) -> dict[str, Job]:
    """What SLURM knows of the jobs that stages were submitted as; see :func:`job_states`."""
    return job_states(notes, Patience(_PATIENCE_SECONDS))


def sweep_status(
    sweep: Sweep, ask: Callable[[Mapping[str, JobNote]], Mapping[str, Job]] = ask_slurm
) -> list[StageStatus]:
    """Look at every stage of a sweep.

    Args:
        sweep: The sweep.
        ask: Tells what SLURM knows of jobs.

    Returns:
        The status of each stage, in the plan's order.
    """
    stages = {key: from_json(data) for key, data in sweep.plan()["stages"].items()}
    return stages_status(sweep.store, stages, ask)


def stages_status(
    store: Store,
    stages: Mapping[str, StageSpec],
    ask: Callable[[Mapping[str, JobNote]], Mapping[str, Job]] = ask_slurm,
) -> list[StageStatus]:
    """Look at some stages.

    Args:
        store: Where they are.
        stages: The stages by fingerprint.
        ask: Tells what SLURM knows of jobs.

    Returns:
        The status of each, in the given order.
    """
    notes = read_notes(store, stages)
    unfinished = {key: note for key, note in notes.items() if not store.is_complete(key)}
    jobs = ask(unfinished)
    found = []
    label = labelled(stages.values())
    for key, stage in stages.items():
        job = jobs.get(key)
        if job is None and key in notes:
            job = Job(Life.ENDED, notes[key].job_id)
        found.append(_status(store, key, label(stage), _state(store.state(key), job), job))
    return found


def _state(state: str, job: Job | None) -> str:
    """A stage's state, as its files and what SLURM knows of its job say together."""
    if state == "complete" or job is None:
        return state
    if job.alive:
        return "running" if job.life is Life.RUNNING else "pending"
    if state not in ("to do", "interrupted") or job.life is Life.NOT_SUBMITTED:
        return state
    if job.life is Life.ENDED:
        return job.state.lower() or "lost"
    return str(job.life)


def status_json(sweep: Sweep) -> str:
    """The statuses for programs.

    Args:
        sweep: The sweep.

    Returns:
        JSON: ``sweep``, ``folder``, ``runs`` (each with ``name``, ``stages`` and ``complete``) and
        ``stages`` (each with what :class:`StageStatus` has).
    """
    stages = sweep_status(sweep)
    complete = {s.fingerprint for s in stages if s.state == "complete"}
    runs = [
        {"name": r["name"], "stages": r["stages"], "complete": complete >= set(r["stages"])}
        for r in sweep.plan()["runs"]
    ]
    note = {"sweep": sweep.name, "folder": str(sweep.folder), "runs": runs}
    return json.dumps(note | {"stages": [dataclasses.asdict(stage) for stage in stages]}, indent=2)


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


def _status(store: Store, key: str, label: str, state: str, job: Job | None) -> StageStatus:
    job_id = job.job_id if job else None
    said = job.reason if job else ""
    if job and job.state and not (job.alive and said):  # a job that waits says only why
        said = job.said()
    if state == "complete":
        result = store.result(key) or {}
        text = said_accuracy(result)
        return StageStatus(
            key, label, state, job_id, said, text=text, requeues=result.get("resumes", 0)
        )
    failure = store.failure(key) if state == "failed" else None
    if state != "running":
        text = str((failure or {}).get("reason", "")) or said
        return StageStatus(key, label, state, job_id, said, text=text)
    owner: dict[str, Any] = store.owner(key) or {}
    progress = _whole(store.progress(key))
    lines = read_metrics(store.folder(key) / "metrics.jsonl")
    last: dict[str, Any] = next((line for line in reversed(lines) if line["event"] == "step"), {})
    ended = [line for line in lines if line["event"] == "epoch"]
    shown = f"{progress['phase']} {progress['done']}/{progress['total']}" if progress else ""
    return StageStatus(
        key,
        label,
        state,
        job_id,
        said,
        node=owner.get("host"),
        requeues=owner.get("requeues", 0),
        progress=f"{shown} epoch {last['epoch']}" if last else shown,
        done=progress["done"] / progress["total"] if progress.get("total") else None,
        loss=_number(last.get("loss")),
        dev_accuracy=_number(ended[-1].get("dev_accuracy")) if ended else None,
        examples_per_second=_number(last.get("examples_per_second")),
        eta_seconds=_eta(progress, owner),
    )


def _whole(note: dict[str, Any] | None) -> dict[str, Any]:
    """A note of progress; empty where there is none, or something else in its place."""
    numbers = {"done", "total", "time", "first", "first_time"} & set(note or {})
    if note is None or not {"phase", "done", "total", "time"} <= set(note):
        return {}
    return {} if any(_number(note[key]) is None for key in numbers) else note


def _number(value: object) -> float | None:
    """A finite number, or None for anything else that a file may hold."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return value if plain and math.isfinite(value) else None  # type: ignore[arg-type, return-value]


def _eta(progress: dict[str, Any], owner: dict[str, Any]) -> float | None:
    """Seconds to the end of training, at the mean speed since the process took the stage."""
    known = owner and {"first", "first_time"} <= set(progress)
    if not known or progress["phase"] != "train":
        return None
    done = progress["done"] - progress["first"]
    if done <= 0:
        return None
    speed = done / max(1e-9, progress["time"] - progress["first_time"])
    waited = max(0.0, time.time() - progress["time"])
    return float(max(0.0, (progress["total"] - progress["done"]) / speed - waited))


def _cells(status: StageStatus) -> list[str | Text]:
    colour = _COLOURS.get(status.state, "default" if status.state in _QUIET else "red")
    job = " ".join(filter(None, [status.job_id, status.node]))
    if status.requeues:
        job += f" (requeued {status.requeues}x)"
    return [
        f"{status.fingerprint[:8]} {status.label}",
        Text(status.state, style=colour),
        job,
        status.progress or status.text,
        f"{status.loss:.3f}" if status.loss is not None else "",
        f"{status.examples_per_second:.1f}" if status.examples_per_second is not None else "",
        clock(status.eta_seconds) if status.eta_seconds is not None else "",
    ]


def clock(seconds: float) -> str:
    """Seconds as H:MM:SS."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
