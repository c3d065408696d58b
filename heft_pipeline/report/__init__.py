"""What a sweep's numbers say: report.html, .md, .tex, results.csv, figures, the terminal's table.

Everything is made from the store's files alone, without torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heft_pipeline.report.write import write_report

__all__ = ["write_report"]


def __getattr__(name: str) -> Any:
    """Import the drawing of figures, which takes seconds, when a report is to be written."""
    if name != "write_report":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from heft_pipeline.report.write import write_report

    return write_report
