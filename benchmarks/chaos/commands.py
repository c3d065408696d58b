"""The commands of a round: the sweep, its report, and the comparison of its files."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

NAME = "chaos"
#: Seven stages of the shipped model and task, each with several epochs' ends and checkpoints.
_ASKED = (
    "method=lora,reft,heft", "epochs=1,2", f"sweep={NAME}", "data.max_train_rows=640",
    "data.max_eval_rows=300", "training.checkpoint_every_seconds=0.2",
)  # fmt: skip
_ON = {
    "local": (),
    "slurm": ("hydra/launcher=slurm", "hydra.launcher.time=10", "hydra.launcher.poll_seconds=1"),
}
#: A command that takes longer than this hangs; an undisturbed one takes less than a minute.
HANGS_SECONDS = 600.0


@dataclass(frozen=True)
class Ended:
    """A command that has ended.

    Attributes:
        status: Its exit status; negative for the signal that ended it; None if it hung.
        said: What it printed.
        seconds: How long it took.
    """

    status: int | None
    said: str
    seconds: float


class Command:
    """A command that runs, in a process group of its own, with its output in a file.

    It obeys the permissions of files even where root starts it.

    Args:
        arguments: What follows ``python -m``.
        log: The file for its output.
        environment: Variables in addition to this process's.
    """

    def __init__(
        self, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._log, self._since = log, time.monotonic()
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True,
                preexec_fn=obey_permissions, env=os.environ | dict(environment or {}),
            )  # fmt: skip

    def runs(self) -> bool:
        return self.process.poll() is None

    def wait(self, seconds: float) -> bool:
        """Wait for its end for so long; returns whether it has ended."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def ended(self) -> Ended:
        """Wait for its end, and make sure that nothing that it started is left."""
        hung = not self.wait(HANGS_SECONDS)
        if hung:
            self.signal_all(signal.SIGKILL)
            self.process.wait()
        took = time.monotonic() - self._since
        said = self._log.read_text(encoding="utf-8", errors="replace")
        return Ended(None if hung else self.process.returncode, said, took)

    def signal_all(self, number: int) -> None:
        """Send a signal to the command and all processes that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def sweep(outputs: Path, launcher: str, *more: str) -> list[str]:
    return ["heft_pipeline", "-m", *_ASKED, *_ON[launcher], *more, f"output_dir={outputs}"]


def report(outputs: Path) -> list[str]:
    return ["heft_pipeline.report", NAME, "--output-dir", str(outputs)]


def verify(outputs: Path) -> list[str]:
    return ["heft_pipeline.store", "verify", str(outputs), "--set-aside"]


def obey_permissions() -> None:
    """Give up what lets root write where permissions forbid it, in a process that begins."""
    if os.geteuid() == 0:
        for capability in range(4):  # CAP_CHOWN, _DAC_OVERRIDE, _DAC_READ_SEARCH, _FOWNER
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
