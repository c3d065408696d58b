"""Frozen activations, computed once: what no trained parameter of a ReFT stage can change.

With interventions at the last positions of a prompt only, every earlier position's activations
are the same in every epoch: their attention keys and values are kept, and training runs the last
positions and the answer alone. With any interventions, what comes out of the first edited
layer before its edit is the same: it is kept, and training begins there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from heft_pipeline.config import parse_positions
from heft_pipeline.data.batches import AnsweredPrompt, collate
from heft_pipeline.models.base import (
    Base,
    accepted_inputs,
    answer_logits,
    cache_name,
    kept_cache,
)
from heft_pipeline.models.frozen import Editing, FrozenLayers, FrozenPrompts, OnPass
from heft_pipeline.models.kept import Kept
from heft_pipeline.spec import StageSpec

#: Below this share of all layers, skipping the first ones saves less than it costs in memory.
_SHARE_OF_LAYERS = 0.05
#: Logits may differ by this much, against their scale, from those of recomputing everything.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
#: Padded tokens a pass that computes reused activations; without gradients, so small.
_TOKENS = 16384


@dataclass(frozen=True)
class Choice:
    """What a stage reuses.

    Attributes:
        suffix: How many last prompt tokens are computed, earlier ones being reused; 0 for all.
        layers: How many decoder layers are skipped, what comes out of them being reused.
        why: The reason, for people.
    """

    suffix: int
    layers: int
    why: str


def choose(stage: StageSpec, num_layers: int) -> Choice:
    """Decide from a stage's spec what can be reused.

    Args:
        stage: The stage.
        num_layers: How many decoder layers the model has.

    Returns:
        The choice, by what is trained and where.
    """
    reft = stage.reft
    if reft is None or stage.lora is not None:
        return Choice(0, 0, "LoRA changes every position's activations")
    if reft.reuse == "off":
        return Choice(0, 0, "reft.reuse=off")
    if reft.engine != "hooks":
        return Choice(0, 0, "pyreft's engine runs whole prompts")
    if any(parent.reft for parent in stage.chain[:-1]):
        return Choice(0, 0, "a parent stage edits the prompt too")
    first, last = parse_positions(reft.positions)
    checkpointing = stage.training is not None and stage.training.gradient_checkpointing
    if not first and not checkpointing:
        return Choice(last, 0, f"{reft.positions} edits the last {last} tokens alone")
    skipped = 1 + (0 if isinstance(reft.layers, str) else min(reft.layers))
    if skipped / num_layers < _SHARE_OF_LAYERS:
        return Choice(0, 0, f"{reft.positions} leaves {skipped} of {num_layers} layers unchanged")
    return Choice(0, skipped, f"nothing is trained in the first {skipped} of {num_layers} layers")


def start_reuse(
    base: Base,
    editing: Editing,
    stage: StageSpec,
    sequences: Sequence[AnsweredPrompt],
    folder: Path,
    *,
    advance: Callable[[int, int], None],
    on_pass: OnPass,
) -> tuple[FrozenPrompts | FrozenLayers | None, str]:
    """Compute once what no trained parameter can change, where the stage allows it.

    Whether the model gives the same logits that way is seen on two sequences first.

    Args:
        base: The model with the stage's adapters on it.
        editing: Makes ReFT's edits to a batch's prompts.
        stage: The stage.
        sequences: What training and the dev split read.
        folder: Where activations go that memory has no room for.
        advance: Told how many are done, and of how many.
        on_pass: Told the rows, padded tokens and layers of each pass that computes them.

    Returns:
        What is to be used instead of the whole model, or None; and what is said of it.
    """
    choice = choose(stage, len(base.layers))
    nothing = "everything is recomputed: "
    if not (choice.suffix or choice.layers) or not sequences:
        return None, nothing + choice.why
    if choice.suffix and (reason := unsupported(base)):
        return None, nothing + reason
    assert stage.reft is not None and stage.training is not None
    probe = sorted(set(sequences), key=lambda s: len(s.prompt))[-2:]
    batch = collate(probe, base.pad_token_id).to(base.device)
    budget = stage.reft.reuse_budget_gib * 2**30
    kept = Kept(base.device, budget, folder, _operations_a_byte(base, choice))
    found: FrozenPrompts | FrozenLayers = (
        FrozenPrompts(base, choice.suffix, kept, on_pass)
        if choice.suffix
        else FrozenLayers(base, choice.layers, kept, on_pass)
    )
    with torch.no_grad():
        reused = found.logits(batch, editing)
        with editing(batch):
            recomputed = answer_logits(base.model, batch)
    if differs(reused, recomputed):
        return None, f"{nothing}reused activations change the logits of this model"
    asked = stage.training.micro_batch_tokens
    different = found.prepare(sequences, _TOKENS if isinstance(asked, str) else asked, advance)
    size = kept.bytes / 2**30
    return found, f"{len(kept)} of {different} prompts kept in {size:.2f} GiB: {choice.why}"


def _operations_a_byte(base: Base, choice: Choice) -> float:
    """What computing kept activations anew takes, by the weights of the layers they stand for."""
    config = base.model.config.get_text_config()
    layers = base.layers[: choice.layers or None]
    weights = sum(p.numel() for layer in layers for p in layer.parameters())
    width = config.hidden_size
    if choice.suffix:
        heads = config.num_attention_heads
        keys = getattr(config, "num_key_value_heads", None) or heads
        width = 2 * len(layers) * keys * (getattr(config, "head_dim", None) or width // heads)
    return 2.0 * weights / (width * base.model.dtype.itemsize)


def unsupported(base: Base) -> str:
    """Why a model's keys and values cannot be reused.

    Args:
        base: The model.

    Returns:
        The reason, or an empty string.
    """
    from transformers.cache_utils import DynamicLayer

    wanted = {cache_name(base.model), "position_ids", "logits_to_keep"}
    if not wanted <= accepted_inputs(base.model):
        return f"{type(base.model).__name__} takes no cache of keys and values"
    prompt = AnsweredPrompt((base.pad_token_id,) * 2, (0,))
    batch = collate([prompt], base.pad_token_id).to(base.device)
    with torch.no_grad():
        past = kept_cache(base.model(input_ids=batch.input_ids, use_cache=True))
    layers = getattr(past, "layers", [])
    plain = len(layers) == len(base.layers) and all(
        type(layer) is DynamicLayer and layer.keys.shape == layer.values.shape for layer in layers
    )
    return "" if plain else f"{type(base.model).__name__} keeps more than keys and values"


def differs(reused: torch.Tensor, recomputed: torch.Tensor) -> bool:
    """Whether logits with reuse are further from those without than rounding explains.

    Args:
        reused: [B, K, V].
        recomputed: The same, by whole prompts.

    Returns:
        True where reuse must not be used.
    """
    scale = recomputed.float().abs().amax().clamp(min=1.0)
    error = (reused.float() - recomputed.float()).abs().amax() / scale
    return bool(error > _TOLERANCE.get(recomputed.dtype, 1e-3))
