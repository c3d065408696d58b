"""Loading the frozen base model."""

import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from heft_pipeline.devices.memory import is_out_of_memory
from heft_pipeline.errors import UserError
from heft_pipeline.models.attention import attention_implementation
from heft_pipeline.models.checkpoint_files import only_read_files
from heft_pipeline.models.head import prepare_head
from heft_pipeline.models.loaded_weights import refuse_broken, refuse_incomplete, unreadable
from heft_pipeline.models.settings import ModelSettings


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
    def hidden_size(self) -> int:
        """The width of the residual stream."""
        return int(self.model.config.get_text_config().hidden_size)


def quieten() -> None:
    """Turn off the libraries' progress bars and advice; the terminal shows the sweep's progress."""
    from transformers.utils import logging

    # PEFT still uses names that transformers has deprecated.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
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
        return AutoConfig.from_pretrained(source, **_where(settings))
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(
            settings, source, "has no configuration that transformers can read", error
        ) from error


def load_tokenizer(settings: ModelSettings) -> Any:
    """Load a model's tokenizer.

    Raises:
        UserError: There is none.
    """
    from transformers import AutoTokenizer

    with only_read_files(settings) as source:
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **_where(settings))
        except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
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
        UserError: It is not a causal language model.
    """
    from transformers import AutoModelForCausalLM

    with only_read_files(settings) as source:
        config = _config(source, settings)
        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(
                    config, trust_remote_code=settings.trust_remote_code
                )
        except ValueError as error:
            raise _unloadable(settings, source, "is not a causal language model", error) from error
    return _named(model, settings)


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

    check_quantization(settings, device)
    config = load_config(settings)
    tokenizer = load_tokenizer(settings)
    dtype = base_dtype(settings, config)
    attention = attention_implementation(
        settings.attn_implementation, config.get_text_config().model_type, device, dtype
    )
    with only_read_files(settings) as source:
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                source,
                output_loading_info=True,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                # The checkpoint's would have penalties, sampling or end tokens change the answers.
                generation_config=GenerationConfig(),
                **_quantized(settings, device, dtype),
                **_where(settings),
            )
        except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
            if is_out_of_memory(error):
                raise
            raise _unloadable(settings, source, "cannot be loaded", unreadable(error)) from error
    _named(model, settings)
    path, layers = decoder_layers(model)
    refuse_incomplete(f"model.id={settings.id}", model, path, info)
    refuse_broken(f"model.id={settings.id}", model)
    model.requires_grad_(False).eval()
    if settings.quantization == "none":
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


def check_quantization(settings: ModelSettings, device: torch.device) -> None:
    """Refuse 4-bit weights if this machine does not support them.

    Args:
        settings: The model.
        device: Where the model will be.

    Raises:
        UserError: The device is not a CUDA GPU, or bitsandbytes is not installed.
    """
    if settings.quantization == "none":
        return
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


def _quantized(settings: ModelSettings, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments that load weights in 4 bits (NF4, Dettmers et al. 2023, arXiv 2305.14314)."""
    if settings.quantization == "none":
        return {}
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Find a causal language model's decoder layers.

    Args:
        model: A transformers model.

    Returns:
        The layers' path in the model, and the layers.

    Raises:
        UserError: No module list has one module for each hidden layer.
    """
    count = model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr,operator]
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise UserError(
        f"model.id: the decoder layers of {type(model).__name__} were not found; an adapter "
        "needs one list of layers"
    )


def feed_forward_outputs(model: nn.Module) -> list[str]:
    """Find each decoder layer's feed-forward output: its last matrix outside of attention.

    Args:
        model: A transformers model; adapters may be on it.

    Returns:
        A module path for each decoder layer, e.g. ``model.layers.0.mlp.down_proj``.

    Raises:
        UserError: A layer has no such matrix, or several, as a mixture of experts has.
    """
    path, layers = decoder_layers(model)
    width = model.config.get_text_config().hidden_size  # type: ignore[union-attr,operator]
    found = []
    for number, layer in enumerate(layers):
        names = [name for name, _ in layer.named_modules()]
        matrices = [
            name.removesuffix(".base_layer")  # inside the wrapper of an adapter
            for name, module in layer.named_modules()
            if _output_width(module) == width
            and not any(word in name for word in ("attn", "attention", "lora_"))
        ]
        if not matrices or any("expert" in name or "router" in name for name in names):
            raise UserError(
                f"the decoder layers of {type(model).__name__} have no single feed-forward "
                "projection whose output could be edited; use another kind of adapter"
            )
        found.append(f"{path}.{number}.{matrices[-1]}")
    return found


def _output_width(module: nn.Module) -> int:
    """How many numbers a matrix gives for each position; 0 for any other module."""
    weight: Any = getattr(module, "weight", None)
    if getattr(weight, "ndim", 0) != 2:
        return 0
    # transformers' Conv1D keeps its matrix transposed.
    columns: Any = getattr(module, "nf", weight.shape[0])
    return int(columns)


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
    reason = str(error).strip() or type(error).__name__
    first_line = reason.splitlines()[0].replace(source, settings.id)
    return UserError(f"model.id={settings.id} {what}: {first_line}")
