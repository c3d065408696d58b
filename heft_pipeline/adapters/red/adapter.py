"""RED on a model: a scale and a bias for the output of each feed-forward network.

The scales start at 1 and the biases at 0. As in the paper's own code, every position is edited,
including those of the answer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch

from heft_pipeline.adapters.adapter import Adapter, Target
from heft_pipeline.adapters.red.settings import RedSettings
from heft_pipeline.errors import UserError
from heft_pipeline.files.tensor_files import copy_files, read_tensors, write_tensors
from heft_pipeline.models.base_model import Base
from heft_pipeline.models.decoder import feed_forward_outputs
from heft_pipeline.models.settings import ModelSettings

(WEIGHTS,) = RedSettings.init_files
_EXPORTED = """\
from safetensors.torch import load_file
red = load_file("{folder}/red.safetensors")
for place in {{name.rpartition(".")[0] for name in red}}:
    scale, bias = red[f"{{place}}.scale"], red[f"{{place}}.bias"]
    model.get_submodule(place).register_forward_hook(
        lambda _, __, out, scale=scale, bias=bias: (out.float() * scale + bias).to(out.dtype)
    )
"""


class RedAdapter(Adapter):
    """The scales and biases of one RED adapter on a model.

    Args:
        settings: The adapter's settings.
        base: The model.
        values: A folder with trained values; None for scales of 1 and biases of 0.
    """

    def __init__(self, settings: RedSettings, base: Base, values: Path | None) -> None:
        self.settings: RedSettings = settings
        places, size = _places(base.model, settings), base.hidden_size
        read = _read(values, places, size) if values else _identity(places, size)
        self._values = {k: torch.nn.Parameter(v.to(base.device)) for k, v in read.items()}
        module = base.model.get_submodule
        self.handles = [module(p).register_forward_hook(self._edit(p)) for p in places]

    @classmethod
    def new(cls, settings: RedSettings, base: Base, others: Sequence[Adapter]) -> Self:
        """See :meth:`Adapter.new`."""
        return cls(settings, base, Path(settings.init_from) if settings.init_from else None)

    @classmethod
    def load(
        cls, settings: RedSettings, base: Base, others: Sequence[Adapter], folder: Path
    ) -> Self:
        """See :meth:`Adapter.load`."""
        return cls(settings, base, folder)

    @classmethod
    def check(cls, settings: RedSettings, target: Target) -> None:
        """Refuse layers that the model does not have, and an ``init_from`` that does not fit."""
        target.check_layers(f"{settings.kind}.layers", settings.layers)
        places = _places(target.skeleton(), settings)
        if settings.init_from:
            _read(Path(settings.init_from), places, target.hidden_size, "red.init_from")

    @classmethod
    def export(cls, settings: RedSettings, model: ModelSettings, source: Path, to: Path) -> str:
        """See :meth:`Adapter.export`; no library reads RED, so the lines apply it with hooks."""
        copy_files(source, to)
        return _EXPORTED

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The scales and biases, as ``MODULE.scale`` and ``MODULE.bias``."""
        return self._values

    def undecayed(self) -> frozenset[str]:
        """The scales: weight decay would pull them to 0, and the network's output with them."""
        return frozenset(name for name in self._values if name.endswith(".scale"))

    def save(self, folder: Path) -> None:
        """Write the values as ``red.safetensors``."""
        write_tensors(folder / WEIGHTS, self._values)

    def _edit(self, place: str) -> Any:
        scale, bias = self._values[f"{place}.scale"], self._values[f"{place}.bias"]

        def edit(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
            # The edit is computed in float32, whatever the frozen base's dtype.
            return (output.float() * scale + bias).to(output.dtype)

        return edit


def _places(model: Any, settings: RedSettings) -> list[str]:
    """The paths of the modules whose output is edited."""
    found = feed_forward_outputs(model)
    return found if settings.layers == "all" else [found[n] for n in settings.layers]


def _identity(places: Sequence[str], size: int) -> dict[str, torch.Tensor]:
    scales = {f"{place}.scale": torch.ones(size) for place in places}
    return scales | {f"{place}.bias": torch.zeros(size) for place in places}


def _read(
    folder: Path, places: Sequence[str], size: int, started_by: str = ""
) -> dict[str, torch.Tensor]:
    file, wanted = folder.expanduser() / WEIGHTS, _identity(places, size)
    values = read_tensors(file, started_by)[0] if file.is_file() else {}
    if {k: v.shape for k, v in values.items()} != {k: v.shape for k, v in wanted.items()}:
        raise UserError(f"red.init_from={folder} has no {WEIGHTS} for these layers of this model")
    return {name: values[name] for name in wanted}


ADAPTER = RedAdapter
