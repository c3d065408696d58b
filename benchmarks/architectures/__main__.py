"""Run every architecture of transformers, and compare with a computation by hand."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.architectures.compare import Compared
from benchmarks.architectures.document import document, row
from benchmarks.architectures.tiny_models import names

_ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Compare and print a row for each; returns 1 if anything crashed or differed, else 0."""
    options = _options()
    found = []
    for one in compared(options.names or names(), options.set):
        print(row(one), flush=True)
        found.append(one)
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(one) for one in found], indent=2))
    if options.write:
        Path(options.write).write_text(document(found))
        print(f"written: {options.write}")
    return 0 if all(one.sound for one in found) else 1


def _options() -> argparse.Namespace:
    known = names()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.architectures", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="model types; default: all")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="a setting of all runs"
    )
    parser.add_argument("--write", metavar="FILE", help="write the table as Markdown")
    parser.add_argument("--json", metavar="FILE", help="write everything that was found")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"{unknown[0]} is none of the architectures: {', '.join(known)}")
    return options


def compared(asked: Sequence[str], overrides: Sequence[str] = ()) -> Iterator[Compared]:
    """Compare architectures in another process, which is started again if one of them ends it."""
    left = list(asked)
    while left:
        worker = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.architectures.worker", *overrides],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert worker.stdin and worker.stdout
        with worker:
            worker.stdin.write("".join(f"{name}\n" for name in left))
            worker.stdin.close()
            for line in worker.stdout:
                yield Compared(**json.loads(line))
                left.pop(0)
        if left:
            yield Compared(left.pop(0), unbuilt=f"the process ended ({worker.returncode})")


if __name__ == "__main__":
    sys.exit(main())
