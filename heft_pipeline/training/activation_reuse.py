"""Reusing activations that training cannot change, if the stage allows it."""

from collections.abc import Callable, Sequence
from pathlib import Path

from heft_pipeline.adapters.adapted import AdaptedModel
from heft_pipeline.adapters.kind import AdapterSettings
from heft_pipeline.data.batches import AnsweredPrompt
from heft_pipeline.models.reuse.estimate import Choice
from heft_pipeline.models.reuse.kept_activations import OnPass
from heft_pipeline.models.reuse.start_reuse import start_reuse
from heft_pipeline.training.settings import TrainingSettings

#: Skipping less than this share of all layers saves too little for the memory that it takes.
_SHARE_OF_LAYERS = 0.05
#: Padded tokens in a pass that computes reused activations; it keeps no gradients.
_TOKENS = 16384


def reusable(
    trained: Sequence[AdapterSettings],
    parents: Sequence[AdapterSettings],
    num_layers: int,
    training: TrainingSettings,
) -> Choice:
    """Decide from a stage's settings what can be reused.

    Args:
        trained: The settings of the adapters that the stage trains.
        parents: The settings of the adapters that it is trained on.
        num_layers: How many decoder layers the model has.
        training: How the stage is trained.
    """
    for adapter in trained:
        if not adapter.edits:
            return Choice(0, 0, adapter.reach().what)
        if adapter.reuse_bytes is None:
            return Choice(0, 0, f"{adapter.kind}.reuse=off")
        if adapter.own_engine:
            return Choice(0, 0, f"{adapter.own_engine} runs whole prompts")
    if any(parent.at_positions for parent in parents):
        return Choice(0, 0, "a parent stage edits the prompt too")
    reaches = [adapter.reach() for adapter in trained]
    where = ", ".join(reach.what for reach in reaches)
    suffixes = [reach.last_positions for reach in reaches]
    first = min(reach.first_layer for reach in reaches)
    unchanged = f"nothing is trained in the first {first} of {num_layers} layers"
    layers = first if first / num_layers >= _SHARE_OF_LAYERS else 0
    whole = training.gradient_checkpointing or trained[0].loss == "sequence"
    if not whole and None not in suffixes and layers < num_layers:
        last = max(last for last in suffixes if last is not None)
        tokens = f"the last {last} tokens" if last > 1 else "the last token"
        why = f"{where} edits only {tokens}" + (f", and {unchanged}" if layers else "")
        return Choice(last, layers, why)
    if not first:
        return Choice(0, 0, f"{where} edits every position from the first layer on")
    if not layers:
        return Choice(0, 0, f"{where} leaves {first} of {num_layers} layers unchanged")
    return Choice(0, layers, unchanged)


def pass_tokens(training: TrainingSettings) -> int:
    """The most padded tokens in a pass that computes reused activations."""
    asked = training.micro_batch_tokens
    return _TOKENS if isinstance(asked, str) else int(asked)


def reuse_activations(
    model: AdaptedModel,
    training: TrainingSettings,
    sequences: Sequence[AnsweredPrompt],
    folder: Path,
    *,
    advance: Callable[[int, int], None],
    on_pass: OnPass,
) -> str:
    """Compute once what no trained parameter can change, and let the model's forward pass use it.

    Args:
        model: The model with the stage's adapters on it.
        training: How the stage is trained.
        sequences: The sequences that training and the dev split read.
        folder: Where to write activations that do not fit into memory.
        advance: Called with the number done and the total.
        on_pass: Called with the rows, padded tokens and layers of each pass that computes them.

    Returns:
        What is reused, or why nothing is, for people.
    """
    trained = [adapter.settings for adapter in model.trained]
    parents = [adapter.settings for adapter in model.parents]
    forward, said = start_reuse(
        model.base,
        model.whole,
        model.editing,
        reusable(trained, parents, len(model.base.layers), training),
        sequences,
        budget=min((a.reuse_bytes for a in trained if a.reuse_bytes is not None), default=0.0),
        folder=folder,
        tokens=pass_tokens(training),
        advance=advance,
        on_pass=on_pass,
    )
    model.forward = forward or model.forward
    return said
