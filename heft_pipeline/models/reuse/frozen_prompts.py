"""The keys and values of all but the last tokens of prompts, computed once.

If only the last positions of a prompt are edited, the activations of all earlier positions are the
same in every epoch, and training needs to run only the last positions and the answer.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import pad

from heft_pipeline.data.batches import AnsweredPrompt, Batch, collate
from heft_pipeline.models.base_model import Base
from heft_pipeline.models.forward import (
    Editing,
    ReadPrompts,
    Work,
    cache_name,
    kept_cache,
    model_inputs,
)
from heft_pipeline.models.reuse.kept_activations import Kept, Tokens

#: Called with the rows, padded tokens and layers of each pass that computes kept activations.
OnPass = Callable[[int, int, int], None]


class FrozenPrompts:
    """A forward pass that reuses the keys and values of all but the last tokens of prompts.

    Args:
        base: The model, with its frozen parents on it.
        suffix: How many of each prompt's last tokens are computed every time.
        kept: Where the keys and values are kept.
        on_pass: See :data:`OnPass`.
    """

    def __init__(
        self,
        base: Base,
        suffix: int,
        kept: Kept,
        on_pass: OnPass = lambda _rows, _tokens, _layers: None,
    ) -> None:
        self.suffix, self.kept = suffix, kept
        self._base, self._on_pass = base, on_pass

    def key(self, sequence: AnsweredPrompt) -> Tokens:
        """The key that a sequence's keys and values are kept under: its prompt."""
        return sequence.prompt

    def logits(self, batch: Batch, editing: Editing) -> torch.Tensor:
        """The logits that predict a batch's answers, [B, K, V]."""
        logits: torch.Tensor = self.output(batch, editing)[0].logits[:, -batch.answer_tokens :]
        return logits

    def read(self, batch: Batch, editing: Editing) -> ReadPrompts | None:
        """Read prompts once; see :class:`~heft_pipeline.models.forward.Forward`."""
        output, mask = self.output(batch, editing)
        return ReadPrompts(output.logits[:, -1], kept_cache(output), mask)

    def work(self, batch: Batch) -> Work:
        """The last prompt tokens and the answer are computed."""
        whole = batch.input_ids.shape[1]
        computed = min(whole, self.suffix + batch.answer_tokens - 1)
        return Work(computed, reused=whole - computed)

    def output(self, batch: Batch, editing: Editing) -> tuple[Any, torch.Tensor]:
        """The model's output on the last prompt tokens and the answer.

        Args:
            batch: B sequences.
            editing: Applies the adapters' edits to a batch's prompts.

        Returns:
            transformers' output with the whole cache, and the mask [B, T] of the cache's positions.
        """
        short = suffix_batch(batch, self.suffix, self._base.pad_token_id)
        cache, mask = self.cache([s.prompt for s in batch.sequences])
        whole = torch.cat([mask, short.attention_mask], dim=1)
        inputs = model_inputs(self._base.model, short) | {
            "attention_mask": whole,
            "position_ids": short.position_ids + mask.sum(dim=1, keepdim=True),
            cache_name(self._base.model): cache,
            "use_cache": True,
        }
        with editing(short):
            return self._base.model(**inputs), whole

    def cache(self, prompts: Sequence[Tokens]) -> tuple[Any, torch.Tensor]:
        """The kept keys and values of a batch.

        Args:
            prompts: B prompts; those that are not kept are computed now.

        Returns:
            A transformers cache of T positions, padded on the left, and its mask [B, T] int64.
        """
        from transformers.cache_utils import DynamicCache

        states = self.kept.get(prompts, self.compute)
        width = max(s.shape[3] for s in states)
        # [layers, 2, B, heads, T, size]
        together = torch.stack([pad(s, (0, 0, width - s.shape[3], 0)) for s in states], dim=2)
        device = together.device
        lengths = torch.tensor([s.shape[3] for s in states], device=device)
        mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
        return DynamicCache([(layer[0], layer[1]) for layer in together]), mask

    @torch.no_grad()
    def compute(self, prompts: Sequence[Tokens]) -> list[torch.Tensor]:
        """The keys and values of each prompt's first T tokens, [layers, 2, heads, T, size]."""
        # A prompt that is all suffix keeps nothing; one token is read for the shapes.
        heads = [AnsweredPrompt(prompt[: -self.suffix] or prompt[:1], (0,)) for prompt in prompts]
        lengths = [max(0, len(prompt) - self.suffix) for prompt in prompts]
        batch = collate(heads, self._base.pad_token_id).to(self._base.device)
        rows, tokens = batch.input_ids.shape
        self._on_pass(rows, tokens, len(self._base.layers))
        output = self._base.model(**model_inputs(self._base.model, batch) | {"use_cache": True})
        layers = [torch.stack([layer.keys, layer.values]) for layer in kept_cache(output).layers]
        together = torch.stack(layers)
        width = together.shape[4]
        return [
            together[:, :, row, :, width - length :].contiguous()
            for row, length in enumerate(lengths)
        ]


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
        AnsweredPrompt(s.prompt[-suffix:], s.answer, before=max(0, len(s.prompt) - suffix))
        for s in batch.sequences
    ]
    return collate(short, pad_token_id).to(batch.input_ids.device)
