"""Loading the frozen base model."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from heft_pipeline.devices.fast_dtype import fast_dtype
from heft_pipeline.devices.memory import is_out_of_memory
from heft_pipeline.errors import UserError
from heft_pipeline.models.attention import attention_implementation, check_attention
from heft_pipeline.models.checkpoint_files import only_read_files, refuse_broken_tokenizer
from heft_pipeline.models.decoder import decoder_layers
from heft_pipeline.models.head import prepare_head
from heft_pipeline.models.loaded_weights import refuse_broken, refuse_incomplete, unreadable
from heft_pipeline.models.quantization import check_quantization, quantized
from heft_pipeline.models.settings import ModelSettings
from heft_pipeline.models.untrusted_config import refuse_harmful, refuse_too_large

#: What transformers raises for files that it cannot use.
_UNREADABLE = (OSError, ValueError, KeyError, ImportError)
#: What it raises for a config.json with values that do not go together.
_UNBUILDABLE = (
    *_UNREADABLE,
    ArithmeticError,
    AssertionError,
    AttributeError,
    RuntimeError,
    StrictDataclassError,
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
        no_padding: Why prompts of different lengths cannot share a batch; empty if they can.
        no_cache: Why keys and values cannot be reused although the model keeps them; empty if they
            can.
    """

    model: Any
    tokenizer: Any
    layers: nn.ModuleList
    layers_path: str
    pad_token_id: int
    no_padding: str = ""
    no_cache: str = ""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device = self.model.device
        return device if isinstance(device, torch.device) else torch.device(device)

    @property
    def dtype(self) -> str:
        """The dtype of its weights, e.g. ``float32``."""
        return str(self.model.dtype).removeprefix("torch.")

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
    with only_read_files(settings) as source:
        return _named(_config(source, settings), settings)


def _config(source: str, settings: ModelSettings) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, **_where(settings))
    except _UNBUILDABLE as error:
        raise _unloadable(
            settings, source, "has no configuration that transformers can read", error
        ) from error
    refuse_harmful(f"model.id={settings.id}", config, settings.trust_remote_code)
    return config


def load_tokenizer(settings: ModelSettings) -> Any:
    """Load a model's tokenizer.

    Raises:
        UserError: There is none.
    """
    from transformers import AutoTokenizer

    with only_read_files(settings) as source:
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **_where(settings))
        except Exception as error:  # the tokenizers library raises just that
            refuse_broken_tokenizer(Path(source), f"model.id={settings.id}")
            raise _unloadable(
                settings, source, "has no tokenizer that transformers can read", error
            ) from error
        own_code = not type(tokenizer).__module__.startswith("transformers.")
        if not (tokenizer.is_fast or own_code) and Path(source, "tokenizer.json").is_file():
            # Its vocabulary was left out, because there is a tokenizer.json.
            raise UserError(
                f"model.id={settings.id}: its tokenizer ({type(tokenizer).__name__}) does not read "
                "tokenizer.json, but files of its own; move tokenizer.json out of the folder"
            )
    tokenizer.name_or_path = settings.id
    return tokenizer


def skeleton(settings: ModelSettings) -> Any:
    """The model's modules on the meta device, for checks that need only names and shapes.

    Raises:
        UserError: It is not a causal language model, or it needs what is not installed.
    """
    from transformers import AutoModelForCausalLM

    with only_read_files(settings) as source:
        config = _config(source, settings)
        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(
                    config, trust_remote_code=settings.trust_remote_code
                )
        except _UNBUILDABLE as error:
            if "Unrecognized configuration class" in str(error):
                raise UserError(
                    f"model.id={settings.id}: {config.model_type} is not a causal language model; "
                    "use one that transformers' AutoModelForCausalLM can load"
                ) from error
            raise _unloadable(
                settings, source, "cannot be built from its config.json", error
            ) from error
    decoder_layers(model)
    return _named(model, settings)


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
    refuse_too_large(settings, model)
    if getattr(model.config, "is_decoder", True) is False and hasattr(
        model.config, "add_cross_attention"
    ):
        raise UserError(
            f"model.id={settings.id}: {config.model_type} reads in both directions "
            "(is_decoder=false in its config.json); use a causal language model"
        )
    check_attention(settings.attn_implementation, model, device)


def base_dtype(settings: ModelSettings, fast: torch.dtype) -> torch.dtype:
    """The dtype of the frozen weights, however the checkpoint is stored.

    Args:
        settings: The model; its dtype may be ``auto``.
        fast: What ``auto`` stands for: :func:`~heft_pipeline.devices.fast_dtype.fast_dtype` of the
            device where the model will be.

    Returns:
        float32 or bfloat16; float16's range is too small to train without loss scaling.
    """
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(settings.dtype, fast)


def load_base(settings: ModelSettings, device: torch.device) -> Base:
    """Load a base model and its tokenizer, and freeze the model.

    Raises:
        UserError: It cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    config = load_config(settings)
    check_quantization(settings, config, device)
    tokenizer = load_tokenizer(settings)
    dtype = base_dtype(settings, fast_dtype(device))
    placed = quantized(settings, config, device, dtype)
    attention = attention_implementation(
        settings.attn_implementation, config.get_text_config().model_type, device, dtype
    )
    with only_read_files(settings, weights=True) as source:
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                source,
                output_loading_info=True,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                generation_config=GenerationConfig(),  # so that the checkpoint's is not read
                **placed,
                **_where(settings),
            )
        except (*_UNREADABLE, RuntimeError, SafetensorError) as error:
            if is_out_of_memory(error):
                raise
            raise _unloadable(settings, source, "cannot be loaded", unreadable(error)) from error
    _named(model, settings)
    path, layers = decoder_layers(model)
    refuse_incomplete(f"model.id={settings.id}", model, path, info)
    refuse_broken(f"model.id={settings.id}", model)
    model.requires_grad_(False).eval()
    # Penalties, sampling or end tokens of the checkpoint's own would change the answers.
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


def _named(loaded: Any, settings: ModelSettings) -> Any:
    """A model or configuration that says where it is from, and not which links it was read by."""
    for one in (loaded, getattr(loaded, "config", loaded)):
        one.name_or_path = settings.id
    return loaded


def _unloadable(
    settings: ModelSettings, source: str, what: str, error: Exception | str
) -> UserError:
    if "trust_remote_code" in str(error):
        return UserError(
            f"model.id={settings.id} needs the code in its own repository; read that code, and "
            "allow it with model.trust_remote_code=true"
        )
    lines = str(error).strip().splitlines() or [type(error).__name__]
    said = lines[0]
    if said.endswith(":") and lines[1:]:  # it only announces the reason
        said = f"{said} {lines[1].strip()}"
    return UserError(f"model.id={settings.id} {what}: {said.replace(source, settings.id)}")
