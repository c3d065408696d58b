"""A process that runs the stages which its parent sends, one after the other.

    python -m launch.local.worker OUTPUT_DIR

It reads stages from standard input, each with the stages that will be trained on it and the text
that it is measured on, and writes events to standard output, all as lines of JSON.
Processes that train a stage together (``WORLD_SIZE``) are all sent the stage; only the first
one's events are used. On SIGTERM the running stage stops with a checkpoint.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from heft_pipeline.data.other_text import OtherText
from heft_pipeline.plan.stage_spec import from_json
from heft_pipeline.store.stage_folders import Store
from launch.attempt import StopRequest, attempt

_EVERY_SECONDS = 0.2


def main() -> None:
    """Run stages until standard input ends."""
    from heft_pipeline.models.base_model import quieten

    # What libraries print goes to the log, so that it cannot mix with the events.
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    quieten()
    store = Store(Path(sys.argv[1]))
    sent = 0.0

    def send(**event: Any) -> None:
        events.write(json.dumps(event) + "\n")

    def progress(phase: str, done: int, total: int, note: str = "") -> None:
        nonlocal sent
        if time.monotonic() - sent > _EVERY_SECONDS:
            sent = time.monotonic()
            send(event="progress", phase=phase, done=done, total=total, note=note)

    stop = StopRequest(signal.SIGTERM)
    with stop.listening():
        for line in sys.stdin:
            message = json.loads(line)
            tried = attempt(
                from_json(message["stage"]),
                store,
                upcoming=[from_json(one) for one in message["upcoming"]],
                text=OtherText(**message["text"]) if message["text"] else None,
                progress=progress,
                should_stop=stop,
                on_wait=lambda owner: send(event="waiting", owner=owner),
            )
            send(event=tried.status, text=tried.text)
            if tried.status == "failed" and os.environ.get("WORLD_SIZE", "1") != "1":
                sys.exit(1)  # the others wait for this process forever; the parent kills them
            if stop():
                return


if __name__ == "__main__":
    main()
