"""A process that runs the stages which its parent sends, one after the other.

    python -m launch.local.worker OUTPUT_DIR

It reads stages from standard input, each with the stages that will be trained on it and the text
that it is measured on, and writes events to standard output, all as lines of JSON.
Processes that train a stage together (``WORLD_SIZE``) are all sent the stage; only the first
one's events are used. On SIGTERM, and when the parent has gone, which closes standard input, the
running stage stops with a checkpoint.
"""

import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from heft_pipeline.command_line.streams import prepare_streams
from heft_pipeline.data.other_text import OtherText
from heft_pipeline.plan.stage_spec import from_json
from heft_pipeline.store.stage_folders import Store
from launch.attempt import StopRequest, attempt

_EVERY_SECONDS = 0.2
_LOOK_SECONDS = 0.5


class Parent:
    """The process that sends stages and reads events.

    Its pipes are read and written without Python's buffers, whose locks a thread that waits would
    hold while this process ends.

    Args:
        stages: The descriptor that stages come from.
        events: The descriptor that events go to.
    """

    def __init__(self, stages: int, events: int) -> None:
        self._stages, self._events = stages, events
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._gone = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def gone(self) -> bool:
        """Whether it has ended, or wants nothing more."""
        return self._gone.is_set()

    def next_stage(self, seconds: float) -> dict[str, Any] | None:
        """The next message with a stage; None where none came in time, or the parent has gone."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            return None
        message: dict[str, Any] = json.loads(line)
        return None if self.gone() else message

    def tell(self, **event: Any) -> None:
        """Send an event; where nobody reads it, the parent has gone."""
        left = memoryview(json.dumps(event).encode() + b"\n")
        try:
            while left:
                left = left[os.write(self._events, left) :]
        except OSError:
            self._gone.set()

    def _read(self) -> None:
        rest = b""
        try:
            while chunk := os.read(self._stages, 1 << 16):
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    self._lines.put(line)
        finally:
            self._gone.set()


def main() -> None:
    """Run stages until standard input ends."""
    from heft_pipeline.models.base_model import quieten

    # What libraries print goes to the log, so that it cannot mix with the events.
    parent = Parent(0, os.dup(1))
    os.dup2(2, 1)
    prepare_streams()
    quieten()
    store = Store(Path(sys.argv[1]))
    sent = 0.0

    def progress(phase: str, done: int, total: int, note: str = "") -> None:
        nonlocal sent
        if time.monotonic() - sent > _EVERY_SECONDS:
            sent = time.monotonic()
            parent.tell(event="progress", phase=phase, done=done, total=total, note=note)

    stop = StopRequest(signal.SIGTERM, signal.SIGHUP)
    with stop.listening():
        while not (stop() or parent.gone()):
            message = parent.next_stage(_LOOK_SECONDS)
            if message is None:
                continue
            stage = from_json(message["stage"])
            tried = attempt(
                stage,
                store,
                upcoming=[from_json(one) for one in message["upcoming"]],
                text=OtherText(**message["text"]) if message["text"] else None,
                progress=progress,
                should_stop=lambda: stop() or parent.gone(),
                on_wait=lambda owner: parent.tell(event="waiting", owner=owner),
            )
            parent.tell(event=tried.status, text=tried.text)
            if parent.gone():
                print(
                    f"{stage.label}: {tried.status}, {tried.text}. The command that this belongs "
                    "to has ended; run the same command to go on",
                    file=sys.stderr,
                )
            if tried.status == "failed" and os.environ.get("WORLD_SIZE", "1") != "1":
                sys.exit(1)  # the others wait for this process forever; the parent kills them


if __name__ == "__main__":
    main()
