"""Where training stands: its counters, and everything that changes from step to step."""

from dataclasses import dataclass
from typing import Any

import torch

from heft_pipeline.adapters.adapted import AdaptedModel
from heft_pipeline.training.optimizer import new_optimizer, new_scheduler


@dataclass
class Counters:
    """How far training is and what it has cost; all of it survives a resume.

    Attributes:
        step: Optimiser steps done.
        epoch: Whole epochs done.
        best_accuracy: The highest dev accuracy so far; -1 before the first.
        best_epoch: Its epoch, from 1.
        train_seconds: Wall time of optimiser steps.
        dev_seconds: Wall time of dev evaluations.
        train_flop: Floating-point operations of training.
        examples: Examples trained on.
        epoch_loss: Summed loss of this epoch's examples so far.
        epoch_examples: Their number.
        resumes: How often training went on from a checkpoint.
        reuse_seconds: Of ``train_seconds``, what computing reused activations took.
        micro_batch_tokens: Most padded tokens in a pass, as it turned out; 0 for whole batches.
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


class TrainingState:
    """Everything that changes while a stage is trained.

    Args:
        model: The model with the stage's adapters on it.
        lr_scheduler: The schedule's name.
        warmup_ratio: The share of all steps over which the learning rate rises.
        steps: All optimiser steps.
        counters: The counters at the start.

    Attributes:
        parameters: What is trained, under ``KIND/NAME``.
        optimizer: Its optimiser.
        scheduler: The schedule of its learning rate.
        counters: See :class:`Counters`.
        healthy: Whether every loss and gradient so far was finite; on the device, since reading
            it at each step would stall a GPU.
        epoch_loss: Summed loss of this epoch's examples so far, on the device.
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
        """Give the trained parameters other values.

        Args:
            tensors: The values, by name.
        """
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[name])
