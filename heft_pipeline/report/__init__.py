"""What sweeps' numbers say: report.html, report.md, results.csv, figures, the terminal's table.

Reads the store's files only; knows nothing of torch.
"""

from heft_pipeline.report.write import write_report

__all__ = ["write_report"]
