"""Keeping activations within a budget: in GPU memory, then in RAM, then in a file.

The budget, which is a setting, decides which sequences' activations are fixed once. Where memory
is too short to hold them, they are computed again at each use, in the same groups, so that what
happens to be free changes no bit of them.
"""

import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from heft_pipeline.data.batches import AnsweredPrompt
from heft_pipeline.models.reuse.estimate import in_gib, in_kept_order, kept_groups

#: How many groups that were computed again are kept for the next uses.
_GROUPS_AT_HAND = 4
#: Called with the rows, padded tokens and layers of each pass that computes activations.
OnPass = Callable[[int, int, int], None]
#: What is kept of one sequence.
Tensors = tuple[torch.Tensor, ...]
Compute = Callable[[Sequence[AnsweredPrompt]], Sequence[Tensors]]
#: The shares of free GPU memory, of free RAM and of free disk that kept activations may take.
_OF_GPU, _OF_RAM, _OF_DISK = 0.5, 0.5, 0.5
#: Assumed speeds: a file is read at 2 GB/s, and a GPU does 2e14 operations per second.
_FILE_BYTES_A_SECOND, _GPU_OPERATIONS_A_SECOND = 2e9, 2e14


class Kept:
    """Tensors by the sequence that they were computed from, as many as the budget allows.

    Args:
        device: Where the tensors are computed and used.
        budget: The most bytes to keep.
        folder: Where to put a file when memory is short; None for no file.
        operations: The floating-point operations that recomputing one byte takes.

    Attributes:
        bytes: How many bytes are kept.
        places: The same by place: GPU memory, memory, a file.
    """

    def __init__(
        self, device: torch.device, budget: float, folder: Path | None, operations: float
    ) -> None:
        self._device, self._budget, self._folder = device, budget, folder
        self._operations = operations
        self._tensors: dict[AnsweredPrompt, Tensors] = {}
        #: For each tensor of a sequence, its offset in the file, its shape and its dtype.
        self._in_file: dict[AnsweredPrompt, list[tuple[int, torch.Size, torch.dtype]]] = {}
        #: The group that each sequence was computed in, of those that found no room.
        self._lost: dict[AnsweredPrompt, tuple[AnsweredPrompt, ...]] = {}
        self._again: OrderedDict[tuple[AnsweredPrompt, ...], dict[AnsweredPrompt, Tensors]]
        self._again = OrderedDict()
        self._file: Any = None
        self._gpu_left, self._ram_left = _free_bytes(device)
        self._disk_left = self._free_disk()
        self.bytes = 0
        self.places: dict[str, int] = {}

    def __len__(self) -> int:
        """How many sequences' tensors are kept."""
        return len(self._tensors) + len(self._in_file)

    @property
    def where(self) -> str:
        """How much is kept and where, for people."""
        each = [f"{in_gib(size)} of {place}" for place, size in self.places.items()]
        return " and ".join(each) or "no memory at all"

    @property
    def without_room(self) -> int:
        """How many sequences are within the budget and found no room."""
        return len(self._lost)

    def fill(
        self,
        wanted: Iterable[AnsweredPrompt],
        tokens: int,
        compute: Compute,
        advance: Callable[[int, int], None],
        *,
        size: Callable[[AnsweredPrompt], int],
    ) -> int:
        """Compute and keep tensors, in an order and in groups that depend only on the keys.

        Args:
            wanted: The keys; repeated keys count once.
            tokens: The most padded tokens in one pass.
            compute: Computes the tensors of a group of keys.
            advance: Called with the number done and the total.
            size: The bytes of a key's tensors, which decide whether they are within the budget.

        Returns:
            The number of distinct keys.
        """
        keys = in_kept_order(wanted)
        done = 0
        for group in kept_groups(keys, size, self._budget, tokens):
            if self._lost:  # there is no room for anything more
                self._lost |= dict.fromkeys(group, group)
                continue
            for key, tensors in zip(group, compute(group), strict=True):
                if not self._keep(key, tensors, sum(tensor.nbytes for tensor in tensors)):
                    self._lost[key] = group
            done += len(group)
            advance(done, len(keys))
        return len(keys)

    def get(self, keys: Sequence[AnsweredPrompt], compute: Compute) -> list[Tensors]:
        """Tensors on the device, for each key; those that are not kept are computed now.

        What is beyond the budget is computed together; what only found no room is computed as it
        was the first time.

        Args:
            keys: The keys.
            compute: Computes the tensors of a group of keys.
        """
        found = {key: kept for key in keys if (kept := self._kept(key)) is not None}
        for key in keys:
            if key in self._lost and key not in found:
                found[key] = self._computed_again(self._lost[key], compute)[key]
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        found |= dict(zip(missing, compute(missing), strict=True)) if missing else {}
        return [
            tuple(one.to(self._device, non_blocking=True) for one in found[key]) for key in keys
        ]

    def _computed_again(
        self, group: tuple[AnsweredPrompt, ...], compute: Compute
    ) -> dict[AnsweredPrompt, Tensors]:
        """The tensors of a group that found no room; those of the last few groups are at hand."""
        if group not in self._again:
            self._again[group] = dict(zip(group, compute(group), strict=True))
            if len(self._again) > _GROUPS_AT_HAND:
                self._again.popitem(last=False)
        return self._again[group]

    def _kept(self, key: AnsweredPrompt) -> Tensors | None:
        if key in self._tensors:
            return self._tensors[key]
        if key not in self._in_file:
            return None
        found = []
        for start, shape, dtype in self._in_file[key]:
            self._file.seek(start)
            raw = bytearray(self._file.read(shape.numel() * dtype.itemsize))
            empty = torch.empty(shape, dtype=dtype)
            found.append(torch.frombuffer(raw, dtype=dtype).view(shape) if raw else empty)
        return tuple(found)

    def _keep(self, key: AnsweredPrompt, tensors: Tensors, size: int) -> bool:
        if self._device.type == "cuda" and size <= self._gpu_left:
            self._gpu_left -= size
            self._tensors[key], place = tensors, "GPU memory"
        elif size <= self._ram_left:
            self._ram_left -= size
            self._tensors[key], place = tuple(tensor.cpu() for tensor in tensors), "memory"
        elif self._folder is not None and size <= self._disk_left:
            try:
                self._in_file[key] = [self._to_file(tensor, self._folder) for tensor in tensors]
            except OSError:  # a full disk
                self._give_room_back()
                return False
            self._disk_left -= size
            place = "a file"
        else:
            return False
        self.bytes += size
        self.places[place] = self.places.get(place, 0) + size
        return True

    def _free_disk(self) -> float:
        """The bytes of a file to use; checkpoints and other stages need room, too."""
        if self._folder is None or not self._file_pays():
            return 0.0
        found = next(p for p in (self._folder, *self._folder.parents) if p.is_dir())
        return _OF_DISK * shutil.disk_usage(found).free

    def _give_room_back(self) -> None:
        """Cut what was written last off the file, where it belongs to nothing that is kept."""
        if self._file is not None:
            self._file.truncate(self.places.get("a file", 0))

    def _file_pays(self) -> bool:
        """Whether reading from a file takes less time than recomputing."""
        if self._device.type != "cuda":
            return True
        return self._operations / _GPU_OPERATIONS_A_SECOND > 1 / _FILE_BYTES_A_SECOND

    def _to_file(self, tensor: torch.Tensor, folder: Path) -> tuple[int, torch.Size, torch.dtype]:
        if self._file is None:
            folder.mkdir(parents=True, exist_ok=True)
            # The file has no name, so only this process can use it, and it disappears with the
            # process. Parts that were read recently stay in the page cache, as with a memory map.
            # Without a buffer: one that a full disk leaves unwritten would fail the next read.
            self._file = tempfile.TemporaryFile(dir=folder, prefix="reused-", buffering=0)  # noqa: SIM115
        start = self._file.seek(0, os.SEEK_END)
        left = memoryview(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        while left:
            left = left[self._file.write(left) :]
        return start, tensor.shape, tensor.dtype


def _free_bytes(device: torch.device) -> tuple[float, float]:
    """The bytes of GPU memory and RAM to use; the machine's processes share its RAM."""
    gpu = 0.0
    if device.type == "cuda":
        gpu = _OF_GPU * torch.cuda.mem_get_info(device)[0]
    import psutil  # accelerate brings it

    together = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)
    return gpu, _OF_RAM * psutil.virtual_memory().available / together
