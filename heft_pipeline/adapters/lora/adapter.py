"""LoRA adapters on a model, through PEFT."""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.lora.layer import LoraLayer
from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import save_file

from heft_pipeline.adapters.adapter import Adapter, Target
from heft_pipeline.adapters.lora.lean_forward import MergedLora, set_magnitudes, use_lean_forward
from heft_pipeline.adapters.lora.settings import LoraSettings
from heft_pipeline.errors import UserError
from heft_pipeline.models.base_model import Base, decoder_layers
from heft_pipeline.models.settings import ModelSettings

CONFIG, WEIGHTS = LoraSettings.init_files
#: PEFT's options that do not change what saved weights mean. The names and shapes of the weights
#: themselves say which modules they are for.
_NOT_MEANING = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_dropout",
        "peft_version", "revision", "runtime_config", "target_modules", "task_type",
        "megatron_core", "qalora_group_size",
    }
)  # fmt: skip
#: This project's names of PEFT's options.
_SETTING_NAMES = {
    "r": "rank",
    "lora_alpha": "alpha",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
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
        config: The adapter's PEFT configuration.
    """

    def __init__(
        self, settings: LoraSettings, base: Base, others: Sequence[Adapter], config: LoraConfig
    ) -> None:
        self.settings: LoraSettings = settings
        self._base = base
        before: list[LoraAdapter] = [o for o in others if isinstance(o, LoraAdapter)]
        self._name = f"stage{len(before)}"
        self.peft: Any = _put_on(
            base.model, before[-1].peft if before else None, config, self._name
        )

    @classmethod
    def new(cls, settings: LoraSettings, base: Base, others: Sequence[Adapter]) -> Self:
        """See :meth:`Adapter.new`."""
        adapter = cls(settings, base, others, settings.peft_config())
        with _removed_on_error(adapter):
            _refuse_edited_weights(base.model, adapter._name)
            set_magnitudes(base.model, adapter._name)
            if settings.init_from:
                _read(adapter.peft, Path(settings.init_from).expanduser(), adapter._name)
        return adapter

    @classmethod
    def load(
        cls, settings: LoraSettings, base: Base, others: Sequence[Adapter], folder: Path
    ) -> Self:
        """See :meth:`Adapter.load`; the folder is a plain PEFT folder."""
        adapter = cls(settings, base, others, LoraConfig.from_pretrained(str(folder)))
        with _removed_on_error(adapter):
            _read(adapter.peft, folder, adapter._name)
        return adapter

    @classmethod
    def check(cls, settings: LoraSettings, target: Target) -> None:
        """Refuse modules that the model does not have, and an ``init_from`` that does not fit."""
        model = target.skeleton()
        _check_modules(settings.target_modules, model, target.name)
        if settings.init_from:
            _refuse_other_config(settings, Path(settings.init_from).expanduser())
            with torch.device("meta"):
                peft_model = _put_on(model, None, settings.peft_config(), "start")
            _read(peft_model, Path(settings.init_from).expanduser(), "start")

    @classmethod
    def export(cls, settings: LoraSettings, model: ModelSettings, source: Path, to: Path) -> str:
        """See :meth:`Adapter.export`; the store's folder is PEFT's own."""
        shutil.copytree(source, to, dirs_exist_ok=True)
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
        folder.mkdir(parents=True, exist_ok=True)
        weights = get_peft_model_state_dict(self.peft, adapter_name=self._name)
        tensors = {k: v.detach().to("cpu", torch.float32).contiguous() for k, v in weights.items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        config = self.peft.peft_config[self._name]
        inference_mode, config.inference_mode = config.inference_mode, True
        config.save_pretrained(str(folder))
        config.inference_mode = inference_mode

    def remove(self) -> None:
        """Take all LoRA adapters off the model; PEFT can only remove them together."""
        if any(isinstance(module, LoraLayer) for module in self._base.model.modules()):
            self.peft.unload()
            # unload leaves this attribute behind, and PEFT would warn about the next adapter.
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


def _read(peft_model: PeftModel, folder: Path, name: str) -> None:
    """Load an adapter's weights from a PEFT folder."""
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder} has no {WEIGHTS}; give a folder that PEFT's save_pretrained wrote"
        )
    weights = load_peft_weights(str(folder), device="cpu")
    own = get_peft_model_state_dict(peft_model, adapter_name=name)
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in weights.items()}:
        raise UserError(
            f"lora.init_from={folder}: its weights do not fit; use the model, lora.rank and "
            "lora.target_modules that it was trained with"
        )
    set_peft_model_state_dict(peft_model, weights, adapter_name=name)


def _refuse_other_config(settings: LoraSettings, folder: Path) -> None:
    """Refuse weights that mean something else than they would with these settings."""
    try:
        saved = PeftConfig.from_pretrained(str(folder)).to_dict()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"lora.init_from={folder} has no {CONFIG} that PEFT can read; give a folder "
            "that PEFT's save_pretrained wrote"
        ) from error
    own = settings.peft_config().to_dict()
    for key in dict.fromkeys([*_SETTING_NAMES, *sorted(own.keys() | saved.keys())]):
        before, now = saved.get(key), own.get(key)
        # PEFT writes an unused option as None, False, or an empty mapping or list.
        if key in _NOT_MEANING or before == now or not (before or now):
            continue
        name = _SETTING_NAMES.get(key)
        ours = f"lora.{name}={getattr(settings, name)}" if name else f"{key}={now}"
        raise UserError(
            f"lora.init_from={folder} was trained with {key}={before}, and this stage has {ours}; "
            + (f"set lora.{name}={before}" if name else "which cannot be set; use another folder")
        )


def _check_modules(modules: str | Sequence[str], model: Any, name: str) -> None:
    names = [name for name, module in model.named_modules() if hasattr(module, "weight")]
    if isinstance(modules, str):
        wanted = [] if modules == "all-linear" else [modules]
        missing = [w for w in wanted if not any(re.fullmatch(w, name) for name in names)]
    else:
        missing = [w for w in modules if not any(n == w or n.endswith(f".{w}") for n in names)]
    if missing:
        path, _ = decoder_layers(model)
        inside = {
            n.rsplit(".", 1)[-1] for n in names if n.startswith(f"{path}.") and "norm" not in n
        }
        raise UserError(
            f"lora.target_modules: {name} has no module {missing[0]}; its layers have "
            f"{', '.join(sorted(inside))} (or use lora.target_modules=all-linear)"
        )


ADAPTER = LoraAdapter
