"""The forward pass: the logits of a batch's answers, and prompts read once for several answers."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch

from heft_pipeline.data.batches import AnsweredPrompt, Batch, collate
from heft_pipeline.models.base_model import Base
from heft_pipeline.models.vocabulary import projected_states

#: Applies the adapters' edits to a batch's prompts in the forward passes inside the block.
Editing = Callable[[Batch], AbstractContextManager[None]]


@dataclass(frozen=True)
class ReadPrompts:
    """B prompts as a model has read them.

    Attributes:
        logits: [B, V], of the token after each prompt.
        cache: A transformers cache of the keys and values of T positions.
        mask: [B, T] int64, 0 on padding.
    """

    logits: torch.Tensor
    cache: Any
    mask: torch.Tensor


@dataclass(frozen=True)
class Work:
    """How much of a batch a forward pass computes.

    Attributes:
        tokens: The padded tokens of each sequence that are computed.
        reused: The padded tokens before them whose keys and values are reused.
        skipped_layers: How many of the first decoder layers are skipped; their output is reused.
    """

    tokens: int
    reused: int = 0
    skipped_layers: int = 0


class Forward(Protocol):
    """A way of running a model; all ways give the same logits.

    Attributes:
        padding_costs: Whether the longest sequence of a batch makes all others cost as much.
    """

    padding_costs: bool

    def logits(self, batch: Batch, editing: Editing) -> torch.Tensor:
        """The logits that predict a batch's answers.

        Args:
            batch: B sequences of at most K answer tokens, padded on the left.
            editing: Applies the adapters' edits.

        Returns:
            [B, K, V] in the model's dtype.
        """

    def hidden(self, batch: Batch, editing: Editing) -> torch.Tensor:
        """What the vocabulary projection reads at every position.

        Args:
            batch: B sequences of at most T input tokens, padded on the left.
            editing: Applies the adapters' edits.

        Returns:
            [B, T, D] in the model's dtype.
        """

    def read(self, batch: Batch, editing: Editing) -> ReadPrompts | None:
        """Read prompts once, so that several answers can continue from them.

        Args:
            batch: B prompts, each with a one-token answer that is not read.
            editing: Applies the adapters' edits.

        Returns:
            The prompts as the model has read them; None if it does not keep plain keys and values.
        """

    def work(self, batch: Batch) -> Work:
        """How much of a batch is computed."""


class WholePrompts:
    """Runs the whole model over whole prompts."""

    padding_costs = True

    def __init__(self, base: Base) -> None:
        self._base = base

    @cached_property
    def no_cache(self) -> str:
        """Why the model's keys and values cannot be reused; empty if they can."""
        return cache_obstacle(self._base)

    def logits(self, batch: Batch, editing: Editing) -> torch.Tensor:
        """See :class:`Forward`."""
        with editing(batch):
            return answer_logits(self._base.model, batch)

    def hidden(self, batch: Batch, editing: Editing) -> torch.Tensor:
        """See :class:`Forward`."""
        with editing(batch):
            return projected_states(self._base, model_inputs(self._base.model, batch))

    def read(self, batch: Batch, editing: Editing) -> ReadPrompts | None:
        """See :class:`Forward`."""
        if self.no_cache:
            return None
        inputs = model_inputs(self._base.model, batch) | {"use_cache": True}
        with editing(batch):
            output = self._base.model(**inputs)
        return ReadPrompts(output.logits[:, -1], kept_cache(output), batch.attention_mask)

    def work(self, batch: Batch) -> Work:
        """See :class:`Forward`."""
        return Work(batch.input_ids.shape[1])


def answer_logits(model: Any, batch: Batch) -> torch.Tensor:
    """The logits that predict a batch's answers; no other position is projected.

    Args:
        model: A transformers causal language model.
        batch: B sequences of at most K answer tokens, padded on the left.

    Returns:
        [B, K, V] in the model's dtype.
    """
    return model(**model_inputs(model, batch)).logits[:, -batch.answer_tokens :]


def model_inputs(model: Any, batch: Batch) -> dict[str, Any]:
    """The keyword arguments of a model's forward pass for a batch.

    Args:
        model: A transformers causal language model.
        batch: The batch.

    Returns:
        Token ids and mask. If the model accepts them, also the positions, a request for only the
        answers' logits, and a request for no cache.
    """
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    wished = {
        "position_ids": batch.position_ids,
        "logits_to_keep": batch.answer_tokens,
        "use_cache": False,
    }
    accepted = accepted_inputs(model)
    return inputs | {k: v for k, v in wished.items() if k in accepted}


def cache_name(model: Any) -> str:
    """The name that a model's forward pass gives its cache of keys and values.

    Args:
        model: A transformers causal language model.

    Returns:
        ``past_key_values``, or ``cache`` from transformers 5.24 on; empty if it takes no cache.
    """
    names = accepted_inputs(model)
    return next((name for name in ("past_key_values", "cache") if name in names), "")


def kept_cache(output: Any) -> Any:
    """The cache in a model's output, whatever transformers calls it; None if there is none."""
    for name in ("past_key_values", "cache"):
        if (found := getattr(output, name, None)) is not None:
            return found
    return None


def accepted_inputs(model: Any) -> set[str]:
    """The names of the arguments that a model's forward pass takes.

    They are read from its class, because libraries wrap an instance's ``forward`` without keeping
    its signature.
    """
    return set(inspect.signature(type(model).forward).parameters)


def cache_obstacle(base: Base) -> str:
    """Why a model's keys and values cannot be reused; empty if they can."""
    from transformers.cache_utils import DynamicLayer

    if base.no_cache:
        return base.no_cache
    wanted = {cache_name(base.model), "position_ids", "logits_to_keep"}
    if not wanted <= accepted_inputs(base.model):
        return f"{type(base.model).__name__} takes no cache of keys and values"
    prompt = AnsweredPrompt((base.pad_token_id,) * 2, (0,))
    batch = collate([prompt], base.pad_token_id).to(base.device)
    with torch.no_grad():
        past = kept_cache(base.model(input_ids=batch.input_ids, use_cache=True))
    layers = getattr(past, "layers", [])
    plain = len(layers) == len(base.layers) and all(
        type(layer) is DynamicLayer and layer.keys.shape == layer.values.shape for layer in layers
    )
    return "" if plain else f"{type(base.model).__name__} keeps more than keys and values"
