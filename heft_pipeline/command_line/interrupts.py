"""Ctrl-C at any moment: one line, and exit status 130."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

STATUS = 128 + signal.SIGINT
#: Some programs pass a Ctrl-C on that their child has had already, so two at once are one.
SAME_SECONDS = 0.5
_AGAIN_SECONDS = 0.05
_JUST_NOW_SECONDS = 2.0
#: Set where a command has said how it ended, and only Python's own end is left.
_ended = threading.Event()


def guard_start() -> None:
    """Let Ctrl-C end a command with one line while its modules are imported.

    Packages call this when they are imported. It does nothing except in ``python -m NAME``, which
    Python shows by an ``argv`` that is not complete yet; :func:`interruptible` then takes over.
    """
    if getattr(sys, "argv", None) and sys.argv[0] == "-m" and _is_plain(_handler()):
        signal.signal(signal.SIGINT, _leave_on_interrupt)


@contextlib.contextmanager
def interruptible(kept: str) -> Iterator[Callable[[], bool]]:
    """Raise ``KeyboardInterrupt`` on Ctrl-C while the block runs, and end at once on a second.

    An interrupt that comes where Python can only report it, such as in a destructor, comes again.

    Args:
        kept: What a second Ctrl-C says.

    Yields:
        Whether Ctrl-C came just now. Compiled code that is being imported can make quite another
        error of it, without a trace of the first.
    """
    before = _handler()
    if threading.current_thread() is not threading.main_thread() or not _is_plain(before):
        yield lambda: False
        return
    pressed: list[float] = []

    def take(number: int, _frame: FrameType | None) -> None:
        if not pressed:
            pressed.append(time.monotonic())
            raise KeyboardInterrupt
        if time.monotonic() - pressed[0] > SAME_SECONDS:
            leave(STATUS, f"Interrupted at once. {kept}".strip())

    def again(unraisable: "sys.UnraisableHookArgs") -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            pressed.clear()
            # Not now: nothing can be raised here either.
            timer = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), signal.SIGINT))
            timer.daemon = True
            timer.start()
        else:
            hook(unraisable)

    hook, sys.unraisablehook = sys.unraisablehook, again
    take.plain = True  # type: ignore[attr-defined]
    signal.signal(signal.SIGINT, take)
    try:
        yield lambda: bool(pressed) and time.monotonic() - pressed[0] < _JUST_NOW_SECONDS
    finally:
        _ended.set()
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = hook


def is_plain_handler(handler: Any) -> bool:
    """Whether a signal's handler is the default or this module's, not some other program's."""
    return handler == signal.SIG_DFL or _is_plain(handler)


def leave(status: int, line: str) -> NoReturn:
    """End this process at once, whatever it is doing, with one line on standard error.

    Args:
        status: The exit status.
        line: The line; empty for none.
    """
    with contextlib.suppress(Exception):  # the stream may be in use by what is left behind
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        if os.isatty(1):
            os.write(1, b"\x1b[?25h\r\n")  # a progress bar hides the cursor
        if line:
            os.write(2, f"{line}\n".encode("ascii", "backslashreplace"))
    os._exit(status)


def _leave_on_interrupt(_number: int, _frame: FrameType | None) -> None:
    leave(STATUS, "" if _ended.is_set() else "Interrupted.")


def _handler() -> Any:
    return signal.getsignal(signal.SIGINT)


def _is_plain(handler: Any) -> bool:
    own = handler is _leave_on_interrupt or getattr(handler, "plain", False)
    return own or handler is signal.default_int_handler
