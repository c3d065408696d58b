"""Other ways of running each decoder layer: compiled, or computed again in the backward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from heft_pipeline.models.base import Base


def compiled_layers(base: Base) -> Any:
    """Let ``torch.compile`` fuse each decoder layer inside; the first batches take longer.

    Args:
        base: The model.

    Returns:
        A context.
    """
    return _replaced(base, lambda forward: torch.compile(forward, dynamic=True))


def recomputed_layers(base: Base) -> Any:
    """Keep no activations inside decoder layers for the backward pass; compute them again.

    Args:
        base: The model.

    Returns:
        A context.
    """
    return _replaced(base, lambda forward: partial(checkpoint, forward, use_reentrant=False))


@contextmanager
def _replaced(base: Base, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """Wrap the layers' forward passes; hooks that edit a layer's output stay outside."""
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
