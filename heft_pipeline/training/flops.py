"""Counting the floating-point operations of forward and backward passes."""

import math
from typing import Any

from torch import nn


class FlopCounter:
    """Counts the matrix products of training and evaluation, by formula.

    A forward pass over B sequences of T (padded) tokens costs ``2 B T P`` for the P weights of
    the decoder's linear layers, ``4 B T^2 A`` per layer for attention of total head width A, and
    ``2 B K V D`` for the K answer positions that are projected onto V words from width D
    (Kaplan et al. 2020, arXiv 2001.08361, table 1, without its causal discount). The backward
    pass of frozen weights costs as much as the forward pass, since only activations get
    gradients; it reaches down to the first layer with a trained part. The adapters' own
    products are less than one percent and are left out.

    Args:
        model: A transformers causal language model, before adapters are put on it.
        layers: Its decoder layers.
    """

    def __init__(self, model: Any, layers: nn.ModuleList) -> None:
        config = model.config.get_text_config()
        heads = config.num_attention_heads
        head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
        self._layers = len(layers)
        self._linear = sum(_weights(layer) for layer in layers)
        self._attention = heads * head_width * self._layers
        self._head = config.vocab_size * config.hidden_size

    def forward(self, rows: int, tokens: int, answer_tokens: int) -> float:
        """The floating-point operations of one forward pass.

        Args:
            rows: B, the number of sequences.
            tokens: T, the padded tokens of each sequence.
            answer_tokens: K, the projected positions of each sequence.
        """
        return rows * (
            2.0 * tokens * self._linear
            + 4.0 * tokens**2 * self._attention
            + 2.0 * answer_tokens * self._head
        )

    def training(
        self,
        rows: int,
        tokens: int,
        answer_tokens: int,
        lowest_layer: int,
        *,
        reused: int = 0,
        skipped: int = 0,
    ) -> float:
        """The floating-point operations of one forward and backward pass.

        Args:
            rows: B, the number of sequences.
            tokens: T, the padded tokens of each sequence.
            answer_tokens: K, the projected positions of each sequence.
            lowest_layer: The first decoder layer in which training needs a gradient.
            reused: The padded tokens before these whose keys and values are reused.
            skipped: How many of the first layers are skipped; their output is reused.
        """
        attention = rows * 4.0 * tokens * (tokens + reused) * self._attention
        own = rows * 4.0 * tokens**2 * self._attention
        forward = self.forward(rows, tokens, answer_tokens) - own + attention
        head = rows * 2.0 * answer_tokens * self._head
        body, done = forward - head, 1 - skipped / self._layers
        share = (self._layers - lowest_layer) / self._layers
        # Attention's backward pass does twice the forward products: both factors get gradients.
        return done * body + 2 * head + share * (body + attention)


def _weights(layer: nn.Module) -> int:
    """The number of weights in a layer's matrices.

    A 4-bit parameter is packed; its shape is in the state that bitsandbytes keeps beside it.
    """
    shapes = (getattr(getattr(p, "quant_state", p), "shape", p.shape) for p in layer.parameters())
    return sum(math.prod(shape) for shape in shapes if len(shape) == 2)
