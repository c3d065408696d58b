"""A frozen base model with a stage's parents on it and one adapter in training."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from heft_pipeline.data.batches import AnsweredPrompt, Batch, collate
from heft_pipeline.models import lora as lora_module
from heft_pipeline.models.base import Base, answer_logits, kept_cache, model_inputs
from heft_pipeline.models.frozen import FrozenLayers, FrozenPrompts, OnPass
from heft_pipeline.models.lora_forward import MergedLora
from heft_pipeline.models.pyreft_folder import pyreft_model, read_pyreft
from heft_pipeline.models.reft import ReftAdapter, load_reft, prompt_positions
from heft_pipeline.models.reuse import start_reuse, unsupported
from heft_pipeline.spec import StageSpec


@dataclass(frozen=True)
class ReadPrompts:
    """B prompts as a model has read them.

    Attributes:
        logits: [B, V], of the token after each prompt.
        cache: A transformers cache of the keys and values of T positions.
        mask: [B, T] int64, 0 on padding.
    """

    logits: torch.Tensor
    cache: Any
    mask: torch.Tensor


class AdaptedModel:
    """The model that a stage trains or evaluates.

    Made by :func:`adapted`, which also restores the base model afterwards.

    Args:
        base: The frozen base model; changed in place.
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self._peft: Any = None
        self._lora_name: str | None = None
        self._refts: list[ReftAdapter] = []
        self._trained_reft: ReftAdapter | None = None
        self._handles: list[Any] = []
        self._pyreft: tuple[Any, ReftAdapter] | None = None
        self._merged: MergedLora | None = None
        self._reuse: FrozenPrompts | FrozenLayers | None = None

    def add_parent(self, stage: StageSpec, folder: Path) -> None:
        """Put a finished stage's adapter on the model, frozen.

        Args:
            stage: The finished stage.
            folder: Its adapter folder.
        """
        if stage.lora:
            self._peft = lora_module.load_lora(
                self.base.model, self._peft, lora_folder(stage, folder), self._next_lora_name()
            )
        if stage.reft:
            size, layers = self.base.hidden_size, len(self.base.layers)
            self._attach(load_reft(reft_folder(stage, folder), stage.reft, size, layers))
        self.base.model.requires_grad_(False)

    @torch.no_grad()
    def merge_parents(self, probe: Sequence[AnsweredPrompt]) -> float | None:
        """Add the finished LoRA adapters to the frozen weights, which spares two products a layer.

        Args:
            probe: What the error is measured on.

        Returns:
            The largest change of a logit against the largest logit; None without LoRA parents.

        Raises:
            UserError: The weights cannot be added to.
        """
        if self._peft is None:
            return None
        batch = collate(probe, self.base.pad_token_id).to(self.base.device)
        self.training(False)
        before = self.logits(batch).float()
        self._merged = MergedLora(self.base.model)
        change = (self.logits(batch).float() - before).abs().amax()
        return float(change / before.abs().amax())

    def add_trainable(self, stage: StageSpec) -> None:
        """Put a stage's own adapter on the model, freshly initialised, to be trained.

        The random generator of torch decides the initial weights; seed it first.

        Args:
            stage: The stage; ``base`` adds nothing.

        Raises:
            UserError: ``init_from`` does not fit.
        """
        if stage.lora:
            name = self._next_lora_name()
            self._lora_name = name
            config = lora_module.new_lora(stage.lora)
            self._peft = lora_module.add_lora(self.base.model, self._peft, config, name)
            if stage.lora.init_from:
                lora_module.read_lora(self._peft, Path(stage.lora.init_from).expanduser(), name)
        self.base.model.requires_grad_(False)
        if self._lora_name:
            for parameter in self._lora_parameters().values():
                parameter.requires_grad_(True)
        if stage.reft:
            reft = ReftAdapter(stage.reft, self.base.hidden_size, len(self.base.layers))
            if stage.reft.init_from:
                read_pyreft(reft, Path(stage.reft.init_from).expanduser())
            self._trained_reft = reft
            if stage.reft.engine == "pyreft":
                reft.to(self.base.device)
                path = self.base.layers_path
                self._pyreft = (pyreft_model(reft, self.base.model, path), reft)
                for parameter in self._lora_parameters().values():  # pyvene froze the model
                    parameter.requires_grad_(True)
            else:
                self._attach(reft)
        self.training(False)

    def logits(self, batch: Batch) -> torch.Tensor:
        """The logits that predict a batch's answers.

        Args:
            batch: B sequences of at most K answer tokens, padded on the left.

        Returns:
            [B, K, V] in the model's dtype.
        """
        if self._reuse is not None:
            return self._reuse.logits(batch, self.editing)
        with self.editing(batch):
            if self._pyreft is None:
                return answer_logits(self.base.model, batch)
            reft_model, reft = self._pyreft
            columns = [
                prompt_positions(batch, reft.spec.positions, unit.end).tolist()
                for unit in reft.units
            ]
            inputs = model_inputs(self.base.model, batch)
            _, output = reft_model(inputs, unit_locations={"sources->base": (None, columns)})
            return output.logits[:, -batch.answer_tokens :]

    def read_prompts(self, batch: Batch) -> ReadPrompts | None:
        """Read prompts once, for several answers to go on from.

        Args:
            batch: B prompts with an answer of one token, which is not read.

        Returns:
            What the model made of them; None where it keeps no plain keys and values.
        """
        if self._pyreft is not None or self._unsupported:
            return None
        if isinstance(self._reuse, FrozenPrompts):
            output, mask = self._reuse.output(batch, self.editing)
        else:
            mask = batch.attention_mask
            inputs = model_inputs(self.base.model, batch) | {"use_cache": True}
            with self.editing(batch):
                output = self.base.model(**inputs)
        return ReadPrompts(output.logits[:, -1], kept_cache(output), mask)

    @cached_property
    def _unsupported(self) -> str:
        return unsupported(self.base)

    def reuse(
        self,
        stage: StageSpec,
        sequences: Sequence[AnsweredPrompt],
        folder: Path,
        *,
        advance: Callable[[int, int], None],
        on_pass: OnPass,
    ) -> str:
        """Compute once what no trained parameter can change, where the stage allows it.

        Args:
            stage: The stage whose adapter is trained.
            sequences: What training and the dev split read.
            folder: Where activations go that memory has no room for.
            advance: Told how many are done, and of how many.
            on_pass: Told the rows, padded tokens and layers of each pass that computes them.

        Returns:
            What is reused, or why nothing is.
        """
        self._reuse, said = start_reuse(
            self.base, self.editing, stage, sequences, folder, advance=advance, on_pass=on_pass
        )
        return said

    @property
    def reused_tokens(self) -> int | None:
        """How many prompt tokens a pass computes where earlier ones are reused, else None."""
        return self._reuse.suffix if isinstance(self._reuse, FrozenPrompts) else None

    @property
    def skipped_layers(self) -> int:
        """How many first decoder layers a training pass does not compute."""
        return self._reuse.layers if isinstance(self._reuse, FrozenLayers) else 0

    @contextmanager
    def rotations(self) -> Iterator[None]:
        """Compute ReFT's projections R once for all passes inside, between two optimiser steps.

        Yields:
            Nothing.
        """
        reft = self._trained_reft
        with reft.rotations() if reft is not None else nullcontext():
            yield

    @contextmanager
    def editing(self, batch: Batch) -> Iterator[None]:
        """Apply all ReFT edits to a batch's prompts in the forward passes inside.

        Args:
            batch: The batch that the forward pass reads.

        Yields:
            Nothing.
        """
        with ExitStack() as stack:
            for reft in self._refts:
                stack.enter_context(reft.at(batch))
            # R is computed once a pass, or once for all passes inside rotations().
            stack.enter_context(parametrize.cached() if self._trained_reft else nullcontext())
            yield

    def compile_layers(self) -> None:
        """Let ``torch.compile`` fuse each decoder layer; the first batches take longer."""
        for layer in self.base.layers:
            # The hooks that edit a layer's output stay outside.
            layer.forward = torch.compile(layer.forward, dynamic=True)

    def recompute_layers(self) -> None:
        """Keep no activations inside decoder layers for the backward pass; compute them again."""
        for layer in self.base.layers:
            # The hooks that edit a layer's output stay outside, and are not run again.
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)

    def training(self, mode: bool) -> None:
        """Switch the trained adapter's dropout; the frozen parts stay in eval mode.

        Args:
            mode: Whether dropout is on.
        """
        self.base.model.eval()
        if self._trained_reft is not None:
            self._trained_reft.train(mode)
        if self._lora_name:
            for module in self.base.model.modules():
                if hasattr(module, "lora_dropout") and self._lora_name in module.lora_dropout:
                    module.lora_dropout[self._lora_name].train(mode)

    def parameters(self) -> dict[str, dict[str, torch.nn.Parameter]]:
        """The trainable parameters.

        Returns:
            Under ``lora`` and ``reft``, parameters by name; empty where there is none.
        """
        reft = self._trained_reft
        return {
            "lora": self._lora_parameters(),
            "reft": dict(reft.named_parameters()) if reft is not None else {},
        }

    @property
    def trained_reft(self) -> ReftAdapter | None:
        """The ReFT adapter of the stage's own, where its hooks make the edits."""
        return None if self._pyreft else self._trained_reft

    def trainable_count(self) -> int:
        """How many numbers are trained, as papers count them: R of rank r and width d is d x r."""
        lora = sum(p.numel() for p in self._lora_parameters().values())
        reft = self._trained_reft
        return lora + (sum(t.numel() for t in reft.effective_state().values()) if reft else 0)

    def constants(self) -> dict[str, torch.Tensor]:
        """Tensors drawn at initialisation and never trained, which a resumed stage needs again.

        Returns:
            The bases of ReFT's orthogonal parametrisations, by name.
        """
        reft = self._trained_reft
        return (
            {}
            if reft is None
            else {f"reft.{k}": v for k, v in reft.named_buffers() if k.endswith(".base")}
        )

    def save(self, stage: StageSpec, folder: Path) -> None:
        """Write the trained adapter.

        Args:
            stage: The stage it belongs to.
            folder: Where to: a PEFT folder, a ReFT folder, or (joint) one of each below it.
        """
        if self._lora_name:
            lora_module.save_lora(self._peft, self._lora_name, lora_folder(stage, folder))
        if self._trained_reft is not None:
            self._trained_reft.save(reft_folder(stage, folder))

    def finish(self) -> None:
        """End training: ReFT's projections become plain matrices, and nothing has a gradient."""
        if self._trained_reft is not None:
            self._trained_reft.freeze()
        self._reuse = None
        self.base.model.requires_grad_(False)
        self.training(False)

    def restore(self) -> None:
        """Take every adapter off the base model."""
        for handle in self._handles:
            handle.remove()
        for layer in self.base.layers:
            vars(layer).pop("forward", None)  # compiled, or computed again in the backward pass
        if self._merged is not None:
            self._merged.undo()
        if self._peft is not None:
            self._peft.unload()
            # unload leaves PEFT's mark, on which the next adapter would warn.
            if hasattr(self.base.model, "peft_config"):
                del self.base.model.peft_config

    def _attach(self, reft: ReftAdapter) -> None:
        reft.to(self.base.device)
        self._refts.append(reft)
        self._handles += reft.attach(self.base.layers)

    def _lora_parameters(self) -> dict[str, torch.nn.Parameter]:
        return (
            lora_module.lora_parameters(self.base.model, self._lora_name)
            if (self._lora_name)
            else {}
        )

    def _next_lora_name(self) -> str:
        return f"stage{len(self._peft.peft_config) if self._peft else 0}"


def lora_folder(stage: StageSpec, adapter: Path) -> Path:
    """Where a stage's PEFT folder is: its adapter folder, or ``lora/`` in it for ``joint``."""
    return adapter / "lora" if stage.kind == "joint" else adapter


def reft_folder(stage: StageSpec, adapter: Path) -> Path:
    """Where a stage's ReFT files are: its adapter folder, or ``reft/`` in it for ``joint``."""
    return adapter / "reft" if stage.kind == "joint" else adapter


@contextmanager
def adapted(base: Base, parents: list[tuple[StageSpec, Path]]) -> Iterator[AdaptedModel]:
    """A base model with finished stages on it; the base is itself again afterwards.

    Args:
        base: The frozen base model.
        parents: Stages with their adapter folders, first to last.

    Yields:
        The adapted model.
    """
    model = AdaptedModel(base)
    try:
        for stage, folder in parents:
            model.add_parent(stage, folder)
        yield model
    finally:
        model.restore()
