"""The forward pass of PEFT's LoRA layers without its float32 copies of the activations.

PEFT casts each module's input to the adapter's float32, twice the memory and traffic of a
bfloat16 base, seven times a layer. Here the small matrices are cast instead, as autocast
does; they are kept and updated in float32. With a float32 base nothing is cast and the
numbers are PEFT's.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch.nn.functional import linear


def use_own_forward(model: Any) -> None:
    """Give PEFT's plain LoRA layers this forward pass; what is not plain keeps PEFT's.

    Args:
        model: A model with PEFT's layers in it, changed in place; unloading the adapters
            takes the layers away and with them the change.
    """
    for module in model.modules():
        if type(module) is Linear and "forward" not in vars(module) and _is_plain(module):
            module.forward = _Forward(module)


class _Forward:
    """A layer's forward pass: ``base(x) + scaling * dropout(x) A' B'`` for each active adapter."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        module = self._module
        if module.disable_adapters or module.merged or not _is_plain(module):
            return Linear.forward(module, x, *args, **kwargs)
        result: torch.Tensor = module.base_layer(x, *args, **kwargs)
        for name in module.active_adapters:
            if name not in module.lora_A:
                continue
            down, up = module.lora_A[name].weight, module.lora_B[name].weight
            hidden = linear(module.lora_dropout[name](x), down.to(x.dtype))
            # Scaling the narrow product costs less than scaling the wide one.
            result = result + linear(hidden * module.scaling[name], up.to(x.dtype))
        return result


def _is_plain(module: Any) -> bool:
    """Whether no adapter on a layer is of a variant such as DoRA, or has a bias."""
    return not getattr(module, "lora_variant", None) and not any(
        module.lora_bias.get(name, False) for name in module.lora_A
    )
