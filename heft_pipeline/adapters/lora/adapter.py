"""LoRA adapters on a model, through PEFT."""

import copy
import functools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import LoraLayer
from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

from heft_pipeline.adapters.adapter import Adapter, Target
from heft_pipeline.adapters.lora.lean_forward import (
    MergedLora,
    can_merge,
    set_magnitudes,
    use_lean_forward,
)
from heft_pipeline.adapters.lora.refusals import (
    refuse_other_config,
    refuse_rank,
    refuse_wild_patterns,
    refused_by_peft,
)
from heft_pipeline.adapters.lora.settings import LoraSettings
from heft_pipeline.adapters.lora.targets import Choice, choose
from heft_pipeline.errors import UserError
from heft_pipeline.files.tensor_files import copy_files, read_tensors, write_tensors
from heft_pipeline.models.base_model import Base, skeleton
from heft_pipeline.models.settings import ModelSettings

CONFIG, WEIGHTS = LoraSettings.init_files
_START = "lora.init_from"
_EXPORTED = """\
from peft import PeftModel
model = PeftModel.from_pretrained(model, "{folder}").base_model.model
"""


class LoraAdapter(Adapter):
    """One LoRA adapter on a model; several share PEFT's wrapper, and all of them are active.

    Args:
        settings: The adapter's settings.
        base: The model; changed in place.
        others: The adapters that are already on it.
        choice: The adapter's PEFT configuration, and what there is to say of it.
    """

    def __init__(
        self, settings: LoraSettings, base: Base, others: Sequence[Adapter], choice: Choice
    ) -> None:
        self.settings: LoraSettings = settings
        self.notes = choice.notes
        self._base = base
        before: list[LoraAdapter] = [o for o in others if isinstance(o, LoraAdapter)]
        self._name = f"stage{len(before)}"
        self.peft: Any = _put_on(
            base.model, before[-1].peft if before else None, choice.config, self._name
        )

    @classmethod
    def new(cls, settings: LoraSettings, base: Base, others: Sequence[Adapter]) -> Self:
        """See :meth:`Adapter.new`."""
        adapter = cls(settings, base, others, choose(settings, base.model, "the model"))
        with _removed_on_error(adapter):
            _refuse_edited_weights(base.model, adapter._name)
            set_magnitudes(base.model, adapter._name)
            if settings.init_from:
                _read(adapter.peft, Path(settings.init_from).expanduser(), adapter._name, _START)
        return adapter

    @classmethod
    def load(
        cls, settings: LoraSettings, base: Base, others: Sequence[Adapter], folder: Path
    ) -> Self:
        """See :meth:`Adapter.load`; the folder is a plain PEFT folder."""
        config = LoraConfig.from_pretrained(str(folder))
        refuse_wild_patterns(config, settings, folder / CONFIG)
        adapter = cls(settings, base, others, Choice(config, ()))
        with _removed_on_error(adapter):
            _read(adapter.peft, folder, adapter._name)
        return adapter

    @classmethod
    def check(cls, settings: LoraSettings, target: Target) -> None:
        """Refuse what PEFT would refuse, by putting the adapter on the model's skeleton."""
        _checked(settings, target.model)

    @classmethod
    def decided(cls, settings: LoraSettings, target: Target) -> tuple[str, ...]:
        """See :meth:`Adapter.decided`."""
        return _checked(settings, target.model)

    @classmethod
    def export(cls, settings: LoraSettings, model: ModelSettings, source: Path, to: Path) -> str:
        """See :meth:`Adapter.export`; the store's folder is PEFT's own."""
        _refuse_lost(model, source)
        copy_files(source, to)
        return _EXPORTED

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trained parameters, by their names in the model."""
        return {
            key: parameter
            for key, parameter in self._base.model.named_parameters()
            # PEFT names a module's matrices NAME.weight, and an embedding's just NAME.
            if "lora_" in key and f".{self._name}." in f"{key}."
        }

    def train(self, mode: bool) -> None:
        """Switch the adapter's dropout on or off."""
        for module in self._base.model.modules():
            if hasattr(module, "lora_dropout") and self._name in module.lora_dropout:
                module.lora_dropout[self._name].train(mode)
                module.training = mode  # PEFT's DoRA asks this and not the dropout

    def lowest_layer(self) -> int:
        """The first decoder layer with a trained module; the number of layers if none has one."""
        path = f".{self._base.layers_path}."
        names = [f".{name}" for name in self.parameters()]
        numbers = [name.split(path, 1)[1].split(".", 1)[0] for name in names if path in name]
        return min(map(int, numbers), default=len(self._base.layers))

    def save(self, folder: Path) -> None:
        """Write the adapter as a folder that plain PEFT can load."""
        weights = get_peft_model_state_dict(self.peft, adapter_name=self._name)
        tensors = {k: v.detach().to("cpu", torch.float32) for k, v in weights.items()}
        write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
        config = copy.copy(self.peft.peft_config[self._name])
        config.inference_mode = True
        for key, names in vars(config).items():
            if isinstance(names, set | frozenset):
                setattr(config, key, sorted(names))  # a set's order is another in each process
        config.save_pretrained(str(folder))

    def remove(self) -> None:
        """Take all LoRA adapters off the model; PEFT can only remove them together."""
        if any(isinstance(module, LoraLayer) for module in self._base.model.modules()):
            self.peft.unload()
            self._leave_no_trace()

    def _leave_no_trace(self) -> None:
        """Remove what PEFT's unload leaves behind, and would warn about with the next adapter."""
        if hasattr(self._base.model, "peft_config"):
            del self._base.model.peft_config

    @classmethod
    @contextmanager
    def merged(cls, model: Any) -> Iterator[None]:
        """Add all LoRA adapters to the weights inside the block, rounding each sum once."""
        merged = MergedLora(model)
        try:
            yield
        finally:
            merged.undo()

    @classmethod
    def write_into_weights(cls, adapters: Sequence[Self]) -> None:
        """See :meth:`Adapter.write_into_weights`.

        PEFT adds variants such as DoRA; its sums are rounded to the weights' dtype twice.
        """
        last = adapters[-1]
        if can_merge(last._base.model):
            MergedLora(last._base.model)
            last.peft.unload()
        else:
            _untie_head(last._base.model)
            last.peft.merge_and_unload(safe_merge=True)
        last._leave_no_trace()


def _untie_head(model: Any) -> None:
    """Give a head that shares the input embedding's weight its own, because PEFT adds in place."""
    found = [model.get_input_embeddings(), model.get_output_embeddings()]
    embedding, head = (getattr(one, "base_layer", one) for one in found)
    if head is not None and getattr(head, "weight", None) is embedding.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)


@functools.lru_cache(maxsize=256)
def _checked(settings: LoraSettings, base: ModelSettings) -> tuple[str, ...]:
    model, name = skeleton(base), str(base.name)
    choice = choose(settings, model, name)
    with refused_by_peft(settings, model, name), torch.device("meta"):
        peft_model = _put_on(model, None, choice.config, "start")
    refuse_rank(settings, model, name)
    if settings.init_from:
        folder = Path(settings.init_from).expanduser()
        refuse_other_config(settings, peft_model.peft_config["start"], folder)
        _read(peft_model, folder, "start", _START)
    return choice.notes


@contextmanager
def _removed_on_error(adapter: LoraAdapter) -> Iterator[None]:
    """Take an adapter off its model again if what is done inside fails."""
    try:
        yield
    except BaseException:
        adapter.remove()
        raise


def _refuse_edited_weights(model: Any, name: str) -> None:
    """Refuse DoRA on modules whose output a parent edits: it recomputes that output itself."""
    for path, module in model.named_modules():
        variant = isinstance(module, LoraLayer) and name in getattr(module, "lora_variant", {})
        if variant and module.base_layer._forward_hooks:
            raise UserError(
                f"lora.use_dora=true: a parent stage edits the output of {path}, which DoRA would "
                "compute without that edit; use lora.use_dora=false, or train the LoRA stage first"
            )


def _put_on(model: Any, peft_model: PeftModel | None, config: Any, name: str) -> PeftModel:
    """Put one more adapter on a model, and return PEFT's wrapper with all adapters active."""
    if peft_model is None:
        peft_model = PeftModel(model, config, adapter_name=name)
    else:
        peft_model.add_adapter(name, config)
    peft_model.base_model.set_adapter(list(peft_model.peft_config))
    use_lean_forward(model)
    return peft_model


def _refuse_lost(settings: ModelSettings, folder: Path) -> None:
    """Refuse weights that plain PEFT would silently leave out when it loads a saved adapter."""
    weights = load_peft_weights(str(folder), device="cpu")
    with torch.device("meta"):
        bare = _put_on(
            skeleton(settings), None, LoraConfig.from_pretrained(str(folder)), "exported"
        )
    with warnings.catch_warnings():
        # On the meta device nothing is copied; which names would be read is all that is asked.
        warnings.filterwarnings("ignore", message=".*meta parameter in the current model.*")
        found = set_peft_model_state_dict(bare, weights, adapter_name="exported")
    lost = [key for key in found.missing_keys if ".exported" in key]
    if lost:
        raise UserError(
            f"{folder}: PEFT would not read {len(lost)} of the adapter's {len(weights)} weights "
            f"back into {settings.name}, e.g. {lost[0]}, because it renames them on the way; the "
            "stage itself is whole and can be used here"
        )


def _read(peft_model: PeftModel, folder: Path, name: str, started_by: str = "") -> None:
    """Load an adapter's weights from a PEFT folder."""
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder} has no {WEIGHTS}; give a folder that PEFT's save_pretrained wrote"
        )
    weights, _ = read_tensors(folder / WEIGHTS, started_by)
    own = get_peft_model_state_dict(peft_model, adapter_name=name)
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in weights.items()}:
        raise UserError(
            f"lora.init_from={folder}: its weights do not fit; use the model, lora.rank and "
            "lora.target_modules that it was trained with"
        )
    # Not by PEFT's own function: it passes names through transformers' conversions, which lose
    # weights of some models.
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(weights[key])
    now = get_peft_model_state_dict(peft_model, adapter_name=name)
    lost = [k for k, v in now.items() if not v.is_meta and not torch.equal(v.cpu(), weights[k])]
    if lost:
        raise UserError(
            f"{folder}: {len(lost)} of its {len(weights)} weights cannot be put where they were "
            f"saved from, e.g. {lost[0]}; adapt other modules (lora.target_modules)"
        )


ADAPTER = LoraAdapter
