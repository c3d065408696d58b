"""Print every setting as a page.

python -m heft_pipeline.settings --markdown
"""

import argparse
import sys
from collections.abc import Sequence

from heft_pipeline.command_line.run import run_command
from heft_pipeline.settings.markdown import markdown


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, and return its exit status."""
    return run_command(_print, arguments)


def _print(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m heft_pipeline.settings",
        description="Print every setting with its type, default, meaning and bounds.",
    )
    parser.add_argument("--markdown", action="store_true", required=True, help="as Markdown")
    parser.parse_args(arguments)
    print(markdown(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
