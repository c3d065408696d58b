"""Things that the person at the keyboard should know, said from wherever they are noticed."""

import logging
import sys

log = logging.getLogger(__name__)
#: What has been said by this process.
_said: set[str] = set()


def warn(text: str) -> None:
    """Say something once to the person at the keyboard, and in the log if there is one.

    Args:
        text: A sentence.
    """
    if text in _said:
        return
    _said.add(text)
    if log.hasHandlers():
        log.warning("%s", text)
    print(f"Warning: {text}", file=sys.stderr, flush=True)
