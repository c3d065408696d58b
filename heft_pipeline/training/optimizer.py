"""The optimiser and its schedule."""

from collections.abc import Sequence
from typing import Any

import torch

from heft_pipeline.adapters.adapter import Adapter


def new_optimizer(adapters: Sequence[Adapter], device: torch.device) -> torch.optim.Optimizer:
    """AdamW for parameters on ``device``, with each adapter's learning rate and weight decay."""
    groups: list[dict[str, Any]] = []
    for adapter in adapters:
        settings, undecayed = adapter.settings, adapter.undecayed()
        named = adapter.parameters()
        for decay, parameters in (
            (settings.weight_decay, [p for name, p in named.items() if name not in undecayed]),
            (0.0, [p for name, p in named.items() if name in undecayed]),
        ):
            if parameters:
                groups.append(
                    {"params": parameters, "lr": settings.learning_rate, "weight_decay": decay}
                )
    return torch.optim.AdamW(groups, fused=device.type == "cuda")


def new_scheduler(
    optimizer: torch.optim.Optimizer, name: str, warmup_ratio: float, steps: int
) -> Any:
    """The schedule of the learning rate, which rises from 0 and then follows ``name``.

    Args:
        optimizer: The optimiser.
        name: ``linear``, ``cosine`` or ``constant``.
        warmup_ratio: The share of all steps over which the rate rises.
        steps: The number of all optimiser steps.

    Returns:
        A torch learning-rate scheduler, to be stepped after each optimiser step.
    """
    from transformers import get_scheduler

    full_name = "constant_with_warmup" if name == "constant" else name
    return get_scheduler(full_name, optimizer, round(warmup_ratio * steps), steps)
