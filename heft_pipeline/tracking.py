"""Weights & Biases: one W&B run a run of the sweep, made from the store's files.

The files are the source of truth: a run is sent when its stages are complete, so training never
waits for W&B, and a stage that was reused appears in every run that stands on it, with its full
curves. Knows nothing of torch.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from heft_pipeline.config import TrackingConfig
from heft_pipeline.metrics import read_metrics
from heft_pipeline.report.statistics import wilson_interval
from heft_pipeline.spec import StageSpec
from heft_pipeline.store import Store

log = logging.getLogger(__name__)


def track_run(
    tracking: TrackingConfig,
    store: Store,
    folder: Path,
    method: str,
    stages: Sequence[StageSpec],
    config: Mapping[Any, Any],
) -> str | None:
    """Send a complete run to W&B, or write it for ``wandb sync``.

    Curves are ``lora/loss`` over ``lora/step`` and so on, a prefix a stage (``lora2/`` for a
    second of its kind). The W&B id follows from the sweep's and the run's names, so that the
    same run sent again goes on in the same place.

    Args:
        tracking: Where to; ``name: none`` does nothing.
        store: Where stages are.
        folder: The run's folder in the sweep; W&B's own files go there.
        method: The run's method, W&B's ``job_type``.
        stages: The run's stages, all complete.
        config: The run's resolved config.

    Returns:
        Why W&B did not take it, or None where it did or is not asked to. Nothing is raised: the
        run is complete whatever W&B says.
    """
    if tracking.name == "none":
        return None
    try:
        _send(tracking, store, folder, method, stages, config)
    except Exception as error:  # whatever W&B raises, the run's own files are complete
        log.exception("W&B did not take %s", folder.name)
        return f"W&B did not take {folder.name}: {error}"
    return None


def _send(
    tracking: TrackingConfig,
    store: Store,
    folder: Path,
    method: str,
    stages: Sequence[StageSpec],
    config: Mapping[Any, Any],
) -> None:
    import wandb

    sweep = folder.parent.parent.name
    run = wandb.init(
        project=tracking.project,
        entity=tracking.entity,
        dir=str(folder),
        id=hashlib.sha256(f"{sweep}/{folder.name}".encode()).hexdigest()[:16],
        resume="allow",
        name=folder.name,
        group=sweep,
        job_type=method,
        tags=[method, *tracking.tags],
        config=dict(config),
        mode="online" if tracking.mode == "online" else "offline",
        settings=wandb.Settings(silent=True, console="off"),
    )
    try:
        for prefix, stage in zip(stage_prefixes(stages), stages, strict=True):
            run.define_metric(f"{prefix}/step")
            run.define_metric(f"{prefix}/*", step_metric=f"{prefix}/step")
            for line in read_metrics(store.folder(stage.fingerprint) / "metrics.jsonl"):
                values = {k: v for k, v in line.items() if k != "event"}
                run.log({f"{prefix}/{key}": value for key, value in values.items()})
        run.summary.update(_summary([store.result(s.fingerprint) or {} for s in stages]))
    finally:
        run.finish()


def stage_prefixes(stages: Sequence[StageSpec]) -> list[str]:
    """A prefix for each stage's curves: its kind, numbered from the second of a kind on.

    Args:
        stages: A run's stages.

    Returns:
        For instance ``["lora", "reft", "lora2"]``.
    """
    kinds = [stage.kind for stage in stages]
    counts = [kinds[: i + 1].count(kind) for i, kind in enumerate(kinds)]
    return [kind if n == 1 else f"{kind}{n}" for kind, n in zip(kinds, counts, strict=True)]


def _summary(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    last = results[-1]
    correct = round(last["accuracy"] * last["n_eval"])
    low, high = wilson_interval(correct, last["n_eval"])
    return {
        "accuracy": last["accuracy"],
        "accuracy_low": low,
        "accuracy_high": high,
        "n_eval": last["n_eval"],
        "trainable_params": sum(r["trainable_params"] for r in results),
        "train_seconds": sum(r["train_seconds"] for r in results),
        "train_tflop": sum(r["train_tflop"] for r in results),
        "peak_memory_mb": max(r["peak_memory_mb"] for r in results),
    }
