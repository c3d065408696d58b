"""Measuring the machine's peak speed at matrix products."""

import time

import torch

from benchmarks.piece import Measured
from heft_pipeline.devices.resolve import resolve_device

_REPEATS = 5


def measure() -> Measured:
    """Time large square matrix products in float32 and bfloat16.

    float32 is computed at torch's default precision, which is without TF32 on a GPU.

    Returns:
        The best GFLOP/s for each dtype.
    """
    device = resolve_device("auto")
    size = 8192 if device.type == "cuda" else 2048
    found = Measured()
    for dtype in (torch.float32, torch.bfloat16):
        left = torch.randn(size, size, device=device).to(dtype)
        right = torch.randn(size, size, device=device).to(dtype)
        seconds = min(_seconds(left, right) for _ in range(_REPEATS))
        found.gflops[str(dtype).removeprefix("torch.")] = 2 * size**3 / seconds / 1e9
    return found


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    started = time.perf_counter()
    product = left @ right
    if product.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started
