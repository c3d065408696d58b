"""What the terminal shows while stages run."""

from collections.abc import Collection
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from heft_pipeline.command_line.console import marked
from heft_pipeline.plan.graph import Plan, labelled
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store
from launch.attempt import ShowProgress


class StageProgress:
    """A progress bar for each running stage, and a line for each finished one.

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
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=10),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[note]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._numbers: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def begin(self, stage: StageSpec) -> None:
        """Show a bar for a stage."""
        self._begun += 1
        self._numbers[stage.fingerprint] = f"{self._begun}/{self._total}"
        self._tasks[stage.fingerprint] = self._progress.add_task("", total=1, note="")
        self.of(stage)("load", 0, 1)

    def of(self, stage: StageSpec) -> ShowProgress:
        """A function that moves a stage's bar: its phase, steps done, steps in all, and a note."""

        def show(phase: str, done: int, total: int, note: str = "") -> None:
            task = self._tasks.get(stage.fingerprint)
            if task is not None:
                text = f"{self._numbers[stage.fingerprint]} {self.label(stage)} {phase}"
                self._progress.update(
                    task, description=text, completed=done, total=total, note=note
                )

        return show

    def end(self, fingerprint: str) -> None:
        """Remove a stage's bar."""
        task = self._tasks.pop(fingerprint, None)
        if task is not None:
            self._progress.remove_task(task)

    def say(self, mark: str, text: str) -> None:
        """Print a line above the bars.

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
