"""ReFT adapters on a model."""

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Self

import torch
from torch.nn.utils import parametrize

from heft_pipeline.adapters.adapter import Adapter, Target
from heft_pipeline.adapters.edit_sizes import Observe
from heft_pipeline.adapters.reft.interventions import Interventions
from heft_pipeline.adapters.reft.positions import Unit, position_names
from heft_pipeline.adapters.reft.pyreft_engine import PyreftEngine
from heft_pipeline.adapters.reft.pyreft_folder import check_start, read_pyreft, write_pyreft
from heft_pipeline.adapters.reft.rotations import computed_once
from heft_pipeline.adapters.reft.settings import ReftSettings, parse_positions
from heft_pipeline.data.batches import Batch
from heft_pipeline.errors import UserError
from heft_pipeline.files.tensor_files import copy_files, read_tensors, write_tensors
from heft_pipeline.models.base_model import Base, skeleton
from heft_pipeline.models.decoder import decoder_layers
from heft_pipeline.models.forward import Forward
from heft_pipeline.models.settings import ModelSettings

WEIGHTS, CONFIG = "reft.safetensors", "reft_config.json"
_EXPORTED = """\
import torch
from pyreft import ReftModel
reft = ReftModel.load("{folder}", model)
reft._remove_forward_hooks = lambda: None  # pyvene would remove those of other adapters too
for key, intervention in reft.interventions.items():
    # pyreft builds interventions in bfloat16; these were trained in float32.
    intervention.float()
    intervention.load_state_dict(torch.load(f"{folder}/intkey_{{key}}.bin"))
reft.eval()
"""


class ReftAdapter(Adapter):
    """One ReFT adapter on a model.

    Args:
        settings: The adapter's settings.
        base: The model.
        interventions: The adapter's interventions.
        engine: pyreft's forward pass, if it makes the edits; None for hooks.
    """

    def __init__(
        self,
        settings: ReftSettings,
        base: Base,
        interventions: Interventions,
        engine: PyreftEngine | None = None,
    ) -> None:
        self.settings: ReftSettings = settings
        self.interventions = interventions.to(base.device)
        self._engine = engine
        self._trained = any(p.requires_grad for p in interventions.parameters())
        self.handles = () if engine else interventions.attach(base.layers)

    @classmethod
    def new(cls, settings: ReftSettings, base: Base, others: Sequence[Adapter]) -> Self:
        """See :meth:`Adapter.new`."""
        interventions = Interventions(settings, base.hidden_size, len(base.layers))
        if settings.init_from:
            read_pyreft(interventions, Path(settings.init_from).expanduser())
        engine = None
        if settings.own_engine:
            engine = PyreftEngine(base, interventions.to(base.device))
        return cls(settings, base, interventions, engine)

    @classmethod
    def load(
        cls, settings: ReftSettings, base: Base, others: Sequence[Adapter], folder: Path
    ) -> Self:
        """See :meth:`Adapter.load`."""
        interventions = Interventions(settings, base.hidden_size, len(base.layers), frozen=True)
        interventions.load_effective_state(read_tensors(folder / WEIGHTS)[0])
        return cls(settings, base, interventions)

    @classmethod
    def check(cls, settings: ReftSettings, target: Target) -> None:
        """Refuse layers, a rank, positions or an ``init_from`` that do not fit model and task."""
        hidden, layers = target.hidden_size, target.num_layers
        target.check_layers(f"{settings.kind}.layers", settings.layers)
        if settings.rank > hidden:
            raise UserError(
                f"reft.rank={settings.rank} is more than the hidden size of {target.name} "
                f"({hidden}); use reft.rank={hidden} or less"
            )
        if settings.tokens_needed > target.longest_prompt:
            raise UserError(
                f"reft.positions={settings.positions} needs prompts of {settings.tokens_needed} "
                f"tokens, since neither end gets more than half of a prompt, but the longest has "
                f"{target.longest_prompt}; use fewer, e.g. "
                f"reft.positions=l{max(1, min(7, target.longest_prompt // 2))}"
            )
        # With auto, the dtype is that of the device which trains the stage, not of this one.
        if settings.own_engine and target.model.dtype != "float32":
            where = " wherever auto is bfloat16" if target.model.dtype == "auto" else ""
            raise UserError(
                "reft.engine=pyreft computes its edits in the base model's dtype, but its weights "
                f"are float32, so it fails with model.dtype={target.model.dtype}{where}; use "
                "model.dtype=float32, or reft.engine=hooks"
            )
        if settings.own_engine and settings.loss == "sequence":
            raise UserError(
                "reft.engine=pyreft is for comparing answers; use it with loss=answer, or "
                "reft.engine=hooks"
            )
        check_start(settings, hidden, layers)

    @classmethod
    def export(cls, settings: ReftSettings, model: ModelSettings, source: Path, to: Path) -> str:
        """See :meth:`Adapter.export`; the format is pyreft's."""
        bare = skeleton(model)
        hidden, layers = bare.config.get_text_config().hidden_size, len(decoder_layers(bare)[1])
        interventions = Interventions(settings, hidden, layers)
        interventions.load_effective_state(read_tensors(source / WEIGHTS)[0])
        write_pyreft(interventions, bare, to)
        # Beside pyreft's files, which are pickles, is what this project reads.
        copy_files(source, to)
        return _EXPORTED

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trained parameters, by name."""
        return dict(self.interventions.named_parameters())

    def train(self, mode: bool) -> None:
        """Switch the interventions' dropout on or off."""
        self.interventions.train(mode)

    def freeze(self) -> None:
        """End training, and turn the projections into plain matrices."""
        self.interventions.freeze()
        self._trained = False

    def count(self) -> int:
        """The number of trained parameters; R of rank r and width d counts as d x r."""
        return sum(tensor.numel() for tensor in self.interventions.effective_state().values())

    def undecayed(self) -> frozenset[str]:
        """The parametrisations of R.

        Weight decay would pull the parametrisation of an orthonormal R away from its unit diagonal,
        which torch converts to integers, and R would become 0.
        """
        return frozenset(name for name in self.parameters() if "parametrizations" in name)

    def constants(self) -> dict[str, torch.Tensor]:
        """The bases of the orthogonal parametrisations, by name."""
        buffers = self.interventions.named_buffers()
        return {name: buffer for name, buffer in buffers if name.endswith(".base")}

    def without_effect(self, layers: int) -> frozenset[str]:
        """Edits of the last layer's output anywhere but at the prompt's end, as in pyreft."""
        _, last = parse_positions(self.settings.positions)
        keys = {
            f"interventions.{unit.key}."
            for unit in self.interventions.units
            if unit.layer == layers - 1 and (unit.end == "first" or not last)
        }
        return frozenset(name for name in self.parameters() if name.startswith(tuple(keys)))

    @contextmanager
    def at(self, batch: Batch) -> Iterator[None]:
        """Edit a batch's prompts in the forward passes inside the block."""
        # R is computed once per pass, or once for all passes inside between_steps().
        with (
            parametrize.cached() if self._trained else nullcontext(),
            self.interventions.at(batch) if self.handles else nullcontext(),
        ):
            yield

    def between_steps(self) -> AbstractContextManager[None]:
        """Compute every R once for all forward passes inside the block."""
        return computed_once(list(self.interventions.each().values()))

    def forward(self) -> Forward | None:
        """pyreft's own forward pass if the settings ask for it, else None."""
        return self._engine

    def observed(self, observe: Observe) -> AbstractContextManager[None] | None:
        """See :meth:`Adapter.observed`; pyreft's engine cannot be observed."""
        if self._engine is not None:
            return None

        def seen(unit: Unit, before: torch.Tensor, after: torch.Tensor) -> None:
            names = position_names(self.settings.positions, unit.end)
            observe(unit.layer, names, before, after)

        return self.interventions.observed(seen)

    def save(self, folder: Path) -> None:
        """Write the adapter as ``reft.safetensors`` and ``reft_config.json``."""
        write_tensors(folder / WEIGHTS, self.interventions.effective_state())
        settings, units = self.settings, self.interventions.units
        config = {
            "intervention": settings.intervention,
            "low_rank_dimension": settings.rank,
            "positions": settings.positions,
            "share_weights": settings.share_weights,
            "dropout": settings.dropout,
            "add_bias": settings.add_bias,
            "layers": sorted({unit.layer for unit in units}),
            "units": [{"layer": u.layer, "end": u.end, "key": u.key} for u in units],
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


ADAPTER = ReftAdapter
