"""Counting the floating-point operations of forward and backward passes."""

from typing import Any

from torch import nn

from heft_pipeline.training.layer_operations import layer_operations


class FlopCounter:
    """Counts the matrix products of training and evaluation, by formula.

    A forward pass over B sequences of T (padded) tokens costs ``2 B T P`` for the P weights that
    a token is multiplied with in the decoder's layers, ``4 B T^2 A`` per layer for attention of
    total head width A, and ``2 B K V D`` for the K answer positions that are projected onto V words
    from width D (Kaplan et al. 2020, arXiv 2001.08361, table 1, without its causal discount). The
    backward pass of frozen weights costs as much as the forward pass, since only activations get
    gradients; it reaches down to the first layer with a trained part. The adapters' own
    products are less than one percent and are left out. See :func:`layer_operations` for experts,
    linear attention and state-space models.

    Args:
        model: A transformers causal language model, before adapters are put on it.
        layers: Its decoder layers.
    """

    def __init__(self, model: Any, layers: nn.ModuleList) -> None:
        config = model.config.get_text_config()
        self._layers = layer_operations(model, layers)
        self._head = config.vocab_size * config.hidden_size

    def forward(
        self, rows: int, tokens: int, answer_tokens: int, *, reused: int = 0, skipped: int = 0
    ) -> float:
        """The floating-point operations of one forward pass.

        Args:
            rows: B, the number of sequences.
            tokens: T, the padded tokens of each sequence.
            answer_tokens: K, the projected positions of each sequence.
            reused: See :meth:`training`.
            skipped: See :meth:`training`.
        """
        head = rows * 2.0 * answer_tokens * self._head
        return sum(self._body(rows, tokens, tokens + reused)[skipped:]) + head

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
        body = self._body(rows, tokens, tokens + reused)
        mixing = self._mixing(rows, tokens, tokens + reused)
        head = rows * 2.0 * answer_tokens * self._head
        # The backward pass of products of activations costs twice: both factors get gradients.
        backward = sum(body[lowest_layer:]) + sum(mixing[lowest_layer:])
        return sum(body[skipped:]) + 2 * head + backward

    def _body(self, rows: int, tokens: int, keys: int) -> list[float]:
        """The forward pass of each layer."""
        mixing = self._mixing(rows, tokens, keys)
        return [
            rows * 2.0 * tokens * layer.weights + mixed
            for layer, mixed in zip(self._layers, mixing, strict=True)
        ]

    def _mixing(self, rows: int, tokens: int, keys: int) -> list[float]:
        """The products of activations with each other in each layer."""
        return [rows * layer.mixing(tokens, keys) for layer in self._layers]
