"""ReFT interventions (arXiv 2404.03592): pyreft's own, attached with forward hooks.

The interventions are pyreft's classes. Its model edits hidden states through pyvene, which
turns positions into Python lists in every layer and step; here a hook on each decoder layer
gathers, edits and scatters with one index tensor a batch.
"""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from heft_pipeline.config import parse_positions
from heft_pipeline.data.batches import Batch
from heft_pipeline.spec import ReftSpec

with redirect_stdout(io.StringIO()):  # pyvene prints advice on an optional package
    from pyreft import interventions as pyreft_interventions

CLASSES: dict[str, Any] = {
    "loreft": pyreft_interventions.LoreftIntervention,
    "noreft": pyreft_interventions.NoreftIntervention,
    "consreft": pyreft_interventions.ConsreftIntervention,
    "lobireft": pyreft_interventions.LobireftIntervention,
    "direft": pyreft_interventions.DireftIntervention,
    "nodireft": pyreft_interventions.NodireftIntervention,
}
WEIGHTS, CONFIG = "reft.safetensors", "reft_config.json"


@dataclass(frozen=True)
class Unit:
    """One intervention's place.

    Attributes:
        layer: The decoder layer whose output is edited, from 0.
        end: ``both`` ends of the prompt, or its ``first`` or ``last`` positions alone.
    """

    layer: int
    end: str

    @property
    def key(self) -> str:
        """The unit's name in files, e.g. ``layer3_both``."""
        return f"layer{self.layer}_{self.end}"


def units(spec: ReftSpec, num_layers: int) -> tuple[Unit, ...]:
    """The interventions of a ReFT adapter, in pyreft's order.

    Args:
        spec: The adapter.
        num_layers: How many decoder layers the model has.

    Returns:
        One unit a layer; with separate weights all ``first`` units, then all ``last`` ones.
    """
    layers = range(num_layers) if isinstance(spec.layers, str) else spec.layers
    first, last = parse_positions(spec.positions)
    if first and last and not spec.share_weights:
        return tuple(Unit(layer, end) for end in ("first", "last") for layer in layers)
    return tuple(Unit(layer, "both") for layer in layers)


def prompt_positions(batch: Batch, positions: str, end: str) -> torch.Tensor:
    """The columns that interventions edit, counted on prompts and not on padding.

    Args:
        batch: B prompts, each at least as long as the positions asked for.
        positions: A position string such as ``f7+l7``.
        end: ``both``, ``first`` or ``last``.

    Returns:
        [B, P] int64 columns of the batch.
    """
    first, last = parse_positions(positions)
    start = batch.prompt_start[:, None]
    stop = start + batch.prompt_length[:, None]
    heads = start + torch.arange(first, device=start.device)
    tails = stop - torch.arange(last, 0, -1, device=start.device)
    return {"first": heads, "last": tails, "both": torch.cat([heads, tails], dim=1)}[end]


def position_names(positions: str, end: str) -> list[str]:
    """What the columns of :func:`prompt_positions` are called.

    Args:
        positions: A position string such as ``f7+l7``.
        end: ``both``, ``first`` or ``last``.

    Returns:
        ``f1`` for the prompt's first token to ``l1`` for its last, P names.
    """
    first, last = parse_positions(positions)
    heads, tails = [f"f{i + 1}" for i in range(first)], [f"l{i}" for i in range(last, 0, -1)]
    return {"first": heads, "last": tails, "both": heads + tails}[end]


class ReftAdapter(nn.Module):
    """The interventions of one ReFT adapter.

    Args:
        spec: The adapter.
        hidden_size: The model's width.
        num_layers: How many decoder layers the model has.
        frozen: Keep the projections R as plain matrices instead of a trainable
            orthogonal parametrisation.
    """

    def __init__(
        self, spec: ReftSpec, hidden_size: int, num_layers: int, frozen: bool = False
    ) -> None:
        super().__init__()
        self.spec = spec
        self.units = units(spec, num_layers)
        self.interventions = nn.ModuleDict(
            {unit.key: _intervention(spec, hidden_size) for unit in self.units}
        )
        self._columns: dict[str, torch.Tensor] = {}
        self._width = 0
        self._observe: Callable[[Unit, torch.Tensor, torch.Tensor], None] | None = None
        self.float()
        if frozen:
            self.freeze()

    def freeze(self) -> None:
        """Make every R a plain matrix, bit for bit what the parametrisation computes."""
        for intervention in self._each().values():
            if hasattr(intervention, "rotate_layer"):
                rotate = pyreft_interventions.LowRankRotateLayer(
                    *intervention.rotate_layer.weight.shape, init_orth=False
                )
                rotate.weight.data = intervention.rotate_layer.weight.detach().clone()
                intervention.rotate_layer = rotate
        self.requires_grad_(False).eval()

    @contextmanager
    def rotations(self) -> Iterator[None]:
        """Compute the projection R of every unit at once, for the forward passes inside.

        pyreft computes ``R = orthogonalise(...)`` at each of its uses, twice a layer and pass.
        Here all of them are one batched product of Householder reflections, in the compact WY
        form (Joffrain et al. 2006), which is torch's own parametrisation to rounding. Inside,
        gradients gather at R; on leaving, one backward pass takes them to the parameters.

        Yields:
            Nothing.
        """
        rotated = [i.rotate_layer for i in self._each().values() if hasattr(i, "rotate_layer")]
        rotated = [r for r in rotated if hasattr(r, "parametrizations") and _is_householder(r)]
        with parametrize.cached():
            if not rotated:
                yield
                return
            weights = _orthogonal([r.parametrizations.weight for r in rotated])
            grad = weights.requires_grad and torch.is_grad_enabled()
            leaves = [w.detach().requires_grad_(grad) for w in weights]
            for rotate, leaf in zip(rotated, leaves, strict=True):
                # What the first use would put there.
                parametrize._cache[(id(rotate), "weight")] = leaf
            yield
        if grad and leaves[0].grad is not None:
            weights.backward(torch.stack([leaf.grad for leaf in leaves]))

    def attach(self, layers: nn.ModuleList) -> list[RemovableHandle]:
        """Hook the interventions to decoder layers.

        Args:
            layers: The model's decoder layers.

        Returns:
            Handles that remove the hooks.
        """
        return [layers[unit.layer].register_forward_hook(self._hook(unit)) for unit in self.units]

    @contextmanager
    def at(self, batch: Batch) -> Iterator[None]:
        """Edit the prompts of a batch in the forward passes inside; elsewhere hooks do nothing.

        Args:
            batch: The batch that the forward pass reads. Passes over another number of
                columns (the steps of generation after the prompt) are left alone.

        Yields:
            Nothing.
        """
        ends = {unit.end for unit in self.units}
        self._columns = {e: prompt_positions(batch, self.spec.positions, e) for e in ends}
        self._width = batch.input_ids.shape[1]
        try:
            yield
        finally:
            self._columns = {}

    @contextmanager
    def observed(
        self, observe: Callable[[Unit, torch.Tensor, torch.Tensor], None]
    ) -> Iterator[None]:
        """Look at each edit in the forward passes inside.

        Args:
            observe: Called with the unit and the hidden states before and after its edit,
                [B, P, hidden] float32 in the order of :func:`prompt_positions`.

        Yields:
            Nothing.
        """
        self._observe = observe
        try:
            yield
        finally:
            self._observe = None

    def _each(self) -> dict[str, Any]:
        """The interventions by unit key; pyreft's classes carry no types."""
        return dict(self.interventions.items())

    def _hook(self, unit: Unit) -> Any:
        intervention = self.interventions[unit.key]

        def edit(_module: nn.Module, _args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            if not self._columns or hidden.shape[1] != self._width:
                return output
            columns = self._columns[unit.end]
            index = columns[:, :, None].expand(-1, -1, hidden.shape[-1])
            # The edit is computed in float32, whatever the frozen base is kept in.
            before = hidden.gather(1, index).float()
            after = intervention(before)
            if self._observe is not None:
                self._observe(unit, before, after)
            hidden = hidden.scatter(1, index, after.to(hidden.dtype))
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return edit

    def effective_state(self) -> dict[str, torch.Tensor]:
        """The weights that define the edits: R itself instead of its parametrisation.

        Returns:
            Float32 CPU tensors under ``UNIT.NAME``; R is [hidden, rank] as ``rotate_layer``.
        """
        state = {}
        for key, intervention in self._each().items():
            for name, tensor in intervention.named_parameters():
                if not name.startswith("rotate_layer"):
                    state[f"{key}.{name}"] = tensor
            if hasattr(intervention, "rotate_layer"):
                state[f"{key}.rotate_layer"] = intervention.rotate_layer.weight
        return {k: v.detach().to("cpu", torch.float32).contiguous() for k, v in state.items()}

    def load_effective_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take weights as :meth:`effective_state` gives them.

        Args:
            state: The tensors, of the same names and shapes as this adapter's own.

        Raises:
            ValueError: Names or shapes differ.
        """
        own = {k: tuple(v.shape) for k, v in self.effective_state().items()}
        given = {k: tuple(v.shape) for k, v in state.items()}
        if own != given:
            raise ValueError(f"expected the tensors {own}, got {given}")
        with torch.no_grad():
            for key, intervention in self._each().items():
                for name, parameter in intervention.named_parameters():
                    if not name.startswith("rotate_layer"):
                        parameter.copy_(state[f"{key}.{name}"])
                if hasattr(intervention, "rotate_layer"):
                    weight = state[f"{key}.rotate_layer"].to(intervention.rotate_layer.weight)
                    if hasattr(intervention.rotate_layer, "parametrizations"):
                        intervention.rotate_layer.weight = weight
                    else:
                        intervention.rotate_layer.weight.copy_(weight)

    def save(self, folder: Path) -> None:
        """Write the adapter as ``reft.safetensors`` and ``reft_config.json``.

        Args:
            folder: Where to; made where missing.
        """
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.effective_state(), folder / WEIGHTS)
        spec = self.spec
        config = {
            "intervention": spec.intervention,
            "low_rank_dimension": spec.rank,
            "positions": spec.positions,
            "share_weights": spec.share_weights,
            "dropout": spec.dropout,
            "add_bias": spec.add_bias,
            "layers": sorted({unit.layer for unit in self.units}),
            "units": [{"layer": u.layer, "end": u.end, "key": u.key} for u in self.units],
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _is_householder(rotate: Any) -> bool:
    """Whether torch orthogonalises by reflections; a square R goes by the matrix exponential."""
    hidden, rank = rotate.parametrizations.weight.original.shape
    parametrization = rotate.parametrizations.weight[0]
    return rank < hidden and parametrization.orthogonal_map.name == "householder"


def _orthogonal(parametrized: Sequence[Any]) -> torch.Tensor:
    """[units, hidden, rank]: what torch's Householder parametrisation makes of each weight."""
    raw = torch.stack([p.original for p in parametrized])
    base = torch.stack([p[0].base for p in parametrized])
    rank = raw.shape[-1]
    unit = torch.eye(raw.shape[1], rank, dtype=raw.dtype, device=raw.device)
    vectors = raw.tril(-1) + unit
    inverse = (vectors.mT @ vectors).triu(1) + torch.diag_embed((vectors**2).sum(dim=-2) / 2)
    # Q = E - V T V' E, for the first rank columns E of the identity.
    inner = torch.linalg.solve_triangular(inverse, vectors[:, :rank].mT, upper=True)
    signs = raw.diagonal(dim1=-2, dim2=-1).int().unsqueeze(-2)
    return base @ ((unit - vectors @ inner) * signs)


def load_reft(folder: Path, spec: ReftSpec, hidden_size: int, num_layers: int) -> ReftAdapter:
    """Read a saved adapter, frozen.

    Args:
        folder: What :meth:`ReftAdapter.save` wrote.
        spec: The adapter's spec.
        hidden_size: The model's width.
        num_layers: How many decoder layers the model has.

    Returns:
        The adapter in eval mode.
    """
    adapter = ReftAdapter(spec, hidden_size, num_layers, frozen=True)
    adapter.load_effective_state(load_file(folder / WEIGHTS))
    return adapter


def _intervention(spec: ReftSpec, hidden_size: int) -> nn.Module:
    made: nn.Module = CLASSES[spec.intervention](
        embed_dim=hidden_size,
        low_rank_dimension=spec.rank,
        dropout=spec.dropout,
        add_bias=spec.add_bias,
        dtype=torch.float32,
    )
    return made
