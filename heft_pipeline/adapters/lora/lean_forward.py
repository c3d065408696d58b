"""The forward pass of PEFT's LoRA layers without its float32 copies of the activations.

PEFT casts each module's input to the adapter's float32, twice the memory and traffic of a
bfloat16 base, seven times a layer. Here the small matrices are cast instead, as autocast
does; they are kept and updated in float32. With a float32 base nothing is cast and the
numbers are PEFT's.
"""

from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.layer import Linear, LoraLayer
from torch.nn.functional import linear

from heft_pipeline.errors import UserError


class LeanLinear(Linear):
    """PEFT's LoRA layer with this module's forward pass; everything else is PEFT's."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """``base(x) + scaling * dropout(x) A' B'``, a term for each active adapter.

        Args:
            x: [..., in], in the base's dtype.
            *args: The base layer's.
            **kwargs: The base layer's.

        Returns:
            [..., out], in the base's dtype.
        """
        if self.disable_adapters or self.merged:
            merged_or_off: torch.Tensor = super().forward(x, *args, **kwargs)
            return merged_or_off
        result: torch.Tensor = self.base_layer(x, *args, **kwargs)
        for name in self.active_adapters:
            if name in self.lora_A:
                down, up = self.lora_A[name].weight, self.lora_B[name].weight
                hidden = linear(self.lora_dropout[name](x), down.to(x.dtype))
                # Scaling the narrow product costs less than scaling the wide one.
                result = result + linear(hidden * self.scaling[name], up.to(x.dtype))
        return result


class MergedLora:
    """LoRA adapters added to the weights they stand on, until :meth:`undo`.

    The sums are computed in float32 and rounded to the weights' dtype once; the weights as they
    were are kept beside them.

    Args:
        model: A model with finished LoRA adapters on it, changed in place.

    Raises:
        UserError: A layer's weights are not plain, as with 4 bits.
    """

    def __init__(self, model: Any) -> None:
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        if other := [layer for layer in layers if type(layer) is not LeanLinear]:
            raise UserError(
                f"reft.merge_parent: {type(other[0]).__name__} layers cannot be merged; use "
                "reft.merge_parent=false"
            )
        self._before = [(layer, layer.base_layer.weight.data) for layer in layers]
        for layer, weight in self._before:
            names = [name for name in layer.active_adapters if name in layer.lora_A]
            added = sum(layer.get_delta_weight(name).float() for name in names)
            layer.base_layer.weight.data = (weight.float() + added).to(weight.dtype)
            layer.forward = layer.base_layer.forward

    def undo(self) -> None:
        """Give the weights back as they were, bit for bit."""
        for layer, weight in self._before:
            layer.base_layer.weight.data = weight
            del layer.forward


class NonzeroDora(DoraLinearLayer):
    """PEFT's DoRA without its division by 0: a row of zeros in a weight stays what it is."""

    def get_weight_norm(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The L2 norm of each row of the weight and its update, at least the smallest float."""
        norm: torch.Tensor = super().get_weight_norm(*args, **kwargs)
        return norm.clamp(min=torch.finfo(norm.dtype).tiny)


def use_lean_forward(model: Any) -> None:
    """Give PEFT's plain LoRA layers this forward pass; DoRA and other variants keep PEFT's.

    Args:
        model: A model with PEFT's layers in it, changed in place; unloading the adapters takes
            the layers away, and the change with them.
    """
    for module in model.modules():
        if type(module) is Linear and _is_plain(module):
            module.__class__ = LeanLinear
        elif type(module) is DoraLinearLayer:
            module.__class__ = NonzeroDora


def _is_plain(module: Any) -> bool:
    """Whether no adapter on a layer is of a variant such as DoRA, or has a bias."""
    return not module.lora_variant and not any(
        module.lora_bias.get(name, False) for name in module.lora_A
    )
