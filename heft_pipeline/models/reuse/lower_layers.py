"""The first decoder layers of a model, run by themselves or stood in for by their kept output."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from heft_pipeline.models.base_model import Base


class LowerLayers:
    """The first decoder layers.

    Args:
        base: The model, with its frozen parents on it.
        count: How many layers; the output of the last of them is kept without later edits.
    """

    def __init__(self, base: Base, count: int) -> None:
        self._base, self.count = base, count
        self._in_tuple, self._others = False, 0

    def output(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Run only these layers, and return the output of the last one, [B, T, D].

        Args:
            inputs: The keyword arguments of the model's forward pass.
        """
        with self.seen(stop=True) as found, suppress(_Reached):
            self._base.model(**inputs)
        return found[0]

    @contextmanager
    def seen(self, stop: bool = False) -> Iterator[list[torch.Tensor]]:
        """Note the output of the last of the layers in the forward passes inside the block.

        Args:
            stop: Whether to end a forward pass there, with an exception.

        Yields:
            The list that the outputs are added to, each [B, T, D].
        """
        found: list[torch.Tensor] = []

        def note(_module: Any, _args: Any, output: Any) -> None:
            self._in_tuple = isinstance(output, tuple | list)
            self._others = len(output) - 1 if self._in_tuple else 0
            found.append(output[0] if self._in_tuple else output)
            if stop:
                raise _Reached

        # First, so that it sees the output before an edit of it.
        handle = self._base.layers[self.count - 1].register_forward_hook(note, prepend=True)
        try:
            yield found
        finally:
            handle.remove()

    @contextmanager
    def replaced(self, hidden: torch.Tensor) -> Iterator[None]:
        """Let kept output stand in for the layers in the forward passes inside the block.

        Args:
            hidden: [B, T, D], the output of the last of them. Edits of it are still made.
        """

        def passed_on(hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
            return self._as_returned(hidden_states)

        def kept(*_: Any, **__: Any) -> Any:
            return self._as_returned(hidden)

        layers = self._base.layers[: self.count]
        before = [vars(layer).get("forward") for layer in layers]
        for layer in layers:
            layer.forward = passed_on
        layers[-1].forward = kept
        try:
            yield
        finally:
            for layer, forward in zip(layers, before, strict=True):
                vars(layer).pop("forward")
                if forward is not None:
                    layer.forward = forward

    def _as_returned(self, hidden: torch.Tensor) -> Any:
        # Beside the hidden states, a layer may return what nothing needs here.
        return (hidden, *[None] * self._others) if self._in_tuple else hidden


class _Reached(Exception):
    """Ends a forward pass at the layer whose output is needed."""
