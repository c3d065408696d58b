"""A frozen base model with finished adapters on it and others in training."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from heft_pipeline.adapters.adapter import Adapter, adapter_class
from heft_pipeline.adapters.kind import AdapterSettings, adapter_folder
from heft_pipeline.data.batches import AnsweredPrompt, Batch, collate
from heft_pipeline.models.base_model import Base
from heft_pipeline.models.equal_lengths import EqualLengths
from heft_pipeline.models.forward import Forward, ReadPrompts, WholePrompts
from heft_pipeline.models.vocabulary import Vocabulary


class AdaptedModel:
    """The model that a stage trains or evaluates; created by :func:`adapted`.

    Args:
        base: The frozen base model; changed in place.

    Attributes:
        base: The same model.
        parents: The finished adapters, first to last.
        trained: The adapters in training.
        whole: Runs the whole model over whole prompts.
        forward: How batches are run: :attr:`whole`, or another way that gives the same logits.
        vocabulary: Turns hidden states into logits.
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self.parents: list[Adapter] = []
        self.trained: list[Adapter] = []
        self.whole = EqualLengths(base) if base.no_padding else WholePrompts(base)
        self.forward: Forward = self.whole
        self.vocabulary = Vocabulary(base)

    @property
    def adapters(self) -> list[Adapter]:
        """All adapters on the model."""
        return [*self.parents, *self.trained]

    def load(self, settings: AdapterSettings, folder: Path) -> None:
        """Put a finished adapter on the model, frozen.

        Args:
            settings: The settings that it was made from.
            folder: The folder that it was saved to.
        """
        adapter = adapter_class(settings).load(settings, self.base, self.adapters, folder)
        adapter.freeze()
        self.parents.append(adapter)
        self.base.model.requires_grad_(False)
        self.training(False)

    def add(self, adapters: Iterable[AdapterSettings]) -> None:
        """Put newly initialised adapters on the model, to be trained.

        The initial weights come from torch's random generator; seed it first.

        Args:
            adapters: Their settings, in order.

        Raises:
            UserError: An ``init_from`` does not fit.
        """
        for settings in adapters:
            adapter = adapter_class(settings).new(settings, self.base, self.adapters)
            self.trained.append(adapter)
            self.forward = adapter.forward() or self.forward
        self.base.model.requires_grad_(False)
        for parameter in self.parameters().values():
            parameter.requires_grad_(True)
        self.training(False)

    def load_trained(self, adapters: Iterable[tuple[AdapterSettings, Path]]) -> None:
        """Put the adapters of a stage that was trained before on the model, as after training.

        Args:
            adapters: Their settings and the folders that they were saved to, in order.
        """
        for settings, folder in adapters:
            adapter = adapter_class(settings).load(settings, self.base, self.adapters, folder)
            self.trained.append(adapter)
            self.forward = adapter.forward() or self.forward
        self.finish()

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trained parameters, under ``KIND/NAME``."""
        return {
            f"{adapter.settings.kind}/{name}": parameter
            for adapter in self.trained
            for name, parameter in adapter.parameters().items()
        }

    def constants(self) -> dict[str, torch.Tensor]:
        """Tensors that are drawn at initialisation and never trained, under ``KIND.NAME``."""
        return {
            f"{adapter.settings.kind}.{name}": tensor
            for adapter in self.trained
            for name, tensor in adapter.constants().items()
        }

    def count(self) -> int:
        """The number of trained parameters, as papers count them."""
        return sum(adapter.count() for adapter in self.trained)

    def notes(self) -> list[str]:
        """What was decided for the trained adapters beyond their settings, one sentence each."""
        return [note for adapter in self.trained for note in adapter.notes]

    def logits(self, batch: Batch) -> torch.Tensor:
        """The logits that predict a batch's answers.

        Args:
            batch: B sequences of at most K answer tokens, padded on the left.

        Returns:
            [B, K, V] in the model's dtype.
        """
        return self.forward.logits(batch, self.editing)

    def hidden(self, batch: Batch) -> torch.Tensor:
        """What the vocabulary projection reads at every position of a batch.

        Args:
            batch: B sequences of at most T input tokens, padded on the left.

        Returns:
            [B, T, D] in the model's dtype.
        """
        return self.forward.hidden(batch, self.editing)

    def read_prompts(self, batch: Batch) -> ReadPrompts | None:
        """Read prompts once, so that several answers can continue from them.

        Args:
            batch: B prompts, each with a one-token answer that is not read.

        Returns:
            The prompts as the model has read them; None if it does not keep plain keys and values.
        """
        return self.forward.read(batch, self.editing)

    @contextmanager
    def editing(self, batch: Batch) -> Iterator[None]:
        """Apply all adapters' edits to a batch's prompts in the forward passes inside the block."""
        with ExitStack() as stack:
            for adapter in self.adapters:
                stack.enter_context(adapter.at(batch))
            yield

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Compute once what all forward passes between two optimiser steps share."""
        with ExitStack() as stack:
            for adapter in self.trained:
                stack.enter_context(adapter.between_steps())
            yield

    def training(self, mode: bool) -> None:
        """Switch the trained adapters' dropout on or off; the frozen parts stay in eval mode."""
        self.base.model.eval()
        for adapter in self.trained:
            adapter.train(mode)

    def save(self, folder: Path) -> None:
        """Write the trained adapters to a stage's adapter folder; see :func:`adapter_folder`."""
        stage = [adapter.settings for adapter in self.trained]
        for adapter in self.trained:
            adapter.save(adapter_folder(folder, adapter.settings, stage))

    def write_into_weights(self) -> None:
        """Add all weight-space adapters to the base's weights, and take them off, for good.

        Raises:
            UserError: A kind cannot be added to weights.
        """
        for kind in dict.fromkeys(type(a) for a in self.adapters if not a.settings.edits):
            kind.write_into_weights([a for a in self.adapters if type(a) is kind])

    def finish(self) -> None:
        """End training: freeze the adapters, and stop reusing activations."""
        if not any(adapter.forward() for adapter in self.trained):
            self.forward = self.whole
        for adapter in self.trained:
            adapter.freeze()
        self.base.model.requires_grad_(False)
        self.training(False)


@contextmanager
def adapted(base: Base, parents: Iterable[tuple[AdapterSettings, Path]]) -> Iterator[AdaptedModel]:
    """Put finished adapters on a base model, and take all adapters off it again on exit.

    Args:
        base: The frozen base model.
        parents: The adapters' settings and folders, first to last.

    Yields:
        The adapted model.
    """
    model = AdaptedModel(base)
    try:
        for settings, folder in parents:
            model.load(settings, folder)
        yield model
    finally:
        with ExitStack() as stack:  # each is removed, whatever removing another raises
            for adapter in model.adapters:
                stack.callback(adapter.remove)


@contextmanager
def merged_parents(model: AdaptedModel, probe: Sequence[AnsweredPrompt]) -> Iterator[float | None]:
    """Add the finished weight-space adapters to the frozen weights inside the block.

    This saves two matrix products for each adapted module.

    Args:
        model: The model, before anything is trained.
        probe: The sequences that the error is measured on.

    Yields:
        The largest change of a logit relative to the largest logit; None if there is nothing to
        merge.

    Raises:
        UserError: Nothing can be added to these weights.
    """
    kinds = dict.fromkeys(type(a) for a in model.parents if not a.settings.edits)
    if not kinds:
        yield None
        return
    batch = collate(probe, model.base.pad_token_id).to(model.base.device)
    model.training(False)
    with ExitStack() as stack:
        with torch.no_grad():
            before = model.logits(batch).float()
            for kind in kinds:
                stack.enter_context(kind.merged(model.base.model))
            change = (model.logits(batch).float() - before).abs().amax()
        yield float(change / before.abs().amax())
