"""The output of the first decoder layers, computed once.

The output of the layers below the first edit is the same in every epoch, so training can start
from it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import pad

from heft_pipeline.data.batches import AnsweredPrompt, Batch, collate
from heft_pipeline.models.base_model import Base
from heft_pipeline.models.forward import Editing, ReadPrompts, WholePrompts, Work, model_inputs
from heft_pipeline.models.reuse.estimate import Choice, kept_key, work_of
from heft_pipeline.models.reuse.kept_activations import Kept, OnPass
from heft_pipeline.models.reuse.lower_layers import LowerLayers
from heft_pipeline.models.vocabulary import projected_states


class FrozenLayers:
    """A forward pass that reuses the output of the first decoder layers.

    The output is kept without the trained adapters' edits, which are applied at each use.

    Args:
        base: The model, with its frozen parents on it.
        choice: How many of the first layers are skipped; the last of them may be edited.
        kept: Where the output is kept.
        on_pass: See :data:`OnPass`.
    """

    padding_costs = True

    def __init__(
        self,
        base: Base,
        choice: Choice,
        kept: Kept,
        on_pass: OnPass = lambda _rows, _tokens, _layers: None,
    ) -> None:
        self.choice, self.kept = choice, kept
        self._base, self._on_pass = base, on_pass
        self._whole, self._lower = WholePrompts(base), LowerLayers(base, choice.layers)

    def logits(self, batch: Batch, editing: Editing) -> torch.Tensor:
        """The logits that predict a batch's answers, [B, K, V]."""
        answers = lambda inputs: self._base.model(**inputs).logits  # noqa: E731
        return self._run(batch, editing, answers)[:, -batch.answer_tokens :]

    def hidden(self, batch: Batch, editing: Editing) -> torch.Tensor:
        """What the vocabulary projection reads at every position, [B, T, D]."""
        return self._run(batch, editing, lambda inputs: projected_states(self._base, inputs))

    def read(self, batch: Batch, editing: Editing) -> ReadPrompts | None:
        """Read prompts once; all layers are run, because their keys and values are needed."""
        return self._whole.read(batch, editing)

    def work(self, batch: Batch) -> Work:
        """All tokens are computed, in the layers that are not skipped."""
        return work_of(self.choice, batch.input_ids.shape[1], batch.answer_tokens)

    def _run(
        self, batch: Batch, editing: Editing, run: Callable[[dict[str, Any]], torch.Tensor]
    ) -> torch.Tensor:
        states = self.kept.get([kept_key(s, self.choice) for s in batch.sequences], self.compute)
        hidden = padded_left([one for (one,) in states], batch.input_ids.shape[1])
        with editing(batch), self._lower.replaced(hidden):
            return run(model_inputs(self._base.model, batch))

    @torch.no_grad()
    def compute(self, keys: Sequence[AnsweredPrompt]) -> list[tuple[torch.Tensor]]:
        """The output for each input of T tokens, [T, D]."""
        return lower_output(self._base, self._lower, keys, self._on_pass)


@torch.no_grad()
def lower_output(
    base: Base, lower: LowerLayers, keys: Sequence[AnsweredPrompt], on_pass: OnPass
) -> list[tuple[torch.Tensor]]:
    """Run the first layers over sequences.

    Args:
        base: The model.
        lower: Its first layers.
        keys: Sequences; all but the last token of their answers are read.
        on_pass: See :data:`OnPass`.

    Returns:
        For each sequence of T read tokens, [T, D] without padding.
    """
    batch = collate(keys, base.pad_token_id).to(base.device)
    rows, tokens = batch.input_ids.shape
    on_pass(rows, tokens, lower.count)
    hidden = lower.output(model_inputs(base.model, batch))
    return [(hidden[row, tokens - key.read_length :].clone(),) for row, key in enumerate(keys)]


def padded_left(states: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """Hidden states of several lengths [T, D] as one tensor [B, width, D], 0 on padding."""
    return torch.stack([pad(state, (0, 0, width - state.shape[0], 0)) for state in states])
