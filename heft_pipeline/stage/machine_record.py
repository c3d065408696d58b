"""Where a result was made: host, device, versions, and the commit of this code."""

import functools
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_VERSIONS = ("torch", "transformers", "peft", "pyreft", "pyvene", "accelerate")


def machine(device: torch.device) -> dict[str, Any]:
    """Where a result was made: host, device name, threads, package versions, and code commit."""
    return {
        "host": platform.node(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "heft_pipeline": version("heft-pipeline"),
        "commit": commit(),
        **{name: version(name) for name in _VERSIONS},
    }


@functools.lru_cache(maxsize=1)
def commit() -> str | None:
    """The git commit of this code, with ``+changes`` if tracked files differ from it.

    Returns:
        None if the package is not in a git checkout of its own.
    """
    package = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(package), *arguments],
                capture_output=True, encoding="utf-8", errors="replace", timeout=10,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy may lie in another project's checkout, where it is not tracked.
    if not git("ls-files", "__init__.py"):
        return None
    changes = git("status", "--porcelain", "--untracked-files=no", "--", str(package))
    head = git("rev-parse", "HEAD")
    return f"{head}+changes" if head and changes else head
