"""The live display of a sweep: how far it is, what runs, and the best so far."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from heft_pipeline.command_line.printable import printable
from heft_pipeline.plan.stage_spec import StageSpec

_BAR = 12
#: A speed is told once it has been looked at for so long.
_SPEED_SECONDS = 2.0


@dataclass
class Running:
    """A stage that runs.

    Attributes:
        stage: The stage.
        label: Its name for people.
        number: Which of the stages to run it is, e.g. ``3/12``.
        phase: What it does: ``load``, ``reuse``, ``train`` or ``eval``.
        done: How much of the phase is done, in steps or examples.
        total: All of that.
        notes: The last of each kind of note, such as ``loss 0.123`` and ``dev 95.0%``, by its word.
        since: When the phase was first seen, and how much of it was done then.
    """

    stage: StageSpec
    label: str
    number: str
    phase: str = "load"
    done: float = 0.0
    total: float = 1.0
    notes: dict[str, str] = field(default_factory=dict)
    since: tuple[float, float] = (0.0, 0.0)

    def show(self, phase: str, done: float, total: float, note: str, now: float) -> None:
        """Take a stage's progress."""
        if phase != self.phase or not self.since[0]:
            self.phase, self.since = phase, (now, done)
        self.done, self.total = done, total
        if note:
            self.notes[note.split(" ", 1)[0]] = note

    def per_second(self, now: float) -> float | None:
        """Steps or examples per second in this phase; None where nobody knows it yet."""
        began, first = self.since
        elapsed = now - began
        return (
            (self.done - first) / elapsed
            if elapsed > _SPEED_SECONDS and self.done > first
            else None
        )

    def epoch(self) -> float:
        """How many of the stage's epochs are behind it."""
        return self.stage.epochs * self.done / self.total if self.phase == "train" else 0.0

    def seconds_left(self, now: float) -> float | None:
        """How long the phase goes on; None where nobody knows it yet."""
        speed = self.per_second(now)
        return None if speed is None else (self.total - self.done) / speed

    def examples_per_second(self, now: float) -> float | None:
        """Examples per second of training or evaluation; None where nobody knows it yet."""
        speed = self.per_second(now)
        if speed is None or self.phase not in ("train", "eval"):
            return None
        size = self.stage.adapters[0].batch_size if self.phase == "train" else 1
        return speed * size

    def parts(self, now: float) -> Iterable[str]:
        """What is known of it, the most important first."""
        share = min(1.0, self.done / self.total) if self.total else 0.0
        filled = round(share * _BAR)
        yield f"{self.phase:5} {'━' * filled}{'─' * (_BAR - filled)} {share:.0%}"
        if self.phase == "train":
            current = min(self.stage.epochs, int(self.epoch()) + 1)
            yield f"epoch {current}/{self.stage.epochs}"
        left = self.seconds_left(now)
        if left is not None:
            yield f"{duration(left)} left"
        yield from (self.notes[name] for name in ("loss", "dev") if name in self.notes)
        speed = self.examples_per_second(now)
        if speed is not None:
            yield f"{speed:,.0f} ex/s" if speed >= 10 else f"{speed:.1f} ex/s"


class Overview:
    """What rich draws: a line of counts, the best run so far, and two lines for each running stage.

    No line is longer than the terminal is wide: what does not fit is left out, a part at a time.

    Args:
        stages: All stages that are to be run.

    Attributes:
        running: The stages that run, by fingerprint.
        counts: How many stages are ``done`` and ``failed``.
        best: The name and the accuracy of the best stage that is done.
    """

    def __init__(self, stages: Iterable[StageSpec]) -> None:
        self.stages = {stage.fingerprint: stage for stage in stages}
        self.running: dict[str, Running] = {}
        self.counts = {"done": 0, "failed": 0}
        self.best: tuple[str, float] | None = None
        self._waiting = dict(self.stages)
        self._seconds_of_epochs: dict[str, list[float]] = {}

    def begin(self, stage: StageSpec, label: str, number: str) -> None:
        """Show a stage as running."""
        self._waiting.pop(stage.fingerprint, None)
        self.running[stage.fingerprint] = Running(stage, label, number)

    def end(self, key: str, state: str, label: str, accuracy: float | None) -> None:
        """Count a stage that has ended.

        Args:
            key: Its fingerprint.
            state: ``done``, ``failed``, or ``again`` for one that waits anew.
            label: Its name for people.
            accuracy: Its accuracy, as a share; None where there is none.
        """
        ended = self.running.pop(key, None)
        if state == "again":
            self._waiting[key] = self.stages[key]
            return
        self._waiting.pop(key, None)
        self.counts[state] += 1
        if ended is not None:
            self._note_speed(ended, time.monotonic())
        trained = self.stages[key].epochs > 0
        if accuracy is not None and trained and (self.best is None or accuracy > self.best[1]):
            self.best = (label, accuracy)

    def show(self, key: str, phase: str, done: float, total: float, note: str) -> None:
        """Take a stage's progress."""
        running, now = self.running.get(key), time.monotonic()
        if running is None:
            return
        if running.phase == "train" and phase != "train":
            self._note_speed(running, now)
        running.show(phase, done, total, printable(note), now)

    def _note_speed(self, running: Running, now: float) -> None:
        speed = running.per_second(now)
        if running.phase == "train" and speed and running.stage.epochs:
            seconds = running.total / running.stage.epochs / speed
            self._seconds_of_epochs.setdefault(running.stage.name, []).append(seconds)

    def seconds_left(self, now: float) -> float | None:
        """How long all that is left takes, by the speed of stages of the same kind so far.

        Returns:
            Seconds; None where a kind of stage has not been trained yet.
        """
        speeds: Mapping[str, list[float]] = {
            k: list(v) for k, v in list(self._seconds_of_epochs.items())
        }
        left, side_by_side = 0.0, max(1, len(self.running))
        for one in list(self.running.values()):
            own = one.seconds_left(now)
            if own is None or one.phase != "train":
                continue
            left += own
            seconds = one.total / one.stage.epochs / (one.per_second(now) or 1.0)
            speeds = {**speeds, one.stage.name: [*speeds.get(one.stage.name, ()), seconds]}
        for stage in list(self._waiting.values()):
            if stage.epochs:
                known = speeds.get(stage.name)
                if not known:
                    return None
                left += stage.epochs * sum(known) / len(known)
        return left / side_by_side if left else None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, now = options.max_width, time.monotonic()
        counts = [f"{self.counts['done']} of {len(self.stages)} stages done"]
        counts += [f"{self.counts['failed']} failed"] if self.counts["failed"] else []
        counts += [f"{len(self.running)} running", f"{len(self._waiting)} to do"]
        left = self.seconds_left(now)
        counts += [f"about {duration(left)} left"] if left is not None else []
        yield Text(fitting(counts, width, " · "), style="bold", no_wrap=True)
        if self.best is not None:
            label, accuracy = self.best
            yield Text(fitting([f"best so far {accuracy:.1%}: {label}"], width), no_wrap=True)
        for one in list(self.running.values()):  # another thread draws
            title = fitting([f"{one.number} {one.label}"], width)
            yield Text(title, style="cyan", no_wrap=True, overflow="ellipsis")
            yield Text(f"  {fitting(one.parts(now), width - 2)}", no_wrap=True)


def fitting(parts: Iterable[str], width: int, between: str = "  ") -> str:
    """As many of some parts as fit in a line, in their order; a single one is cut.

    Args:
        parts: The parts, the most important first.
        width: The line's width, in columns.
        between: What is put between two.
    """
    line = ""
    for part in parts:
        longer = f"{line}{between}{part}" if line else part
        if cell_len(longer) > width:
            if not line:
                return set_cell_size(part, max(0, width - 1)).rstrip() + "…"
            continue
        line = longer
    return line


def duration(seconds: float) -> str:
    """A time for people, e.g. ``48 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
