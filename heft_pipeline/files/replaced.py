"""Writing files that other processes read, so that none is ever seen half-written."""

import contextlib
import errno
import functools
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

#: Some file systems cannot flush a folder, and then say one of these.
_CANNOT = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES, errno.EISDIR)
_PARTIAL = re.compile(r"\..+\.\d+-[0-9a-f]{8}")


@contextlib.contextmanager
def replaced(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Write a file so that readers see either the old one or the whole new one.

    Args:
        path: The file; its folder exists.
        durable: Whether to wait until the file and its name are on disk.

    Yields:
        What to write to in its place. It takes the file's place at the end, and is removed if the
        block raises, so that a full disk is no fuller.
    """
    # Processes of other machines, and of containers, may have the same number.
    partial = path.with_name(f".{path.name}.{os.getpid()}-{_token(os.getpid())}")
    try:
        yield partial
        if durable:
            flush(partial)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # what was raised first is what counts
            partial.unlink(missing_ok=True)
        raise
    if durable:
        flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on disk.

    Args:
        path: The file or folder.

    Raises:
        OSError: They could not be written.
    """
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in _CANNOT or not path.is_dir():
            raise
    finally:
        os.close(opened)


def is_part(path: Path) -> bool:
    """Whether a file is what :func:`replaced` writes to, which a killed process may have left."""
    return _PARTIAL.fullmatch(path.name) is not None


def leftovers(folder: Path) -> list[Path]:
    """What processes that were killed while they wrote have left in a folder.

    Args:
        folder: The folder; nobody else may be writing to it.

    Returns:
        Parts of files, which nothing reads.
    """
    try:
        return [path for path in folder.iterdir() if is_part(path)]
    except (FileNotFoundError, NotADirectoryError):
        return []


@functools.cache
def _token(_pid: int) -> str:
    """What tells this process from those of other machines; another one after a fork."""
    return secrets.token_hex(4)
