"""Where ReFT's interventions act: decoder layers and prompt positions."""

from dataclasses import dataclass

import torch

from heft_pipeline.adapters.reft.settings import ReftSettings, parse_positions, tokens_needed
from heft_pipeline.data.batches import Batch


@dataclass(frozen=True)
class Unit:
    """The place of one intervention.

    Attributes:
        layer: The decoder layer whose output is edited, from 0.
        end: ``both`` for both ends of the prompt, ``first`` or ``last`` for only one of them.
    """

    layer: int
    end: str

    @property
    def key(self) -> str:
        """The unit's name in files, e.g. ``layer3_both``."""
        return f"layer{self.layer}_{self.end}"


def units(settings: ReftSettings, num_layers: int) -> tuple[Unit, ...]:
    """The places of a ReFT adapter's interventions, in pyreft's order.

    There is one unit per layer. If the two ends of the prompt have weights of their own, all
    ``first`` units come before all ``last`` units.
    """
    layers = range(num_layers) if isinstance(settings.layers, str) else settings.layers
    first, last = parse_positions(settings.positions)
    if first and last and not settings.share_weights:
        return tuple(Unit(layer, end) for end in ("first", "last") for layer in layers)
    return tuple(Unit(layer, "both") for layer in layers)


def prompt_positions(batch: Batch, positions: str, end: str) -> torch.Tensor:
    """The columns that interventions edit; padding does not count as a position.

    As in pyreft's ``get_intervention_locations``, neither end gets more than half of a prompt.

    Args:
        batch: B prompts, in T columns.
        positions: A position string such as ``f7+l7``.
        end: ``both``, ``first`` or ``last``.

    Returns:
        [B, P] int64, columns of the batch; T, which is none, for a position that a short prompt
        does not have.
    """
    first, last = parse_positions(positions)
    start, half = batch.prompt_start[:, None], batch.whole_length[:, None] // 2
    stop = start + batch.prompt_length[:, None]
    ahead = torch.arange(first, device=start.device)
    back = torch.arange(last, 0, -1, device=start.device)
    none = batch.input_ids.shape[1]
    heads = (start + ahead).masked_fill(ahead >= half, none)
    tails = (stop - back).masked_fill(back > half, none)
    return {"first": heads, "last": tails, "both": torch.cat([heads, tails], dim=1)}[end]


def has_short(batch: Batch, positions: str) -> bool:
    """Whether a prompt of a batch is too short for all positions."""
    needed = tokens_needed(positions)
    return any(sequence.whole_length < needed for sequence in batch.sequences)


def position_names(positions: str, end: str) -> list[str]:
    """The names of the columns that :func:`prompt_positions` returns.

    Args:
        positions: A position string such as ``f7+l7``.
        end: ``both``, ``first`` or ``last``.

    Returns:
        P names, from ``f1`` for the prompt's first token to ``l1`` for its last.
    """
    first, last = parse_positions(positions)
    heads, tails = [f"f{i + 1}" for i in range(first)], [f"l{i}" for i in range(last, 0, -1)]
    return {"first": heads, "last": tails, "both": heads + tails}[end]
