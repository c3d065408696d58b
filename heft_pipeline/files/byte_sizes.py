"""How much files take, and how to say it."""

import math
from pathlib import Path


def in_bytes(size: float) -> str:
    """A number of bytes for people, e.g. ``4.2 GB``."""
    power = min(4, int(math.log10(max(1.0, size)) / 3))
    unit, value = ("bytes", "kB", "MB", "GB", "TB")[power], size / 1000**power
    return f"{value:,.0f} {unit}" if value >= 10 or not power else f"{value:.1f} {unit}"


def disk_use(path: Path) -> tuple[int, float]:
    """What a file or folder takes on disk, and when something in it was last written.

    Args:
        path: The file or folder; others may be writing to it.

    Returns:
        (bytes; seconds since 1970), both 0 if there is nothing.
    """
    size, changed = 0, 0.0
    for one in [path, *path.rglob("*")]:
        try:
            found = one.lstat()
        except FileNotFoundError:
            continue
        size += found.st_blocks * 512
        changed = max(changed, found.st_mtime)
    return size, changed
