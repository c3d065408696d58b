"""What the files say of a sweep's runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from heft_pipeline.plan import read_plan
from heft_pipeline.spec import StageSpec
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
_SUMMED = ("trainable_params", "train_seconds", "train_tflop", "train_examples")
_NEEDED = {*_SUMMED, "accuracy", "n_eval", "peak_memory_mb", "machine"}


@dataclass(frozen=True)
class RunRecord:
    """A run as its files tell it.

    Attributes:
        sweep: The sweep's name.
        store: Where its stages are.
        name: The run's name in the sweep.
        method: Its method; ``base`` for the untouched model.
        epochs: The config's ``epochs``.
        stages: Its stages in training order.
        reused: Stages that were not trained for it: complete before the sweep, or trained for
            a run above it.
        status: ``complete``, ``running``, ``failed``, ``damaged`` (files are missing or broken)
            or ``incomplete``.
        why: Of a failed or damaged run, the reason.
        results: Each stage's ``result.json``; of a complete run all are there.
        predictions: The last stage's ``predictions.parquet`` of a complete run.
    """

    sweep: str
    store: Store
    name: str
    method: str
    epochs: int
    stages: tuple[StageSpec, ...]
    reused: int
    status: str
    why: str
    results: tuple[dict[str, Any], ...]
    predictions: pd.DataFrame | None

    @property
    def last(self) -> StageSpec:
        """The stage whose predictions are the run's."""
        return self.stages[-1]

    @property
    def complete(self) -> bool:
        """Whether it can be compared."""
        return self.status == "complete"

    @property
    def stage_epochs(self) -> tuple[int, ...]:
        """The epochs asked of each trained stage."""
        return tuple(s.training.epochs for s in self.stages if s.training)

    @property
    def lora_rank(self) -> int | None:
        """The rank of the last LoRA adapter."""
        return next((s.lora.rank for s in reversed(self.stages) if s.lora), None)

    @property
    def reft_rank(self) -> int | None:
        """The rank of the last ReFT adapter."""
        return next((s.reft.rank for s in reversed(self.stages) if s.reft), None)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of the LoRA and the ReFT adapter, equal ones once."""
        ranks = (self.lora_rank, self.reft_rank)
        return tuple(dict.fromkeys(rank for rank in ranks if rank is not None))

    @cached_property
    def costs(self) -> dict[str, float]:
        """Of all its stages, reused ones included: parameters, seconds, operations and examples
        are summed, memory is the largest. Empty for a run that is not complete.
        """
        if not self.complete:
            return {}
        return {key: sum(result[key] for result in self.results) for key in _SUMMED} | {
            "peak_memory_mb": max(result["peak_memory_mb"] for result in self.results)
        }


def read_runs(sweep: Sweep) -> list[RunRecord]:
    """Read a sweep's runs, whatever state its files are in.

    Args:
        sweep: The sweep.

    Returns:
        The runs in the plan's order, then its baselines, named ``base``.
    """
    data = sweep.plan()
    plan, store = read_plan(data), sweep.store
    claimed = set(data["complete_before"])
    records = []
    for run in plan.runs:
        keys = [stage.fingerprint for stage in run.stages]
        reused = sum(key in claimed for key in keys)
        claimed.update(keys)
        records.append(
            _record(sweep.name, store, run.name, run.method, run.epochs, run.stages, reused)
        )
    asked = {record.last.fingerprint for record in records}
    return records + [
        _record(sweep.name, store, "base", "base", 0, (base,), 0)
        for base in plan.baselines
        if base.fingerprint not in asked
    ]


def results_table(records: Sequence[RunRecord]) -> pd.DataFrame:
    """``results.csv``: one row a run.

    Args:
        records: The runs of a sweep.

    Returns:
        :data:`COLUMNS`; what an unfinished run lacks is missing. Baselines are no runs.
    """
    rows = [
        {
            "method": record.method,
            "epochs": record.epochs,
            "lora_rank": record.lora_rank,
            "reft_rank": record.reft_rank,
            "seed": record.last.seed,
            "model": record.last.model.name,
            "data": record.last.data.name,
            "accuracy": record.results[-1]["accuracy"] if record.complete else None,
            "n_eval": record.results[-1]["n_eval"] if record.complete else None,
            **{key: value for key, value in record.costs.items() if key in COLUMNS},
            "stages": "+".join(stage.fingerprint for stage in record.stages),
            "stages_reused": record.reused,
            "status": record.status,
        }
        for record in records
        if record.name != "base"
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    whole = ["lora_rank", "reft_rank", "n_eval", "trainable_params"]
    return table.astype(dict.fromkeys(whole, "Int64"))


def damaged(record: RunRecord, why: str) -> RunRecord:
    """The same run, found not to be usable.

    Args:
        record: The run.
        why: The reason.

    Returns:
        The run with status ``damaged``.
    """
    return replace(record, status="damaged", why=why, results=(), predictions=None)


def _record(
    sweep: str,
    store: Store,
    name: str,
    method: str,
    epochs: int,
    stages: tuple[StageSpec, ...],
    reused: int,
) -> RunRecord:
    keys = [stage.fingerprint for stage in stages]
    status, why, results, predictions = "complete", "", [], None
    try:
        results = [result for key in keys if (result := store.result(key)) is not None]
        for result in results:
            if lacking := _NEEDED - set(result):
                raise ValueError(f"a result.json lacks {', '.join(sorted(lacking))}")
        if len(results) == len(keys):
            predictions = _predictions(store.folder(keys[-1]) / "predictions.parquet")
        else:
            status, why = _unfinished(store, keys)
    except (OSError, ValueError, KeyError) as error:  # pyarrow's are among them
        status, why = "damaged", f"{type(error).__name__}: {error}".splitlines()[0]
    return RunRecord(
        sweep=sweep,
        store=store,
        name=name,
        method=method,
        epochs=epochs,
        stages=stages,
        reused=reused,
        status=status,
        why=why,
        results=tuple(results) if status == "complete" else (),
        predictions=predictions,
    )


def _predictions(path: Path) -> pd.DataFrame:
    predictions = pd.read_parquet(path)
    missing = {"id", "gold", "prediction"} - set(predictions.columns)
    if missing or predictions.empty:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing)) or 'rows'}")
    if predictions.id.duplicated().any():
        raise ValueError(f"{path} has an id more than once")
    return predictions


def _unfinished(store: Store, keys: Sequence[str]) -> tuple[str, str]:
    states = [store.state(key) for key in keys]
    if "running" in states:
        return "running", ""
    for key, state in zip(keys, states, strict=True):
        if state == "failed":
            failure = store.failure(key) or {}
            return "failed", str(failure.get("reason", "")).strip()
    return "incomplete", ""
