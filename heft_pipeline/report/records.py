"""A sweep's runs as its files tell them, and ``results.csv``."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from heft_pipeline.evidence.calibration import plain_scores
from heft_pipeline.plan.graph import Run, ranks, read_plan
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.beside_predictions import TextLosses, choice_table, read_text_losses
from heft_pipeline.store.integrity import Depth
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.store.sweep_folders import Sweep

#: The fixed columns of ``results.csv``; :func:`columns` has all of them.
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
    "ece",
    "brier",
    "forgetting",
]
_SUMMED = ("trainable_params", "train_seconds", "train_tflop", "train_examples")
_NUMBERS = (*_SUMMED, "accuracy", "n_eval", "peak_memory_mb")
_NEEDED = {*_NUMBERS, "machine"}


@dataclass(frozen=True)
class RunRecord:
    """A run and what its stages' files hold.

    Attributes:
        sweep: The sweep.
        run: The run as it was planned; ``base`` for an evaluation of the untouched model.
        reused: How many of its stages were not trained for it: they were complete before the
            sweep, or were trained for an earlier run.
        status: ``complete``, ``running``, ``failed``, ``damaged`` (files are missing or broken)
            or ``incomplete``.
        why: The reason why a run failed or is damaged.
        results: Each stage's ``result.json``; empty unless the run is complete.
        predictions: The last stage's ``predictions.parquet``; None unless the run is complete and
            was read closely.
        text: What the sweep's ``plan.json`` says about the text that forgetting is measured on.
    """

    sweep: Sweep
    run: Run
    reused: int
    status: str = "complete"
    why: str = ""
    results: tuple[dict[str, Any], ...] = ()
    predictions: pd.DataFrame | None = None
    text: Mapping[str, Any] | None = None

    @property
    def store(self) -> Store:
        """Where its stages are."""
        return self.sweep.store

    @property
    def name(self) -> str:
        """The run's name in the sweep."""
        return self.run.name

    @property
    def method(self) -> str:
        """The run's method; ``base`` for the untouched model."""
        return self.run.method

    @property
    def stages(self) -> tuple[StageSpec, ...]:
        """The run's stages in training order."""
        return self.run.stages

    @property
    def last(self) -> StageSpec:
        """The stage whose predictions are the run's."""
        return self.run.last

    @property
    def complete(self) -> bool:
        """Whether it can be compared."""
        return self.status == "complete"

    @property
    def stage_epochs(self) -> tuple[int, ...]:
        """The epochs asked of each trained stage."""
        return tuple(stage.epochs for stage in self.stages if stage.epochs)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of its adapters in the order of their kinds, equal ones once."""
        return tuple(dict.fromkeys(r for r in ranks(self.stages).values() if r is not None))

    @cached_property
    def text_losses(self) -> TextLosses | None:
        """What its models lose on that text; None if there is no text or it is not complete."""
        return read_text_losses(self.store, self.text, self.stages) if self.complete else None

    @cached_property
    def beside(self) -> dict[str, float | None]:
        """Its ``ece``, ``brier`` and ``forgetting``, each None if unknown."""
        table = None if self.predictions is None else choice_table(self.predictions)
        scores = table and plain_scores(table.log_probabilities, table.gold)
        error, brier = scores or (None, None)
        losses = self.text_losses
        return {"ece": error, "brier": brier, "forgetting": losses.rise if losses else None}

    @cached_property
    def costs(self) -> dict[str, float]:
        """The costs of all its stages, reused ones included; empty unless the run is complete.

        Parameters, seconds, operations and examples are sums; memory is the largest. What is not
        known of a stage, because it was trained elsewhere, is NaN.
        """
        if not self.complete:
            return {}
        return {key: sum(self._known(key)) for key in _SUMMED} | {
            "peak_memory_mb": float(np.max(self._known("peak_memory_mb")))
        }

    def _known(self, key: str) -> list[float]:
        return [math.nan if (value := one[key]) is None else value for one in self.results]


def read_runs(sweep: Sweep, *, closely: bool = True) -> list[RunRecord]:
    """Read a sweep's runs, whatever state its files are in.

    Args:
        sweep: The sweep.
        closely: Compare the content of all records with their checksums, and read predictions. A
            glance does neither, so that files are damaged only where their sizes differ.

    Returns:
        The runs in the plan's order, then its baselines, each named ``base``.

    Raises:
        UserError: The folder has no plan, or one that another version wrote.
    """
    return [read_run(record, closely=closely) for record in planned_runs(sweep)]


def planned_runs(sweep: Sweep) -> list[RunRecord]:
    """A sweep's runs as they were planned, with nothing read of their stages.

    Args:
        sweep: The sweep.

    Returns:
        See :func:`read_runs`.

    Raises:
        UserError: The folder has no plan, or one that another version wrote.
    """
    data = sweep.plan()
    plan, text = read_plan(data), data.get("forgetting")
    claimed = set(data["complete_before"])
    records = []
    for run in plan.runs:
        keys = [stage.fingerprint for stage in run.stages]
        reused = sum(key in claimed for key in keys)
        claimed.update(keys)
        records.append(RunRecord(sweep, run, reused, "incomplete", text=text))
    asked = {record.last.fingerprint for record in records}
    return records + [
        RunRecord(sweep, Run("base", (), "base", 0, (base,)), 0, "incomplete", text=text)
        for base in plan.baselines
        if base.fingerprint not in asked
    ]


def columns() -> list[str]:
    """The columns of ``results.csv``: :data:`COLUMNS`, then the ranks of any other kinds."""
    return list(dict.fromkeys([*COLUMNS, *(f"{kind}_rank" for kind in ranks(()))]))


def results_table(records: Sequence[RunRecord]) -> pd.DataFrame:
    """``results.csv``, one row for each run.

    Args:
        records: The runs of a sweep; baselines among them get no row.

    Returns:
        The table with :func:`columns`; what an unfinished run does not have is missing.
    """
    rows = [
        {
            "method": record.method,
            "epochs": record.run.epochs,
            **{f"{kind}_rank": rank for kind, rank in ranks(record.stages).items()},
            "seed": record.last.seed,
            "model": record.last.model.name,
            "data": record.last.data.name,
            "accuracy": record.results[-1]["accuracy"] if record.complete else None,
            "n_eval": record.results[-1]["n_eval"] if record.complete else None,
            **{key: value for key, value in record.costs.items() if key in COLUMNS},
            "stages": "+".join(stage.fingerprint for stage in record.stages),
            "stages_reused": record.reused,
            "status": record.status,
            **record.beside,
        }
        for record in records
        if record.name != "base"
    ]
    table = pd.DataFrame(rows, columns=columns())
    whole = ["n_eval", "trainable_params", *(n for n in columns() if n.endswith("_rank"))]
    return table.astype(dict.fromkeys(whole, "Int64"))


def damaged(record: RunRecord, why: str) -> RunRecord:
    """The same run, marked as not usable.

    Args:
        record: The run.
        why: The reason.

    Returns:
        The run with the status ``damaged``.
    """
    return replace(record, status="damaged", why=why, results=(), predictions=None)


def read_run(record: RunRecord, *, closely: bool = True) -> RunRecord:
    """Add what the files of a run's stages hold.

    Args:
        record: The run as it was planned.
        closely: See :func:`read_runs`.
    """
    store, keys = record.store, [stage.fingerprint for stage in record.stages]
    try:
        for key in keys:
            depth = Depth.RECORDS if closely else Depth.SIZES
            for name, wrong in store.damage(key, depth).items():
                file = store.folder(key) / name
                return damaged(record, f"{file} {wrong}; the sweep's command makes it anew")
        results = [result for key in keys if (result := store.result(key)) is not None]
        for result in results:
            if lacking := _NEEDED - set(result):
                raise ValueError(f"a result.json lacks {', '.join(sorted(lacking))}")
            if others := [key for key in _NUMBERS if not _is_number(result[key])]:
                raise ValueError(f"a result.json holds no number as {', '.join(others)}")
        if len(results) < len(keys):
            status, why = _unfinished(store, keys)
            return replace(record, status=status, why=why)
        last = store.folder(keys[-1])
        predictions = _predictions(last / "predictions.parquet") if closely else None
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are among them
        return damaged(record, f"{type(error).__name__}: {error}".splitlines()[0])
    return replace(record, status="complete", results=tuple(results), predictions=predictions)


def _is_number(value: object) -> bool:
    """Whether it is a number, or the None of what is not known."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _predictions(path: Path) -> pd.DataFrame:
    predictions = pd.read_parquet(path)
    missing = {"id", "gold", "prediction", "credit"} - set(predictions.columns)
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
