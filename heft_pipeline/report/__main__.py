"""The command line that writes the report of one or more sweeps, at any time.

python -m heft_pipeline.report [SWEEP...] [--to DIR] [--claim CLAIM] [--scope SCOPE] [--pointwise]
    [--cluster-column COLUMN]
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from heft_pipeline.command_line.console import TextConsole
from heft_pipeline.command_line.run import run_command
from heft_pipeline.evidence.claims import parse_claim
from heft_pipeline.report.options import ReportOptions, noted_options
from heft_pipeline.store.sweep_folders import Sweep, find_sweep


def main(arguments: list[str] | None = None) -> int:
    """Write a report and print the comparison.

    Args:
        arguments: The arguments without the program's name; None for the process's own.

    Returns:
        The exit status.
    """
    return run_command(_report, arguments, elsewhere="choose another place with --to DIR")


def _report(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    console = TextConsole()
    sweeps = [find_sweep(name, given.output_dir) for name in given.sweep or [None]]
    sweeps = list({sweep.folder: sweep for sweep in sweeps}.values())
    several = "+".join(sweep.name for sweep in sweeps)
    own = sweeps[0].folder
    folder = given.to or (own if len(sweeps) == 1 else own.parent.parent / "reports" / several)
    options = _options(given, sweeps)
    from heft_pipeline.report import write_report  # imports pandas and matplotlib

    with console.status("writing the report"):
        shown = write_report(sweeps, folder, options)
    console.print(shown, crop=False)
    console.print(f"{folder / 'report.html'}", highlight=False, soft_wrap=True)
    return 0


def _options(given: argparse.Namespace, sweeps: Sequence[Sweep]) -> ReportOptions:
    """What the sweeps were given, with what the command line says instead."""
    options = noted_options(sweeps)
    if given.claim:
        options = replace(options, claims=tuple(map(parse_claim, given.claim)))
    column = given.cluster_column
    return replace(
        options,
        scope=given.scope or options.scope,
        pointwise=given.pointwise or options.pointwise,
        cluster_column="" if column == "none" else column,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m heft_pipeline.report",
        description="Write report.html, .md and .tex, results.csv and figures/ for one or more "
        "sweeps, including those that are still running. Several sweeps make one report.",
    )
    parser.add_argument("sweep", nargs="*", help="a sweep's name or folder; the newest by default")
    parser.add_argument(
        "--to",
        type=Path,
        metavar="DIR",
        help="where to write it; by default the sweep's own folder, or for several sweeps a folder "
        "in OUTPUT_DIR/reports",
    )
    parser.add_argument(
        "--claim",
        action="append",
        metavar="CLAIM",
        help="test 'heft@3 > lora@20' instead of the sweep's own claims; may be repeated",
    )
    parser.add_argument(
        "--scope",
        choices=("both", "seeds", "examples"),
        help="what verdicts speak of: other seeds, other examples, or both",
    )
    parser.add_argument(
        "--pointwise",
        action="store_true",
        help="also show the interval that each claim would have as the only one",
    )
    parser.add_argument(
        "--cluster-column",
        metavar="COLUMN",
        help="the column that dependent examples have in common, instead of "
        "data.cluster_column; none: examples are independent",
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), metavar="DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
