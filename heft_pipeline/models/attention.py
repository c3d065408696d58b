"""Attention on a CPU in bfloat16, whose fused kernel has a slow backward pass."""

from typing import Any

import torch
from torch import nn

NAME = "grouped"
#: Queries x keys a head above which the scores take more memory than they save time.
_MOST_SCORES = 2**17


def attention_implementation(asked: str, device: torch.device, dtype: torch.dtype) -> str:
    """The attention that a model is loaded with.

    Args:
        asked: The config's ``model.attn_implementation``.
        device: Where the model will be.
        dtype: Of its weights.

    Returns:
        ``asked`` where it is not ``auto``; else ``grouped`` (:func:`grouped_attention`) for
        bfloat16 on a CPU and ``sdpa`` everywhere else.
    """
    if asked not in ("auto", NAME):
        return asked
    if asked == NAME or (device.type == "cpu" and dtype == torch.bfloat16):
        _register()
        return NAME
    return "sdpa"


def grouped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention by plain products, the queries of one key and value head together.

    Nothing is repeated for grouped queries, and torch's bfloat16 products are used in both
    directions. Long sequences go to torch's fused kernel, which keeps no scores.

    Args:
        module: The attention module.
        query: [B, heads, T, size].
        key: [B, key heads, S, size].
        value: [B, key heads, S, size].
        attention_mask: [B, 1, T, S], added to the scores.
        scaling: Of the scores.
        **kwargs: Passed on to the fused kernel.

    Returns:
        [B, T, heads, size], and no weights.
    """
    batch, heads, queries, size = query.shape
    groups, keys = key.shape[1], key.shape[2]
    if queries * keys > _MOST_SCORES or kwargs.get("softcap") is not None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output, None
    each = heads // groups
    grouped = query.reshape(batch * groups, each * queries, size)
    scores = torch.bmm(grouped * scaling, key.reshape(batch * groups, keys, size).mT)
    scores = scores.view(batch, groups, each, queries, keys)
    if attention_mask is not None:
        scores = scores + attention_mask[:, :, None, :, :keys]
    weights = scores.softmax(dim=-1).view(batch * groups, each * queries, keys)
    output = torch.bmm(weights, value.reshape(batch * groups, keys, size))
    return output.view(batch, heads, queries, size).transpose(1, 2), None


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
