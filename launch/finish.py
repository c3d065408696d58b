"""What is done when a sweep's stages have ended: tracking and the report."""

from rich.console import Console

from heft_pipeline.store.sweep_folders import Sweep
from launch.tracker import tracked


def report(sweep: Sweep, console: Console) -> None:
    """Write a sweep's report and show the comparison.

    Args:
        sweep: The sweep.
        console: Where to show it.
    """
    from heft_pipeline.report import write_report  # imports pandas and matplotlib

    with console.status("writing the report"):
        shown = write_report([sweep], sweep.folder)
    console.print(shown, crop=False)
    console.print(f"{sweep.folder / 'report.html'}", highlight=False, soft_wrap=True)


def finish_sweep(sweep: Sweep, console: Console, only: str | None = None) -> None:
    """Send to the tracker what it does not have yet and write the report, from files alone.

    Args:
        sweep: The sweep.
        console: Where to show it.
        only: The one run to track; None for all.
    """
    with tracked(sweep, console, only):
        pass
    report(sweep, console)
