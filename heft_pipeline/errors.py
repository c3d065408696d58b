"""The exceptions that tell the person at the keyboard what happened, and words for others."""

import errno
import json
import os
from pathlib import Path
from types import TracebackType

#: Libraries that write files from their own code say this in their own exceptions.
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
#: How to have files written in another place.
ELSEWHERE = "choose another place with output_dir=DIR"
_WAYS_OUT = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space there, or {elsewhere}"),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR,
         errno.ELOOP),
        "{elsewhere}",
    ),
    errno.ENAMETOOLONG: "give shorter names; most file systems allow a name of 255 bytes",
    **dict.fromkeys(
        (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS),
        "files cannot be locked there, so nothing would keep two processes from training the same "
        "stage; {elsewhere}",
    ),
    **dict.fromkeys(
        (errno.EIO, errno.ESTALE),
        "the disk or the network file system failed; check it, and run the same command again",
    ),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files with ulimit -n"),
}  # fmt: skip


class UserError(Exception):
    """A problem that the user can fix; its text is shown alone, without a traceback.

    The text says what was given, what is allowed, and what to type instead, and
    names the config key if there is one.
    """


class NonFiniteLoss(RuntimeError):
    """A training loss was NaN or infinite; the last good checkpoint is kept."""


class Interrupted(Exception):
    """Training stopped on a signal after writing a checkpoint; running it again resumes it."""


class LeaseLost(Interrupted):
    """Another process has taken over what this one was working on; nothing more is written."""


def reason(error: BaseException, elsewhere: str = ELSEWHERE) -> str | None:
    """Say what an error means for the person at the keyboard, and the way out.

    Args:
        error: The error.
        elsewhere: What to do to have files written in another place.

    Returns:
        The message; None for an error that nobody has foreseen.
    """
    if isinstance(error, UserError | NonFiniteLoss):
        return str(error)
    if isinstance(error, OSError):
        return _of_system(error, elsewhere)
    path = _path_at(error.__traceback__)
    if full := next((text for text in _FULL if text in str(error)), None):
        way_out = _WAYS_OUT[errno.ENOSPC].format(elsewhere=elsewhere)
        return f"{path or 'a file cannot be written'}: {full}; {way_out}"
    if isinstance(error, NotImplementedError) and "flock" in str(error):  # filelock's, for ENOSYS
        return _of_system(OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), path), elsewhere)
    if isinstance(error, json.JSONDecodeError) and path:
        return (
            f"{path} is not valid JSON ({error}); it may have been cut short. Restore it, or move "
            "it away and run the same command again"
        )
    if isinstance(error, UnicodeDecodeError) and path:
        return f"{path} is not {error.encoding} text ({error}); save it as UTF-8"
    if isinstance(error, UnicodeEncodeError):
        return f"{error}; set PYTHONUTF8=1 in the environment, or use a UTF-8 locale"
    if isinstance(error, MemoryError):
        return f"there is not enough memory{f' ({error})' if str(error) else ''}"
    return None


def _of_system(error: OSError, elsewhere: str) -> str | None:
    code = error.errno
    path = error.filename or _path_at(error.__traceback__)
    if code is None:  # libraries raise it for what is no answer of the operating system
        full = next((text for text in _FULL if text in str(error)), None)
        code = errno.ENOSPC if full else None
    way_out = _WAYS_OUT.get(code) if code is not None else None
    if code == errno.ENOENT and _innermost(error.__traceback__) == "mkdir":
        way_out = "{elsewhere}"  # no folder can be made there, as in /proc
    if code is None or (way_out is None and not error.filename):
        return None
    named = path if isinstance(path, str) else os.fsdecode(path) if path else "a file"
    said = f"{_shortened(named)}: {error.strerror or os.strerror(code)}"
    return said + (f"; {way_out.format(elsewhere=elsewhere)}" if way_out else "")


def _shortened(path: str) -> str:
    return path if len(path) <= 200 else f"{path[:120]}...{path[-40:]}"


def _innermost(trace: TracebackType | None) -> str | None:
    """The name of the function that raised."""
    name = None
    while trace is not None:
        name, trace = trace.tb_frame.f_code.co_name, trace.tb_next
    return name


def _path_at(trace: TracebackType | None) -> str | None:
    """The file or folder that the innermost function with one in its hands was working on."""
    found = None
    while trace is not None:
        local = trace.tb_frame.f_locals
        for name in ("path", "file", "partial", "folder", "output_dir"):  # the last is Hydra's
            if isinstance(local.get(name), Path):
                found = str(local[name])
                break
        trace = trace.tb_next
    return found
