"""Frozen weights in fewer bits: asked for by the settings, or stored so in the checkpoint."""

import copy
import importlib.util
from typing import Any

import torch

from heft_pipeline.errors import UserError
from heft_pipeline.models.settings import ModelSettings


def check_quantization(settings: ModelSettings, config: Any, device: torch.device) -> None:
    """Refuse quantised weights that this machine cannot load or that cannot be trained through.

    Args:
        settings: The model.
        config: Its transformers config.
        device: Where the model will be.

    Raises:
        UserError: The message names the package that is missing, or another way.
    """
    stored = stored_quantization(config)
    if stored is not None:
        _check_stored(settings, stored, device)
    elif settings.quantization != "none":
        _check_asked(settings, device)


def stored_quantization(config: Any) -> dict[str, Any] | None:
    """How a checkpoint's weights are quantised, as its ``config.json`` says; None if they are not.

    Args:
        config: The model's transformers config.
    """
    for one in (config, config.get_text_config()):
        stored = getattr(one, "quantization_config", None)
        if stored:
            return dict(stored if isinstance(stored, dict) else stored.to_dict())
    return None


def quantized(
    settings: ModelSettings, config: Any, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """The arguments of ``from_pretrained`` that load quantised weights straight to the device.

    ``nf4`` is that of Dettmers et al. 2023 (arXiv 2305.14314).

    Args:
        settings: The model.
        config: Its transformers config.
        device: Where the model will be.
        dtype: The dtype that it computes in.

    Returns:
        The arguments; empty if no weights are quantised.
    """
    where = {"device_map": {"": device}}
    if stored_quantization(config) is not None:
        return where
    if settings.quantization == "none":
        return {}
    from transformers import BitsAndBytesConfig

    asked = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": asked, **where}


def _check_asked(settings: ModelSettings, device: torch.device) -> None:
    if device.type != "cuda":
        raise UserError(
            f"model.quantization={settings.quantization} needs a CUDA GPU, but the device is "
            f"{device}; use model.quantization=none"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.quantization={settings.quantization} needs bitsandbytes: "
            "pip install bitsandbytes"
        )


def _check_stored(settings: ModelSettings, stored: dict[str, Any], device: torch.device) -> None:
    from transformers.quantizers import AutoHfQuantizer

    method = stored.get("quant_method") or "bitsandbytes"
    method = getattr(method, "value", method)
    if settings.quantization != "none":
        raise UserError(
            f"model.quantization={settings.quantization}: the weights of {settings.id} are "
            f"quantised already ({method}); use model.quantization=none"
        )
    refused = f"model.id={settings.id} has weights quantised with {method}"
    otherwise = "use the checkpoint that is not quantised"
    try:
        quantizer = AutoHfQuantizer.from_config(copy.deepcopy(stored), pre_quantized=True)
        quantizer.validate_environment(device_map={"": device}, weights_only=True)
        dequantized = getattr(quantizer.quantization_config, "dequantize", False)
        trainable = dequantized or bool(quantizer.is_trainable)
    except (ImportError, RuntimeError, ValueError, TypeError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{refused}, which cannot be loaded here: {said}; or {otherwise}"
        ) from error
    if not trainable:
        raise UserError(f"{refused}, through which transformers passes no gradients; {otherwise}")
