"""LoRA adapters (arXiv 2106.09685) through PEFT."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import save_file

from heft_pipeline.errors import UserError
from heft_pipeline.models.lora_forward import use_lean_forward
from heft_pipeline.spec import LoraSpec


def new_lora(spec: LoraSpec) -> LoraConfig:
    """The PEFT configuration of a LoRA adapter.

    Args:
        spec: The adapter.

    Returns:
        A configuration for a causal language model.
    """
    modules = spec.target_modules
    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        use_rslora=spec.use_rslora,
        task_type="CAUSAL_LM",
    )


def add_lora(model: Any, peft_model: PeftModel | None, config: Any, name: str) -> PeftModel:
    """Put one more LoRA adapter on a model.

    Args:
        model: The transformers model; it is changed in place.
        peft_model: PEFT's wrapper around it, where it already has an adapter.
        config: The adapter's PEFT configuration.
        name: The adapter's name, unique in the model.

    Returns:
        PEFT's wrapper, with all adapters of the model active.
    """
    if peft_model is None:
        peft_model = PeftModel(model, config, adapter_name=name)
    else:
        peft_model.add_adapter(name, config)
    peft_model.base_model.set_adapter(list(peft_model.peft_config))
    use_lean_forward(model)
    return peft_model


def load_lora(model: Any, peft_model: PeftModel | None, folder: Path, name: str) -> PeftModel:
    """Put a saved LoRA adapter on a model.

    Args:
        model: The transformers model; it is changed in place.
        peft_model: PEFT's wrapper around it, where it already has an adapter.
        folder: A PEFT adapter folder with safetensors.
        name: The adapter's name, unique in the model.

    Returns:
        PEFT's wrapper, with all adapters of the model active.
    """
    peft_model = add_lora(model, peft_model, LoraConfig.from_pretrained(str(folder)), name)
    read_lora(peft_model, folder, name)
    return peft_model


def read_lora(peft_model: PeftModel, folder: Path, name: str) -> None:
    """Give an adapter the weights of a PEFT folder.

    Args:
        peft_model: The model with the adapter.
        folder: A PEFT adapter folder with safetensors.
        name: The adapter's name in the model.

    Raises:
        UserError: The folder has no safetensors, or its weights do not fit the adapter.
    """
    if not (folder / "adapter_model.safetensors").is_file():
        raise UserError(
            f"{folder} has no adapter_model.safetensors; a LoRA adapter is a folder that PEFT's "
            "save_pretrained wrote"
        )
    weights = load_peft_weights(str(folder), device="cpu")
    own = get_peft_model_state_dict(peft_model, adapter_name=name)
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in weights.items()}:
        raise UserError(
            f"lora.init_from={folder}: its weights do not fit; use the same model, "
            "lora.rank and lora.target_modules as it was trained with"
        )
    set_peft_model_state_dict(peft_model, weights, adapter_name=name)


def check_start(spec: LoraSpec, bare: Any) -> None:
    """Refuse an ``init_from`` that does not fit, before any weights are loaded.

    Args:
        spec: The adapter.
        bare: The model on the meta device; it is changed.

    Raises:
        UserError: As :func:`read_lora`.
    """
    if spec.init_from:
        with torch.device("meta"):
            peft_model = add_lora(bare, None, new_lora(spec), "start")
        read_lora(peft_model, Path(spec.init_from).expanduser(), "start")


def save_lora(peft_model: PeftModel, name: str, folder: Path) -> None:
    """Write one adapter as a folder that plain PEFT loads.

    Args:
        peft_model: The model with the adapter.
        name: The adapter's name in the model.
        folder: Where to; made where missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = get_peft_model_state_dict(peft_model, adapter_name=name)
    tensors = {k: v.detach().to("cpu", torch.float32).contiguous() for k, v in weights.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = peft_model.peft_config[name]
    inference_mode, config.inference_mode = config.inference_mode, True
    config.save_pretrained(str(folder))
    config.inference_mode = inference_mode


def lora_parameters(model: Any, name: str) -> dict[str, torch.nn.Parameter]:
    """The trainable tensors of one adapter.

    Args:
        model: The transformers model that it was put on.
        name: The adapter's name.

    Returns:
        Parameters by their name in the model.
    """
    return {
        key: parameter
        for key, parameter in model.named_parameters()
        if "lora_" in key and f".{name}." in key
    }
