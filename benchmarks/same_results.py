"""Check whether two output folders hold the same results to the bit, run by run.

    python -m benchmarks.same_results OLD NEW

Runs are matched by the names of their sweep and run rather than by fingerprint, so that versions
of this project with different fingerprints can be compared. Adapters, predictions, losses,
learning rates, gradient norms and counted operations must be equal; times and memory may differ.
The exit status is 1 if anything differs or is missing.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file

_RESULTS = ("accuracy", "eval_loss", "n_eval", "n_train", "n_dev", "best_epoch", "steps",
            "trainable_params", "train_tflop", "train_examples", "merge_error")  # fmt: skip
_METRICS = ("step", "epoch", "loss", "learning_rate", "grad_norm", "train_loss", "dev_accuracy",
            "dev_loss")  # fmt: skip


def stages_of(outputs: Path) -> dict[str, Path]:
    """The stage folders of each run, under ``SWEEP/RUN/NUMBER``."""
    found = {}
    for plan in sorted(outputs.glob("sweeps/*/plan.json")):
        data = json.loads(plan.read_text())
        runs = [(run["name"], run["stages"]) for run in data["runs"]]
        runs += [(f"untouched-{i}", [key]) for i, key in enumerate(data["baselines"])]
        for name, keys in runs:
            for number, key in enumerate(keys):
                found[f"{plan.parent.name}/{name}/{number}"] = outputs / "stages" / key
    return found


def differences(old: Path, new: Path) -> Iterator[str]:
    """Yield what differs between two folders of a stage."""
    names = {path.relative_to(old) for path in old.glob("adapter/**/*.safetensors")}
    if names != {path.relative_to(new) for path in new.glob("adapter/**/*.safetensors")}:
        yield "adapter files"
    for name in sorted(names):
        one, two = load_file(old / name), load_file(new / name)
        if one.keys() != two.keys() or not all(torch.equal(one[k], two[k]) for k in one):
            yield str(name)
    predictions = [pd.read_parquet(folder / "predictions.parquet") for folder in (old, new)]
    if not predictions[0].equals(predictions[1]):
        yield "predictions.parquet"
    if _metrics(old) != _metrics(new):
        yield "metrics.jsonl"
    results = [json.loads((folder / "result.json").read_text()) for folder in (old, new)]
    yield from (f"result.json: {key}" for key in _RESULTS if results[0][key] != results[1][key])
    edits = [sorted(folder.glob("*_edits.csv")) for folder in (old, new)]
    if [path.read_bytes() for path in edits[0]] != [path.read_bytes() for path in edits[1]]:
        yield "the sizes of edits"


def _metrics(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [{k: v for k, v in json.loads(line).items() if k in _METRICS} for line in lines]


def main() -> int:
    old, new = (stages_of(Path(argument)) for argument in sys.argv[1:3])
    bad = 0
    for name, folder in old.items():
        found = list(differences(folder, new[name])) if name in new else ["missing"]
        bad += bool(found)
        print(f"{name}: {', '.join(found) or 'equal'}")
    print(f"{len(old) - bad} of {len(old)} stages equal to the bit")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
