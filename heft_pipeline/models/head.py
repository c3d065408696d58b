"""The vocabulary projection: in float32 where answers are scored, and without needless copies."""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

#: Rows of the projection that are converted to float32 at a time, to bound the memory.
_ROWS = 16384


def prepare_head(model: Any) -> None:
    """Let a model's vocabulary projection score exactly and quickly.

    In bfloat16 the logits between 8 and 32 are multiples of 0.06 or 0.13, so that different
    answers come out equal. Without gradients the projection is therefore computed in float32.
    Training keeps the weights' dtype.

    Args:
        model: A transformers causal language model; changed in place.
    """
    head = model.get_output_embeddings()
    if head is None:
        return
    # torch treats a sliced [B, K, width] input as a batch of products and expands the weights.
    head.register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]))
    if type(head) is nn.Linear and head.weight.dtype in (torch.bfloat16, torch.float16):
        plain = head.forward

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            return plain(hidden) if torch.is_grad_enabled() else float32_logits(head, hidden)

        head.forward = forward  # type: ignore[method-assign,assignment]


def float32_logits(head: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """Project hidden states onto the vocabulary in float32.

    Args:
        head: The projection, with weights [V, width] of any dtype.
        hidden: [..., width].

    Returns:
        [..., V] float32.
    """
    exact = hidden.float()
    parts = [linear(exact, rows.float()) for rows in head.weight.split(_ROWS)]
    logits = torch.cat(parts, dim=-1)
    return logits if head.bias is None else logits + head.bias.float()
