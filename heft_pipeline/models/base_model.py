"""Loading the frozen base model."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from heft_pipeline.devices.memory import is_out_of_memory
from heft_pipeline.errors import UserError
from heft_pipeline.models.attention import attention_implementation, check_attention
from heft_pipeline.models.decoder import decoder_layers
from heft_pipeline.models.head import prepare_head
from heft_pipeline.models.loaded_weights import refuse_broken, refuse_incomplete, unreadable
from heft_pipeline.models.quantization import check_quantization, quantized
from heft_pipeline.models.settings import ModelSettings

#: What transformers raises for files that it cannot use.
_UNREADABLE = (OSError, ValueError, KeyError, ImportError)
#: What it raises for a config.json with values that do not go together.
_UNBUILDABLE = (
    *_UNREADABLE,
    ArithmeticError,
    AssertionError,
    AttributeError,
    RuntimeError,
    TypeError,
)


@dataclass(frozen=True)
class Base:
    """A frozen causal language model with its tokenizer.

    Attributes:
        model: A transformers model in eval mode; none of its parameters requires a gradient.
        tokenizer: Its tokenizer.
        layers: Its decoder layers.
        layers_path: Their path in the model, e.g. ``model.layers``.
        pad_token_id: The id that fills padding.
    """

    model: Any
    tokenizer: Any
    layers: nn.ModuleList
    layers_path: str
    pad_token_id: int

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device = self.model.device
        return device if isinstance(device, torch.device) else torch.device(device)

    @property
    def hidden_size(self) -> int:
        """The width of the residual stream."""
        return int(self.model.config.get_text_config().hidden_size)


def quieten() -> None:
    """Turn off the libraries' progress bars and advice; the terminal shows the sweep's progress."""
    from transformers.utils import logging

    # PEFT still uses names that transformers has deprecated.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # PEFT looks for the ranks of fused experts among modules, and they are parameters.
    warnings.filterwarnings("ignore", message=".*_pattern keys did not match", module="peft")
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def load_config(settings: ModelSettings) -> Any:
    """Read a model's transformers configuration.

    Raises:
        UserError: There is none, or its architecture is unknown.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(settings.id, **_where(settings))
    except _UNBUILDABLE as error:
        raise _unloadable(
            settings, "has no configuration that transformers can read", error
        ) from error


def load_tokenizer(settings: ModelSettings) -> Any:
    """Load a model's tokenizer.

    Raises:
        UserError: There is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(settings.id, **_where(settings))
    except _UNREADABLE as error:
        raise _unloadable(settings, "has no tokenizer that transformers can read", error) from error


def skeleton(settings: ModelSettings) -> Any:
    """The model's modules on the meta device, for checks that need only names and shapes.

    Raises:
        UserError: It is not a causal language model, or it needs what is not installed.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(settings)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, trust_remote_code=settings.trust_remote_code
            )
    except _UNBUILDABLE as error:
        if "Unrecognized configuration class" in str(error):
            raise UserError(
                f"model.id={settings.id}: {config.model_type} is not a causal language model; use "
                "one that transformers' AutoModelForCausalLM can load"
            ) from error
        raise _unloadable(settings, "cannot be built from its config.json", error) from error
    decoder_layers(model)
    return model


def check_model(settings: ModelSettings, device: torch.device) -> None:
    """Refuse a model that could not be loaded or trained here, without loading its weights.

    Args:
        settings: The model.
        device: Where it will be.

    Raises:
        UserError: The message says what is missing and what to use instead.
    """
    config = load_config(settings)
    check_quantization(settings, config, device)
    model = skeleton(settings)
    if getattr(model.config, "is_decoder", True) is False and hasattr(
        model.config, "add_cross_attention"
    ):
        raise UserError(
            f"model.id={settings.id}: {config.model_type} reads in both directions "
            "(is_decoder=false in its config.json); use a causal language model"
        )
    check_attention(settings.attn_implementation, model, device)


def base_dtype(settings: ModelSettings, config: Any) -> torch.dtype:
    """The dtype of the frozen weights.

    Args:
        settings: The model; its dtype may be ``auto``.
        config: Its transformers config.

    Returns:
        float32 or bfloat16. ``auto`` is the checkpoint's own dtype, except that float16 becomes
        bfloat16: float16's range is too small to train without loss scaling.
    """
    if settings.dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[settings.dtype]
    stored = getattr(config.get_text_config(), "dtype", None) or torch.float32
    if isinstance(stored, str):
        stored = getattr(torch, stored)
    return torch.bfloat16 if stored in (torch.float16, torch.bfloat16) else torch.float32


def load_base(settings: ModelSettings, device: torch.device) -> Base:
    """Load a base model and its tokenizer, and freeze the model.

    Raises:
        UserError: It cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    config = load_config(settings)
    check_quantization(settings, config, device)
    tokenizer = load_tokenizer(settings)
    dtype = base_dtype(settings, config)
    placed = quantized(settings, config, device, dtype)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            settings.id,
            output_loading_info=True,
            dtype=dtype,
            attn_implementation=attention_implementation(
                settings.attn_implementation, config.get_text_config().model_type, device, dtype
            ),
            use_safetensors=True,
            **placed,
            **_where(settings),
        )
    except (*_UNREADABLE, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        reason = unreadable(settings.id, error)
        raise UserError(f"model.id={settings.id} cannot be loaded: {reason}") from error
    path, layers = decoder_layers(model)
    refuse_incomplete(f"model.id={settings.id}", model, path, info)
    refuse_broken(f"model.id={settings.id}", model)
    model.requires_grad_(False).eval()
    # generation_config.json would have penalties, sampling or end tokens change the answers.
    model.generation_config = GenerationConfig()
    if not placed:
        model.to(device)
    prepare_head(model)
    return Base(
        model=model,
        tokenizer=tokenizer,
        layers=layers,
        layers_path=path,
        pad_token_id=_pad_token_id(tokenizer, model.get_input_embeddings().weight.shape[0]),
    )


def _pad_token_id(tokenizer: Any, embeddings: int) -> int:
    """An id that the model has an embedding for; padding is masked, so any such id will do."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((id for id in known if id is not None and id < embeddings), 0)


def _where(settings: ModelSettings) -> dict[str, Any]:
    return {
        "revision": settings.revision or "main",
        "trust_remote_code": settings.trust_remote_code,
    }


def _unloadable(settings: ModelSettings, what: str, error: Exception) -> UserError:
    if "trust_remote_code" in str(error):
        return UserError(
            f"model.id={settings.id} needs the code in its own repository; read that code, and "
            "allow it with model.trust_remote_code=true"
        )
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(f"model.id={settings.id} {what}: {first_line}")
