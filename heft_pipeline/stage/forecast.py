"""What stages will cost before they are trained: operations and memory.

Only the model's configuration and the data are read, and no weights.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from heft_pipeline.adapters.adapter import adapter_class
from heft_pipeline.adapters.kind import AdapterSettings
from heft_pipeline.data.prompts import Task
from heft_pipeline.models.base_model import Base, base_dtype, quieten, skeleton
from heft_pipeline.models.decoder import decoder_layers
from heft_pipeline.models.reuse.estimate import Choice, kept_sizes, why_outputs, work_of
from heft_pipeline.models.settings import ModelSettings
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.stage.cached_inputs import cached_task
from heft_pipeline.training.activation_reuse import pass_tokens, reusable
from heft_pipeline.training.expected_work import ExpectedWork, Shape, Steps
from heft_pipeline.training.flops import FlopCounter
from heft_pipeline.training.layer_operations import layer_operations
from heft_pipeline.training.loss import chunk_positions

#: Bytes of a trained value: it, its gradient and AdamW's two moments, all in float32.
_TRAINED_BYTES, _FROZEN_BYTES = 16, 4
#: Bytes of a weight in nf4 with double quantisation (Dettmers et al. 2023, arXiv 2305.14314,
#: section 3): 4.127 bits.
_NF4_BYTES = 4.127 / 8
#: Bytes of a logit in training besides its own: in float32, with its log-probability and gradient.
_LOGIT_BYTES = 12


@dataclass(frozen=True)
class Forecast:
    """What one stage will cost.

    Attributes:
        train_flop: The operations of training, as the training loop counts them.
        score_flop: The operations of scoring dev after each epoch, and the reported split.
        memory_bytes: The memory of the weights, of the adapters with their gradients and AdamW's
            moments, and, roughly, of the activations of the largest training pass.
        kept_bytes: The activations that are kept for reuse, in GPU memory or elsewhere.
        kept_instead: Why it is not keys and values that are kept; empty if it is.
        dtype: The dtype of the frozen weights.
    """

    train_flop: float
    score_flop: float
    memory_bytes: float
    kept_bytes: float
    kept_instead: str
    dtype: torch.dtype


def forecasts(
    stages: Iterable[StageSpec], tokenized: Path | None = None, *, bfloat16: bool = True
) -> Iterator[tuple[list[StageSpec], Forecast | Exception]]:
    """Say what stages will cost; those that differ only in what costs nothing share a forecast.

    A seed changes the cost by less than a percent, so the first of several seeds stands for all.

    Args:
        stages: The stages.
        tokenized: The folder of tokenised tasks; None for no such folder.
        bfloat16: Whether ``model.dtype=auto`` will be bfloat16.

    Yields:
        Stages that cost the same, with their forecast, or with what was raised instead of one: a
        ``UserError`` if the model or the data cannot be read.
    """
    quieten()
    alike: dict[Any, list[StageSpec]] = {}
    for stage in stages:
        alike.setdefault(_cost_key(stage, stage.epochs), []).append(stage)
    forecaster = _Forecaster(tokenized, torch.bfloat16 if bfloat16 else torch.float32)
    for group in alike.values():
        found: Forecast | Exception
        try:
            found = forecaster.forecast(group[0])
        except Exception as error:  # a model's own code can raise anything
            found = error
        yield group, found


def _cost_key(stage: StageSpec, epochs: int) -> tuple[Any, ...]:
    """What decides a stage's cost, apart from its seed, and with a given number of epochs."""
    own = tuple(_sized(a, epochs, a.batch_size) for a in stage.adapters)
    return stage.model, stage.data, own, _parents(stage), stage.training, stage.evaluation


def _parents(stage: StageSpec) -> tuple[AdapterSettings, ...]:
    return tuple(_sized(a) for parent in stage.chain[:-1] for a in parent.adapters)


def _sized(adapter: AdapterSettings, epochs: int = 1, batch_size: int = 1) -> AdapterSettings:
    """An adapter's settings without those that cost nothing."""
    return dataclasses.replace(
        adapter,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=1.0,
        weight_decay=0.0,
        warmup_ratio=0.0,
        init_from=None,
        init_content=None,
    )


def trained_parameters(stage: StageSpec) -> int:
    """How many values a stage trains, from the model's configuration alone.

    Args:
        stage: The stage.

    Raises:
        UserError: The model cannot be read.
    """
    return sum(_added(_sized(a), stage.model).parameters for a in stage.adapters)


class _Forecaster:
    """Makes forecasts, and keeps what several have in common.

    Args:
        tokenized: The folder of tokenised tasks.
        fast: The dtype that ``model.dtype=auto`` stands for.
    """

    def __init__(self, tokenized: Path | None, fast: torch.dtype) -> None:
        self._tokenized, self._fast = tokenized, fast
        self._tasks: dict[Any, Task] = {}
        self._works: dict[Any, ExpectedWork] = {}

    def forecast(self, stage: StageSpec) -> Forecast:
        model = _model(stage.model, self._fast)
        work = self._work(stage, model)
        train = work.training(stage.epochs) if stage.epochs else 0.0
        frozen = sum(_added(a, stage.model).parameters for a in _parents(stage))
        trained = trained_parameters(stage)
        adapters = _FROZEN_BYTES * frozen + _TRAINED_BYTES * trained
        activations = _activations(stage, model, work) if stage.epochs else 0.0
        return Forecast(
            train_flop=train,
            score_flop=work.scoring(stage.epochs),
            memory_bytes=model.bytes + adapters + activations,
            kept_bytes=work.kept_bytes,
            kept_instead=_kept_instead(stage, model, work),
            dtype=model.dtype,
        )

    def _work(self, stage: StageSpec, model: "_Model") -> ExpectedWork:
        """The work of a stage, shared by stages that differ only in their number of epochs."""
        key = _cost_key(stage, epochs=1)
        if key not in self._works:
            where = stage.model, stage.data, stage.trained_answers, stage.scored_answers
            if where not in self._tasks:
                self._tasks[where] = cached_task(stage, self._tokenized)
            self._works[key] = ExpectedWork(
                model.flops, model.num_layers, self._tasks[where], _steps(stage, model),
                stage.evaluation,
            )  # fmt: skip
        return self._works[key]


def _steps(stage: StageSpec, model: "_Model") -> Steps:
    """How a stage will run the model while it trains."""
    parents = [adapter for parent in stage.chain[:-1] for adapter in parent.adapters]
    training, adapters = stage.training, stage.adapters
    if training is None:
        nothing = kept_sizes(model.config, model.num_layers, 0, Choice(0, 0, ""))
        return Steps(1, stage.seed, "answer", True, 0, 0, nothing, 0, 0.0)
    choice = reusable(adapters, parents, model.num_layers, training)
    asked = training.micro_batch_tokens
    return Steps(
        batch_size=adapters[0].batch_size,
        seed=stage.seed,
        loss=adapters[0].loss,
        group_by_length=training.group_by_length,
        most_tokens=0 if isinstance(asked, str) else asked,
        lowest_layer=min(_added(_sized(a), stage.model).lowest_layer for a in adapters),
        kept=kept_sizes(model.config, model.num_layers, model.dtype.itemsize, choice),
        reuse_tokens=pass_tokens(training),
        budget=min((a.reuse_bytes for a in adapters if a.reuse_bytes is not None), default=0.0),
    )


def _kept_instead(stage: StageSpec, model: "_Model", work: ExpectedWork) -> str:
    steps = _steps(stage, model)
    if not steps.choice.suffix or work.keys_values:
        return ""
    return why_outputs(steps.kept, work.keys, steps.budget)


def _activations(stage: StageSpec, model: "_Model", work: ExpectedWork) -> float:
    """Roughly the bytes of the activations that the largest training pass keeps for its gradients.

    Counted are what each product with weights reads and writes, in the layers with a gradient. For
    a transformer of 16 bits, this is 32 bytes for each token, layer and unit of the width, of the
    34 of Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1). What torch saved for a small
    Llama was 0.6 to 1.0 times as much. The scores of an attention that keeps them are left out.
    """
    assert stage.training is not None
    steps = _steps(stage, model)
    widths = model.activations[min(steps.lowest_layer, model.num_layers - 1) :]
    hidden, size = model.config.get_text_config().hidden_size, model.dtype.itemsize
    if stage.training.gradient_checkpointing:
        a_token = size * (hidden * len(widths) + max(widths))
    else:
        a_token = size * sum(widths)
    vocabulary = model.config.get_text_config().vocab_size
    a_logit = vocabulary * (size + _LOGIT_BYTES)
    return max(
        shape.rows
        * (
            work_of(steps.choice, shape.tokens, shape.answer_tokens).tokens * a_token
            + _projected(stage, shape, vocabulary) * a_logit
        )
        for shape in work.shapes
    )


def _projected(stage: StageSpec, shape: Shape, vocabulary: int) -> float:
    """The positions of a row whose logits are in memory at once."""
    if stage.adapters[0].loss == "answer":
        return shape.answer_tokens
    positions = chunk_positions(vocabulary)
    return min(shape.tokens, positions / shape.rows)


@dataclass(frozen=True)
class _Model:
    """What a forecast needs to know of a model.

    Attributes:
        flops: Counts its operations.
        num_layers: How many decoder layers it has.
        config: Its transformers config.
        dtype: The dtype of its weights.
        bytes: The memory that they take.
        activations: The values that a token's products read and write in each layer.
    """

    flops: FlopCounter
    num_layers: int
    config: Any
    dtype: torch.dtype
    bytes: float
    activations: tuple[float, ...]


@functools.lru_cache(maxsize=16)
def _model(settings: ModelSettings, fast: torch.dtype) -> _Model:
    bare = skeleton(settings)
    _, layers = decoder_layers(bare)
    dtype = base_dtype(settings, fast)
    whole = sum(parameter.numel() for parameter in bare.parameters())
    packed = 0
    if settings.quantization == "nf4":
        linear = [one for one in layers.modules() if isinstance(one, nn.Linear)]
        packed = sum(one.weight.numel() for one in linear)
    return _Model(
        flops=FlopCounter(bare, layers),
        num_layers=len(layers),
        config=bare.config,
        dtype=dtype,
        bytes=(whole - packed) * dtype.itemsize + packed * _NF4_BYTES,
        activations=tuple(one.activations for one in layer_operations(bare, layers)),
    )


@dataclass(frozen=True)
class _Added:
    """What an adapter adds to a model: its parameters, and the first layer with a gradient."""

    parameters: int
    lowest_layer: int


@functools.lru_cache(maxsize=1024)
def _added(settings: AdapterSettings, model: ModelSettings) -> _Added:
    """What an adapter adds to a model, by its settings alone or on the model's skeleton."""
    known = _model(model, torch.float32)
    hidden = known.config.get_text_config().hidden_size
    if (count := settings.parameters_on(hidden, known.num_layers)) is not None:
        return _Added(count, settings.reach().first_layer)
    bare = skeleton(model)
    path, layers = decoder_layers(bare)
    base = Base(bare, None, layers, path, pad_token_id=0)
    with torch.device("meta"):
        adapter = adapter_class(settings).new(settings, base, [])
    return _Added(adapter.count(), adapter.lowest_layer())
