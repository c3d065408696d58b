"""What a sweep's numbers say: report.html, .md, .tex, results.csv, figures, the terminal's table.

Everything is made from the store's files alone, without torch.
"""

from heft_pipeline.report.write import write_report

__all__ = ["write_report"]
