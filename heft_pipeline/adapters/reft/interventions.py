"""pyreft's interventions as one module, attached to decoder layers with forward hooks.

pyreft's own model edits hidden states through pyvene, which turns positions into Python lists in
every layer and step. Here, a hook on each decoder layer gathers, edits and scatters hidden states
with one index tensor per batch.
"""

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from heft_pipeline.adapters.reft.positions import Unit, has_short, prompt_positions, units
from heft_pipeline.adapters.reft.settings import ReftSettings
from heft_pipeline.data.batches import Batch

with redirect_stdout(io.StringIO()):  # pyvene prints advice about an optional package
    from pyreft import interventions as pyreft_interventions

CLASSES: dict[str, Any] = {
    "loreft": pyreft_interventions.LoreftIntervention,
    "noreft": pyreft_interventions.NoreftIntervention,
    "consreft": pyreft_interventions.ConsreftIntervention,
    "lobireft": pyreft_interventions.LobireftIntervention,
    "direft": pyreft_interventions.DireftIntervention,
    "nodireft": pyreft_interventions.NodireftIntervention,
}
#: Called with a unit and the hidden states before and after its edit, [B, P, hidden] float32; NaN
#: where a prompt is too short to have the position.
Observe = Callable[[Unit, torch.Tensor, torch.Tensor], None]


class Interventions(nn.Module):
    """The interventions of one ReFT adapter.

    Args:
        settings: The adapter's settings.
        hidden_size: The width of the model's hidden states.
        num_layers: How many decoder layers the model has.
        frozen: Whether the projections R are plain matrices instead of trainable orthogonal
            parametrisations.
    """

    def __init__(
        self, settings: ReftSettings, hidden_size: int, num_layers: int, frozen: bool = False
    ) -> None:
        super().__init__()
        self.settings = settings
        self.units = units(settings, num_layers)
        self.interventions = nn.ModuleDict(
            {unit.key: _intervention(settings, hidden_size) for unit in self.units}
        )
        self._columns: dict[str, torch.Tensor] = {}
        self._width, self._short = 0, False
        self._observe: Observe | None = None
        self.float()
        if frozen:
            self.freeze()

    def freeze(self) -> None:
        """Replace every R by the plain matrix that its parametrisation computes, bit for bit."""
        for intervention in self.each().values():
            if hasattr(intervention, "rotate_layer"):
                rotate = pyreft_interventions.LowRankRotateLayer(
                    *intervention.rotate_layer.weight.shape, init_orth=False
                )
                rotate.weight.data = intervention.rotate_layer.weight.detach().clone()
                intervention.rotate_layer = rotate
        self.requires_grad_(False).eval()

    def attach(self, layers: nn.ModuleList) -> list[RemovableHandle]:
        """Hook the interventions to a model's decoder layers, and return the hooks' handles."""
        return [layers[unit.layer].register_forward_hook(self._hook(unit)) for unit in self.units]

    @contextmanager
    def at(self, batch: Batch) -> Iterator[None]:
        """Edit a batch's prompts in the forward passes inside the block; outside, hooks do nothing.

        Args:
            batch: The batch that the forward pass reads. Passes over a different number of
                columns, such as the later steps of generation, are left alone.
        """
        ends = {unit.end for unit in self.units}
        self._columns = {e: prompt_positions(batch, self.settings.positions, e) for e in ends}
        self._width = batch.input_ids.shape[1]
        self._short = has_short(batch, self.settings.positions)
        try:
            yield
        finally:
            self._columns = {}

    @contextmanager
    def observed(self, observe: Observe) -> Iterator[None]:
        """Call ``observe`` for each edit in the forward passes inside the block."""
        self._observe = observe
        try:
            yield
        finally:
            self._observe = None

    def each(self) -> dict[str, Any]:
        """The interventions by unit key; pyreft's classes have no type hints."""
        return dict(self.interventions.items())

    def _hook(self, unit: Unit) -> Any:
        intervention = self.interventions[unit.key]

        def edit(_module: nn.Module, _args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple | list) else output
            if not self._columns or hidden.shape[1] != self._width:
                return output
            columns = self._columns[unit.end]
            if hidden.shape[0] != columns.shape[0]:
                raise RuntimeError(
                    f"{hidden.shape[0]} sequences are run, and {columns.shape[0]} were announced"
                )
            index = columns[:, :, None].expand(-1, -1, hidden.shape[-1])
            if self._short:  # positions that a prompt does not have go to one more column
                hidden = torch.cat([hidden, hidden.new_zeros(hidden[:, :1].shape)], dim=1)
            # The edit is computed in float32, whatever the frozen base's dtype.
            before = hidden.gather(1, index).float()
            after = intervention(before)
            if self._observe is not None:
                none = (columns == self._width)[:, :, None]
                self._observe(unit, *(x.masked_fill(none, math.nan) for x in (before, after)))
            hidden = hidden.scatter(1, index, after.to(hidden.dtype))
            if self._short:
                hidden = hidden[:, : self._width].contiguous()  # some models view it
            if isinstance(output, tuple | list):
                return type(output)([hidden, *output[1:]])
            return hidden

        return edit

    def effective_state(self) -> dict[str, torch.Tensor]:
        """The weights that define the edits, with R itself instead of its parametrisation.

        Returns:
            Float32 CPU tensors under ``UNIT.NAME``; R is ``UNIT.rotate_layer``, [hidden, rank].
        """
        state = {}
        for key, intervention in self.each().items():
            for name, tensor in intervention.named_parameters():
                if not name.startswith("rotate_layer"):
                    state[f"{key}.{name}"] = tensor
            if hasattr(intervention, "rotate_layer"):
                state[f"{key}.rotate_layer"] = intervention.rotate_layer.weight
        return {k: v.detach().to("cpu", torch.float32).contiguous() for k, v in state.items()}

    def load_effective_state(self, state: dict[str, torch.Tensor]) -> None:
        """Load weights that :meth:`effective_state` returned.

        Args:
            state: Tensors with the same names and shapes as this adapter's own.

        Raises:
            ValueError: Names or shapes differ.
        """
        own = {k: tuple(v.shape) for k, v in self.effective_state().items()}
        given = {k: tuple(v.shape) for k, v in state.items()}
        if own != given:
            raise ValueError(f"expected the tensors {own}, got {given}")
        with torch.no_grad():
            for key, intervention in self.each().items():
                for name, parameter in intervention.named_parameters():
                    if not name.startswith("rotate_layer"):
                        parameter.copy_(state[f"{key}.{name}"])
                if hasattr(intervention, "rotate_layer"):
                    weight = state[f"{key}.rotate_layer"].to(intervention.rotate_layer.weight)
                    if hasattr(intervention.rotate_layer, "parametrizations"):
                        intervention.rotate_layer.weight = weight
                    else:
                        intervention.rotate_layer.weight.copy_(weight)


def _intervention(settings: ReftSettings, hidden_size: int) -> nn.Module:
    made: nn.Module = CLASSES[settings.intervention](
        embed_dim=hidden_size,
        low_rank_dimension=settings.rank,
        dropout=settings.dropout,
        add_bias=settings.add_bias,
        dtype=torch.float32,
    )
    return made
