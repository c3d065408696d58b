"""The table of a sweep's runs, and the same over seeds."""

from typing import Any

import numpy as np
import pandas as pd

from heft_pipeline.report.statistics import seeds_interval
from heft_pipeline.store import Store
from heft_pipeline.sweep import Sweep

#: The columns of ``results.csv``, fixed.
COLUMNS = [
    "method",
    "epochs",
    "lora_rank",
    "reft_rank",
    "seed",
    "model",
    "data",
    "accuracy",
    "n_eval",
    "trainable_params",
    "train_seconds",
    "train_tflop",
    "peak_memory_mb",
    "stages",
    "stages_reused",
    "status",
]
_GROUP = ["method", "epochs", "total_epochs", "lora_rank", "reft_rank", "model", "data"]


def runs_table(sweep: Sweep) -> pd.DataFrame:
    """One row a run.

    Costs are those of all stages that a run stands on, reused ones included: seconds and
    operations are summed, memory is the largest. ``stages_reused`` counts the stages that were
    not trained for this run: complete before the sweep, or trained for a run above it.

    Args:
        sweep: The sweep.

    Returns:
        ``COLUMNS``, then ``name``, ``total_epochs``, ``group`` (runs that differ by their seed
        alone) and ``last`` (the fingerprint of the last stage). ``status`` is ``complete``,
        ``failed`` or ``incomplete``; what an unfinished run lacks is missing.
    """
    plan, store = sweep.plan(), sweep.store
    claimed = set(plan["complete_before"])
    rows = []
    for run in plan["runs"]:
        reused = sum(key in claimed for key in run["stages"])
        claimed.update(run["stages"])
        rows.append(_row(run, reused, store, plan["stages"]))
    table = pd.DataFrame(rows)
    return table.astype({"lora_rank": "Int64", "reft_rank": "Int64", "n_eval": "Int64"})


def groups_table(runs: pd.DataFrame, store: Store) -> pd.DataFrame:
    """One row a setting, over its seeds.

    Args:
        runs: What :func:`runs_table` gives.
        store: Where the predictions are.

    Returns:
        The group's columns, ``seeds``, mean ``accuracy`` with its 95 % interval ``low`` and
        ``high``, mean costs, and ``majority``, the accuracy of the most frequent answer.
        Settings without a complete run are left out.
    """
    rows = []
    for _, group in runs[runs.status == "complete"].groupby("group", sort=False):
        predictions = [read_predictions(store, key) for key in group["last"]]
        right = np.stack([(p.prediction == p.gold).to_numpy(dtype=bool) for p in predictions])
        low, high = seeds_interval(right)
        rows.append(
            {column: group[column].iloc[0] for column in [*_GROUP, "stages", "n_eval"]}
            | {
                "seeds": len(group),
                "accuracy": group.accuracy.mean(),
                "low": low,
                "high": high,
                "trainable_params": group.trainable_params.iloc[0],
                "train_seconds": group.train_seconds.mean(),
                "train_tflop": group.train_tflop.mean(),
                "peak_memory_mb": group.peak_memory_mb.max(),
                "majority": predictions[0].gold.value_counts(normalize=True).iloc[0],
            }
        )
    return pd.DataFrame(rows)


def read_predictions(store: Store, fingerprint: str) -> pd.DataFrame:
    """A complete stage's ``predictions.parquet``.

    Args:
        store: Where stages are.
        fingerprint: The stage's.

    Returns:
        One row an evaluated example: ``id``, ``gold``, ``prediction``, ``logprob_LABEL``.
    """
    return pd.read_parquet(store.folder(fingerprint) / "predictions.parquet")


def _row(run: dict[str, Any], reused: int, store: Store, stages: dict[str, Any]) -> dict[str, Any]:
    results = [store.result(key) for key in run["stages"]]
    done = [result for result in results if result is not None]
    complete = len(done) == len(results)
    failed = any(store.failure(key) for key in run["stages"])
    costs: dict[str, Any] = (
        {
            "accuracy": done[-1]["accuracy"],
            "n_eval": done[-1]["n_eval"],
            "trainable_params": sum(r["trainable_params"] for r in done),
            "train_seconds": sum(r["train_seconds"] for r in done),
            "train_tflop": sum(r["train_tflop"] for r in done),
            "peak_memory_mb": max(r["peak_memory_mb"] for r in done),
        }
        if complete
        else {}
    )
    row = {**run, **costs}
    row["stages"] = "+".join(run["stages"])
    row["stages_reused"] = reused
    row["status"] = "complete" if complete else "failed" if failed else "incomplete"
    return {column: row.get(column) for column in COLUMNS} | {
        "name": run["name"],
        "total_epochs": run["total_epochs"],
        "group": _without_seed(run["stages"], stages),
        "last": run["stages"][-1],
    }


def _without_seed(keys: list[str], stages: dict[str, Any]) -> str:
    """What runs that differ by their seed alone have in common."""

    def stripped(stage: dict[str, Any]) -> dict[str, Any]:
        kept = {k: v for k, v in stage.items() if k not in ("seed", "fingerprint", "parent")}
        return kept | {"parent": stripped(stage["parent"]) if stage["parent"] else None}

    return repr(stripped(stages[keys[-1]]))
