"""Which dtype a device computes fast in, by what its hardware has and never by timing it."""

from pathlib import Path

import torch

_CPUINFO = Path("/proc/cpuinfo")
#: For each feature of a CPU: torch's function that looks for it, which not every version of torch
#: has, and Linux's name for it.
_CPU_FEATURES = {
    "AMX": ("_is_amx_tile_supported", "amx_bf16"),
    "AVX512-BF16": ("_is_avx512_bf16_supported", "avx512_bf16"),
    "AVX-512": ("_is_avx512_supported", "avx512f"),
}
_MULTIPLIES_BFLOAT16 = {"AMX", "AVX512-BF16"}


def fast_dtype(device: torch.device) -> torch.dtype:
    """The dtype to keep frozen weights in.

    Args:
        device: Where they will be.

    Returns:
        bfloat16 where :func:`has_fast_bfloat16` is true, else float32.
    """
    return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for products of bfloat16 matrices.

    These are NVIDIA's GPUs of capability 8.0 or more, AMD's GPUs, and CPUs with AMX or AVX512-BF16.
    Everything else converts to float32 and back. On a CPU with plain AVX-512, that takes up to
    45 % longer than float32 from the start.
    """
    if device.type == "cuda":
        # As torch.cuda.is_bf16_supported(including_emulation=False), which asks the current GPU.
        return bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(_MULTIPLIES_BFLOAT16.intersection(cpu_features()))


def cpu_features() -> tuple[str, ...]:
    """Which of AMX, AVX512-BF16 and AVX-512 this machine's CPU has."""
    return tuple(name for name, where in _CPU_FEATURES.items() if _has(*where))


def cpu_model() -> str:
    """The name of this machine's CPU; empty where Linux does not say it."""
    return _cpuinfo("model name")


def _has(function: str, flag: str) -> bool:
    asked = getattr(torch.cpu, function, None)
    return bool(asked()) if asked is not None else flag in _cpuinfo("flags").split()


def _cpuinfo(key: str) -> str:
    """A field of the first CPU that Linux lists; empty where there is none."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return ""
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in fields if name.strip() == key), "")
