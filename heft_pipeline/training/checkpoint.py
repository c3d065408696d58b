"""Checkpoints that resume training exactly: one safetensors file each, replaced atomically."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

_META = "heft"


def write(path: Path, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON data as one file; readers see the old file or the whole new one.

    Args:
        path: The file; its folder is made where missing.
        tensors: Tensors by name.
        meta: JSON-ready data.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    ready = {k: v.detach().to("cpu").contiguous() for k, v in tensors.items()}
    save_file(ready, partial, metadata={_META: json.dumps(meta)})
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())
    partial.replace(path)


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what :func:`write` wrote.

    Args:
        path: The file.

    Returns:
        (tensors, meta).
    """
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()[_META])


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[torch.Tensor, str]
) -> dict[str, torch.Tensor]:
    """An optimiser's state as named tensors.

    Args:
        optimizer: The optimiser; all its state must be tensors, as AdamW's is.
        names: A name for each of its parameters.

    Returns:
        Tensors under ``optimizer/PARAMETER/KEY``.
    """
    return {
        f"optimizer/{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Mapping[torch.Tensor, str],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Give an optimiser the state that :func:`optimizer_tensors` took.

    Args:
        optimizer: A fresh optimiser of the same parameters.
        names: The same names.
        tensors: The tensors.
    """
    by_name = {name: parameter for parameter, name in names.items()}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            name, field = key.removeprefix("optimizer/").rsplit("/", 1)
            parameter = by_name[name]
            # AdamW keeps its step counts on the CPU unless it is fused.
            on_device = field != "step" or parameter.device.type == "cuda"
            optimizer.state[parameter][field] = value.to(parameter.device if on_device else "cpu")


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
    """Set torch's random generators to what :func:`random_tensors` took.

    Args:
        tensors: The tensors; a generator that they lack is left as it is.
        device: Where training runs.
        prefix: Stands before the names.
    """
    if f"{prefix}random/cpu" in tensors:
        torch.set_rng_state(tensors[f"{prefix}random/cpu"])
    if device.type == "cuda" and f"{prefix}random/cuda" in tensors:
        torch.cuda.set_rng_state(tensors[f"{prefix}random/cuda"], device)
