"""JSON files that a changed byte cannot alter unseen: each holds its own checksum and has a copy.

The checksum, under the key ``sha256``, is of the rest of the object: as JSON with sorted keys and
no spaces. The copy lies in ``.copies`` beside the file, and is written first.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heft_pipeline.files.json_files import json_object, write_json

SEAL = "sha256"
COPIES = ".copies"


@dataclass(frozen=True)
class Sealed:
    """What a sealed file holds.

    Attributes:
        data: The object without its checksum; None if there is no file, or nothing whole.
        why: What is wrong with the file; empty if nothing is, or if there is none.
        from_copy: Whether ``data`` is that of the copy, because the file is broken.
    """

    data: dict[str, Any] | None
    why: str = ""
    from_copy: bool = False


def copy_of(path: Path) -> Path:
    """Where the copy of a file is."""
    return path.parent / COPIES / path.name


def write_sealed(path: Path, data: Mapping[str, Any]) -> None:
    """Write an object with its checksum: first the copy, then the file, both to the disk.

    Args:
        path: The file; its folder exists.
        data: JSON-ready data without the key ``sha256``.
    """
    sealed = seal(data)
    copy = copy_of(path)
    copy.parent.mkdir(exist_ok=True)
    write_json(copy, sealed)
    write_json(path, sealed)


def seal(data: Mapping[str, Any]) -> dict[str, Any]:
    """An object with its checksum."""
    return {**data, SEAL: _checksum(data)}


def read_sealed(path: Path) -> Sealed:
    """Read a file that :func:`write_sealed` wrote, or an older one without a checksum.

    Args:
        path: The file.

    Returns:
        What it holds; where it is broken, what the copy holds. A missing file is missing, whether
        there is a copy or not.

    Raises:
        OSError: The file is there and cannot be read.
    """
    data, why = _read(path)
    if not why:
        return Sealed(data)
    data, _ = _read(copy_of(path))
    return Sealed(data, why, from_copy=data is not None)


def _read(path: Path) -> tuple[dict[str, Any] | None, str]:
    """What a file holds, and what is wrong with it."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    text, why = _parsed(path, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)
    return (None if text is None else json.loads(text)), why


@functools.lru_cache(maxsize=16384)
def _parsed(
    path: Path, _inode: int, _changed: int, _touched: int, _bytes: int
) -> tuple[str | None, str]:
    """The text of a whole file that has not changed; large sweeps ask about each often."""
    try:
        data = json_object(path)
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    except ValueError as error:
        return None, f"is cut off or broken ({error})"
    seal = data.pop(SEAL, None)
    if seal is not None and seal != _checksum(data):
        return None, "does not fit its own checksum, so it was changed after it was written"
    return json.dumps(data), ""


def _checksum(data: Mapping[str, Any]) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
