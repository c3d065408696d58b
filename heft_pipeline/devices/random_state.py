"""The states of torch's random generators, as tensors."""

from collections.abc import Mapping

import torch


def random_tensors(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of torch's generators for the CPU and ``device``, under ``random/...``."""
    states = {"random/cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["random/cuda"] = torch.cuda.get_rng_state(device)
    return states


def load_random(
    tensors: Mapping[str, torch.Tensor], device: torch.device, prefix: str = ""
) -> None:
    """Restore the states that :func:`random_tensors` returned.

    Args:
        tensors: The states; a generator whose state is missing is left as it is.
        device: Where training runs.
        prefix: What comes before the tensors' names.
    """
    if f"{prefix}random/cpu" in tensors:
        torch.set_rng_state(tensors[f"{prefix}random/cpu"])
    if device.type == "cuda" and f"{prefix}random/cuda" in tensors:
        torch.cuda.set_rng_state(tensors[f"{prefix}random/cuda"], device)
