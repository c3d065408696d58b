"""Loading the frozen base model, and its forward pass on answers alone."""

import importlib.util
import inspect
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from heft_pipeline.data.batches import Batch
from heft_pipeline.errors import UserError
from heft_pipeline.models.attention import attention_implementation
from heft_pipeline.spec import ModelSpec


@dataclass(frozen=True)
class Base:
    """A frozen causal language model with its tokenizer.

    Attributes:
        model: A transformers model in eval mode, no parameter of which requires a gradient.
        tokenizer: Its tokenizer.
        layers: Its decoder layers.
        layers_path: Where they are in the model, e.g. ``model.layers``.
        pad_token_id: An id to fill padding with.
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


def resolve_device(name: str) -> torch.device:
    """Turn the config's ``device`` into a torch device.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Returns:
        The device; for ``auto`` CUDA where there is one.

    Raises:
        UserError: The machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices; "
            "use device=auto or device=cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device=mps: this machine has no Metal device; use device=auto")
    return device


def quieten() -> None:
    """Keep the libraries' progress bars and advice off the terminal, which shows the sweep."""
    from transformers.utils import logging

    # PEFT still asks transformers under names that transformers has deprecated.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def load_config(spec: ModelSpec) -> Any:
    """Read a model's configuration.

    Args:
        spec: The model.

    Returns:
        The transformers config.

    Raises:
        UserError: There is none, or it is not of a known architecture.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(spec.id, **_where(spec))
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(spec, "has no configuration that transformers can read", error) from error


def load_tokenizer(spec: ModelSpec) -> Any:
    """Load a model's tokenizer.

    Args:
        spec: The model.

    Returns:
        The transformers tokenizer.

    Raises:
        UserError: There is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(spec.id, **_where(spec))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _unloadable(spec, "has no tokenizer that transformers can read", error) from error


def skeleton(spec: ModelSpec) -> Any:
    """The model's modules without weights, for checks that need names and shapes only.

    Args:
        spec: The model.

    Returns:
        The transformers model on the meta device.

    Raises:
        UserError: It is not a causal language model.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(spec)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config, trust_remote_code=spec.trust_remote_code
            )
    except ValueError as error:
        raise _unloadable(spec, "is not a causal language model", error) from error


def base_dtype(spec: ModelSpec, config: Any) -> torch.dtype:
    """The dtype that the frozen weights are kept in.

    Args:
        spec: The model; its dtype may be ``auto``.
        config: Its transformers config.

    Returns:
        float32 or bfloat16. ``auto`` is what the checkpoint is stored in, bfloat16 for float16,
        whose range is too small to train through without loss scaling.
    """
    if spec.dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[spec.dtype]
    stored = getattr(config.get_text_config(), "dtype", None) or torch.float32
    if isinstance(stored, str):
        stored = getattr(torch, stored)
    return torch.bfloat16 if stored in (torch.float16, torch.bfloat16) else torch.float32


def load_base(spec: ModelSpec, device: torch.device) -> Base:
    """Load a base model, frozen.

    Args:
        spec: The model.
        device: Where to put it.

    Returns:
        The model and its tokenizer.

    Raises:
        UserError: It cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    check_quantization(spec, device)
    config = load_config(spec)
    tokenizer = load_tokenizer(spec)
    dtype = base_dtype(spec, config)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            spec.id,
            dtype=dtype,
            attn_implementation=attention_implementation(
                spec.attn_implementation, config.get_text_config().model_type, device, dtype
            ),
            use_safetensors=True,
            **_quantized(spec, device, dtype),
            **_where(spec),
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise _unloadable(spec, "cannot be loaded", error) from error
    model.requires_grad_(False).eval()
    if spec.quantization == "none":
        model.to(device)
    _keep_head_input_contiguous(model)
    path, layers = decoder_layers(model)
    pad = tokenizer.pad_token_id
    return Base(
        model=model,
        tokenizer=tokenizer,
        layers=layers,
        layers_path=path,
        pad_token_id=pad if pad is not None else tokenizer.eos_token_id or 0,
    )


def check_quantization(spec: ModelSpec, device: torch.device) -> None:
    """Refuse 4-bit weights where they cannot be had.

    Args:
        spec: The model.
        device: Where it will be.

    Raises:
        UserError: The device is no CUDA GPU, or bitsandbytes is not installed.
    """
    if spec.quantization == "none":
        return
    if device.type != "cuda":
        raise UserError(
            f"model.quantization={spec.quantization} needs a CUDA GPU, and the device is {device}; "
            "use model.quantization=none"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.quantization={spec.quantization} needs bitsandbytes: pip install bitsandbytes"
        )


def _quantized(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What loads a model's weights in 4 bits (NF4, Dettmers et al. 2023, arXiv 2305.14314)."""
    if spec.quantization == "none":
        return {}
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=spec.quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def _keep_head_input_contiguous(model: Any) -> None:
    """Spare the vocabulary projection from copying its weights for each row of a sliced input.

    torch takes a sliced [B, K, width] input for a batch of products and expands the weights.
    """
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]))


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Find a causal language model's decoder layers.

    Args:
        model: A transformers model.

    Returns:
        Their path in the model and the layers.

    Raises:
        UserError: No module list has one module for each hidden layer.
    """
    count = model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr,operator]
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise UserError(
        f"model.id: the decoder layers of {type(model).__name__} were not found; ReFT needs one "
        "list of layers"
    )


def answer_logits(model: Any, batch: Batch) -> torch.Tensor:
    """The logits that predict a batch's answers; no other position is projected.

    Args:
        model: A transformers causal language model.
        batch: A batch padded on the left: B sequences of at most K answer tokens.

    Returns:
        [B, K, V] logits in the model's dtype.
    """
    return model(**model_inputs(model, batch)).logits[:, -batch.answer_tokens :]


def model_inputs(model: Any, batch: Batch) -> dict[str, Any]:
    """The keyword arguments of a model's forward pass for a batch.

    Args:
        model: A transformers causal language model.
        batch: The batch.

    Returns:
        Token ids and mask, with positions, the wish for answer logits alone, and no cache where
        the model takes them.
    """
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    wished = {
        "position_ids": batch.position_ids,
        "logits_to_keep": batch.answer_tokens,
        "use_cache": False,
    }
    accepted = accepted_inputs(model)
    return inputs | {k: v for k, v in wished.items() if k in accepted}


def cache_name(model: Any) -> str:
    """What a model's forward pass calls its cache of keys and values.

    Args:
        model: A transformers causal language model.

    Returns:
        ``past_key_values``, or ``cache`` from transformers 5.24 on; empty where it takes none.
    """
    names = accepted_inputs(model)
    return next((name for name in ("past_key_values", "cache") if name in names), "")


def kept_cache(output: Any) -> Any:
    """The cache that a model's output holds, whatever transformers calls it; None without one."""
    for name in ("past_key_values", "cache"):
        if (found := getattr(output, name, None)) is not None:
            return found
    return None


def accepted_inputs(model: Any) -> set[str]:
    """The keyword arguments that a model's forward pass takes by name.

    Args:
        model: A transformers causal language model.

    Returns:
        Those of its class; libraries wrap an instance's ``forward`` without its signature.
    """
    return set(inspect.signature(type(model).forward).parameters)


def _where(spec: ModelSpec) -> dict[str, Any]:
    return {"revision": spec.revision or "main", "trust_remote_code": spec.trust_remote_code}


def _unloadable(spec: ModelSpec, what: str, error: Exception) -> UserError:
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(f"model.id={spec.id} {what}: {first_line}")
