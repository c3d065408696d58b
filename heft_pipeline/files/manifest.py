"""Which files belong to a finished thing, and whether they are still what they were."""

import functools
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from heft_pipeline.files.replaced import flush, is_part

#: For each file, by its path in the folder with ``/``: ``bytes`` and ``sha256``.
Manifest = Mapping[str, Mapping[str, Any]]


def make_manifest(folder: Path, patterns: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Record the files of a folder, after waiting until they and their names are on disk.

    Args:
        folder: The folder.
        patterns: Glob patterns of the files that belong to it.

    Returns:
        The manifest, sorted by name.
    """
    found = {path for one in patterns for path in folder.glob(one)}
    files = sorted(path for path in found if path.is_file() and not is_part(path))
    for path in files:
        flush(path)
    # A file is safe only if each folder on the way to it is.
    for one in sorted(
        {parent for path in files for parent in _parents(path, folder)}, reverse=True
    ):
        flush(one)
    return {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": file_digest(path),
        }
        for path in files
    }


def _parents(path: Path, folder: Path) -> list[Path]:
    """The folders from a file's own up to the given one."""
    found = [path.parent]
    while found[-1] != folder:
        found.append(found[-1].parent)
    return found


def misfits(folder: Path, manifest: Manifest, hashed: Iterable[str] = ()) -> dict[str, str]:
    """The files that are not what a manifest says.

    Args:
        folder: The folder.
        manifest: The manifest.
        hashed: The names of the files whose content is compared, beside their size.

    Returns:
        What is wrong with each of them, by name.
    """
    found = {}
    contents = set(hashed)
    for name, entry in manifest.items():
        path = folder / name
        try:
            size = path.stat().st_size if path.is_file() else None
            if size is None:
                found[name] = "is missing"
            elif size != entry["bytes"]:
                found[name] = f"has {size:,} bytes instead of {entry['bytes']:,}"
            elif name in contents and file_digest(path) != entry["sha256"]:
                found[name] = "does not fit its checksum"
        except OSError as error:
            found[name] = f"cannot be read ({error.strerror})"
    return found


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content in hex; computed once while the file does not change."""
    stat = path.stat()
    return _digest(path, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)


@functools.lru_cache(maxsize=16384)
def _digest(path: Path, _inode: int, _changed: int, _touched: int, _bytes: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
