"""The commands that are printed for later."""

import shlex
from pathlib import Path

from heft_pipeline.store.sweep_folders import Sweep


def later(sweep: Sweep, command: str, *arguments: str) -> str:
    """A command line of ``python -m launch`` that works when it is pasted here.

    Args:
        sweep: The sweep that it is for.
        command: E.g. ``status``.
        *arguments: Further ones.

    Returns:
        The line; it names the output folder where that is not the one that is looked in.
    """
    output_dir = sweep.store.output_dir
    words = ["python", "-m", "launch", command, sweep.name, *arguments]
    if output_dir.resolve() != Path("outputs").resolve():
        words += ["--output-dir", str(output_dir)]
    return shlex.join(words)
