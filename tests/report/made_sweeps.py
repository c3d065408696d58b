"""Sweeps whose results are made up, to be reported."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from heft_pipeline.data.other_text import chosen_text, text_note
from heft_pipeline.data.rows import read_eval
from heft_pipeline.plan.graph import Plan, Run, untouched
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.store.sweep_folders import Sweep
from tests.conftest import composed_run

PAPER = ["heft@3 > lora@20", "heft@3 > reft@20"]


def make_sweep(
    output_dir: Path,
    runs: Sequence[tuple[str, float]],
    *,
    name: str = "made",
    claims: Sequence[str] | None = PAPER,
    extra: Sequence[str] = (),
    cost: float = 1.0,
) -> Sweep:
    """A complete sweep of the shipped model on the shipped task.

    Args:
        output_dir: Where to.
        runs: Overrides, separated by blanks, and the accuracy that is made up.
        name: The sweep's name.
        claims: The report's claims; None for those that fit.
        extra: Overrides of all runs.
        cost: What the parameters, seconds and operations of all stages are multiplied by.

    Returns:
        The sweep.
    """
    made = []
    for number, (overrides, _) in enumerate(runs):
        run = composed_run(*overrides.split(), *extra)
        made.append(
            Run(f"{number}-{run.method}", run.overrides, run.method, run.epochs, run.stages)
        )
    plan = Plan(tuple(made), untouched(made))
    sweep = Sweep(output_dir / "sweeps" / name)
    sweep.record(
        plan,
        command="python -m heft_pipeline -m made=up",
        report={"claims": None if claims is None else list(claims)},
        forgetting=text_note("builtin"),
    )
    for run, (_, accuracy) in zip(made, runs, strict=True):
        for stage in run.stages:
            if not sweep.store.is_complete(stage.fingerprint):
                complete(sweep.store, stage, accuracy, cost)
    for base in plan.baselines:
        complete(sweep.store, base, 0.5)
    return sweep


def make_task(folder: Path, name: str, examples: int) -> str:
    """A task of the shipped one's form, in a folder of its own.

    Args:
        folder: Where to make the task's folder.
        name: The task's name.
        examples: How many examples are evaluated.

    Returns:
        The overrides that choose it, separated by blanks.
    """
    path = folder / name
    path.mkdir(parents=True)
    rows = [row for _, row in read_eval(composed_run().last.data)][:examples]
    for split, kept in (("train", rows[:20]), ("dev", rows[:10]), ("test", rows)):
        lines = (json.dumps(row | {"task": name}) for row in kept)
        (path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return f"data.path={path} data.name={name}"


def complete(store: Store, stage: StageSpec, accuracy: float, cost: float = 1.0) -> None:
    """Write a stage's files, with answers of an accuracy."""
    folder = store.begin(stage)
    ids, gold = _examples(stage)
    # Easy examples are easy for all, so that answers are as alike as real ones.
    random = np.random.default_rng(int(stage.fingerprint, 16))
    ease = np.random.default_rng(0).random(len(ids)) + 0.3 * random.random(len(ids))
    right = ease < np.quantile(ease, accuracy)
    prediction = np.where(right, gold, np.where(np.array(gold) == "true", "false", "true"))
    credit = right.astype(float)
    table = pd.DataFrame({"id": ids, "gold": gold, "prediction": prediction})
    # As sure of the wrong answers as of the right ones.
    sureness = np.log(0.5 + 0.4 * random.random(len(ids)))
    for label in stage.data.choices:
        rest = np.log1p(-np.exp(sureness))
        table[f"logprob_{label}"] = np.where(prediction == label, sureness, rest)
    table["credit"] = credit
    table.to_parquet(folder / "predictions.parquet", index=False)
    epochs = stage.epochs
    with (folder / "metrics.jsonl").open("w") as file:
        for epoch in range(1, epochs + 1):
            values = {"train_loss": 1 / epoch, "dev_accuracy": accuracy}
            file.write(
                json.dumps({"event": "epoch", "step": epoch, "epoch": epoch} | values) + "\n"
            )
    for kind in [adapter.kind for adapter in stage.adapters if adapter.edits]:
        rows = [
            (layer, position, 0.1 * (layer + 1)) for layer in range(4) for position in ("f1", "l1")
        ]
        edits = pd.DataFrame(rows, columns=["layer", "position", "relative_edit"])
        edits.assign(edit_norm=1.0, hidden_norm=2.0).to_csv(
            folder / f"{kind}_edits.csv", index=False
        )
    store.complete(stage.fingerprint, _result(right, epochs, cost))


def reseal(store: Store, fingerprint: str, **changes: Any) -> None:
    """Let a stage whose files a test has changed be one that was made so.

    Args:
        store: The store.
        fingerprint: The stage's fingerprint.
        **changes: What to change in ``result.json``; None takes a key out.
    """
    written = json.loads((store.folder(fingerprint) / "result.json").read_text()) | changes
    kept = {k: v for k, v in written.items() if v is not None and k not in ("files", "sha256")}
    store.complete(fingerprint, kept)


def forget(store: Store, stage: StageSpec, rise: float, windows: int = 12) -> None:
    """Write a stage's losses on the builtin text, each window's higher by about ``rise``."""
    text = chosen_text(text_note("builtin"), stage.model.id)
    assert text is not None
    base = np.random.default_rng(1).normal(2, 0.5, windows)
    noise = np.random.default_rng(int(stage.fingerprint, 16)).normal(0, 0.002, windows)
    losses = base + rise + (noise if stage.adapters else 0)
    entry = {"text": text.name, "windows": windows, "tokens": 64 * windows}
    store.note_text_losses(stage.fingerprint, text.digest, entry | {"losses": losses.tolist()})


def _result(right: Any, epochs: int, cost: float) -> dict[str, Any]:
    return {
        "accuracy": float(right.mean()),
        "n_eval": len(right),
        "n_train": 800,
        "n_dev": 100,
        "trainable_params": round(1000 * cost) if epochs else 0,
        "train_seconds": 2.0 * epochs * cost,
        "train_tflop": 0.1 * epochs * cost,
        "train_examples": 800 * epochs,
        "peak_memory_mb": 500.0,
        "wall_seconds": 3.0 * epochs + 1,
        "dtype": "float32",
        "machine": {"host": "node7", "device": "cpu", "threads": 2, "torch": "2.13.0"},
    }


@cache
def _examples(stage: StageSpec) -> tuple[list[str], list[str]]:
    rows = read_eval(stage.data)
    return [id for id, _ in rows], [str(row["answer"]).lower() for _, row in rows]
