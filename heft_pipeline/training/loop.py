"""The training loop of one stage."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from heft_pipeline.adapters.adapted import AdaptedModel
from heft_pipeline.adapters.kind import Schedule
from heft_pipeline.data.batches import AnsweredPrompt, Batch, epoch_batches
from heft_pipeline.data.prompts import Example, Task
from heft_pipeline.devices.memory import peak_mb
from heft_pipeline.devices.processes import Ranks
from heft_pipeline.errors import Interrupted, NonFiniteLoss
from heft_pipeline.scoring.score import Scorer, Scores
from heft_pipeline.training.accumulate import accumulate
from heft_pipeline.training.activation_reuse import reuse_activations
from heft_pipeline.training.checkpoint import Checkpoints
from heft_pipeline.training.flops import FlopCounter
from heft_pipeline.training.loss import step_loss
from heft_pipeline.training.metrics import MetricsLog
from heft_pipeline.training.settings import TrainingSettings
from heft_pipeline.training.state import Counters, TrainingState

log = logging.getLogger(__name__)


class Progress(Protocol):
    """Shows how far a stage has got."""

    def __call__(self, phase: str, done: int, total: int, note: str = "") -> None:
        """Show the current state.

        Args:
            phase: ``reuse``, ``train``, ``dev`` or ``eval``.
            done: The number of steps (``train``) or examples done.
            total: How many there are in all.
            note: The last loss or accuracy, for people.
        """


@dataclass(frozen=True)
class Control:
    """How a stage is watched and stopped, and which processes train it.

    Attributes:
        progress: Called after each step.
        should_stop: Called before each step; if it returns true, training ends with a checkpoint.
        ranks: The processes that train the stage together; each takes its part of every batch.
    """

    progress: Progress
    should_stop: Callable[[], bool]
    ranks: Ranks


@dataclass(frozen=True)
class Recipe:
    """How a stage is trained.

    Attributes:
        label: The stage's name, for people.
        seed: The seed of the order of examples and of dropout.
        schedule: How long to train, and the size and warm-up of the steps.
        training: All other settings of training.
        score: Scores the dev split; see :func:`~heft_pipeline.scoring.score.scorer`.
    """

    label: str
    seed: int
    schedule: Schedule
    training: TrainingSettings
    score: Scorer


class Trainer:
    """Trains the adapters of a stage; see :meth:`run`.

    Args:
        recipe: How to train.
        model: The model with the stage's adapters on it.
        task: The tokenised task.
        flops: Counts operations; created before adapters were put on the model.
        folder: The stage's folder, for ``checkpoint/`` and ``metrics.jsonl``.
        control: How the stage is watched and stopped.

    Attributes:
        reuse: What is reused, or why nothing is; known once training has begun.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: AdaptedModel,
        task: Task,
        flops: FlopCounter,
        folder: Path,
        control: Control,
    ) -> None:
        self._recipe, self._model, self._task, self._flops = recipe, model, task, flops
        self._folder, self._ranks = folder / "checkpoint", control.ranks
        self._should_stop, self._progress = control.should_stop, control.progress
        self._device = model.base.device
        self._steps_per_epoch = len(self._batches(0))
        self._total_steps = self._steps_per_epoch * recipe.schedule.epochs
        self._lowest_layer = min(adapter.lowest_layer() for adapter in model.trained)
        asked = recipe.training.micro_batch_tokens
        self._state = TrainingState(
            model,
            recipe.training.lr_scheduler,
            recipe.schedule.warmup_ratio,
            self._total_steps,
            Counters(micro_batch_tokens=0 if isinstance(asked, str) else asked),
        )
        self._checkpoints = Checkpoints(
            self._folder, self._state, model.constants(), self._ranks, self._device
        )
        if self._ranks.world > 1:  # the initial weights are equal, but not the dropout masks
            torch.manual_seed(recipe.seed * self._ranks.world + self._ranks.rank + 1)
        self.reuse = ""
        self._scoring = self._stop = False
        self._checkpoints.resume()
        self._state.counters.computes_in(model.base.dtype)
        if self._ranks.first:
            self._metrics = MetricsLog(
                folder / "metrics.jsonl", keep_steps=self._state.counters.step
            )
        self._saved_at = time.monotonic()

    def run(self) -> Counters:
        """Train to the end, starting from the last checkpoint if there is one.

        The optimiser is AdamW, with a linear warm-up and the configured decay. The loss of a batch
        is the mean cross-entropy of its answer tokens, or of all tokens but each sequence's first,
        however it is split into micro-batches. After each epoch the dev split is scored, if there
        is one; with ``selection=best`` the model ends with the adapters of the best epoch (the
        first of equals).

        Returns:
            What was done and what it cost.

        Raises:
            NonFiniteLoss: A loss or gradient was NaN or infinite.
            Interrupted: ``should_stop`` returned true; a checkpoint was written.
        """
        counters, best = self._state.counters, self._recipe.training.selection == "best"
        self._compute_reused()
        while counters.epoch < self._recipe.schedule.epochs and not self._out_of_patience():
            done = counters.step - counters.epoch * self._steps_per_epoch
            for indices in self._batches(counters.epoch)[done:]:
                self._stop_if_asked()
                self._step([self._task.train[i] for i in indices])
                if self._checkpoint_is_due():
                    self._save()
            dev = self._score_dev()
            if dev is not None and dev.accuracy > counters.best_accuracy:
                counters.best_accuracy, counters.best_epoch = dev.accuracy, counters.epoch
                if best:
                    self._checkpoints.save_best()
            self._end_epoch(dev)
        self._checkpoints.wait()
        if best:
            self._checkpoints.load_best()
        counters.train_flop = sum(self._ranks.gather(counters.train_flop))
        return counters

    def _compute_reused(self) -> None:
        """Compute once what no epoch changes; the time and operations count as training.

        A resumed stage does this again but does not count it, like all other work that is repeated.
        """
        counters = self._state.counters
        counted = counters.resumes == 0

        def count(rows: int, tokens: int, layers: int) -> None:
            if counted and not self._scoring:
                share = layers / len(self._model.base.layers)
                counters.train_flop += share * self._flops.forward(rows, tokens, 1)

        started = time.perf_counter()
        trained = [AnsweredPrompt(e.prompt, e.answer) for e in self._task.train]
        dev = [AnsweredPrompt(e.prompt, (0,)) for e in self._task.dev]  # no answer is read
        self.reuse = reuse_activations(
            self._model,
            self._recipe.training,
            [*trained, *dev],
            self._folder,
            advance=lambda done, total: self._progress("reuse", done, total),
            on_pass=count,
        )
        if counted:
            counters.reuse_seconds = time.perf_counter() - started
            counters.train_seconds += counters.reuse_seconds
        counted = True  # from here on: what was not kept is computed at each use
        log.info("%s: %s", self._recipe.label, self.reuse)

    def _step(self, examples: Sequence[Example]) -> None:
        """Do one optimiser step: gradients, clipping, update and logging."""
        started, state = time.perf_counter(), self._state
        self._model.training(True)
        answered = [AnsweredPrompt(e.prompt, e.answer) for e in examples]
        loss, state.counters.micro_batch_tokens = accumulate(
            self._model,
            self._ranks.share(answered),
            step_loss(self._recipe.schedule.loss, answered),
            state.counters.micro_batch_tokens,
            state.parameters.values(),
            self._count,
            by_length=not self._recipe.training.group_by_length,
        )
        self._sum_over_ranks(loss)
        norm = torch.nn.utils.clip_grad_norm_(
            state.parameters.values(), self._recipe.training.max_grad_norm
        )
        state.healthy &= torch.isfinite(loss) & torch.isfinite(norm)
        learning_rate = state.scheduler.get_last_lr()[0]
        state.optimizer.step()
        state.scheduler.step()
        state.optimizer.zero_grad(set_to_none=True)
        self._end_step(len(examples), loss, norm, learning_rate, started)

    def _sum_over_ranks(self, loss: torch.Tensor) -> None:
        """Add up gradients and the loss over all processes, and agree on whether to stop."""
        if self._ranks.world > 1:
            stop = torch.tensor(float(self._should_stop()), device=self._device)
            self._ranks.sum_gradients(self._state.parameters.values(), loss, stop)
            self._stop = bool(stop.item())

    def _end_step(
        self, examples: int, loss: torch.Tensor, norm: torch.Tensor, rate: float, started: float
    ) -> None:
        counters, every = self._state.counters, self._recipe.training.log_every_steps
        counters.step += 1
        counters.examples += examples
        counters.epoch_examples += examples
        note, logged = "", counters.step % every == 0
        if self._device.type == "cpu" or logged:
            self._check_health()
            note = f"loss {loss.item():.3f}"
        self._state.epoch_loss += loss.double() * examples
        seconds = time.perf_counter() - started
        counters.train_seconds += seconds
        if logged and self._ranks.first:
            self._metrics.write(
                "step",
                counters.step,
                counters.epoch + 1,
                loss=loss.item(),
                learning_rate=rate,
                grad_norm=norm.item(),
                examples_per_second=examples / seconds,
            )
        self._progress("train", counters.step, self._total_steps, note)

    def _score_dev(self) -> Scores | None:
        """Score the dev split at the end of an epoch; None if there is none."""
        self._check_health()
        counters = self._state.counters
        if not self._task.dev:
            counters.epoch += 1
            return None
        started = time.perf_counter()
        self._model.training(False)
        self._scoring = True
        with self._model.between_steps():
            dev = self._recipe.score(self._model, self._task.dev, ranks=self._ranks)
        self._scoring = False
        counters.dev_seconds += time.perf_counter() - started
        counters.epoch += 1
        return dev

    def _end_epoch(self, dev: Scores | None) -> None:
        """Log an epoch and write a checkpoint."""
        state, counters = self._state, self._state.counters
        if self._ranks.first:
            self._metrics.write(
                "epoch",
                counters.step,
                counters.epoch,
                train_loss=state.epoch_loss.item() / max(1, counters.epoch_examples),
                **({"dev_accuracy": dev.accuracy, "dev_loss": dev.loss} if dev else {}),
                train_seconds=counters.train_seconds,
                peak_memory_mb=peak_mb(self._device),
            )
        state.epoch_loss.zero_()
        counters.epoch_examples = 0
        self._save()
        note = f"dev {dev.accuracy:.1%}" if dev else f"epoch {counters.epoch} done"
        self._progress("train", counters.step, self._total_steps, note)

    def _stop_if_asked(self) -> None:
        if self._stop or (self._ranks.world == 1 and self._should_stop()):
            self._save()
            self._checkpoints.wait()
            step = self._state.counters.step
            raise Interrupted(f"{self._recipe.label} stopped at step {step}")

    def _checkpoint_is_due(self) -> bool:
        """Whether the last checkpoint is old; every few steps, process 0's clock decides."""
        training = self._recipe.training
        if self._ranks.world > 1 and self._state.counters.step % training.log_every_steps:
            return False
        due = time.monotonic() - self._saved_at > training.checkpoint_every_seconds
        return bool(self._ranks.from_first(due))

    def _save(self) -> None:
        self._check_health()
        self._saved_at = time.monotonic()
        self._checkpoints.save()

    def _out_of_patience(self) -> bool:
        patience, counters = self._recipe.training.early_stopping_patience, self._state.counters
        return patience is not None and counters.epoch - counters.best_epoch >= patience

    def _check_health(self) -> None:
        if self._state.healthy.item():
            return
        adapters = [adapter.settings for adapter in self._model.trained]
        rates = " and ".join(f"{a.kind}.learning_rate={a.learning_rate:g}" for a in adapters)
        kept, counters = self._checkpoints.last, self._state.counters
        raise NonFiniteLoss(
            f"{self._recipe.label}: the loss or its gradient was NaN or infinite by step "
            f"{counters.step} (epoch {counters.epoch + 1}); lower {rates}. "
            + (f"The last good checkpoint is kept: {kept}" if kept else "")
        )

    def _batches(self, epoch: int) -> list[list[int]]:
        recipe = self._recipe
        return epoch_batches(
            self._task.train,
            recipe.schedule.batch_size,
            recipe.seed,
            epoch,
            recipe.training.group_by_length,
            with_answers=not self._task.shared,
        )

    def _count(self, batch: Batch) -> None:
        """Count the operations of one forward and backward pass."""
        work = self._model.forward.work(batch)
        answers = self._recipe.schedule.loss == "answer"
        self._state.counters.train_flop += self._flops.training(
            batch.input_ids.shape[0],
            work.tokens,
            batch.answer_tokens if answers else work.tokens,
            self._lowest_layer,
            reused=work.reused,
            skipped=work.skipped_layers,
        )
