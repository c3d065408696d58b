"""``metrics.jsonl``, with one line per logged step or epoch."""

import contextlib
import json
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends to a stage's ``metrics.jsonl``.

    Args:
        path: The file.
        keep_steps: Existing lines of later steps are dropped; a resumed stage writes them again.
    """

    def __init__(self, path: Path, keep_steps: int = 0) -> None:
        self._path = path
        kept = [line for line in read_metrics(path) if line["step"] <= keep_steps]
        partial = path.with_suffix(".partial")
        text = "".join(json.dumps(line) + "\n" for line in kept)
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):  # a full disk is to be no fuller
                partial.unlink(missing_ok=True)
            raise

    def write(self, event: str, step: int, epoch: int, **values: Any) -> None:
        """Append a line.

        Args:
            event: ``step`` or ``epoch``.
            step: The number of optimiser steps done.
            epoch: The epoch's number, from 1.
            **values: JSON-ready values.
        """
        line = json.dumps({"event": event, "step": step, "epoch": epoch} | values)
        path = self._path  # what a message about a full disk names
        with path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The decoded lines of a ``metrics.jsonl``; none if it is missing.

    A last line that was only partly written is left out, and what follows a broken one.
    """
    lines: list[dict[str, Any]] = []
    if not path.is_file():
        return lines
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        if not isinstance(line, dict) or not {"event", "step", "epoch"} <= set(line):
            break
        lines.append(line)
    return lines
