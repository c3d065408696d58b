"""Other ways of running each decoder layer: compiled, or recomputed in the backward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from heft_pipeline.models.base_model import Base


def compiled_layers(base: Base) -> Any:
    """Compile each decoder layer with ``torch.compile`` inside the block.

    The first batches take longer.
    """
    return _replaced(base, lambda forward: torch.compile(forward, dynamic=True))


def recomputed_layers(base: Base) -> Any:
    """Inside the block, recompute activations in the backward pass instead of keeping them.

    This holds for the activations inside decoder layers; their outputs are kept.
    """
    return _replaced(base, lambda forward: partial(checkpoint, forward, use_reentrant=False))


@contextmanager
def _replaced(base: Base, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """Wrap each layer's forward pass; hooks that edit its output stay outside the wrapper."""
    before = [vars(layer).get("forward") for layer in base.layers]
    for layer in base.layers:
        layer.forward = wrap(layer.forward)
    try:
        yield
    finally:
        for layer, forward in zip(base.layers, before, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward
