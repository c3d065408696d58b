"""This project's side: its stages and its scoring, through the same code that runs use."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.piece import Measured, Piece, composed
from heft_pipeline.adapters.adapted import adapted
from heft_pipeline.data.prompts import Task
from heft_pipeline.devices.memory import peak_mb, reset_peak
from heft_pipeline.devices.resolve import resolve_device
from heft_pipeline.models.base_model import quieten
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.scoring.generate import Decoding, longest_answer
from heft_pipeline.scoring.score import score
from heft_pipeline.stage.cached_inputs import cached_base, cached_task
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.training.metrics import read_metrics


class EpochClock:
    """Takes the times of a stage's epochs from its progress.

    Between two epochs the trainer scores the dev split and writes a checkpoint. No peer does that,
    so that time is left out.

    Args:
        epochs: How many epochs there will be.
        device: The device to wait for at the end of an epoch.
        clock: A clock in seconds.
    """

    def __init__(self, epochs: int, device: torch.device, clock: Callable[[], float]) -> None:
        self._epochs, self._device = epochs, device
        self._last_step, self._clock = 0, clock
        self._since = clock()
        self.seconds: list[float] = []

    def __call__(self, phase: str, done: int, total: int, note: str = "") -> None:
        """Receive a state; see ``heft_pipeline.training.loop.Progress``."""
        if phase != "train" or done % (total // self._epochs):
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        if done > self._last_step:  # the epoch's last step
            self.seconds.append(self._clock() - self._since)
            self._last_step = done
        else:  # the same step again: its dev split is scored
            self._since = self._clock()


def train(piece: Piece) -> Measured:
    """Run the last stage of a piece's run; the stages before it are not timed.

    Args:
        piece: A piece whose ``work`` is ``reft``, ``lora`` or ``reft_on_lora``.
    """
    quieten()
    run = composed(piece)
    stage = run.last
    device = resolve_device(stage.device)
    with tempfile.TemporaryDirectory(dir=piece.workdir) as folder:
        store = Store(Path(folder))
        # The stage then finds these in its process, as in a sweep.
        task = cached_task(stage, store.tokenized)
        cached_base(stage.model, device)
        for parent in run.stages[:-1]:
            run_stage(parent, store)
        clock = EpochClock(piece.epochs, device, piece.clock)
        result = run_stage(stage, store, progress=clock).result
        metrics = read_metrics(store.folder(stage.fingerprint) / "metrics.jsonl")
    epochs = [line for line in metrics if line["event"] == "epoch"]
    return Measured(
        dtype=result["dtype"],
        epoch_seconds=clock.seconds,
        examples=len(task.train),
        tokens=input_tokens(task),
        peak_memory_mb=epochs[-1]["peak_memory_mb"],
        flop=result["train_tflop"] * 1e12,
        losses=[m["loss"] for m in metrics if m["event"] == "step"] if piece.losses else [],
    )


def evaluate(piece: Piece) -> Measured:
    """Score the validation split with a new ReFT adapter, once after a warm-up batch.

    Args:
        piece: A piece whose ``work`` is ``score`` (log-probabilities) or ``generate``.
    """
    quieten()
    stage: StageSpec = composed(piece).last
    device = resolve_device(stage.device)
    task = cached_task(stage)
    base = cached_base(stage.model, device)
    how = None if piece.work == "score" else Decoding(longest_answer(task))
    size = stage.evaluation.batch_size
    with adapted(base, []) as model:
        torch.manual_seed(stage.seed)
        model.add(stage.adapters)
        model.finish()
        score(model, task.eval[: piece.batch_size], batch_size=size, decoding=how)
        reset_peak(device)
        started = piece.clock()
        scores = score(model, task.eval, batch_size=size, decoding=how)
        seconds = piece.clock() - started
    return Measured(
        dtype=base.dtype,
        epoch_seconds=[seconds],
        examples=len(task.eval),
        tokens=sum(len(e.prompt) for e in task.eval),
        peak_memory_mb=peak_mb(device),
        predictions=scores.predictions.tolist(),
    )


def input_tokens(task: Task) -> int:
    """The unpadded input tokens of an epoch: prompts, and answers without their last token."""
    return sum(len(e.prompt) + len(e.answer) - 1 for e in task.train)
