"""What a model's config.json may not ask for: endless work, memory without weights, or code."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from heft_pipeline.errors import UserError
from heft_pipeline.models.checkpoint_files import model_files
from heft_pipeline.models.settings import ModelSettings
from heft_pipeline.models.tensor_headers import tensor_shapes

#: Numbers of parts that are built one by one; the largest models have some 130 layers.
_PARTS = re.compile(
    r"(?:\w+_)?layers|n(?:um)?_(?:\w+_)?(?:layers?|blocks?|experts?|heads?|codebooks?|stages?)"
)
_MOST_PARTS = 4096
#: A weight takes at least one bit in any checkpoint, and some are made from others.
_MOST_PER_BYTE = 16


def refuse_harmful(name: str, config: Any, trust_remote_code: bool) -> None:
    """Refuse a configuration that no model can have, or that would fetch code.

    Args:
        name: What to call the model in messages.
        config: transformers' configuration.
        trust_remote_code: Whether code of repositories may run.

    Raises:
        UserError: The message has the key and its value.
    """
    for key, value in _values(config.to_dict()):
        number = isinstance(value, int) and not isinstance(value, bool)
        if number and _PARTS.fullmatch(key) and not -1 <= value <= _MOST_PARTS:
            raise UserError(
                f"{name}: its config.json has {key}={str(value)[:30]}, and no model has more than "
                f"{_MOST_PARTS}; use the config.json that belongs to the checkpoint"
            )
    kernels = [getattr(one, "_attn_implementation", None) for one in _parts(config)]
    named = next((one for one in kernels if isinstance(one, str) and "/" in one), None)
    if named and not trust_remote_code:
        raise UserError(
            f"{name}: its config.json asks for the code of {named}; read that code, and allow it "
            "with model.trust_remote_code=true, or remove attn_implementation there"
        )


def refuse_too_large(settings: ModelSettings, model: Any) -> None:
    """Refuse a local model with far more weights than its files could hold.

    transformers would make up what is missing, in memory that nobody expects to be needed.

    Args:
        settings: The model.
        model: Its skeleton.

    Raises:
        UserError: The message has both sizes; or a file of weights is cut off.
    """
    folder = Path(settings.id)
    if settings.revision is not None or not folder.is_dir():
        return
    name = f"model.id={settings.id}"
    files = model_files(folder, settings.trust_remote_code, name)
    weights = [file for file in files if file.suffix == ".safetensors"]
    size = sum(file.stat().st_size for file in weights)
    count = sum(weight.numel() for weight in model.parameters())
    if size and count > _MOST_PER_BYTE * size:
        for file in weights:
            tensor_shapes(file, name)  # a file that is cut off is no fault of the configuration
        raise UserError(
            f"{name}: its config.json describes a model of {count:,} weights, and its files have "
            f"{size:,} bytes; use the config.json that belongs to the checkpoint"
        )


def _parts(config: Any) -> list[Any]:
    names = getattr(config, "sub_configs", None) or ()
    return [config, *(getattr(config, name, None) for name in names)]


def _values(found: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All values of nested mappings, each with its own key."""
    if isinstance(found, dict):
        for name, value in found.items():
            yield from _values(value, str(name))
    else:
        yield key, found
