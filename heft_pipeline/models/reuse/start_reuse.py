"""Starting to reuse activations: keys and values of prompts, or the output of the first layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from heft_pipeline.data.batches import AnsweredPrompt, Batch, collate
from heft_pipeline.devices.memory import is_out_of_memory
from heft_pipeline.models.base_model import Base
from heft_pipeline.models.equal_lengths import EqualLengths
from heft_pipeline.models.forward import Editing, Forward, WholePrompts
from heft_pipeline.models.reuse.frozen_layers import FrozenLayers
from heft_pipeline.models.reuse.frozen_prompts import FrozenPrompts, OnPass
from heft_pipeline.models.reuse.kept_activations import Kept

#: How much log-probabilities with reuse may differ from those without it: nats, a mean over the
#: vocabulary.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15}


@dataclass(frozen=True)
class Choice:
    """What a stage reuses.

    Attributes:
        suffix: How many of a prompt's last tokens are computed while the earlier ones are reused;
            0 if all are computed.
        layers: How many decoder layers are skipped because their output is reused.
        why: The reason, for people.
    """

    suffix: int
    layers: int
    why: str


def start_reuse(
    base: Base,
    whole: WholePrompts | EqualLengths,
    editing: Editing,
    choice: Choice,
    sequences: Sequence[AnsweredPrompt],
    *,
    budget: float,
    folder: Path,
    tokens: int,
    advance: Callable[[int, int], None],
    on_pass: OnPass,
) -> tuple[Forward | None, str]:
    """Compute once what no trained parameter can change.

    Reuse is first tried on two sequences, to see whether the model gives the same logits.

    Args:
        base: The model with the stage's adapters on it.
        whole: Runs the model over whole prompts.
        editing: Applies the adapters' edits to a batch's prompts.
        choice: What to reuse.
        sequences: The sequences that training and the dev split read.
        budget: The most bytes to keep.
        folder: Where to write activations that do not fit into memory.
        tokens: The most padded tokens in one pass that computes activations.
        advance: Called with the number done and the total.
        on_pass: Called with the rows, padded tokens and layers of each such pass.

    Returns:
        A forward pass that reuses activations, or None if nothing is reused; and a text for people
        that says what is reused, or why nothing is.
    """
    nothing = "everything is recomputed: "
    if not (choice.suffix or choice.layers) or not sequences:
        return None, nothing + choice.why
    if base.no_padding:
        return None, nothing + base.no_padding
    if choice.suffix and whole.no_cache:
        return None, nothing + whole.no_cache
    probe = sorted(set(sequences), key=lambda s: len(s.prompt))[-2:]
    batch = collate(probe, base.pad_token_id).to(base.device)
    kept = Kept(base.device, budget, folder, _operations_a_byte(base, choice))
    found: FrozenPrompts | FrozenLayers = (
        FrozenPrompts(base, choice.suffix, kept, on_pass)
        if choice.suffix
        else FrozenLayers(base, choice.layers, kept, on_pass)
    )
    if obstacle := _obstacle(found, whole, batch, editing, base.model.dtype):
        return None, nothing + obstacle
    different = kept.fill(map(found.key, sequences), tokens, found.compute, advance)
    size = kept.bytes / 2**30
    return found, f"{len(kept)} of {different} prompts kept in {size:.2f} GiB: {choice.why}"


@torch.no_grad()
def _obstacle(
    found: Forward, whole: Forward, batch: Batch, editing: Editing, dtype: torch.dtype
) -> str:
    """Why a forward pass that reuses activations cannot stand in for one that does not."""
    recomputed = whole.logits(batch, editing)
    try:
        reused = found.logits(batch, editing)
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        return f"this model cannot reuse activations ({type(error).__name__}: {error})"
    if differs(reused, recomputed, dtype):
        return "reused activations change the logits of this model"
    return ""


def _operations_a_byte(base: Base, choice: Choice) -> float:
    """The operations per byte of recomputing kept activations, from the weights of their layers."""
    layers = base.layers[: choice.layers or None]
    weights = sum(p.numel() for layer in layers for p in layer.parameters())
    width = kept_width(base.model.config, choice, len(base.layers))
    return 2.0 * weights / (width * base.model.dtype.itemsize)


def kept_width(config: Any, choice: Choice, num_layers: int) -> int:
    """How many values are kept of each token.

    Args:
        config: The model's transformers config.
        choice: What is reused.
        num_layers: How many decoder layers the model has.
    """
    config = config.get_text_config()
    width = int(config.hidden_size)
    if not choice.suffix:
        return width
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    return 2 * num_layers * keys * (getattr(config, "head_dim", None) or width // heads)


def differs(reused: torch.Tensor, recomputed: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether logits with reuse differ from those without by more than rounding explains.

    Log-probabilities are compared, since a large offset common to all logits changes nothing and
    would hide a difference.

    Args:
        reused: [B, K, V], with reuse.
        recomputed: [B, K, V], without.
        dtype: The dtype that the model computes in.
    """
    one, other = (logits.float().log_softmax(dim=-1) for logits in (reused, recomputed))
    error = (one - other).abs().mean(dim=-1).amax()
    return not bool(error <= _TOLERANCE.get(dtype, _TOLERANCE[torch.float32]))
