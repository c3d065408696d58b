"""Things that the person at the keyboard should know, said from wherever they are noticed."""

import sys

#: What has been said by this process.
_said: set[str] = set()


def warn(text: str) -> None:
    """Say something once to the person at the keyboard, or in the log that a job's errors go to.

    Args:
        text: A sentence.
    """
    if text in _said:
        return
    _said.add(text)
    print(f"Warning: {text}", file=sys.stderr, flush=True)
