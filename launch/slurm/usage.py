"""What a sweep's jobs asked for, and what they used, from the cluster's accounts."""

import math
import re
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import labelled
from heft_pipeline.plan.stage_spec import from_json
from heft_pipeline.store.sweep_folders import Sweep
from launch.progress import say_line
from launch.slurm.ask import NoAnswer, Patience
from launch.slurm.job_notes import read_notes
from launch.slurm.job_states import expanded
from launch.slurm.settings import megabytes
from launch.status import clock

#: With duplicates: a requeued job has a row for each of its runs.
_SACCT = (
    "sacct", "--noheader", "--parsable2", "--duplicates",
    "--format=JobID,State,ElapsedRaw,TimelimitRaw,ReqMem,MaxRSS,AllocTRES,AllocNodes",
)  # fmt: skip
_PATIENCE_SECONDS = 5.0
#: What is suggested to ask for: this much more than the most that was used.
_MARGIN = 1.3
_SUGGESTED_SECONDS, _SUGGESTED_MEGABYTES = 300, 1024


@dataclass
class Usage:
    """What a job asked for and used, all its runs together.

    Attributes:
        state: SLURM's word for its last run.
        runs: How often it was started.
        seconds: How long it has run.
        longest: Its longest run, in seconds.
        asked_seconds: Its time limit; None for none.
        megabytes: The most memory that a step used; None where the cluster does not measure it.
        asked_megabytes: What it asked for; None for nothing.
        gpu_seconds: Seconds times GPUs that were allocated to it.
    """

    state: str = ""
    runs: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    asked_seconds: float | None = None
    megabytes: float | None = None
    asked_megabytes: float | None = None
    gpu_seconds: float = 0.0

    def add(self, job: bool, words: list[str]) -> None:
        """Take a row of sacct's.

        Args:
            job: Whether it is about the whole job rather than one of its steps.
            words: State, seconds, minutes of the limit, asked memory, used memory, allocated
                resources, nodes.
        """
        state, seconds, limit, asked, used, resources, _ = words
        if (size := megabytes(used, bare="B")) is not None:
            self.megabytes = max(self.megabytes or 0.0, size)
        if not job:
            return
        took = float(seconds or 0)
        gpus = re.search(r"gres/gpu=(\d+)", resources)
        self.state = state.split(" ")[0]
        self.runs += took > 0
        self.seconds += took
        self.longest = max(self.longest, took)
        self.asked_seconds = float(limit) * 60 if limit.isdigit() else None
        self.asked_megabytes = megabytes(asked, bare="B")
        self.gpu_seconds += took * (int(gpus.group(1)) if gpus else 0)


def sweep_usage(sweep: Sweep) -> dict[str, Usage]:
    """What a sweep's jobs asked for and used.

    Args:
        sweep: The sweep.

    Returns:
        The usage of each stage that was submitted, by fingerprint.

    Raises:
        UserError: No stage was submitted to SLURM, or the cluster keeps no accounts.
    """
    notes = read_notes(sweep.store, sweep.plan()["stages"])
    jobs = {note.job_id: key for key, note in notes.items() if note.job_id}
    if not jobs:
        raise UserError(f"no stage of {sweep.name} was submitted to SLURM")
    arrays = sorted({str(job).split("_")[0] for job in jobs})
    try:
        text = Patience(_PATIENCE_SECONDS).ask([*_SACCT, "--jobs", ",".join(arrays)])
    except NoAnswer as error:
        raise UserError(
            f"this cluster's accounts do not answer ({error}); without them nothing is known of "
            "what jobs used. Each stage's own time and memory are in its result.json and in the "
            "report"
        ) from error
    found: dict[str, Usage] = {}
    for line in text.splitlines():
        job_id, *words = line.split("|", 7)
        whole, _, step = job_id.partition(".")
        for one in expanded(whole):
            if one in jobs:
                found.setdefault(jobs[one], Usage()).add(not step, words)
    return found


def show_usage(sweep: Sweep, console: Console) -> None:
    """Show a table of what a sweep's jobs asked for and used, and what would have been enough.

    Args:
        sweep: The sweep.
        console: Where to show it.

    Raises:
        UserError: There is nothing to show.
    """
    usage = sweep_usage(sweep)
    stages = {key: from_json(data) for key, data in sweep.plan()["stages"].items()}
    label = labelled(stages.values())
    hours = sum(one.gpu_seconds for one in usage.values()) / 3600
    table = Table(title=f"{sweep.name}: {hours:.2f} GPU hours", title_justify="left")
    table.add_column("stage")
    table.add_column("state", no_wrap=True)
    for heading in ("runs", "longest", "limit", "memory", "asked", "GPU h"):
        table.add_column(heading, justify="right")
    for key in [key for key in stages if key in usage]:
        row = _cells(usage[key])
        table.add_row(f"{key[:8]} {label(stages[key])}", usage[key].state.lower(), *row)
    console.print(table)
    for line in suggestions(list(usage.values())):
        say_line(console, line)


def suggestions(usage: list[Usage]) -> list[str]:
    """What would have been enough to ask for.

    Args:
        usage: What jobs asked for and used.

    Returns:
        Sentences with settings of the launcher; empty where what was asked for fits.
    """
    lines = []
    done = [one for one in usage if one.state == "COMPLETED"]
    longest = max((one.longest for one in done), default=0.0)
    asked = min((one.asked_seconds for one in done if one.asked_seconds), default=0.0)
    enough = math.ceil(longest * _MARGIN / _SUGGESTED_SECONDS) * _SUGGESTED_SECONDS
    if 0 < enough < asked / 2:
        lines.append(
            f"The longest run took {clock(longest)} of {clock(asked)}; "
            f"hydra.launcher.time={clock(enough)} would do, and short jobs start sooner."
        )
    most = max((one.megabytes for one in done if one.megabytes), default=0.0)
    had = min((one.asked_megabytes for one in done if one.asked_megabytes), default=0.0)
    needed = math.ceil(most * _MARGIN / _SUGGESTED_MEGABYTES)
    if 0 < needed * _SUGGESTED_MEGABYTES < had / 2:
        lines.append(
            f"The most memory used was {_memory(most)} of {_memory(had)}; "
            f"hydra.launcher.mem={needed}G would do."
        )
    return lines


def _cells(one: Usage) -> list[Any]:
    return [
        str(one.runs),
        clock(one.longest),
        clock(one.asked_seconds) if one.asked_seconds is not None else "",
        _memory(one.megabytes) if one.megabytes is not None else "",
        _memory(one.asked_megabytes) if one.asked_megabytes is not None else "",
        f"{one.gpu_seconds / 3600:.2f}",
    ]


def _memory(size: float) -> str:
    return f"{size / 1024:.1f} GB" if size >= 1024 else f"{size:.0f} MB"
