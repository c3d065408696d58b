"""Whether a finished stage still answers as it did."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

import pandas as pd

from heft_pipeline.adapters.adapted import adapted
from heft_pipeline.devices.processes import start_ranks
from heft_pipeline.devices.resolve import resolve_device
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.scoring.score import scorer
from heft_pipeline.stage.cached_inputs import cached_base, cached_task
from heft_pipeline.stage.frozen_parents import finished_adapters, merged_if_asked, saved_adapters
from heft_pipeline.stage.outputs import write_predictions
from heft_pipeline.stage.run_stage import compute_as_trained
from heft_pipeline.store.integrity import PREDICTIONS
from heft_pipeline.store.stage_folders import Store


def differing_answers(stage: StageSpec, store: Store) -> str:
    """Score a finished stage again, and compare the answers with its ``predictions.parquet``.

    Args:
        stage: The stage.
        store: Where it is; nothing in it changes.

    Returns:
        In what the answers differ, in words; empty if they are equal to the bit.

    Raises:
        UserError: The stage, or one that it stands on, is not whole.
    """
    store.require_whole(stage)
    ranks = start_ranks(resolve_device(stage.device))
    task = cached_task(stage)
    base = cached_base(stage.model, ranks.device)
    with (
        adapted(base, finished_adapters(stage.chain[:-1], store)) as model,
        merged_if_asked(stage, model, lambda: task),
        ExitStack() as until_scored,
    ):
        model.load_trained(saved_adapters(stage, store))
        compute_as_trained(stage, model, until_scored)
        score = scorer(task, stage.data, stage.evaluation, stage.seed)
        scores = score(model, task.eval, ranks=ranks)
    before = pd.read_parquet(store.folder(stage.fingerprint) / PREDICTIONS)
    with tempfile.TemporaryDirectory() as folder:
        write_predictions(Path(folder) / PREDICTIONS, stage.data, task, scores)
        now = pd.read_parquet(Path(folder) / PREDICTIONS)
    return _said(before, now)


def _said(before: pd.DataFrame, now: pd.DataFrame) -> str:
    if before.equals(now):
        return ""
    if list(before.columns) != list(now.columns) or list(before.id) != list(now.id):
        return "they are of other examples, or in other columns"
    changed = int((before.prediction.fillna("") != now.prediction.fillna("")).sum())
    scores = [name for name in map(str, before) if name.startswith("logprob")]
    largest = max((_largest(before[name], now[name]) for name in scores), default=float("nan"))
    return (
        f"{changed:,} of {len(now):,} predictions differ, and log-probabilities by at most "
        f"{largest:.2g}"
    )


def _largest(before: pd.Series, now: pd.Series) -> float:
    """The largest difference between two columns of numbers, or of lists of numbers."""
    difference = before.explode().astype(float) - now.explode().astype(float).to_numpy()
    return float(difference.abs().max())
