"""Activations that are kept: in GPU memory, then RAM, then a file, under a budget."""

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

#: Shares of what is free that kept activations may take.
_OF_GPU, _OF_RAM = 0.5, 0.5
#: Reading from a file at about 2 GB/s against computing at about 2e14 operations a second.
_FILE_BYTES_A_SECOND, _GPU_OPERATIONS_A_SECOND = 2e9, 2e14


class Kept:
    """Tensors by key, as many as the budget allows.

    Args:
        device: Where they are computed and used.
        budget: Most bytes.
        folder: Where a file goes when memory is short; None for nowhere.
        operations: What computing one byte anew takes, in floating-point operations.
    """

    def __init__(
        self, device: torch.device, budget: float, folder: Path | None, operations: float
    ) -> None:
        self._device, self._budget, self._folder = device, budget, folder
        self._operations = operations
        self._tensors: dict[Hashable, torch.Tensor] = {}
        self._file_at = 0
        self._gpu_left, self._ram_left = _free_bytes(device)
        self.bytes = 0

    def __len__(self) -> int:
        """How many tensors are kept."""
        return len(self._tensors)

    def fill(
        self,
        keys: Sequence[Any],
        lengths: Sequence[int],
        tokens: int,
        compute: Callable[[list[Any]], list[torch.Tensor]],
        advance: Callable[[int, int], None],
    ) -> None:
        """Compute and keep tensors, in a grouping that keys and lengths alone decide.

        Args:
            keys: Sorted by length, each once.
            lengths: Tokens of each.
            tokens: Most padded tokens a pass.
            compute: Makes the tensors of a group of keys.
            advance: Told how many are done, and of how many.
        """
        start = 0
        while start < len(keys) and self.bytes < self._budget:
            stop = start + 1
            while stop < len(keys) and lengths[stop] * (stop + 1 - start) <= tokens:
                stop += 1
            group = list(keys[start:stop])
            for key, tensor in zip(group, compute(group), strict=True):
                if self.bytes + tensor.nbytes > self._budget or not self._keep(key, tensor):
                    return
            start = stop
            advance(start, len(keys))

    def get(
        self, keys: Sequence[Any], compute: Callable[[list[Any]], list[torch.Tensor]]
    ) -> list[torch.Tensor]:
        """Tensors on the device; those that are not kept are computed now.

        Args:
            keys: The keys.
            compute: Makes the tensors of a group of keys.

        Returns:
            A tensor a key.
        """
        missing = [key for key in dict.fromkeys(keys) if key not in self._tensors]
        found = dict(zip(missing, compute(missing), strict=True)) if missing else {}
        return [
            (self._tensors[key] if key in self._tensors else found[key]).to(
                self._device, non_blocking=True
            )
            for key in keys
        ]

    def _keep(self, key: Hashable, tensor: torch.Tensor) -> bool:
        size = tensor.nbytes
        if self._device.type == "cuda" and size <= self._gpu_left:
            self._gpu_left -= size
        elif size <= self._ram_left:
            self._ram_left -= size
            tensor = tensor.cpu()
        elif self._folder is not None and self._file_pays():
            tensor = self._to_file(tensor)
        else:
            return False
        self._tensors[key] = tensor
        self.bytes += size
        return True

    def _file_pays(self) -> bool:
        """Whether reading from a file takes less time than computing again."""
        if self._device.type != "cuda":
            return True
        return self._operations / _GPU_OPERATIONS_A_SECOND > 1 / _FILE_BYTES_A_SECOND

    def _to_file(self, tensor: torch.Tensor) -> torch.Tensor:
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "reused_activations.bin"
        raw = tensor.cpu().view(torch.uint8).numpy()
        with path.open("r+b" if self._file_at else "wb") as file:
            file.seek(self._file_at)
            file.write(raw.tobytes())
        mapped = np.memmap(path, np.uint8, "c", offset=self._file_at, shape=raw.shape)
        self._file_at += raw.nbytes
        # A view of the file: its pages are read when they are used.
        return torch.from_numpy(mapped).view(tensor.dtype)


def _free_bytes(device: torch.device) -> tuple[float, float]:
    gpu = 0.0
    if device.type == "cuda":
        gpu = _OF_GPU * torch.cuda.mem_get_info(device)[0]
    import psutil  # accelerate brings it

    return gpu, _OF_RAM * psutil.virtual_memory().available
