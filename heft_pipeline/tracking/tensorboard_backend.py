"""TensorBoard: a folder of event files for each run."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heft_pipeline.tracking.backend import on_own_step
from heft_pipeline.tracking.payload import TrackedRun


class TensorboardBackend:
    """Event files in ``SWEEP/tensorboard/RUN``, made with tensorboardX."""

    name = "TensorBoard"
    live = True
    target: Mapping[str, Any] = {}

    def see(self, sweep: Path, where: str) -> str:
        """The command that shows the sweep's event files."""
        return f"; tensorboard --logdir {sweep / 'tensorboard'}"

    def open(self, run: TrackedRun, folder: Path) -> "TensorboardWriter":
        """Start a run's folder from scratch.

        Event files can only be appended to, so a run is written again from its first line.

        Args:
            run: The run.
            folder: Its folder in the sweep.

        Returns:
            Its writer.
        """
        events = folder.parent.parent / "tensorboard" / run.name
        shutil.rmtree(events, ignore_errors=True)
        return TensorboardWriter(events)

    def still_has(self, note: Mapping[str, Any]) -> bool:
        """Whether there are still event files where they were written."""
        return any(Path(note["where"]).glob("events.out.tfevents.*"))


class TensorboardWriter:
    """A run's event files while they are written.

    Args:
        folder: The folder that they are written to.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self._folder = folder
        self._writer = SummaryWriter(str(folder), flush_secs=1)
        self.next_line = 0

    def log(self, number: int, values: Mapping[str, float]) -> None:
        """Write a line; the curves of each stage have its own steps as their x axis.

        Args:
            number: Its number in the run.
            values: Its values.
        """
        step, rest = on_own_step(number, values)
        for name, value in rest.items():
            self._writer.add_scalar(name, value, step)
        self.next_line = number + 1

    def flush(self) -> None:
        """Write the lines so far to the files."""
        self._writer.flush()

    def finish(self, run: TrackedRun) -> str:
        """Write the config and the results, and close the files.

        Args:
            run: The run; all its lines have been written.

        Returns:
            The folder.
        """
        config = json.dumps(dict(run.config), indent=2, default=str)
        self._writer.add_text("config", f"```json\n{config}\n```")
        self._writer.add_text("summary", f"```json\n{json.dumps(dict(run.summary), indent=2)}\n```")
        if run.status == "complete":
            self._write_table_row(run)
        self._writer.close()
        return str(self._folder.resolve())

    def _write_table_row(self, run: TrackedRun) -> None:
        """Write settings and results for TensorBoard's table of runs (HParams)."""
        from tensorboardX.summary import hparams

        results = {k: float(v) for k, v in run.summary.items() if isinstance(v, int | float)}
        # SummaryWriter.add_hparams writes to another folder, which is shown as another run.
        for part in hparams(_settings(run), results):
            self._writer.file_writer.add_summary(part)
        for name, value in results.items():
            self._writer.add_scalar(name, value, run.config["total_epochs"])


def _settings(run: TrackedRun) -> dict[str, bool | str | float | int]:
    config = run.config
    return {
        "method": run.method,
        "epochs": config["epochs"],
        "rank": config["rank"],
        "seed": config["seed"],
        "model": str(config["model"]["name"] or config["model"]["id"]),
        "data": str(config["data"]["name"] or config["data"]["id"]),
    }
