"""The inputs of stages, kept for the next stage in the same process."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch

from heft_pipeline.adapters.kind import AdapterSettings
from heft_pipeline.data.answer_text import CHOICE, AnswerText
from heft_pipeline.data.prompts import Task
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.data.tokenized import tokenized_task
from heft_pipeline.models.base_model import Base, load_base, load_tokenizer
from heft_pipeline.models.settings import ModelSettings
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.stage.probe import probe_adapters, probe_base


def cached_task(stage: StageSpec, cache: Path | None = None) -> Task:
    """A stage's tokenised task, kept in memory for later stages of the same process.

    Args:
        stage: The stage; its model's tokenizer is used, and its seed decides the dev split.
        cache: The folder of tokenised tasks; None for no such folder.

    Returns:
        See :func:`~heft_pipeline.data.prompts.load_task`.
    """
    answers = stage.trained_answers, stage.scored_answers
    return _task(stage.data, stage.model, stage.seed, cache, *answers)


@functools.lru_cache(maxsize=8)
def _task(
    data: DataSettings,
    model: ModelSettings,
    seed: int,
    cache: Path | None,
    trained: AnswerText,
    scored: AnswerText,
) -> Task:
    load = lambda: load_tokenizer(model)  # noqa: E731
    return tokenized_task(data, str(model.content), seed, load, cache, trained, scored)


@functools.lru_cache(maxsize=1)
def cached_base(model: ModelSettings, device: torch.device) -> Base:
    """A base model, kept in memory for the next stage of the same process.

    Stages leave the model as it was. See :func:`~heft_pipeline.models.base_model.load_base` and
    :func:`~heft_pipeline.stage.probe.probe_base`.
    """
    return probe_base(load_base(model, device), f"model.id={model.id}")


def cached_probe(stage: StageSpec, device: torch.device) -> tuple[str, ...]:
    """What trying a stage's adapters on its model shows; each plan is tried once in a process.

    See :func:`~heft_pipeline.stage.probe.probe_adapters`.
    """
    # How long, how fast and on what they are trained does not matter here.
    same: dict[str, Any] = {"epochs": 1, "batch_size": 1, "warmup_ratio": 0.0, "learning_rate": 1.0}
    same |= {"loss": "answer", "answer": CHOICE, "end_token": False}
    chain = tuple(
        tuple(dataclasses.replace(adapter, **same) for adapter in part.adapters)
        for part in stage.chain
    )
    return _probed(stage.model, device, chain)


@functools.lru_cache(maxsize=1024)
def _probed(
    model: ModelSettings, device: torch.device, stages: tuple[tuple[AdapterSettings, ...], ...]
) -> tuple[str, ...]:
    return tuple(probe_adapters(cached_base(model, device), stages))
