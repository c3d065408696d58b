"""The inputs of stages, kept for the next stage in the same process."""

import functools
from pathlib import Path

import torch

from heft_pipeline.data.prompts import Task
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.data.tokenized import tokenized_task
from heft_pipeline.models.base_model import Base, load_base, load_tokenizer
from heft_pipeline.models.settings import ModelSettings


@functools.lru_cache(maxsize=8)
def cached_task(
    data: DataSettings, model: ModelSettings, seed: int, cache: Path | None = None
) -> Task:
    """A tokenised task, kept in memory for later stages of the same process.

    Args:
        data: The task.
        model: The model whose tokenizer is used.
        seed: Decides the dev split.
        cache: The folder of tokenised tasks; None for no such folder.

    Returns:
        See :func:`~heft_pipeline.data.prompts.load_task`.
    """
    return tokenized_task(data, str(model.content), seed, lambda: load_tokenizer(model), cache)


@functools.lru_cache(maxsize=1)
def cached_base(model: ModelSettings, device: torch.device) -> Base:
    """A base model, kept in memory for the next stage of the same process.

    Stages leave the model as it was. See :func:`~heft_pipeline.models.base_model.load_base`.
    """
    return load_base(model, device)
