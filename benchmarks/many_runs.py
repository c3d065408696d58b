"""A sweep of many runs whose answers are made up, and what each command takes on it.

Nothing is trained: the command line plans the sweep as always, and each stage gets the files of a
finished one. What reads them afterwards cannot tell the difference.
"""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store

NAME = "many"
VIEW = "from benchmarks.many_runs import open_view; open_view()"
SHAPES = ("methods", "single", "rates", "tasks")
#: As many as BoolQ has; with several tasks, those of a small one each.
_EXAMPLES, _EXAMPLES_OF_A_TASK = 3270, 300
_SHOWN = ("report.html", "report.md", "report.tex", "results.csv", "claims.json")


@dataclass(frozen=True)
class Took:
    """What a command took: seconds on the clock and of processors, and its peak memory in MB."""

    what: str
    wall: float
    processor: float
    megabytes: float


def measure_many_runs(shape: str, runs: int, folder: Path) -> str:
    """Make a sweep, and run each command on it.

    Args:
        shape: One of :data:`SHAPES`; see :func:`overrides`.
        runs: How many runs, roughly.
        folder: An empty folder.

    Returns:
        A table of what the commands took, and of the sizes of the report's files.
    """
    swept, out = overrides(shape, runs, folder), folder / "outputs"
    asked = ["-m", *swept, f"output_dir={out}", f"sweep={NAME}"]
    sweep = out / "sweeps" / NAME
    make = [sys.executable, "-c", "from benchmarks.many_runs import make; make()", *asked]
    heft, launch = ("-m", "heft_pipeline"), ("-m", "launch")
    dry = [*asked, "hydra.launcher.dry_run=true"]
    commands = {
        "dry run, nothing complete": (*heft, *dry),
        "(making the files)": tuple(make[1:]),
        "dry run, all complete": (*heft, *dry),
        "report": ("-m", "heft_pipeline.report", NAME, "--output-dir", str(out)),
        "status": (*launch, "status", NAME, "--output-dir", str(out)),
        "local web view: start it, and open the sweep": ("-c", VIEW, str(out)),
        "the same sweep again, with its report": (*heft, *asked),
    }
    found = [took(name, [sys.executable, *command], folder) for name, command in commands.items()]
    count = len(json.loads((sweep / "plan.json").read_text())["runs"])
    lines = [f"{shape}: {count:,} runs, {len(list(out.glob('stages/*/result.json'))):,} stages", ""]
    lines += ["| command | seconds | processor seconds | peak MB |", "|---|---:|---:|---:|"]
    lines += [f"| {t.what} | {t.wall:.1f} | {t.processor:.1f} | {t.megabytes:.0f} |" for t in found]
    sizes = {name: (sweep / name).stat().st_size for name in _SHOWN}
    sizes["figures/"] = sum(path.stat().st_size for path in (sweep / "figures").iterdir())
    sizes["plan.json"] = (sweep / "plan.json").stat().st_size
    lines += ["", "; ".join(f"{name} {size / 1e6:.2f} MB" for name, size in sizes.items())]
    return "\n".join(lines)


def took(what: str, command: Sequence[str], folder: Path) -> Took:
    """Run a command to its end, and say what it took; its output is kept in the folder."""
    started = time.monotonic()
    with (folder / "said.txt").open("a") as said:
        child = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{what} failed; see {folder / 'said.txt'}")
    wall, processor = time.monotonic() - started, usage.ru_utime + usage.ru_stime
    return Took(what, wall, processor, usage.ru_maxrss / 1024)


def overrides(shape: str, runs: int, folder: Path) -> list[str]:
    """The settings of a sweep.

    Args:
        shape: ``methods``: 3 methods, 2 numbers of epochs, 5 ranks, learning rates and 5 seeds, as
            most real sweeps; ``single``: the same with one seed and more learning rates, so that
            there are most settings and claims; ``rates``: one method with as many learning rates;
            ``tasks``: 20 tasks, with 2 methods, 5 ranks and seeds.
        runs: How many runs, roughly.
        folder: Where tasks are made.

    Returns:
        What the command line is given.
    """
    if shape == "rates":
        rates = _joined(f"{rate:.6g}" for rate in np.geomspace(1e-5, 1e-2, runs))
        return [*_tasks(folder, 1, _EXAMPLES), "method=lora", f"lora.learning_rate={rates}"]
    if shape == "tasks":
        repeats = _joined(range(max(1, round(runs / 200))))
        swept = ["method=lora,heft", "rank=1,2,4,8,16", f"seed={repeats}"]
        return [*_tasks(folder, 20, _EXAMPLES_OF_A_TASK), *swept]
    seeds = range(5 if shape == "methods" else 1)
    count = max(1, round(runs / (30 * len(seeds))))
    rates = _joined(f"{rate:.4g}" for rate in np.geomspace(1e-4, 1e-3, count))
    swept = ["method=lora,reft,heft", "epochs=3,20", "rank=1,2,4,8,16", f"seed={_joined(seeds)}"]
    swept += [f"lora.learning_rate={rates}", "reft.learning_rate=${lora.learning_rate}"]
    return [*_tasks(folder, 1, _EXAMPLES), *swept]


def _joined(values: object) -> str:
    return ",".join(map(str, values))  # type: ignore[call-overload]


def _tasks(folder: Path, count: int, examples: int) -> list[str]:
    """Make tasks in the form of the shipped one, with its rows as often as it takes."""
    from heft_pipeline.data import demo

    shipped = [json.loads(line) for line in (demo.FILES / "test.jsonl").read_text().splitlines()]
    paths = [folder / f"task{number}" for number in range(count)]
    for path in paths:
        path.mkdir(parents=True)
        for split, size in (("train", 64), ("dev", 32), ("test", examples)):
            rows = [shipped[number % len(shipped)] for number in range(size)]
            lines = (
                json.dumps(row | {"passage": f"{row['passage']} {path.name} {split} {number}."})
                for number, row in enumerate(rows)
            )
            (path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return [f"data.path={_joined(paths)}", "data.name=null"]


def make() -> None:
    """Run this process's command line, with files made up in the place of training."""
    from heft_pipeline import __main__
    from launch import run_sweep

    def execute(plan, sweep, *_: object) -> dict[str, str]:  # type: ignore[no-untyped-def]
        for stage in plan.stages.values():
            _complete(sweep.store, stage)
        return {}

    run_sweep.execute_plan = execute  # type: ignore[assignment]
    run_sweep.report = lambda *_: None
    __main__.main()


def open_view() -> None:
    """Start the local web view of this process's output_dir, and read the page of its sweep."""
    import threading
    from urllib.request import urlopen

    from heft_pipeline.view.web_server import ViewServer

    with ViewServer(Path(sys.argv[1]), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with urlopen(f"{server.address}sweeps/{NAME}") as answer:
            assert answer.read().count(b'data-label="accuracy"') > 100
        server.shutdown()


def _complete(store: Store, stage: StageSpec) -> None:
    """Write the files of a stage; its accuracy follows from its settings and a little luck."""
    folder, random = store.begin(stage), np.random.default_rng(int(stage.fingerprint, 16))
    gold = _gold(stage.data.location)
    accuracy = 0.62
    for part in stage.chain:
        for one in part.adapters:
            gain = 0.06 * np.log10(1 + one.epochs) + 0.01 * np.log2(1 + (one.low_rank or 1))
            accuracy += gain - 0.02 * np.log10(one.learning_rate / 5e-4) ** 2
    accuracy += 0.01 * random.standard_normal()
    ease = np.random.default_rng(0).random(len(gold)) + 0.3 * random.random(len(gold))
    right = ease < np.quantile(ease, np.clip(accuracy, 0.4, 0.97))
    prediction = np.where(right, gold, np.where(gold == "true", "false", "true"))
    sure = np.log(0.5 + 0.4 * random.random(len(gold)))
    table = pd.DataFrame({"id": [f"test/{n}" for n in range(len(gold))], "gold": gold,
                          "prediction": prediction})  # fmt: skip
    for label in stage.data.choices:
        table[f"logprob_{label}"] = np.where(prediction == label, sure, np.log1p(-np.exp(sure)))
    table["credit"] = right.astype(float)
    table.to_parquet(folder / "predictions.parquet", index=False)
    _write_metrics(folder / "metrics.jsonl", stage.epochs, float(right.mean()))
    for kind in (adapter.kind for adapter in stage.adapters if adapter.edits):
        rows = [(n, place, 0.1 * (n + 1)) for n in range(32) for place in ("f1", "l1")]
        edits = pd.DataFrame(rows, columns=["layer", "position", "relative_edit"])
        edits = edits.assign(edit_norm=1.0, hidden_norm=2.0)
        edits.to_csv(folder / f"{kind}_edits.csv", index=False)
    store.complete(stage.fingerprint, _result(stage, float(right.mean()), len(gold)))


def _write_metrics(path: Path, epochs: int, accuracy: float) -> None:
    """As many lines as BoolQ gives: 265 steps an epoch, of which each tenth is logged."""
    with path.open("w") as file:
        for epoch in range(1, epochs + 1):
            for step in range(10, 270, 10):
                values = {"loss": 1 / (epoch + step / 265), "learning_rate": 1e-4, "grad_norm": 1.0}
                line = {"event": "step", "step": 265 * (epoch - 1) + step, "epoch": epoch}
                file.write(json.dumps(line | values | {"examples_per_second": 30.0}) + "\n")
            ended = {"event": "epoch", "step": 265 * epoch, "epoch": epoch, "train_loss": 1 / epoch}
            file.write(json.dumps(ended | {"dev_accuracy": accuracy, "dev_loss": 0.5}) + "\n")


@functools.cache
def _gold(folder: str | None) -> np.ndarray:
    lines = (Path(str(folder)) / "test.jsonl").read_text().splitlines()
    return np.array([str(json.loads(line)["answer"]).lower() for line in lines])


def _result(stage: StageSpec, accuracy: float, examples: int) -> dict[str, object]:
    size = sum((adapter.low_rank or 1) for adapter in stage.adapters)
    return {
        "accuracy": accuracy,
        "n_eval": examples,
        "n_train": 9427,
        "n_dev": 943,
        "trainable_params": 100_000 * size if stage.epochs else 0,
        "train_seconds": 60.0 * stage.epochs,
        "train_tflop": (100 + size) * stage.epochs,
        "train_examples": 9427 * stage.epochs,
        "peak_memory_mb": 20_000.0,
        "wall_seconds": 70.0 * stage.epochs,
        "dtype": "bfloat16",
        "resumes": 0,
        "machine": {"host": "node7", "device": "cpu", "threads": 2, "torch": "2.13.0"},
    }
