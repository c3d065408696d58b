"""Long and large runs: whether they stay quick, small and the same.

    python -m benchmarks.long_runs --runs 1000 [--shape methods|single|rates|tasks]
    python -m benchmarks.long_runs --steps 10000 [--method lora|reft]
    python -m benchmarks.long_runs --stages 200

``--runs`` makes a sweep of so many runs with made-up answers, and prints what each command takes on
it and how large the report is. ``--steps`` and ``--stages`` train the shipped model in one process,
and print what it holds on the way: memory, open files, threads and objects.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.held_resources import measure_stages, measure_steps
from benchmarks.many_runs import SHAPES, measure_many_runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for, one after another, and print tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_runs")
    parser.add_argument("--runs", type=int, help="commands on a sweep of so many runs")
    parser.add_argument("--shape", choices=SHAPES, help="of the sweep; default: all")
    parser.add_argument("--steps", type=int, help="one stage of so many steps")
    parser.add_argument("--method", choices=("lora", "reft"), help="of the stage; default: both")
    parser.add_argument("--stages", type=int, help="so many stages in one process")
    parser.add_argument("--to", type=Path, help="keep the files in this folder, which must be new")
    given = parser.parse_args(arguments)
    if not any((given.runs, given.steps, given.stages)):
        parser.error("name --runs, --steps or --stages")
    with tempfile.TemporaryDirectory() as temporary:
        to = given.to or Path(temporary)
        if given.runs:
            for shape in [given.shape] if given.shape else SHAPES:
                print(measure_many_runs(shape, given.runs, to / shape), end="\n\n", flush=True)
        if given.steps:
            for method in [given.method] if given.method else ("lora", "reft"):
                print(measure_steps(method, given.steps, to / method), end="\n\n", flush=True)
        if given.stages:
            print(measure_stages(given.stages, to / "stages"), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
