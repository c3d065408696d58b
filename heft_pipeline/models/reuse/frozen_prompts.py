"""All but the last tokens of prompts, computed once.

If only the last positions of a prompt are edited, the activations of all earlier positions are the
same in every epoch, and so are those of all positions in the layers below the first edit. Training
then runs only the last positions and the answer, through the layers above, and no gradient is
computed at any other place.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.functional import pad

from heft_pipeline.data.batches import AnsweredPrompt, Batch, collate
from heft_pipeline.models.base_model import Base
from heft_pipeline.models.forward import (
    Editing,
    ReadPrompts,
    WholePrompts,
    Work,
    cache_name,
    kept_cache,
    model_inputs,
)
from heft_pipeline.models.reuse.estimate import Choice, earlier_tokens, kept_key, work_of
from heft_pipeline.models.reuse.frozen_layers import lower_output, padded_left
from heft_pipeline.models.reuse.kept_activations import Kept, OnPass
from heft_pipeline.models.reuse.lower_layers import LowerLayers
from heft_pipeline.models.vocabulary import projected_states

#: The keys and values of a batch's earlier positions in the layers above the skipped ones, [layers,
#: 2, B, heads, P, size], padded on the left.
KeysValues = torch.Tensor
#: The most padded tokens of a pass on a CPU. More leave its caches and take several times as long.
_CPU_TOKENS = 2048


class FrozenPrompts:
    """A forward pass that computes only the last tokens of prompts, and the answers.

    What is kept of each prompt is either the keys and values of its earlier positions, or the
    output of the first layers for all positions; then the keys and values are computed from it at
    each use, without gradients.

    Args:
        base: The model, with its frozen parents on it.
        choice: How many of each prompt's last tokens are computed every time, and how many of the
            first layers are skipped there too; the last of them may be edited.
        kept: Where the activations are kept.
        on_pass: See :data:`OnPass`.
        keys_values: Whether keys and values are kept; needed if no layer is skipped.
    """

    def __init__(
        self,
        base: Base,
        choice: Choice,
        kept: Kept,
        on_pass: OnPass = lambda _rows, _tokens, _layers: None,
        *,
        keys_values: bool = True,
    ) -> None:
        self.choice, self.kept, self.keys_values = choice, kept, keys_values
        self.padding_costs = not keys_values  # the earlier positions are run at each use
        self._suffix, self._layers = choice.suffix, choice.layers
        self._base, self._on_pass = base, on_pass
        self._whole, self._lower = WholePrompts(base), LowerLayers(base, choice.layers)

    def logits(self, batch: Batch, editing: Editing) -> torch.Tensor:
        """The logits that predict a batch's answers, [B, K, V]."""
        logits: torch.Tensor = self.output(batch, editing)[0].logits[:, -batch.answer_tokens :]
        return logits

    def hidden(self, batch: Batch, editing: Editing) -> torch.Tensor:
        """What the vocabulary projection reads at every position; nothing is reused for that."""
        return self._whole.hidden(batch, editing)

    def read(self, batch: Batch, editing: Editing) -> ReadPrompts | None:
        """Read prompts once; see :class:`~heft_pipeline.models.forward.Forward`."""
        if self._layers:  # what continues from the cache needs it in all layers
            return self._whole.read(batch, editing)
        output, mask = self.output(batch, editing)
        return ReadPrompts(output.logits[:, -1], kept_cache(output), mask)

    def work(self, batch: Batch) -> Work:
        """The last prompt tokens and the answer are computed."""
        return work_of(self.choice, batch.input_ids.shape[1], batch.answer_tokens)

    def output(self, batch: Batch, editing: Editing) -> tuple[Any, torch.Tensor]:
        """The model's output on the last prompt tokens and the answer.

        Args:
            batch: B sequences.
            editing: Applies the adapters' edits to a batch's prompts.

        Returns:
            transformers' output, and the mask [B, T] of the positions that it attends to.
        """
        short = suffix_batch(batch, self._suffix, self._base.pad_token_id)
        keys_values, last, mask = self._kept([kept_key(s, self.choice) for s in batch.sequences])
        whole = torch.cat([mask, short.attention_mask], dim=1)
        inputs = model_inputs(self._base.model, short) | {
            "attention_mask": whole,
            "position_ids": short.position_ids + mask.sum(dim=1, keepdim=True),
            cache_name(self._base.model): self._cache(keys_values),
            "use_cache": True,
        }
        if not self._layers:
            with editing(short):
                return self._base.model(**inputs), whole
        hidden = padded_left(last, short.input_ids.shape[1])
        with editing(short), self._lower.replaced(hidden):
            return self._base.model(**inputs), whole

    def cache(self, keys: Sequence[AnsweredPrompt]) -> tuple[Any, torch.Tensor]:
        """The cache of a batch's earlier positions.

        Args:
            keys: B sequences from :func:`kept_key`; those that are not kept are computed now.

        Returns:
            A transformers cache of P positions, padded on the left, and its mask [B, P] int64.
        """
        keys_values, _, mask = self._kept(keys)
        return self._cache(keys_values), mask

    def _kept(
        self, keys: Sequence[AnsweredPrompt]
    ) -> tuple[KeysValues, list[torch.Tensor], torch.Tensor]:
        """Keys and values of earlier positions, the skipped layers' output after, and the mask."""
        states = self.kept.get(keys, self.compute)
        lengths = [earlier_tokens(key, self._suffix) for key in keys]
        width = max(lengths)
        columns = torch.arange(width, device=self._base.device)
        mask = (columns >= width - torch.tensor(lengths, device=columns.device)[:, None]).long()
        if self.keys_values:
            together = _together([state[0] for state in states], width)
            return together, [state[1] for state in states] if self._layers else [], mask
        whole = [state[0] for state in states]
        earlier = [one[:length] for one, length in zip(whole, lengths, strict=True)]
        last = [one[length:] for one, length in zip(whole, lengths, strict=True)]
        return self._above(keys, padded_left(earlier, width)), last, mask

    @torch.no_grad()
    def _above(self, keys: Sequence[AnsweredPrompt], hidden: torch.Tensor) -> KeysValues:
        """The keys and values of earlier positions, from the skipped layers' output for them."""
        batch = self._heads(keys)
        rows, tokens = batch.input_ids.shape
        self._on_pass(rows, tokens, len(self._base.layers) - self._layers)
        width = hidden.shape[1]
        with self._lower.replaced(pad(hidden, (0, 0, tokens - width, 0))):
            return self._read(batch)[..., tokens - width :, :]

    def _heads(self, keys: Sequence[AnsweredPrompt]) -> Batch:
        """The earlier positions of prompts; one token for those that have none."""
        heads = [key.prompt[: max(1, earlier_tokens(key, self._suffix))] for key in keys]
        batch = collate([AnsweredPrompt(head, (0,)) for head in heads], self._base.pad_token_id)
        return batch.to(self._base.device)

    @torch.no_grad()
    def compute(self, keys: Sequence[AnsweredPrompt]) -> list[tuple[torch.Tensor, ...]]:
        """What is kept of each sequence.

        Returns:
            Keys and values [layers, 2, heads, P, size] and, if layers are skipped, their output
            [T - P, D] for the later positions; or only their output [T, D] for all positions.
        """
        if not self.keys_values:
            return list(lower_output(self._base, self._lower, keys, self._on_pass))
        if self._layers:
            batch = collate(keys, self._base.pad_token_id).to(self._base.device)
        else:
            batch = self._heads(keys)
        rows, tokens = batch.input_ids.shape
        self._on_pass(rows, tokens, len(self._base.layers))
        together = max(1, _CPU_TOKENS // tokens) if self._base.device.type == "cpu" else rows
        parts: list[tuple[torch.Tensor, ...]] = []
        for start in range(0, rows, together):
            some = slice(start, start + together)
            parts += self._of_each(keys[some], _rows_of(batch, some))
        return parts

    def _of_each(
        self, keys: Sequence[AnsweredPrompt], batch: Batch
    ) -> Iterator[tuple[torch.Tensor, ...]]:
        """Run the model over some sequences, or their earlier positions, and cut out what is kept.

        Args:
            keys: B sequences.
            batch: What is run of them.
        """
        seen: AbstractContextManager[list[torch.Tensor]]
        seen = self._lower.seen() if self._layers else nullcontext([])
        with seen as found:
            together = self._read(batch)
        for row, key in enumerate(keys):
            length = earlier_tokens(key, self._suffix)
            start = together.shape[4] - (key.read_length if self._layers else length)
            later = (found[0][row, start + length :].clone(),) if self._layers else ()
            yield together[:, :, row, :, start : start + length].contiguous(), *later

    def _read(self, batch: Batch) -> KeysValues:
        """Run the model over a batch, and return the keys and values of the layers above."""
        from transformers.cache_utils import DynamicCache

        model, cache = self._base.model, DynamicCache()
        inputs = model_inputs(model, batch) | {"use_cache": True, cache_name(model): cache}
        if model.get_output_embeddings() is None:
            model(**inputs)
        else:  # no logits are needed
            projected_states(self._base, inputs)
        above = cache.layers[self._layers :]
        return torch.stack([torch.stack([layer.keys, layer.values]) for layer in above])

    def _cache(self, keys_values: KeysValues) -> Any:
        """A transformers cache; in the skipped layers it only says how long it is."""
        from transformers.cache_utils import DynamicCache, DynamicLayer

        layers = []
        for keys, values in [keys_values[0]] * self._layers + list(keys_values):
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            layers.append(layer)
        cache = DynamicCache()
        cache.layers = layers
        return cache


def _together(each: Sequence[torch.Tensor], width: int) -> KeysValues:
    """The keys and values of several prompts in one tensor, each copied once."""
    layers, both, heads, _, size = each[0].shape
    together = each[0].new_empty(layers, both, len(each), heads, width, size)
    for row, one in enumerate(each):
        start = width - one.shape[3]
        together[:, :, row, :, :start] = 0
        together[:, :, row, :, start:] = one
    return together


def _rows_of(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch, as wide as the whole batch."""
    return Batch(**{name: value[rows] for name, value in vars(batch).items()})


def suffix_batch(batch: Batch, suffix: int, pad_token_id: int) -> Batch:
    """The part of a batch that is computed when its prompts' first tokens are reused.

    Args:
        batch: The batch.
        suffix: How many of each prompt's last tokens remain.
        pad_token_id: The id that fills padding.

    Returns:
        The batch of the last prompt tokens with their answers, on the same device.
    """
    short = [
        AnsweredPrompt(s.prompt[-suffix:], s.answer, before=earlier_tokens(s, suffix))
        for s in batch.sequences
    ]
    return collate(short, pad_token_id).to(batch.input_ids.device)
