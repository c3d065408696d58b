"""Disturb sweeps, go on with them, and compare what they end with.

    python -m benchmarks.chaos --rounds 40 --seed 0 [--launcher slurm] [--to FOLDER]
    python -m benchmarks.chaos --show FOLDER/rounds.jsonl ...

In each round, the sweep's command is run a few times while something happens to it: signals, a
disk that is full, folders that cannot be written to, locks of hosts that are gone, bits that flip,
clocks that jump, and SLURM's jobs, nodes and controller that go away. Then it is run until it
succeeds. Its stages, plan and table must equal those of a sweep that nothing has happened to. The
seed decides what is left to chance; when exactly a fault meets the sweep, the machine decides too.
The exit status is 1 if anything differs.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from benchmarks.chaos.faults import ON
from benchmarks.chaos.rounds import Arena, Round, Undisturbed, make_undisturbed
from benchmarks.slurm_cluster import Cluster, started


def main(arguments: Sequence[str] | None = None) -> int:
    """Play rounds, and print what happened in them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--first", type=int, default=1, help="the number of the first round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local")
    kinds = sorted({fault.__name__ for each in ON.values() for fault in each})
    text = "only these; default: all"
    parser.add_argument("--faults", nargs="+", default=[], choices=kinds, help=text)
    parser.add_argument("--parallel", type=int, default=1, help="local rounds side by side")
    parser.add_argument("--to", type=Path, help="keep the files in this folder")
    parser.add_argument("--show", type=Path, nargs="+", help="rounds that were played")
    given = parser.parse_args(arguments)
    if given.show:
        lines = [line for path in given.show for line in path.read_text().splitlines()]
        rounds = [Round(**json.loads(line)) for line in lines]
    else:
        with tempfile.TemporaryDirectory() as temporary:
            rounds = list(_play(given, given.to or Path(temporary)))
    print(figures(rounds))
    return 1 if any(one.mismatches or one.flaws for one in rounds) else 0


def _play(given: argparse.Namespace, to: Path) -> Iterator[Round]:
    to.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"  # the number of threads changes bits
    kept = to / "undisturbed.json"
    if not kept.is_file():
        made = make_undisturbed(to / "undisturbed")
        kept.write_text(json.dumps({"seconds": made.seconds}))
    undisturbed = Undisturbed(to / "undisturbed" / "outputs", **json.loads(kept.read_text()))
    numbers = range(given.first, given.first + given.rounds)
    with ExitStack() as stack:
        cluster = None
        if given.launcher == "slurm":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            nodes = Cluster(folder, accounting=True, nodes=("n1", "n2"))
            cluster = stack.enter_context(started(nodes))
        pool = stack.enter_context(ThreadPoolExecutor(1 if cluster else given.parallel))

        def play(number: int) -> tuple[Round, Path]:
            folder = to / f"{given.launcher}-{number}"
            shutil.rmtree(folder, ignore_errors=True)
            return Arena(folder, undisturbed, cluster, given.faults).play(
                number, given.seed
            ), folder

        for played, folder in pool.map(play, numbers):
            with (to / "rounds.jsonl").open("a") as file:
                file.write(json.dumps(played.as_json()) + "\n")
            print(f"{played.launcher} {played.number}: {'; '.join(played.faults)}", flush=True)
            for wrong in (*played.mismatches, *played.flaws):
                print(f"  ✗ {wrong} ({folder})", flush=True)
            if not (played.mismatches or played.flaws):
                shutil.rmtree(folder)
            yield played


def figures(rounds: Sequence[Round]) -> str:
    """A Markdown table of what happened in rounds."""
    happened = Counter(_kind(fault) for one in rounds for fault in one.faults)
    rows = {
        "rounds": f"{len(rounds)} ({sum(one.launcher == 'slurm' for one in rounds)} on SLURM)",
        "commands": sum(one.commands for one in rounds),
        "of them that succeeded": _ended(rounds, 0),
        "of them that failed with a message": _ended(rounds, 1),
        "faults": sum(happened.values()),
        **{f"... {what}": count for what, count in sorted(happened.items())},
        "damaged files set aside": sum(one.set_aside for one in rounds),
        "stages compared": sum(one.stages for one in rounds),
        "mismatches": sum(len(one.mismatches) for one in rounds),
        "other flaws": sum(len(one.flaws) for one in rounds),
        "hours": f"{sum(one.seconds for one in rounds) / 3600:.1f}",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])


def _kind(fault: str) -> str:
    """A fault without the file that it met, but for the folder that the file is in."""
    what, _, place = fault.partition(" in ")
    return f"{what} in {place.split('/')[0]}/" if place else what


def _ended(rounds: Sequence[Round], status: int) -> int:
    return sum(one.statuses.count(status) for one in rounds)


if __name__ == "__main__":
    sys.exit(main())
