"""The output of the first decoder layers, computed once.

The output of the layers below the first edit is the same in every epoch, so training can start
from it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import pad

from heft_pipeline.data.batches import AnsweredPrompt, Batch, collate
from heft_pipeline.models.base_model import Base
from heft_pipeline.models.forward import Editing, ReadPrompts, WholePrompts, Work, model_inputs
from heft_pipeline.models.reuse.frozen_prompts import OnPass
from heft_pipeline.models.reuse.kept_activations import Kept, Tokens


class FrozenLayers:
    """A forward pass that reuses the output of the first decoder layers.

    The output is kept without the trained adapters' edits, which are applied at each use.

    Args:
        base: The model, with its frozen parents on it.
        layers: How many of the first layers are skipped; the last of them may be edited.
        kept: Where the output is kept.
        on_pass: Called with the rows, padded tokens and layers of each pass that computes it.
    """

    def __init__(
        self,
        base: Base,
        layers: int,
        kept: Kept,
        on_pass: OnPass = lambda _rows, _tokens, _layers: None,
    ) -> None:
        self.layers, self.kept = layers, kept
        self._base, self._on_pass = base, on_pass
        self._whole = WholePrompts(base)
        self._in_tuple, self._others = False, 0

    def key(self, sequence: AnsweredPrompt) -> Tokens:
        """The token ids of a sequence that the model reads: all but the answer's last token."""
        return sequence.prompt + sequence.answer[:-1]

    def logits(self, batch: Batch, editing: Editing) -> torch.Tensor:
        """The logits that predict a batch's answers, [B, K, V]."""
        inputs = model_inputs(self._base.model, batch) | {"inputs_embeds": self.hidden(batch)}
        del inputs["input_ids"]
        with editing(batch), self.skipped():
            logits: torch.Tensor = self._base.model(**inputs).logits[:, -batch.answer_tokens :]
        return logits

    def read(self, batch: Batch, editing: Editing) -> ReadPrompts | None:
        """Read prompts once; all layers are run, because their keys and values are needed."""
        return self._whole.read(batch, editing)

    def work(self, batch: Batch) -> Work:
        """All tokens are computed, in the layers that are not skipped."""
        return Work(batch.input_ids.shape[1], skipped_layers=self.layers)

    def hidden(self, batch: Batch) -> torch.Tensor:
        """The kept hidden states of a batch, [B, T, hidden], which are 0 on padding."""
        states = self.kept.get([self.key(s) for s in batch.sequences], self.compute)
        width = batch.input_ids.shape[1]
        return torch.stack([pad(s, (0, 0, width - s.shape[0], 0)) for s in states])

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """Make the first layers return their input, in the forward passes inside the block."""

        def passed_on(hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
            # Beside the hidden states, a layer may return what nothing needs here.
            return (hidden_states, *[None] * self._others) if self._in_tuple else hidden_states

        layers = self._base.layers[: self.layers]
        before = [vars(layer).get("forward") for layer in layers]
        for layer in layers:
            layer.forward = passed_on
        try:
            yield
        finally:
            for layer, forward in zip(layers, before, strict=True):
                vars(layer).pop("forward")
                if forward is not None:
                    layer.forward = forward

    @torch.no_grad()
    def compute(self, keys: Sequence[Tokens]) -> list[torch.Tensor]:
        """The hidden states of each input of T tokens, [T, hidden]."""
        batch = collate([AnsweredPrompt(key, (0,)) for key in keys], self._base.pad_token_id)
        batch = batch.to(self._base.device)
        rows, tokens = batch.input_ids.shape
        self._on_pass(rows, tokens, self.layers)

        def stop(_module: Any, _args: Any, output: Any) -> None:
            self._in_tuple = isinstance(output, tuple | list)
            self._others = len(output) - 1 if self._in_tuple else 0
            raise _Reached(output[0] if self._in_tuple else output)

        handle = self._base.layers[self.layers - 1].register_forward_hook(stop)
        try:
            self._base.model(**model_inputs(self._base.model, batch))
        except _Reached as reached:
            hidden = reached.hidden
        finally:
            handle.remove()
        width = hidden.shape[1]
        return [hidden[row, width - len(key) :].clone() for row, key in enumerate(keys)]


class _Reached(Exception):
    """Ends a forward pass at the layer whose output is needed."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden
