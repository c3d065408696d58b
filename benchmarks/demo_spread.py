"""How far rounding alone moves the accuracies of the README's table.

    python -m benchmarks.demo_spread [--seeds 0,1,2] [--to FOLDER] [OVERRIDE ...]

Runs the README's first command with one thread, with two, and in bfloat16, and prints each cell's
accuracy in each of these settings with its largest movement, which is the highest minus the
lowest. Another number of threads adds numbers in another order, as another machine does, and
bfloat16 rounds far more than machines differ in float32. A demo that repeats moves little here.

Overrides are settings of ``python -m heft_pipeline``, with one value each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

METHODS, EPOCHS = ("lora", "reft", "heft"), (3, 20)
# One output folder each, since stages are named by what they compute and not by the threads.
SETTINGS: Mapping[str, tuple[int, str]] = {
    "1 thread": (1, "float32"),
    "2 threads": (2, "float32"),
    "bfloat16": (1, "bfloat16"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the settings one after another and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_spread")
    parser.add_argument("--seeds", default="0,1,2", help="default: %(default)s")
    parser.add_argument("--to", type=Path, help="keep the runs here, to continue or look at them")
    parser.add_argument("overrides", nargs="*", help="settings of python -m heft_pipeline")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        to = options.to or Path(temporary)
        swept = [f"method={','.join(METHODS)}", f"epochs={','.join(map(str, EPOCHS))}"]
        swept += [f"seed={options.seeds}", *options.overrides]
        found = {}
        for name, (threads, dtype) in SETTINGS.items():
            outputs = to / name.replace(" ", "_")
            run_sweep(outputs, threads, [*swept, f"model.dtype={dtype}"])
            found[name] = accuracies(outputs)
    print(table(found).to_string(float_format="%.1f"))
    return 0


def run_sweep(outputs: Path, threads: int, overrides: Sequence[str]) -> None:
    """Run a sweep called ``spread``, which takes what is complete from an earlier call."""
    command = [sys.executable, "-m", "heft_pipeline", "-m", *overrides]
    command += [f"output_dir={outputs}", "sweep=spread"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def accuracies(outputs: Path) -> dict[tuple[str, int, int], float]:
    """Return the accuracy in percent of each (method, epochs, seed) of the sweep ``spread``."""
    found = {}
    for run in json.loads((outputs / "sweeps/spread/plan.json").read_text())["runs"]:
        result = json.loads((outputs / "stages" / run["stages"][-1] / "result.json").read_text())
        found[run["method"], run["epochs"], run["seed"]] = 100 * result["accuracy"]
    return found


def table(found: Mapping[str, Mapping[tuple[str, int, int], float]]) -> pd.DataFrame:
    """Return a row for each cell that all settings have, with its largest movement."""
    frame = pd.DataFrame({name: pd.Series(cells) for name, cells in found.items()}).dropna()
    frame.index.names = ["method", "epochs", "seed"]
    frame["moves by"] = frame.max(axis=1) - frame.min(axis=1)
    return frame.reindex(METHODS, level="method")


if __name__ == "__main__":
    sys.exit(main())
