"""Trainers of the peers that take their own times and record their losses."""

import io
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from heft_pipeline.data.batches import epoch_batches
from heft_pipeline.data.prompts import Task
from heft_pipeline.plan.stage_spec import StageSpec

with redirect_stdout(io.StringIO()):  # pyvene prints advice about an optional package
    import pyreft


class EpochTimes(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """The time of each epoch of a transformers trainer."""

    def __init__(self, device: torch.device, clock: Callable[[], float]) -> None:
        self._device, self._clock, self._since = device, clock, 0.0
        self.seconds: list[float] = []

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self._since = self._now()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(self._now() - self._since)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._clock()


class Shapes:
    """A collator that remembers the shapes of its batches.

    Args:
        collator: The collator that makes the batches.
    """

    def __init__(self, collator: Any) -> None:
        self._collator = collator
        self.seen: list[tuple[int, int]] = []

    def __call__(self, instances: Any) -> Any:
        """Collate."""
        batch = self._collator(instances)
        rows, tokens = batch["input_ids"].shape
        self.seen.append((rows, tokens))
        return batch


class OwnBatches:
    """The batches of this project's epochs, with a new epoch at each pass.

    Args:
        task: The task.
        batch_size: Examples per batch.
        stage: The stage, with its seed and its way of putting examples together.
    """

    def __init__(self, task: Task, batch_size: int, stage: StageSpec) -> None:
        assert stage.training is not None
        by_length = stage.training.group_by_length
        self._of = lambda epoch: epoch_batches(task.train, batch_size, stage.seed, epoch, by_length)
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._of(0))

    def __iter__(self) -> Iterator[list[int]]:
        self._epoch += 1
        return iter(self._of(self._epoch - 1))


class LossLog:
    """A mixin for trainers: records each step's loss at full precision, and fixes the batches."""

    step_losses: list[float]
    batches: "OwnBatches"

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the trainer's own loss and record it."""
        loss = super().compute_loss(*args, **kwargs)  # type: ignore[misc]
        self.step_losses.append(loss.item())
        return loss

    def get_train_dataloader(self) -> Any:
        """A loader of the batches in ``batches``."""
        trainer: Any = self
        return DataLoader(
            trainer.train_dataset, batch_sampler=self.batches, collate_fn=trainer.data_collator
        )


class CurrentReftTrainer(pyreft.ReftTrainerForCausalLM):  # type: ignore[misc, unused-ignore]
    """pyreft's trainer, for a transformers version that passes ``num_items_in_batch``."""

    def compute_loss(
        self, intervenable: Any, inputs: Any, return_outputs: bool = False, **_: Any
    ) -> Any:
        """Compute pyreft's loss."""
        return super().compute_loss(intervenable, inputs, return_outputs)


class CheckedReftTrainer(LossLog, CurrentReftTrainer):
    """pyreft's trainer for comparing losses."""


class CheckedTrainer(LossLog, Trainer):  # type: ignore[misc, unused-ignore]
    """transformers' trainer for comparing losses."""


@dataclass(frozen=True)
class Peer:
    """The inputs of a trainer.

    Attributes:
        model: The model with a new adapter.
        rows: The training rows.
        collator: Makes batches of the rows.
        trainer: The trainer's class.
        checked: The same class with :class:`LossLog`.
        learning_rate: The adapter's learning rate.
        lowest_layer: The first decoder layer with a trained part.
    """

    model: Any
    rows: list[dict[str, Any]]
    collator: Any
    trainer: Any
    checked: Any
    learning_rate: float
    lowest_layer: int
