"""A sweep's ``clusters.json``: which of its reported examples belong together."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from heft_pipeline.data.rows import RowClusters, read_clusters
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.errors import UserError
from heft_pipeline.files.json_files import require_json, write_json
from heft_pipeline.files.locks import file_lock
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.sweep_folders import Sweep

CLUSTERS = "clusters.json"


def record_clusters(sweep: Sweep, tasks: Iterable[DataSettings]) -> None:
    """Note the clusters of tasks' reported rows, so that a report needs no data.

    The newest ``data.cluster_column`` of a task counts.

    Args:
        sweep: The sweep, whose folder is there.
        tasks: The tasks.

    Raises:
        UserError: A task has no such column, or two of them name different ones for one task.
    """
    asked: dict[str, DataSettings] = {}
    for task in tasks:
        other = asked.setdefault(_key(task), task)
        if other.cluster_column != task.cluster_column:
            raise UserError(
                f"data.cluster_column={task.cluster_column} and {other.cluster_column} are asked "
                f"for the same rows of {task.name}; it changes only the report: choose one"
            )
    with file_lock(sweep.folder / ".plan.lock"):
        known = _read(sweep)
        found = dict(known)
        for key, task in asked.items():
            column = task.cluster_column
            if column is None:
                found.pop(key, None)
            elif found.get(key, {}).get("column") != column:
                found[key] = dataclasses.asdict(read_clusters(task, column))
        if found != known:
            write_json(sweep.folder / CLUSTERS, found)


def clusters(sweep: Sweep, task: DataSettings) -> RowClusters | None:
    """Which reported rows of a task belong together.

    Args:
        sweep: The sweep.
        task: The task.

    Returns:
        The clusters; None where rows are independent.
    """
    entry = _read(sweep).get(_key(task))
    return None if entry is None else RowClusters(**entry)


def interval_of(sweep: Sweep, last: StageSpec, result: Mapping[str, Any]) -> tuple[float, float]:
    """The 95 % interval of a run's accuracy, which counts clusters of examples where there are.

    Args:
        sweep: The sweep.
        last: The run's last stage, which is complete.
        result: The content of its ``result.json``.

    Returns:
        The ends (low, high) as shares.
    """
    from heft_pipeline.evidence.clusters import numbered
    from heft_pipeline.evidence.intervals import accuracy_interval, wilson_interval

    groups = clusters(sweep, last.data)
    file = sweep.store.folder(last.fingerprint) / "predictions.parquet"
    if groups is None or not file.is_file():
        return wilson_interval(result["accuracy"] * result["n_eval"], result["n_eval"])
    import pandas as pd

    answers = pd.read_parquet(file, columns=["id", "credit"])
    names = [groups.of.get(id, id) for id in answers.id]
    return accuracy_interval(answers.credit.to_numpy(dtype=float)[None], numbered(names))


def _key(task: DataSettings) -> str:
    """What decides which rows are reported."""
    parts = [task.content, task.subset, task.eval_split, task.max_eval_rows, task.id_column]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _read(sweep: Sweep) -> dict[str, Any]:
    path = sweep.folder / CLUSTERS
    if not path.is_file():
        return {}
    return require_json(
        path,
        "remove the file and run the sweep's command again, which writes it anew; every stage is "
        "kept",
    )
