"""Choosing the device to compute on."""

import torch

from heft_pipeline.errors import UserError


def resolve_device(name: str) -> torch.device:
    """Turn the config's ``device`` into a torch device.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. ``auto`` is CUDA if there is a
            GPU, else the CPU.

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
