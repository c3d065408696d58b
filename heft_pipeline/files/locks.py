"""Locks that hold between processes of one machine and of several, whatever the file system does.

The operating system's lock on a file is free as soon as its process has ended. Some network file
systems have no such locks, and some only pretend to, or keep them within one machine. So a lease
lies beside the file: ``NAME.held`` says which process holds the lock, and that process renews it by
touching it. A lease that is not renewed is taken over.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from heft_pipeline.errors import LeaseLost
from heft_pipeline.files.json_files import read_json
from heft_pipeline.files.process_notes import has_ended, is_here, named, this_process

#: How often a lease is renewed, and how long it holds without that, in seconds.
BEAT_SECONDS, EXPIRES_SECONDS = 10.0, 60.0
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.05, 1.0
#: Whoever looks whether a lock is held has it for a moment, which must not count as holding it.
_A_LOOK_SECONDS = 0.2
#: After taking over a lease: until two who have done so at once see which of them has it.
_SETTLE_SECONDS = 0.5
#: Counts on while the machine sleeps, where there is such a clock; a clock that is set jumps.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Lock:
    """The lock of a file, whose folder exists; created by :func:`file_lock`.

    Args:
        path: The file, which stays when the lock is given back.
        system: The operating system's lock on it; None where files cannot be locked.
    """

    def __init__(self, path: Path, system: FileLock | None) -> None:
        self._path, self._system = path, system
        self._lease, self._token = lease_of(path), ""
        self._seen: tuple[int, int] | None = None
        self._seen_at = self._renewed_at = 0.0
        self._missing, self._lost, self._done = 0, False, threading.Event()

    def acquire(self, timeout: float = -1) -> None:
        """Take the lock.

        Args:
            timeout: How many seconds to wait for it; negative to wait for ever.

        Raises:
            Timeout: It was held all the time.
            OSError: The lease cannot be written.
        """
        started = time.monotonic()
        if self._system is not None:
            self._system.acquire(timeout=timeout, poll_interval=_POLL_SECONDS)
        try:
            self._take_lease(None if timeout < 0 else started + timeout)
        except BaseException:
            if self._system is not None:
                self._system.release()
            raise
        self._done.clear()
        threading.Thread(target=self._beat, args=(self._done,), daemon=True).start()

    def _take_lease(self, deadline: float | None) -> None:
        pause, took_over = _POLL_SECONDS, False
        while not self._made():
            try:
                state = self._lease.stat()
                holder = read_json(self._lease)
            except FileNotFoundError:
                continue
            seen = state.st_ino, state.st_mtime_ns
            if seen != self._seen:
                self._seen, self._seen_at = seen, _now()
            expired = _now() - self._seen_at > EXPIRES_SECONDS
            if expired or (holder is not None and has_ended(holder)):
                self._remove(state.st_ino, holder)
                took_over = True
                continue
            if deadline is not None and time.monotonic() >= deadline:
                raise Timeout(str(self._path))
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_POLL_SECONDS)
        self._renewed_at, self._lost, self._missing = _now(), False, 0
        if took_over:
            time.sleep(_SETTLE_SECONDS)
            self._renew()
            self.check()

    def release(self) -> None:
        """Give the lock back; a lease that another process has taken over stays."""
        self._done.set()
        with contextlib.suppress(OSError):  # it expires
            if (read_json(self._lease) or {}).get("token") == self._token:
                self._lease.unlink(missing_ok=True)
        if self._system is not None:
            self._system.release()

    def check(self) -> None:
        """Make sure that no other process has taken the lock over, as after a long sleep.

        Raises:
            LeaseLost: One has.
        """
        if _now() - self._renewed_at > EXPIRES_SECONDS / 2:
            self._renew()
        if self._lost:
            raise LeaseLost(
                f"{named(read_json(self._lease))} has taken over {self._path.parent}, because "
                f"nothing was heard of this one for {EXPIRES_SECONDS:.0f} s"
            )

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _made(self) -> bool:
        path = self._lease  # what a message about a full disk names
        try:
            opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        self._token = secrets.token_hex(8)
        try:
            with os.fdopen(opened, "w", encoding="utf-8") as stream:
                json.dump(this_process() | {"token": self._token}, stream)
        except BaseException:  # a lease that does not say whose it is would hold until it expires
            path.unlink(missing_ok=True)
            raise
        return True

    def _beat(self, done: threading.Event) -> None:
        while not done.wait(BEAT_SECONDS):
            self._renew()

    def _renew(self) -> None:
        """Touch the lease, or find out that it is another's."""
        try:
            found = read_json(self._lease)
            if found is None:  # for a moment, where two take over the lease of a third
                self._missing += 1
                self._lost = self._lost or self._missing > 1
            elif found.get("token") != self._token:
                self._lost = True
            else:
                os.utime(self._lease)
                self._renewed_at, self._missing = _now(), 0
        except OSError:
            pass  # a folder that cannot be read for a while; nobody can take anything over there

    def _remove(self, inode: int, expired: Mapping[str, Any] | None) -> None:
        """Remove a lease that holds no more, and no other that was made meanwhile."""
        aside = self._lease.with_name(f"{self._lease.name}.{os.getpid()}-{secrets.token_hex(4)}")
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            self._lease.rename(aside)
            if aside.stat().st_ino != inode or read_json(aside) != expired:
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self._lease)
            aside.unlink()


def file_lock(path: Path) -> Lock:
    """The lock of a file, whose folder exists.

    The file is made as the umask says, so that others can lock it where they may write.

    Args:
        path: The file, which stays when the lock is given back.

    Raises:
        OSError: The file cannot be written, so that it cannot be locked either.
    """
    opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        mode = os.fstat(opened).st_mode & 0o777
        held = _flocked(opened)
    finally:
        os.close(opened)
    return Lock(path, None if held is None else FileLock(path, mode=mode))


def lease_of(path: Path) -> Path:
    """The file that says which process holds the lock of a file."""
    return path.with_name(f"{path.name}.held")


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


def holder(path: Path) -> dict[str, Any] | None:
    """Which process holds the lock of a file; nothing is written, and reading files is enough.

    Args:
        path: The file that :func:`file_lock` takes.

    Returns:
        What :func:`~heft_pipeline.files.process_notes.this_process` gave there; None where none
        holds it. A process of another machine counts as holding it while the operating system says
        so or its lease was renewed lately, by the clocks of both machines.
    """
    lease = lease_of(path)
    note = read_json(lease)
    if note is None or not {"pid", "host"} <= set(note) or has_ended(note):
        return None
    if is_here(note) or is_locked(path):
        return note
    try:
        silent = abs(time.time() - lease.stat().st_mtime)
    except OSError:
        return None
    return note if silent < 2 * EXPIRES_SECONDS else None


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


def _now() -> float:
    return time.clock_gettime(_CLOCK)
