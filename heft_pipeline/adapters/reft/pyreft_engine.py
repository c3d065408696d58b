"""pyreft's own forward pass, the reference that the hooks are compared with."""

from typing import Any

import torch
from torch.nn.functional import pad

from heft_pipeline.adapters.reft.interventions import Interventions
from heft_pipeline.adapters.reft.positions import has_short, prompt_positions
from heft_pipeline.data.batches import Batch
from heft_pipeline.errors import UserError
from heft_pipeline.models.base_model import Base
from heft_pipeline.models.forward import Editing, ReadPrompts, Work, model_inputs


class PyreftEngine:
    """Runs a model through ``pyreft.ReftModel``; a :class:`~heft_pipeline.models.forward.Forward`.

    Args:
        base: The model.
        interventions: Its interventions; shared with pyreft's model, not copied.
    """

    padding_costs = True

    def __init__(self, base: Base, interventions: Interventions) -> None:
        if base.no_padding:
            raise UserError(
                f"reft.engine=pyreft pads its batches, and {base.no_padding}; use reft.engine=hooks"
            )
        self._base, self._interventions = base, interventions
        self._model = pyreft_model(interventions, base.model, base.layers_path)
        # Before each pass, pyvene removes all hooks of the model, including the edits of parent
        # adapters. Its own hooks do not need this: it also removes them one by one.
        self._model._remove_forward_hooks = lambda: None

    def logits(self, batch: Batch, editing: Editing) -> torch.Tensor:
        """The logits that predict a batch's answers, [B, K, V]."""
        positions = self._interventions.settings.positions
        inputs = model_inputs(self._base.model, batch)
        units = self._interventions.units
        columns = [prompt_positions(batch, positions, unit.end) for unit in units]
        if has_short(batch, positions):
            # As pyreft does it: positions that a prompt does not have fall on one more padding
            # token, which stands first.
            width = batch.input_ids.shape[1]
            columns = [(one + 1) % (width + 1) for one in columns]
            per_token = ("input_ids", "attention_mask", "position_ids")
            inputs |= {name: pad(inputs[name], (1, 0)) for name in per_token if name in inputs}
        with editing(batch):
            where = {"sources->base": (None, [one.tolist() for one in columns])}
            _, output = self._model(inputs, unit_locations=where)
        logits: torch.Tensor = output.logits[:, -batch.answer_tokens :]
        return logits

    def hidden(self, batch: Batch, editing: Editing) -> torch.Tensor:
        """Not offered: ``reft.engine=pyreft`` with ``loss=sequence`` is refused."""
        raise NotImplementedError("pyreft's engine computes no hidden states")

    def read(self, batch: Batch, editing: Editing) -> ReadPrompts | None:
        """Return None, because pyreft's model keeps no keys and values."""
        return None

    def work(self, batch: Batch) -> Work:
        """See ``Forward``; every token is computed."""
        return Work(batch.input_ids.shape[1])


def pyreft_model(interventions: Interventions, model: Any, layers_path: str | None = None) -> Any:
    """Put interventions into pyreft's own model.

    Args:
        interventions: The interventions; shared with pyreft's model, not copied.
        model: The transformers model.
        layers_path: The path of its decoder layers, e.g. ``model.layers``. None uses pyvene's name
            for them (``block_output``), which pyvene knows for some model classes only.

    Returns:
        A ``pyreft.ReftModel`` with one unit per intervention, in the same order.
    """
    from pyreft import ReftConfig, ReftModel

    representations = [
        {
            "layer": unit.layer,
            "component": f"{layers_path}[{unit.layer}].output" if layers_path else "block_output",
            "low_rank_dimension": interventions.settings.rank,
            "intervention": interventions.interventions[unit.key],
        }
        for unit in interventions.units
    ]
    return ReftModel(ReftConfig(representations=representations), model)
