"""The state of training: its counters, and everything that changes from step to step."""

from dataclasses import dataclass, field
from typing import Any

import torch

from heft_pipeline.adapters.adapted import AdaptedModel
from heft_pipeline.errors import UserError
from heft_pipeline.training.optimizer import new_optimizer, new_scheduler


@dataclass
class Counters:
    """How far training has got and what it has cost; a resume keeps all of it.

    Attributes:
        step: Optimiser steps done.
        epoch: Whole epochs done.
        best_accuracy: The highest dev accuracy so far; -1 before the first.
        best_epoch: The epoch of that accuracy, from 1.
        train_seconds: Wall time of optimiser steps.
        dev_seconds: Wall time of dev evaluations.
        train_flop: Floating-point operations of training.
        examples: Examples trained on.
        epoch_loss: The summed loss of this epoch's examples so far.
        epoch_examples: The number of these examples.
        resumes: How often training was resumed from a checkpoint.
        reuse_seconds: The part of ``train_seconds`` that computing reused activations took.
        micro_batch_tokens: The most padded tokens in a pass, halved whenever memory runs out; 0
            for whole batches.
        dtypes: The dtypes of the frozen weights, in order; several if training was resumed on a
            device that computes in another one.
    """

    step: int = 0
    epoch: int = 0
    best_accuracy: float = -1.0
    best_epoch: int = 0
    train_seconds: float = 0.0
    dev_seconds: float = 0.0
    train_flop: float = 0.0
    examples: int = 0
    epoch_loss: float = 0.0
    epoch_examples: int = 0
    resumes: int = 0
    reuse_seconds: float = 0.0
    micro_batch_tokens: int = 0
    dtypes: list[str] = field(default_factory=list)

    def computes_in(self, dtype: str) -> None:
        """Note the dtype of the frozen weights from here on."""
        if self.dtypes[-1:] != [dtype]:
            self.dtypes.append(dtype)


class TrainingState:
    """Everything that changes while a stage is trained.

    Args:
        model: The model with the stage's adapters on it.
        lr_scheduler: The schedule's name.
        warmup_ratio: The share of all steps over which the learning rate rises.
        steps: The number of all optimiser steps.
        counters: The counters at the start.

    Attributes:
        parameters: The trained parameters, under ``KIND/NAME``.
        optimizer: Their optimiser.
        scheduler: The schedule of their learning rate.
        counters: See :class:`Counters`.
        healthy: Whether every loss and gradient so far was finite. It is on the device, because
            reading it at each step would stall a GPU.
        epoch_loss: The summed loss of this epoch's examples so far, on the device.
    """

    def __init__(
        self,
        model: AdaptedModel,
        lr_scheduler: str,
        warmup_ratio: float,
        steps: int,
        counters: Counters,
    ) -> None:
        device = model.base.device
        self.parameters = model.parameters()
        self.optimizer = new_optimizer(model.trained, device)
        self.scheduler: Any = new_scheduler(self.optimizer, lr_scheduler, warmup_ratio, steps)
        self.counters = counters
        self.healthy = torch.ones((), dtype=torch.bool, device=device)
        self.epoch_loss = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def names(self) -> dict[torch.Tensor, str]:
        """The parameters' names."""
        return {parameter: name for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load_parameters(self, tensors: dict[str, torch.Tensor]) -> None:
        """Set the trained parameters to the given values, by name.

        Args:
            tensors: The values; others among them are left alone.

        Raises:
            UserError: A parameter has none, or one of another shape.
        """
        for name, parameter in self.parameters.items():
            saved = tuple(tensors[name].shape) if name in tensors else None
            # Without this, copy_ would repeat a smaller tensor.
            if saved != tuple(parameter.shape):
                raise UserError(
                    f"the checkpoint does not belong to this stage: {name} has the shape "
                    f"{tuple(parameter.shape)} here and {saved or 'no value'} there; remove the "
                    "folder checkpoint/ of the stage and run the same command again"
                )
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[name])
