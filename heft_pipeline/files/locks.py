"""Locks on files, also where the file system has none, and looking at them without writing.

Where files cannot be locked (``flock`` is not supported on some network file systems), a marker
beside the lock's file stands for the lock: it exists while the lock is held and says by whom.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self

from filelock import FileLock, Timeout

from heft_pipeline.command_line.warnings import warn
from heft_pipeline.files.json_files import read_json

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_POLL_SECONDS = 0.05
#: Whoever looks whether a lock is held has it for a moment, which must not count as holding it.
_A_LOOK_SECONDS = 0.2
#: The file systems, by number, of which this process has said that they have no locks.
_told: set[int] = set()


class Lock(Protocol):
    """What filelock's locks and :class:`MarkerLock` have in common."""

    def acquire(self, timeout: float = -1) -> Any:
        """Take the lock.

        Args:
            timeout: How many seconds to wait for it; negative to wait for ever.

        Raises:
            Timeout: It was held all the time.
        """

    def release(self) -> None:
        """Give the lock back."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: Any) -> Any: ...


def file_lock(path: Path) -> Lock:
    """The lock of a file, whose folder exists.

    The file is made as the umask says, so that others can lock it where they may write.

    Args:
        path: The file, which stays when the lock is given back.

    Returns:
        filelock's lock; a :class:`MarkerLock` where files cannot be locked.

    Raises:
        OSError: The file cannot be written, so that it cannot be locked either.
    """
    opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        found = os.fstat(opened)
        held = _flocked(opened)
    finally:
        os.close(opened)
    if held is not None:
        return FileLock(path, mode=found.st_mode & 0o777)
    if found.st_dev not in _told:
        _told.add(found.st_dev)
        warn(
            f"files cannot be locked where {path.parent} is, so files named *.held stand for locks "
            "there; a process on another machine that is killed leaves its own behind"
        )
    return MarkerLock(path.with_name(f"{path.name}.held"))


def take(lock: Lock, timeout: float = 0.0) -> bool:
    """Take a lock if nobody else has it.

    Args:
        lock: The lock.
        timeout: How many seconds to wait for it, beside the moment that a look at it takes.

    Returns:
        Whether it was taken.
    """
    try:
        lock.acquire(timeout=timeout + _A_LOOK_SECONDS)
    except Timeout:
        return False
    return True


def is_locked(path: Path) -> bool | None:
    """Whether a process holds the lock of a file; nothing is written, and reading it is enough.

    Args:
        path: The file that :func:`file_lock` takes.

    Returns:
        None where that cannot be known: the file cannot be read, or files cannot be locked there.
    """
    try:
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        return None
    try:
        return _flocked(opened)
    finally:
        os.close(opened)


def _flocked(opened: int) -> bool | None:
    """Whether an open file is locked by another; None where files cannot be locked."""
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return True
        if error.errno in _UNSUPPORTED:
            return None
        raise
    fcntl.flock(opened, fcntl.LOCK_UN)
    return False


def this_process() -> dict[str, Any]:
    """What tells this process from others: JSON-ready data for :func:`has_ended`.

    Returns:
        ``pid``, ``host``, ``since`` (now) and ``started`` (by the machine's clock; None if
        unknown), and under SLURM ``job_id`` and ``requeues``.
    """
    note = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.time(),
        "started": _started(os.getpid()),
    }
    if "SLURM_JOB_ID" in os.environ:
        note["job_id"] = os.environ["SLURM_JOB_ID"]
        note["requeues"] = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    return note


def has_ended(note: Mapping[str, Any]) -> bool:
    """Whether a process is known to have ended.

    Args:
        note: What :func:`this_process` gave there.

    Returns:
        True for a process of this machine that is gone, and for an earlier start of the SLURM job
        that this process belongs to; false for any other, because nothing is known of it.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is not None and note.get("job_id") == job:
        now = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if isinstance(note.get("requeues"), int) and note["requeues"] < now:
            return True
    pid = note.get("pid")
    if note.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # somebody else's
    started = _started(pid)
    return None not in (started, note.get("started")) and started != note["started"]


def _started(pid: int) -> int | None:
    """When a process was started, in ticks since the machine was; its number may be used again."""
    try:
        said = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(said.rpartition(")")[2].split()[19])  # field 22 of proc(5); the name is the 2nd
    except (OSError, ValueError, IndexError):
        return None


class MarkerLock:
    """A lock that is a file: it exists while the lock is held, and says which process holds it.

    The marker of a process that is known to have ended is removed. Of a process on another machine
    that is not known, so its marker holds until somebody removes it, and a warning says so.

    Args:
        path: The marker.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._warned = False

    def acquire(self, timeout: float = -1) -> None:
        """See :meth:`Lock.acquire`."""
        deadline = time.monotonic() + timeout
        while not self._made():
            holder = read_json(self._path)
            if holder is not None and has_ended(holder):
                self._remove(holder)
                continue
            if timeout >= 0 and time.monotonic() >= deadline:
                raise Timeout(str(self._path))
            if timeout < 0 and not self._warned:
                self._warned = True
                warn(f"{self._path} is held by {named(holder)}; if that has ended, remove the file")
            time.sleep(_POLL_SECONDS)

    def release(self) -> None:
        """See :meth:`Lock.release`."""
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _made(self) -> bool:
        try:
            opened = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            with os.fdopen(opened, "w", encoding="utf-8") as stream:
                json.dump(this_process(), stream)
        except BaseException:  # a marker that does not say whose it is would hold for ever
            self._path.unlink(missing_ok=True)
            raise
        return True

    def _remove(self, ended: Mapping[str, Any]) -> None:
        """Remove the marker of a process that has ended, and no other that was made meanwhile."""
        aside = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            self._path.rename(aside)
            if read_json(aside) == ended:
                aside.unlink()
            else:
                aside.rename(self._path)


def named(note: Mapping[str, Any] | None) -> str:
    """The name of a process for people.

    Args:
        note: What :func:`this_process` gave there; None or incomplete where it is not known.
    """
    if not note or not {"pid", "host"} <= set(note):
        return "another process"
    return f"process {note['pid']} on {note['host']}"
