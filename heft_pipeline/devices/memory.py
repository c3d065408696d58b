"""The peak memory of a stretch of work."""

import contextlib
import gc
import re
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> None:
    """Start measuring.

    Args:
        device: Where the work runs. On a CPU the kernel's high-water mark of this process is
            reset, which Linux alone allows.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device.

    Args:
        error: The error.

    Returns:
        True for torch's own errors on GPU and CPU, and Python's.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        words in text for words in ("out of memory", "can't allocate memory")
    )


def free(device: torch.device) -> None:
    """Give back what nothing uses any more.

    Args:
        device: Where the work runs.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_mb(device: torch.device) -> float:
    """The peak since :func:`reset_peak`.

    Args:
        device: Where the work ran.

    Returns:
        MiB: of allocated GPU memory for CUDA, else of this process's resident memory (where
        /proc is missing, the process's peak since its start).
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
