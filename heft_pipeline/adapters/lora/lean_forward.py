"""The forward pass of PEFT's LoRA layers without its float32 copies of the activations.

PEFT casts the input of each module (seven in a decoder layer) to float32, the adapter's dtype.
With a bfloat16 base, this takes twice the memory and bandwidth. Here the small adapter matrices
are cast instead, as autocast does; they are still stored and updated in float32. With a float32
base nothing is cast, and the results are PEFT's.
"""

from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.layer import Linear, LoraLayer, ParamWrapper
from peft.utils.integrations import dequantize_module_weight
from torch.nn.functional import linear

from heft_pipeline.errors import UserError


class LeanLinear(Linear):
    """PEFT's LoRA layer with this module's forward pass; everything else is PEFT's."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """``base(x) + scaling * dropout(x) A' B'``, with one such term for each active adapter.

        Args:
            x: [..., in], in the base's dtype.
            *args: Passed on to the base layer.
            **kwargs: Passed on to the base layer.

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
    """Adds LoRA adapters to the weights that they adapt, until :meth:`undo`.

    The sums are computed in float32 and rounded once to the weights' dtype; PEFT rounds the update
    of fused experts before. The original weights are kept in memory.

    Args:
        model: A model with finished LoRA adapters on it; changed in place.

    Raises:
        UserError: A layer cannot be merged, for instance because its weights are in 4 bits.
    """

    def __init__(self, model: Any) -> None:
        layers = _layers(model)
        for layer in layers:
            if not _can_merge(layer):
                name = type(layer.get_base_layer()).__name__
                raise UserError(
                    f"merge_parent=true: a LoRA adapter of a {name} layer cannot be added to its "
                    "weights; use merge_parent=false"
                )
        self._before = [
            (layer, getattr(layer.get_base_layer(), _adapted(layer))) for layer in layers
        ]
        # The wrappers of a module's several parameters are nested; the inner ones come first here.
        for layer, weight in reversed(self._before):
            names = [name for name in layer.active_adapters if name in layer.lora_A]
            added = sum(layer.get_delta_weight(name).float() for name in names)
            merged = (weight.float() + added).to(weight.dtype)
            # A new parameter: the old one may be the input embedding's too (tied weights).
            parameter = torch.nn.Parameter(merged, requires_grad=False)
            setattr(layer.get_base_layer(), _adapted(layer), parameter)
            layer.forward = layer.base_layer.forward

    def undo(self) -> None:
        """Restore the original weights, bit for bit."""
        for layer, weight in self._before:
            setattr(layer.get_base_layer(), _adapted(layer), weight)
            del layer.forward


def can_merge(model: Any) -> bool:
    """Whether :class:`MergedLora` can add all LoRA adapters of a model to its weights."""
    return all(map(_can_merge, _layers(model)))


def _layers(model: Any) -> list[LoraLayer]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _can_merge(layer: LoraLayer) -> bool:
    known = type(layer) in (LeanLinear, ParamWrapper)
    return known and not layer.get_base_layer()._forward_hooks


def _adapted(layer: LoraLayer) -> str:
    """The name of the parameter that a layer of PEFT's updates."""
    return str(layer.parameter_name) if isinstance(layer, ParamWrapper) else "weight"


class ExactDora(DoraLinearLayer):
    """PEFT's DoRA with norms in float32, and without its division by 0 for rows of zeros."""

    def get_weight_norm(
        self,
        weight: torch.Tensor,
        lora_weight: torch.Tensor,
        scaling: float,
        adapter_name: str | None = None,
    ) -> torch.Tensor:
        """The norm of each row of the updated weight.

        Args:
            weight: The frozen weight, [out, in], or transposed with ``fan_in_fan_out``.
            lora_weight: The update without its scaling, [out, in].
            scaling: The update's scaling.
            adapter_name: The adapter's name.

        Returns:
            [out] float32, at least the smallest normal float.
        """
        frozen = weight.T if self.fan_in_fan_out else weight
        norm = torch.linalg.norm(frozen.float() + scaling * lora_weight.float(), dim=1)
        return norm.clamp(min=torch.finfo(norm.dtype).tiny)


def set_magnitudes(model: Any, name: str) -> None:
    """Start a new DoRA adapter at the frozen weights' norms, computed as the forward pass does.

    Args:
        model: A model with PEFT's layers in it.
        name: The adapter's name; one that is not DoRA has no magnitudes.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer) and name in getattr(module, "lora_magnitude_vector", {}):
            dora: Any = module.lora_magnitude_vector[name]
            with torch.no_grad():
                update = module.lora_B[name].weight @ module.lora_A[name].weight
                weight = dequantize_module_weight(module.get_base_layer())
                norm = dora.get_weight_norm(weight, update, module.scaling[name])
                dora.weight.copy_(norm)


def use_lean_forward(model: Any) -> None:
    """Switch PEFT's LoRA layers to this module's classes.

    Plain layers become :class:`LeanLinear`. DoRA layers become :class:`ExactDora`, and other
    variants stay as they are. Unloading the adapters removes the layers, and this change with them.

    Args:
        model: A model with PEFT's layers in it; changed in place.
    """
    for module in model.modules():
        if type(module) is Linear and _is_plain(module):
            module.__class__ = LeanLinear
        elif type(module) is LeanLinear and not _is_plain(module):
            module.__class__ = Linear
        elif type(module) is DoraLinearLayer:
            module.__class__ = ExactDora


def _is_plain(module: Any) -> bool:
    """Whether no adapter on a layer is a variant such as DoRA or has a bias."""
    return not module.lora_variant and not any(
        module.lora_bias.get(name, False) for name in module.lora_A
    )
