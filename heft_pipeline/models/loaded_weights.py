"""Whether a loaded model is what its checkpoint holds: every weight, and nothing else."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from heft_pipeline.errors import UserError
from heft_pipeline.models.checkpoint_files import adapter_beside


def refuse_incomplete(
    name: str, model: Any, layers_path: str, info: Mapping[str, Iterable[Any]]
) -> None:
    """Refuse a model with weights that are not its checkpoint's.

    transformers fills what a checkpoint lacks with random numbers, drops layers that the
    configuration does not count, and puts an adapter on the model that lies in its folder.

    Args:
        name: What to call the model in messages, e.g. ``model.id=FOLDER``.
        model: The model.
        layers_path: Where its decoder layers are, e.g. ``model.layers``.
        info: What transformers' ``output_loading_info`` says.

    Raises:
        UserError: The message names what is missing or too much, and the way out.
    """
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing:
        renamed = [key for key in unexpected if any(key.endswith(f".{one}") for one in missing)]
        hint = (
            f"it has {renamed[0]} and {len(renamed) - 1} others under such names instead; save "
            "it again from the model inside its wrapper (torch.compile's is model._orig_mod)"
            if renamed
            else "download or save the whole checkpoint again"
        )
        raise UserError(
            f"{name} lacks {len(missing)} of the model's weights, e.g. {missing[0]}; {hint}"
        )
    dropped = [key for key in unexpected if re.match(rf"(.*\.)?{re.escape(layers_path)}\.\d", key)]
    if dropped:
        raise UserError(
            f"{name} holds {len(dropped)} weights of decoder layers that its config.json does not "
            f"count, e.g. {dropped[0]}; use the config.json that belongs to the checkpoint"
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise adapter_beside(name)


def refuse_broken(name: str, model: torch.nn.Module) -> None:
    """Refuse a model with weights that are NaN or infinite.

    Args:
        name: What to call the model in messages.
        model: The model.

    Raises:
        UserError: The message names the first such weight.
    """
    for key, weight in model.named_parameters():
        # torch cannot sum numbers of 8 bits, which quantised checkpoints hold.
        summable = weight.is_floating_point() and weight.dtype.itemsize > 1
        if summable and not torch.isfinite(weight.sum(dtype=torch.float32)):
            broken = int((~torch.isfinite(weight)).sum())
            if broken:
                raise UserError(
                    f"{name}: {broken} numbers of {key} are NaN or infinite; download the "
                    "checkpoint again, or set model.dtype=float32 if they overflow in bfloat16"
                )


def unreadable(error: Exception) -> str:
    """Why a checkpoint's files cannot be read.

    Args:
        error: What reading them raised.

    Returns:
        A phrase with the way out.
    """
    if "mismatched_sizes" in str(error):
        return (
            "its weights have other shapes than its config.json says; use the config.json that "
            "belongs to the checkpoint"
        )
    return (str(error).strip() or type(error).__name__).splitlines()[0]
