"""Starting to reuse activations: of the first layers, of earlier positions, or of both."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from heft_pipeline.data.batches import AnsweredPrompt, Batch, collate
from heft_pipeline.devices.memory import is_out_of_memory
from heft_pipeline.models.base_model import Base
from heft_pipeline.models.equal_lengths import EqualLengths
from heft_pipeline.models.forward import Editing, Forward, WholePrompts
from heft_pipeline.models.reuse.estimate import (
    Choice,
    KeptSizes,
    kept_key,
    kept_sizes,
    tried_first,
    why_outputs,
)
from heft_pipeline.models.reuse.frozen_layers import FrozenLayers
from heft_pipeline.models.reuse.frozen_prompts import FrozenPrompts
from heft_pipeline.models.reuse.kept_activations import Kept, OnPass

#: How much log-probabilities with reuse may differ from those without it: nats, a mean over the
#: vocabulary.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15}


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

    Reuse is first tried on two sequences, to see whether the model gives the same logits. If it
    does not, reuse of the first layers alone is tried where they are unchanged.

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
    batch = collate(tried_first(sequences), base.pad_token_id).to(base.device)
    obstacle = whole.no_cache if choice.suffix else ""
    for part in _ways(choice, obstacle):
        itemsize = base.model.dtype.itemsize
        sizes = kept_sizes(base.model.config, len(base.layers), itemsize, part)
        kept = Kept(base.device, budget, folder, _operations_a_byte(base, sizes))
        keys = {kept_key(sequence, part) for sequence in sequences}
        # By the budget alone: what happens to be free must not decide a result.
        keys_values = sizes.keeps_keys_values(keys, budget)
        found: FrozenPrompts | FrozenLayers = FrozenLayers(base, part, kept, on_pass)
        if part.suffix:
            found = FrozenPrompts(base, part, kept, on_pass, keys_values=keys_values)
        if obstacle := _obstacle(found, whole, batch, editing, base.model.dtype):
            continue
        size = partial(sizes.bytes, keys_values=keys_values)
        kept.fill(keys, tokens, found.compute, advance, size=size)
        said = f"{len(kept)} of {len(keys)} prompts kept in {kept.where}: {part.why}"
        if part.suffix and not keys_values:
            said += f"; {why_outputs(sizes, keys, budget)}"
        return found, said + _without_room(kept)
    return None, nothing + obstacle


def _without_room(kept: Kept) -> str:
    lost = kept.without_room
    return f"; there is no room for {lost}, computed again at each use" if lost else ""


def _ways(choice: Choice, no_cache: str) -> Iterator[Choice]:
    """What to try, the most first."""
    if not no_cache:
        yield choice
    if choice.suffix and choice.layers:
        yield Choice(0, choice.layers, choice.why)


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


def _operations_a_byte(base: Base, sizes: KeptSizes) -> float:
    """The operations per byte of recomputing kept activations, from the weights of their layers."""
    choice = sizes.choice
    layers = base.layers[: len(base.layers) if choice.suffix else choice.layers]
    weights = sum(p.numel() for layer in layers for p in layer.parameters())
    return 2.0 * weights / (sizes.pairs if choice.suffix else sizes.states)


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
