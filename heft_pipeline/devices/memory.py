"""Measuring the peak memory of a stretch of work, and running out of memory."""

import contextlib
import gc
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> None:
    """Start measuring the peak for work on ``device``.

    On a CPU this resets the kernel's high-water mark of this process, which only Linux allows.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, from torch on any device or from Python, says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        words in text for words in ("out of memory", "can't allocate memory")
    )


def free(device: torch.device) -> None:
    """Give back memory that nothing uses any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_mb(device: torch.device) -> float:
    """The peak since :func:`reset_peak`.

    Args:
        device: Where the work ran.

    Returns:
        MiB of allocated GPU memory for CUDA, else MiB of this process's resident memory. Without
        /proc, the latter is the process's peak since its start.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if _STATUS.is_file():
        match = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
        if match:
            return int(match.group(1)) / 1024
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)


def in_parts(
    run: Callable[[Sequence[Item]], Result], items: Sequence[Item], device: torch.device
) -> list[Result]:
    """Run something on items at once; if memory runs out, each half is tried by itself.

    Args:
        run: Computes the result of some of the items.
        items: At least one.
        device: Where memory may run out.

    Returns:
        The results of consecutive parts of the items.
    """
    try:
        return [run(items)]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(items) == 1:
            raise
    # Outside of the handler, because the exception keeps the failed pass's tensors alive.
    free(device)
    middle = len(items) // 2
    return [one for half in (items[:middle], items[middle:]) for one in in_parts(run, half, device)]
