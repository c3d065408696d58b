"""What stages read, kept for the next stage in the same process."""

import functools
from pathlib import Path

import torch

from heft_pipeline.data.prompts import Task
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.data.tokenized import tokenized_task
from heft_pipeline.models.base import Base, load_base, load_tokenizer
from heft_pipeline.models.settings import ModelSettings


@functools.lru_cache(maxsize=8)
def cached_task(
    data: DataSettings, model: ModelSettings, seed: int, cache: Path | None = None
) -> Task:
    """The tokenised task of an earlier stage, where it is the same.

    Args:
        data: The task.
        model: The model whose tokenizer is used.
        seed: Decides the dev split.
        cache: The folder of tokenised tasks; None for none.

    Returns:
        What :func:`~heft_pipeline.data.prompts.load_task` gives.
    """
    return tokenized_task(data, str(model.content), seed, lambda: load_tokenizer(model), cache)


@functools.lru_cache(maxsize=1)
def cached_base(model: ModelSettings, device: torch.device) -> Base:
    """The base model of the stage before, where it is the same; stages leave it as it was.

    Args:
        model: The model.
        device: Where it is.

    Returns:
        What :func:`~heft_pipeline.models.base.load_base` gives.
    """
    return load_base(model, device)
