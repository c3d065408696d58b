"""What every kind of adapter can do once it is on a model."""

import functools
import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch.utils.hooks import RemovableHandle

from heft_pipeline.adapters.edit_sizes import Observe
from heft_pipeline.adapters.kind import AdapterSettings
from heft_pipeline.data.batches import Batch
from heft_pipeline.errors import UserError
from heft_pipeline.models.base_model import Base, load_config, skeleton
from heft_pipeline.models.decoder import decoder_layers
from heft_pipeline.models.forward import Forward
from heft_pipeline.models.settings import ModelSettings


def adapter_class(settings: AdapterSettings) -> "type[Adapter]":
    """The class that a kind's ``adapter.py`` exports as ``ADAPTER``, imported when first needed."""
    module = importlib.import_module(f"heft_pipeline.adapters.{settings.kind}.adapter")
    found: type[Adapter] = module.ADAPTER
    return found


@dataclass(frozen=True)
class Target:
    """The model and the task that an adapter's settings have to fit.

    Attributes:
        model: The frozen base model's settings.
        longest_prompt: The length in tokens of the task's longest prompt.
    """

    model: ModelSettings
    longest_prompt: int

    @property
    def name(self) -> str:
        """The model's name for people."""
        return str(self.model.name)

    @property
    def config(self) -> Any:
        """The model's transformers config."""
        return load_config(self.model)

    @property
    def hidden_size(self) -> int:
        """The width of the residual stream."""
        return int(self.config.get_text_config().hidden_size)

    @property
    def num_layers(self) -> int:
        """How many decoder layers the model has."""
        return _layer_count(self.model)

    def skeleton(self) -> Any:
        """The model's modules without weights, built anew at each call."""
        return skeleton(self.model)

    def check_layers(self, key: str, layers: Any) -> None:
        """Refuse decoder layers that the model does not have.

        Args:
            key: The setting's key, for the message.
            layers: ``all``, or layer numbers.

        Raises:
            UserError: The message says which layers there are.
        """
        count = self.num_layers
        outside = [] if layers == "all" else [n for n in layers if not 0 <= n < count]
        if outside:
            raise UserError(
                f"{key}: {self.name} has no layer {outside[0]}; it has layers 0 to {count - 1}"
            )


@functools.lru_cache(maxsize=64)
def _layer_count(model: ModelSettings) -> int:
    """How many decoder layers a model has; counted once, however many stages ask."""
    return len(decoder_layers(skeleton(model))[1])


class Adapter(ABC):
    """An adapter of one kind on a base model.

    Attributes:
        settings: The settings that it was made from; their class says which kind it is.
        handles: Its hooks on the model.
        notes: What was decided for this model beyond the settings, one sentence each.
    """

    settings: AdapterSettings
    handles: Sequence[RemovableHandle] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    @abstractmethod
    def new(cls, settings: Any, base: Base, others: Sequence["Adapter"]) -> Self:
        """Put a newly initialised adapter on a model, to be trained.

        The initial weights come from torch's random generator; seed it first.

        Args:
            settings: The kind's settings.
            base: The model; changed in place.
            others: The adapters that are already on it.

        Raises:
            UserError: ``init_from`` does not fit.
        """

    @classmethod
    @abstractmethod
    def load(cls, settings: Any, base: Base, others: Sequence["Adapter"], folder: Path) -> Self:
        """Put a saved adapter on a model; the caller then calls :meth:`freeze`.

        Args:
            settings: The kind's settings.
            base: The model; changed in place.
            others: The adapters that are already on it.
            folder: A folder that :meth:`save` wrote.
        """

    @classmethod
    @abstractmethod
    def check(cls, settings: Any, target: "Target") -> None:
        """Refuse settings that do not fit a model and a task, before any weights are loaded.

        Args:
            settings: The kind's settings.
            target: The model and the task.

        Raises:
            UserError: The message names the setting.
        """

    @classmethod
    @abstractmethod
    def export(cls, settings: Any, model: ModelSettings, source: Path, to: Path) -> str:
        """Write a saved adapter in the format of the library that defines its kind.

        Args:
            settings: The kind's settings.
            model: The frozen base model's settings.
            source: A folder that :meth:`save` wrote.
            to: The folder to write; created if it is missing.

        Returns:
            Lines of Python that put the adapter on ``model``, with ``{folder}`` where the folder's
            path belongs.

        Raises:
            UserError: The library cannot load the adapter.
        """

    @classmethod
    def decided(cls, settings: Any, target: "Target") -> tuple[str, ...]:
        """The notes that an adapter would have on a model.

        Args:
            settings: The kind's settings, which :meth:`check` allows.
            target: The model and the task.
        """
        return ()

    @abstractmethod
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trained parameters, by name."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the adapter to a folder, which is created if it is missing."""

    def remove(self) -> None:
        """Take the adapter off its model; by default, this removes its hooks."""
        for handle in self.handles:
            handle.remove()

    def train(self, mode: bool) -> None:  # noqa: B027
        """Switch the adapter's own dropout on or off, if it has any."""

    def freeze(self) -> None:
        """End training: no parameter requires a gradient any more."""
        for parameter in self.parameters().values():
            parameter.requires_grad_(False)

    def count(self) -> int:
        """The number of trained parameters, as papers count them."""
        return sum(parameter.numel() for parameter in self.parameters().values())

    def undecayed(self) -> frozenset[str]:
        """The names of the parameters that weight decay would damage."""
        return frozenset()

    def constants(self) -> dict[str, torch.Tensor]:
        """Tensors drawn at initialisation and never trained, which a resumed stage needs again."""
        return {}

    def without_effect(self, layers: int) -> frozenset[str]:
        """The names of parameters that cannot change an answer, where the field trains them anyway.

        Args:
            layers: How many decoder layers the model has.
        """
        return frozenset()

    def lowest_layer(self) -> int:
        """The first decoder layer in which training needs a gradient."""
        return self.settings.reach().first_layer

    def at(self, batch: Batch) -> AbstractContextManager[None]:
        """Apply the adapter's edits to a batch in the forward passes inside the block."""
        return nullcontext()

    def between_steps(self) -> AbstractContextManager[None]:
        """Compute once what all forward passes between two optimiser steps share."""
        return nullcontext()

    def forward(self) -> Forward | None:
        """The adapter's own forward pass; None if it uses the model's."""
        return None

    def observed(self, observe: Observe) -> AbstractContextManager[None] | None:
        """Observe each edit in the forward passes inside the block.

        Args:
            observe: Called for each edit.

        Returns:
            A context manager, or None for a kind whose edits cannot be observed.
        """
        return None

    @classmethod
    def merged(cls, model: Any) -> AbstractContextManager[None]:
        """Add all adapters of this kind to a model's weights inside the block.

        Args:
            model: A transformers model with finished adapters on it.

        Raises:
            UserError: The kind cannot be merged, or not into these weights.
        """
        raise UserError(f"merge_parent=true: {cls.__name__} cannot be added to weights")

    @classmethod
    def write_into_weights(cls, adapters: Sequence[Self]) -> None:
        """Add all adapters of this kind to their model's weights, and take them off it, for good.

        Args:
            adapters: All of this kind that are on the model, first to last.

        Raises:
            UserError: The kind cannot be added to weights.
        """
        raise UserError(f"{cls.__name__} cannot be added to weights")
