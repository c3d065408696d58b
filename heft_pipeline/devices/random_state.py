"""The states of torch's random generators, as tensors."""

from collections.abc import Mapping

import torch


def random_tensors(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of torch's random generators.

    Args:
        device: Where training runs.

    Returns:
        Tensors under ``random/...``.
    """
    states = {"random/cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["random/cuda"] = torch.cuda.get_rng_state(device)
    return states


def load_random(
    tensors: Mapping[str, torch.Tensor], device: torch.device, prefix: str = ""
) -> None:
    """Set torch's random generators to what :func:`random_tensors` returned.

    Args:
        tensors: The tensors; a generator that they lack is left as it is.
        device: Where training runs.
        prefix: Stands before the names.
    """
    if f"{prefix}random/cpu" in tensors:
        torch.set_rng_state(tensors[f"{prefix}random/cpu"])
    if device.type == "cuda" and f"{prefix}random/cuda" in tensors:
        torch.cuda.set_rng_state(tensors[f"{prefix}random/cuda"], device)
