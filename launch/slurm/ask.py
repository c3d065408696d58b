"""Asking SLURM's commands, which may not answer."""

import os
import subprocess
import time
from collections.abc import Callable, Sequence

#: SLURM's own clients give up after a few of its message time-outs; this is for those that do not.
CALL_SECONDS = 100
_LONGEST_PAUSE_SECONDS = 30.0
#: Variables with which people change what SLURM's commands list; a filter would hide jobs.
_FILTERS = ("SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_")


class NoAnswer(Exception):
    """SLURM did not answer, so that nothing is known; it says why."""


def no_notice(_text: str) -> None:
    """Take what would be said, and say nothing."""


class Patience:
    """How long to go on asking.

    Args:
        seconds: How long, from the first time that a command does not answer; 0: ask each
            command once.
        say: Called with a sentence the first time that SLURM does not answer.
        should_stop: Ends the waiting early when it becomes true.
    """

    def __init__(
        self,
        seconds: float = 0.0,
        say: Callable[[str], None] = no_notice,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.seconds, self._say, self._should_stop = seconds, say, should_stop

    def ask(self, command: Sequence[str]) -> str:
        """Run a command that only looks, again and again with growing pauses until it answers.

        Args:
            command: A command of SLURM's.

        Returns:
            What it printed.

        Raises:
            NoAnswer: It is missing here, or has failed for as long as the patience lasts.
        """
        pause, until = 1.0, None
        while True:
            try:
                return _ask_once(command)
            except FileNotFoundError:
                raise NoAnswer(f"this machine has no {command[0]}") from None
            except NoAnswer as error:
                now = time.monotonic()
                if until is None:
                    until = now + self.seconds
                    if self.seconds:
                        self._say(
                            f"SLURM does not answer ({error}); asking again for up to "
                            f"{self.seconds:.0f} s"
                        )
                if now + pause > until or not self._sleep(pause):
                    raise
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _sleep(self, seconds: float) -> bool:
        """Sleep; false where the waiting is to end."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self._should_stop():
                return False
            time.sleep(0.1)
        return True


def _ask_once(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=CALL_SECONDS,
            env=plain_environment(),
        )
    except FileNotFoundError:
        raise
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoAnswer(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise NoAnswer(said_by_slurm(done.stderr) or f"{command[0]} failed")
    return done.stdout


def plain_environment() -> dict[str, str]:
    """This process's environment without what changes the answers of SLURM's commands."""
    return {key: value for key, value in os.environ.items() if not key.startswith(_FILTERS)}


def said_by_slurm(text: str) -> str:
    """The telling lines of what a command of SLURM's wrote to standard error.

    Args:
        text: What it wrote.

    Returns:
        Up to three lines as one.
    """
    lines = [line.strip() for line in text.strip().splitlines()]
    telling = [line for line in lines if "error" in line.lower()] or lines
    return " ".join(telling[:3])
