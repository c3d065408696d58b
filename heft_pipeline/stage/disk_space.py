"""How much room on disk stages need, before they are trained; no weights are read."""

import heapq
import math
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heft_pipeline.data.prompts import Task
from heft_pipeline.files.byte_sizes import in_bytes
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.scoring.generate import longest_answer
from heft_pipeline.stage.cached_inputs import cached_task
from heft_pipeline.stage.forecast import trained_parameters
from heft_pipeline.store.stage_folders import Store

#: Bytes of a trained value, which is float32 on disk.
_VALUE = 4
#: What a checkpoint holds of each trained value: itself, AdamW's two moments, and its value in the
#: best epoch; three times, because the last and the one before stay until a new one is whole.
_CHECKPOINT = 3 * (1 + 2 + 1) * _VALUE
#: Bytes of the random generators' states and of names, in all of them.
_CHECKPOINT_REST = 37_500
#: Bytes of a row of predictions.parquet besides its choices: its id, answer, prediction and credit.
_ROW = 32
#: Bytes of a choice: its log-probability, and with choices of a row's own, its two lengths as well.
_SHARED_CHOICE, _OWN_CHOICE = 8, 16
#: Bytes of a written token.
_WRITTEN_TOKEN = 5
#: Bytes of a line of metrics.jsonl.
_METRICS_LINE = 200
#: Below this many times the estimate, room is called scarce.
_AMPLE = 2.0
#: A stage's small files, with what a file system rounds them up to.
_SMALL_FILES = 40_000


@dataclass(frozen=True)
class DiskNeed:
    """The bytes that stages will add to a disk.

    Attributes:
        adapters: The trained adapters, which stay.
        kept: Predictions, metrics and small files, which stay.
        checkpoints: Checkpoints of the stages that are trained at the same time.
    """

    adapters: float
    kept: float
    checkpoints: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.adapters + self.kept + self.checkpoints


def disk_need(stages: Iterable[StageSpec], store: Store, at_once: int = 1) -> DiskNeed:
    """Estimate what stages will write.

    Left out is what is small or may be left out: the report, logs of libraries, activations that
    are kept in a file only where there is plenty of room, and tokenised tasks.

    Args:
        stages: The unique stages that are not complete.
        store: Where they are; what an interrupted stage has there already does not count.
        at_once: How many are trained at the same time.

    Returns:
        The estimate.

    Raises:
        UserError: The model or the data cannot be read.
    """
    adapters = kept = 0.0
    checkpoints: list[float] = []
    tasks: dict[Any, _Rows] = {}
    for stage in stages:
        parameters = trained_parameters(stage)
        folder = store.folder(stage.fingerprint)
        adapters += max(0.0, _VALUE * parameters - _bytes_in(folder / "adapter"))
        there = _bytes_in(folder / "checkpoint")
        holds = _CHECKPOINT * parameters + _CHECKPOINT_REST if parameters else 0
        checkpoints.append(max(0.0, holds - there))
        # The seed decides only which rows are held out for dev.
        key = stage.model, stage.data, stage.scored_answers, stage.evaluation
        if key not in tasks:
            tasks[key] = _Rows.of(stage, cached_task(stage, store.tokenized))
        kept += tasks[key].bytes + _metrics(stage, tasks[key].trained) + _SMALL_FILES
    together = heapq.nlargest(max(1, at_once), checkpoints)
    return DiskNeed(adapters, kept, sum(together))


@dataclass(frozen=True)
class Room:
    """What stages need on a disk, and what there is.

    Attributes:
        need: The estimate.
        free: The bytes that this user may still write there.
        stages: How many stages are to be trained.
        at_once: How many of them at the same time.
    """

    need: DiskNeed
    free: int
    stages: int
    at_once: int

    @property
    def enough(self) -> bool:
        """Whether there is as much as the estimate."""
        return self.free >= self.need.total

    @property
    def ample(self) -> bool:
        """Whether there is enough even if the estimate is far too low."""
        return self.free >= _AMPLE * self.need.total

    def __str__(self) -> str:
        """For people: how much is needed, for what, and how much there is."""
        need = self.need
        together = min(self.at_once, self.stages)
        at_once = f" of {together} stages at once" if together > 1 else ""
        return (
            f"{'this stage needs' if self.stages == 1 else f'{self.stages:,} stages need'} about "
            f"{in_bytes(need.total)} ({in_bytes(need.adapters)} of adapters, "
            f"{in_bytes(need.kept)} of predictions and records, and while they are trained "
            f"{in_bytes(need.checkpoints)} of checkpoints{at_once}), and "
            f"{in_bytes(self.free)} are free"
        )


def room_for(stages: Sequence[StageSpec], store: Store, at_once: int = 1) -> Room:
    """Compare what stages will write with what the disk, or the user's quota on it, has room for.

    Args:
        stages: The unique stages that are not complete.
        store: Where they will be; its folder need not exist yet.
        at_once: How many are trained at the same time.

    Returns:
        Both, to be shown.

    Raises:
        UserError: The model or the data cannot be read.
    """
    folder = store.output_dir.absolute()
    free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.is_dir())).free
    return Room(disk_need(stages, store, at_once), free, len(stages), at_once)


@dataclass(frozen=True)
class _Rows:
    """How many rows a task trains on, and the bytes of its predictions."""

    trained: int
    bytes: float

    @classmethod
    def of(cls, stage: StageSpec, task: Task) -> "_Rows":
        row: float = _ROW
        if task.shared:
            row += _SHARED_CHOICE * len(task.labels)
        else:
            choices = sum(len(example.choices) for example in task.eval)
            row += _OWN_CHOICE * choices / max(1, len(task.eval))
        if stage.evaluation.mode == "generate":
            tokens = stage.evaluation.max_new_tokens or longest_answer(task)
            row += _WRITTEN_TOKEN * tokens
        return cls(len(task.train), row * len(task.eval))


def _metrics(stage: StageSpec, rows: int) -> float:
    """The bytes of a stage's ``metrics.jsonl``."""
    if stage.training is None:
        return 0.0
    steps = stage.epochs * math.ceil(rows / stage.adapters[0].batch_size)
    return _METRICS_LINE * (steps / stage.training.log_every_steps + stage.epochs)


def _bytes_in(folder: Path) -> int:
    """The bytes of all files in a folder; none if it is not there."""
    try:
        with os.scandir(folder) as entries:
            return sum(
                _bytes_in(Path(entry)) if entry.is_dir() else entry.stat().st_size
                for entry in entries
            )
    except FileNotFoundError:
        return 0
