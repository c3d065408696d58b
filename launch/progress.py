"""What the terminal shows while stages run."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from heft_pipeline.plan import Plan
from heft_pipeline.spec import StageSpec
from heft_pipeline.store import Store


class StageProgress:
    """One progress bar for the stage at work, and a line for each finished one.

    Args:
        console: Where to show it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[note]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._label = ""

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
        self.end()
        self._label = stage.label
        self._task = self._progress.add_task(f"{self._label} load", total=1, note="")

    def __call__(self, phase: str, done: int, total: int, note: str = "") -> None:
        """Take a state; see :class:`heft_pipeline.training.loop.Progress`."""
        if self._task is not None:
            self._progress.update(
                self._task,
                description=f"{self._label} {phase}",
                completed=done,
                total=total,
                note=note,
            )

    def end(self) -> None:
        """Take the bar away."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None

    def say(self, mark: str, text: str) -> None:
        """Print a line above the bar.

        Args:
            mark: One character of rich markup.
            text: Plain text.
        """
        self._console.print(f"{mark} {escape(text)}", highlight=False, soft_wrap=True)


def announce(console: Console, plan: Plan, store: Store) -> None:
    """Say what a plan needs and what is there already.

    Args:
        console: Where to.
        plan: The plan.
        store: Where stages are.
    """
    complete = sum(store.is_complete(key) for key in plan.stages)
    stages = len(plan.stages)
    instead = f", not {plan.asked} (equal ones are shared)" if plan.asked > stages else ""
    console.print(
        f"[bold]{_count(len(plan.runs), 'run')}[/], {_count(stages, 'unique stage')}{instead}: "
        f"{complete} complete",
        highlight=False,
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
