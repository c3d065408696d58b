"""Standard output and error that take any text, and that nobody has to read.

What an encoding lacks is written with other letters, and what a terminal would take for an order
as a sign. A reader that has gone, a closed terminal or a full disk loses the text and nothing else:
training goes on, and its files are complete.
"""

import codecs
import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterable
from typing import IO, Any, TextIO

from heft_pipeline.command_line.printable import printable
from heft_pipeline.command_line.secrets_kept import masked

_ERRORS = "heft_plain"
_PLAIN = {
    "✓": "+", "✗": "x", "■": "#", "…": ".", "•": "*", "·": ".", "→": "->", "≤": "<=", "≥": ">=",
    "×": "x", "±": "+-", "µ": "u", "−": "-", "–": "-", "—": "-",  # noqa: RUF001
    "“": '"', "”": '"', "‘": "'", "’": "'", "\N{NO-BREAK SPACE}": " ",  # noqa: RUF001
    "─": "-", "━": "-", "═": "=", "╸": "-", "╺": "-", "│": "|", "┃": "|", "║": "|",
}  # fmt: skip
#: The reader has gone, or the terminal is closed.
_NOBODY_READS = (errno.EPIPE, errno.EIO, errno.ECONNRESET, errno.ENXIO)


class _Unfailing(io.RawIOBase):
    """Writes to a file descriptor; what cannot be written is dropped.

    Args:
        descriptor: The file descriptor, which stays open.
        name: The stream's name.

    Attributes:
        lost: The first error.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor, self.name = descriptor, name
        self.lost: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # somebody has made it non-blocking
                select.select([], [self._descriptor], [], 1.0)
            except OSError as error:
                self.lost = self.lost or error
                return memoryview(data).nbytes


class _Printable(io.TextIOWrapper):
    """Writes text without secrets, and without what a terminal takes for an order.

    Attributes:
        unfiltered: The same stream for a writer whose orders are its own, such as rich.
    """

    @property
    def unfiltered(self) -> IO[str]:
        return _Unfiltered(self)  # type: ignore[return-value]

    def write(self, text: str) -> int:
        super().write(printable(masked(text)))
        return len(text)

    def write_unfiltered(self, text: str) -> int:
        return super().write(text)


class _Unfiltered:
    def __init__(self, stream: _Printable) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._stream.write_unfiltered(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)


def prepare_streams() -> None:
    """Replace this process's standard output and error with ones that do not fail.

    Streams that something else has replaced already are left alone.
    """
    codecs.register_error(_ERRORS, _in_plain_letters)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the descriptor was closed when this process started
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _unfailing(stream))


def nobody_reads() -> bool:
    """Whether the reader of standard output has gone, so that more need not be computed for it."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, _Unfailing) and raw.lost is not None and raw.lost.errno in _NOBODY_READS


def lost_output() -> OSError | None:
    """Why standard output is incomplete, unless its reader has gone.

    Returns:
        The error, such as that of a full disk; None where all was written, or nobody reads it.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, OSError):  # a closed or replaced stream
            stream.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Unfailing) and raw.lost and raw.lost.errno not in _NOBODY_READS:
        return raw.lost
    return None


def _unfailing(stream: io.TextIOWrapper) -> TextIO:
    raw = _Unfailing(stream.fileno(), stream.name)
    with contextlib.suppress(OSError):  # what cannot be written is lost from here on
        stream.flush()
    return _Printable(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=_ERRORS,
        line_buffering=stream.line_buffering or stream.write_through,
    )


def _in_plain_letters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(letter: str) -> str:
    if letter in _PLAIN:
        return _PLAIN[letter]
    if "\u2500" <= letter <= "\u257f":  # the corners of boxes
        return "+"
    if "\u2580" <= letter <= "\u259f":  # blocks
        return "#"
    if "\u2800" <= letter <= "\u28ff":  # the dots of a spinner
        return "."
    return letter.encode("ascii", "backslashreplace").decode()
