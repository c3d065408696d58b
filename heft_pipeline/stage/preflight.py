"""Checks that need the data or the model's shape, made before anything is trained."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from heft_pipeline.adapters.adapter import Target, adapter_class
from heft_pipeline.adapters.kind import AdapterSettings
from heft_pipeline.data.prompts import Task
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.devices.resolve import resolve_device
from heft_pipeline.errors import UserError
from heft_pipeline.models.base_model import check_model, load_config, quieten
from heft_pipeline.models.settings import ModelSettings
from heft_pipeline.models.weight_headers import check_weights
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.scoring.generate import longest_answer
from heft_pipeline.stage.cached_inputs import cached_task

_RATES: dict[str, Any] = {"learning_rate": 1.0, "weight_decay": 0.0, "warmup_ratio": 0.0}
#: What this process has checked already, with the notes. Models, data and adapters to start from
#: are in a stage by their content, so the same keys cannot come to mean something else.
_FIT: dict[object, tuple[str, ...]] = {}


def preflight(stages: Iterable[StageSpec], tokenized: Path | None = None) -> list[str]:
    """Refuse stages whose model, data and adapters do not fit together.

    This reads the data and the model's configuration, but no weights.

    Args:
        stages: The stages to be trained.
        tokenized: The folder of tokenised tasks; None for no such folder.

    Returns:
        What qualifies the stages' results, or was decided because of a model: sentences for people.

    Raises:
        UserError: Something does not fit; the message names the setting.
    """
    quieten()
    notes: dict[str, None] = {}
    for stage in stages:
        device = resolve_device(stage.device)
        if (stage.model, device) not in _FIT:
            check_model(stage.model, device)
            check_weights(stage.model)
            _FIT[stage.model, device] = ()
        _check_merging(stage)
        # Large sweeps have many rates, which decide nothing about what fits.
        fitted = tuple(dataclasses.replace(adapter, **_RATES) for adapter in stage.adapters)
        answers = stage.trained_answers, stage.scored_answers
        key = (stage.model, stage.data, stage.seed, answers, fitted, stage.evaluation)
        if key not in _FIT:
            _FIT[key] = _notes_on(stage, fitted, cached_task(stage, tokenized))
        notes |= dict.fromkeys(_FIT[key])
    return list(notes)


def _notes_on(stage: StageSpec, fitted: tuple[AdapterSettings, ...], task: Task) -> tuple[str, ...]:
    """Check a stage's task and adapters, and say what qualifies its results."""
    _check_overlap(stage.data, task)
    _check_length(stage, task)
    _check_ids(stage.model, task)
    target = Target(stage.model, max(task.prompt_lengths))
    notes: list[str] = []
    for adapter in stage.adapters:
        key = (target, fitted, adapter.kind)
        if key not in _FIT:
            kind = adapter_class(adapter)
            kind.check(adapter, target)
            _FIT[key] = tuple(f"{target.name}: {note}" for note in kind.decided(adapter, target))
        notes += _FIT[key]
    return (*notes, *(f"{stage.data.name}: {note}" for note in task.notes))


def _check_overlap(data: DataSettings, task: Task) -> None:
    """Refuse to report rows that are also trained on or decide which epoch is kept."""
    if task.overlap and not data.allow_overlap:
        reported, other = task.overlap[0]
        raise UserError(
            f"data.eval_split={data.eval_split}: {len(task.overlap)} of {len(task.eval)} reported "
            f"rows of {data.name} are also training or dev rows (e.g. {reported} is {other}), so "
            "their accuracy would be too high; take them out, or allow them with "
            "data.allow_overlap=true"
        )


def _check_merging(stage: StageSpec) -> None:
    """Refuse to merge parents that cannot be added to the weights."""
    if not stage.merges_parents:
        return
    asking = next(adapter.kind for adapter in stage.adapters if adapter.merges_parents)
    edited = False
    for parent in (adapter for one in stage.chain[:-1] for adapter in one.adapters):
        if not parent.edits and (edited or not parent.mergeable):
            why = "stands on an adapter that edits its modules" if edited else "is no plain sum"
            raise UserError(
                f"{asking}.merge_parent=true: the parent ({parent.describe()}) {why}, so it "
                f"cannot be added to the weights; use {asking}.merge_parent=false"
            )
        edited = edited or (parent.edits and not parent.at_positions)


def _check_ids(model: ModelSettings, task: Task) -> None:
    """Refuse a tokenizer with tokens that the model has no embedding for."""
    size = load_config(model).get_text_config().vocab_size
    for example in task.examples:
        if max(example.prompt) >= size:
            raise UserError(
                f"model.id={model.id}: its tokenizer makes the token {max(example.prompt)} of row "
                f"{example.id}, and the model has embeddings for tokens 0 to {size - 1} only; use "
                "the tokenizer that belongs to the model, or resize its embeddings"
            )
    answers = {answer for e in task.examples for answer in (*e.choices, e.answer)}
    beyond = max(map(max, answers))
    if beyond >= size:
        raise UserError(
            f"model.id={model.id}: its tokenizer makes the token {beyond} of an answer choice, "
            f"and the model has embeddings for tokens 0 to {size - 1} only"
        )


def _check_length(stage: StageSpec, task: Task) -> None:
    model, data, evaluation = stage.model, stage.data, stage.evaluation
    limit = getattr(load_config(model).get_text_config(), "max_position_embeddings", None)
    written = 0
    if evaluation.mode == "generate":
        written = evaluation.max_new_tokens or longest_answer(task)
    longest, answer = max(
        ((len(e.prompt), max(written, len(e.answer), *map(len, e.choices))) for e in task.examples),
        key=sum,
    )
    if limit is not None and 0 < limit < longest + answer:  # XLNet's -1 is no limit
        raise UserError(
            f"data.max_prompt_tokens={data.max_prompt_tokens}: a prompt of {data.name} has "
            f"{longest} tokens and its answer {answer}, but {model.name} reads {limit}; use "
            f"data.max_prompt_tokens={limit - answer}"
        )
