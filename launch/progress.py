"""What the terminal shows while stages run."""

import time
from collections.abc import Collection
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from heft_pipeline.command_line.console import marked
from heft_pipeline.plan.graph import Plan, labelled
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store
from launch.attempt import ShowProgress
from launch.live_display import Overview

#: Where nothing can be drawn, how often a line says what runs.
_TOLD_SECONDS = 60.0


class StageProgress:
    """A live display of a sweep on a terminal, with a line above it for each finished stage.

    Elsewhere, and on a terminal that cannot be drawn on, there are only lines: one for each
    finished stage, and now and then one for each that runs.

    Args:
        console: Where to show it.
        stages: The stages that are to be run.

    Attributes:
        label: Gives the name that a stage is shown with.
    """

    def __init__(self, console: Console, stages: Collection[StageSpec]) -> None:
        self.label = labelled(stages)
        self._console = console
        self._total, self._begun = len(stages), 0
        self._overview = Overview(stages)
        self._drawn = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(self._overview, console=console, transient=True, refresh_per_second=4)
        self._told = time.monotonic()

    def __enter__(self) -> Self:
        if self._drawn:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._drawn:
            self._live.stop()

    def begin(self, stage: StageSpec) -> None:
        """Show that a stage runs."""
        self._begun += 1
        self._overview.begin(stage, self.label(stage), f"{self._begun}/{self._total}")

    def of(self, stage: StageSpec) -> ShowProgress:
        """A function that shows a stage's phase, its steps done, its steps in all, and a note."""

        def show(phase: str, done: int, total: int, note: str = "") -> None:
            self._overview.show(stage.fingerprint, phase, done, total, note)
            now = time.monotonic()
            if not self._drawn and now - self._told > _TOLD_SECONDS:
                self._told = now
                for one in self._overview.running.values():
                    self.say(" ", f"{one.label}: {'  '.join(one.parts(now))}")

        return show

    def end(self, key: str, state: str, accuracy: float | None = None) -> None:
        """Show that a stage does not run any more.

        Args:
            key: Its fingerprint.
            state: ``done``, ``failed``, or ``again`` for one that waits anew.
            accuracy: Its accuracy.
        """
        label = self.label(self._overview.stages[key])
        self._overview.end(key, state, label, accuracy)

    def say(self, mark: str, text: str) -> None:
        """Print a line above the display.

        Args:
            mark: One character of rich markup.
            text: Plain text.
        """
        line = Text.from_markup(mark).append(f" {text}")
        self._console.print(line, highlight=False, soft_wrap=True)


def say_line(console: Console, text: str) -> None:
    """Print a line of plain text as it is, however long.

    Args:
        console: Where to print.
        text: The text.
    """
    console.print(Text(text), highlight=False, soft_wrap=True)


def say_qualification(console: Console, text: str, *, wrapped: bool = False) -> None:
    """Print a line about what the user should know before trusting a result.

    Args:
        console: Where to print.
        text: The text.
        wrapped: Whether it is broken into lines of the terminal's width.
    """
    console.print(marked("!", "yellow", text), highlight=False, soft_wrap=not wrapped)


def announce(console: Console, plan: Plan, store: Store) -> None:
    """Print what a plan needs and how much of that is finished already.

    Args:
        console: Where to print.
        plan: The plan.
        store: Where stages are.
    """
    complete = sum(store.is_complete(key) for key in plan.stages)
    stages, baselines = plan.unique, len(plan.stages) - plan.unique
    instead = f", not {plan.asked} (equal ones are shared)" if plan.asked > stages else ""
    rest = (
        f", {_count(stages, 'unique stage')}{instead}"
        + (f" and {_count(baselines, 'untouched model')}" if baselines else "")
        + f": {complete} complete"
    )
    line = Text.assemble((_count(len(plan.runs), "run"), "bold"), rest)
    console.print(line, highlight=False)
    if unused := other_versions(store):
        say_line(console, unused)


def other_versions(store: Store) -> str:
    """A line about the stages that are not used because another version wrote them.

    Args:
        store: Where stages are.

    Returns:
        The line; empty where there are no such stages.
    """
    number = store.other_versions()
    if not number:
        return ""
    return (
        f"{_count(number, 'stage')} in {store.output_dir / 'stages'} "
        f"{'was' if number == 1 else 'were'} written by another version of heft_pipeline and "
        f"{'is' if number == 1 else 'are'} not used"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
