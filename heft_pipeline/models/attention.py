"""Attention in bfloat16 on a CPU, where the fused kernel has a slow backward pass."""

from typing import Any

import torch
from torch import nn

from heft_pipeline.errors import UserError

NAME = "grouped"
#: Architectures for which it was checked that the logits equal those of eager attention.
_KNOWN = {"llama", "mistral", "qwen2", "qwen3", "gemma3_text", "gpt2", "gpt_neox", "opt"}
#: torch trains with flex_attention on a GPU alone: on a CPU it has no backward pass.
_ONLY_ON_GPUS = ("flash", "flex")
#: Scores (queries x keys) per head above which their memory is not worth the time saved.
_MOST_SCORES = 2**17


def attention_implementation(
    asked: str, model_type: str, device: torch.device, dtype: torch.dtype
) -> str | None:
    """The attention implementation to load a model with.

    Args:
        asked: The value of ``model.attn_implementation``.
        model_type: transformers' name for the architecture.
        device: Where the model will be.
        dtype: The dtype of its weights.

    Returns:
        ``asked`` unless it is ``auto``. ``auto`` is ``grouped`` (:func:`grouped_attention`) for
        bfloat16 on a CPU and an architecture that is known to work with it, else None, which
        leaves the choice to transformers.
    """
    if asked not in ("auto", NAME):
        return asked
    fits = device.type == "cpu" and dtype == torch.bfloat16 and model_type in _KNOWN
    if asked == NAME or fits:
        _register()
        return NAME
    return None


def check_attention(asked: str, model: Any, device: torch.device) -> None:
    """Refuse an attention implementation that the model or this machine does not support.

    Args:
        asked: The value of ``model.attn_implementation``.
        model: A transformers model without weights.
        device: Where the model will be.

    Raises:
        UserError: The message has transformers' reason.
    """
    if asked in ("auto", NAME):
        return
    try:
        if "paged" in asked:
            raise ValueError("it is for serving alone, and keeps no keys and values to train with")
        if any(name in asked for name in _ONLY_ON_GPUS) and device.type == "cpu":
            raise ValueError("it needs a GPU, but the device is cpu")
        model.set_attn_implementation(asked)
    except (ImportError, ValueError, OSError, RuntimeError, KeyError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"model.attn_implementation={asked} cannot be used: {said}; use "
            "model.attn_implementation=auto"
        ) from error


def grouped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention by plain matrix products, grouping the queries of each key and value head.

    Keys and values are not repeated for grouped queries, and torch's bfloat16 products are used in
    both the forward and the backward pass. Long sequences go to torch's fused kernel, which keeps
    no scores.

    Args:
        module: The attention module.
        query: [B, heads, T, size].
        key: [B, key heads, S, size].
        value: [B, key heads, S, size].
        attention_mask: [B, 1, T, S], added to the scores.
        scaling: The factor of the scores.
        **kwargs: Passed on to the fused kernel.

    Returns:
        [B, T, heads, size], and None in place of attention weights.

    Raises:
        UserError: The architecture caps its scores or has attention sinks.
    """
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise UserError(
            f"model.attn_implementation={NAME} does not support this model's soft caps or "
            "attention sinks; use model.attn_implementation=eager"
        )
    batch, heads, queries, size = query.shape
    groups, keys = key.shape[1], key.shape[2]
    if queries * keys > _MOST_SCORES:
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
    output = torch.bmm(weights, value.reshape(batch * groups, keys, value.shape[-1]))
    return output.view(batch, heads, queries, value.shape[-1]).transpose(1, 2), None


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
