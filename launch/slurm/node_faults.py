"""Failures that are a node's doing: the same stage works on another node."""

import re

#: What CUDA, NCCL and the operating system say of broken hardware, drivers and disks of a node.
_FAULTS = (
    r"uncorrectable (?:ECC|NVLink) error",
    r"unspecified launch failure",
    r"no CUDA-capable device",
    r"CUDA-capable device\(s\) is/are busy or unavailable",
    r"CUDA driver version is insufficient",
    r"CUDA driver initialization failed",
    r"CUDA unknown error",
    r"GPU (?:is lost|has fallen off the bus)",
    r"device hardware error",
    r"system not yet initialized",  # the fabric manager of a node with NVSwitch is down
    r"hardware stack error",
    r"NVML: .*(?:not found|Driver/library version mismatch)",
    r"Driver/library version mismatch",
    r"\[Errno 5\]",  # EIO
    r"\[Errno 116\]",  # ESTALE: a mount of this node is stale
    r"No space left on device: '/(?:tmp|dev/shm|var|local|scratch/local)",
)
_ANY = re.compile("|".join(_FAULTS), re.IGNORECASE)


def node_fault(text: str) -> str | None:
    """What in a failure's text is the node's doing.

    Args:
        text: Why a stage failed.

    Returns:
        The telling words; None where the stage would fail on any node.
    """
    found = _ANY.search(text)
    return found.group(0) if found else None
