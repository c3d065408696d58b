"""Executing one stage: parent, train, evaluate, save."""

import functools
import os
import platform
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from heft_pipeline.data.batches import AnsweredPrompt
from heft_pipeline.data.prompts import Task
from heft_pipeline.data.tokenized import tokenized_task
from heft_pipeline.evaluation import Scores, score
from heft_pipeline.memory import peak_mb, reset_peak
from heft_pipeline.models.adapted import AdaptedModel, adapted
from heft_pipeline.models.base import Base, load_base, load_tokenizer, resolve_device
from heft_pipeline.models.edits import edit_sizes
from heft_pipeline.parallel import Ranks, start_ranks
from heft_pipeline.spec import DataSpec, ModelSpec, StageSpec
from heft_pipeline.store import Store
from heft_pipeline.training.flops import FlopCounter
from heft_pipeline.training.loop import Counters, Progress, Trainer

#: The sizes of a stage's ReFT edits, by layer and position.
EDITS = "reft_edits.csv"
#: Enough for a mean of norms.
_EDIT_EXAMPLES = 128
_VERSIONS = ("torch", "transformers", "peft", "pyreft", "pyvene", "accelerate")


@dataclass(frozen=True)
class Outcome:
    """What asking for a stage came to.

    Attributes:
        result: The stage's ``result.json``.
        reused: It was complete already, so nothing was trained.
    """

    result: dict[str, Any]
    reused: bool


def run_stage(
    stage: StageSpec,
    store: Store,
    *,
    progress: Progress = lambda *_, **__: None,
    should_stop: Callable[[], bool] = lambda: False,
    on_wait: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Make a stage complete: reuse it, resume it, or train it from the start.

    Args:
        stage: The stage; its parents must be complete.
        store: Where stages are.
        progress: Told how far it is.
        should_stop: Asked before each step; true ends training with a checkpoint.
        on_wait: Called with the holder where another process is training this stage.

    Returns:
        The result.

    Raises:
        UserError: The model, the data or the adapter cannot be had as asked.
        NonFiniteLoss: Training diverged.
        Interrupted: ``should_stop`` said so.
    """
    fingerprint = stage.fingerprint
    ranks = start_ranks(resolve_device(stage.device))
    with store.lock(fingerprint, on_wait) if ranks.first else nullcontext():
        result = ranks.from_first(store.result(fingerprint))
        if result is not None:
            return Outcome(result, reused=True)
        if ranks.first:
            store.begin(stage)
        result = _train_and_evaluate(stage, store, ranks, progress, should_stop)
        if ranks.first:
            store.complete(fingerprint, result)
        return Outcome(result, reused=False)


def _train_and_evaluate(
    stage: StageSpec,
    store: Store,
    ranks: Ranks,
    progress: Progress,
    should_stop: Callable[[], bool],
) -> dict[str, Any]:
    started = time.perf_counter()
    folder, device = store.folder(stage.fingerprint), ranks.device
    reset_peak(device)
    task = cached_task(stage.data, stage.model, stage.seed, store.tokenized)
    base = cached_base(stage.model, device)
    flops = FlopCounter(base.model, base.layers)
    parents = [(parent, store.adapter(parent)) for parent in stage.chain[:-1]]
    with adapted(base, parents) as model:
        counters, trainable, reuse, merge_error = Counters(), 0, "", None
        if stage.reft and not stage.lora and stage.reft.merge_parent:
            merge_error = model.merge_parents(_probe(task))
        if stage.training is not None:
            torch.manual_seed(stage.seed)
            model.add_trainable(stage)
            trainable = model.trainable_count()
            if stage.training.compile:
                model.compile_layers()
            if stage.training.gradient_checkpointing:
                model.recompute_layers()
            trainer = Trainer(stage, model, task, flops, folder, should_stop, progress, ranks)
            counters, reuse = trainer.run(), trainer.reuse
            model.finish()
            if ranks.first:
                model.save(stage, folder / "adapter")
        evaluated = time.perf_counter()
        scores = _evaluate(stage, model, task, progress, ranks)
        eval_seconds = time.perf_counter() - evaluated
        if ranks.first:
            _write_edits(folder / EDITS, stage, model, task)
    if ranks.first:
        _write_predictions(folder / "predictions.parquet", task, scores)
    return {
        "fingerprint": stage.fingerprint,
        "kind": stage.kind,
        "label": stage.label,
        "accuracy": scores.accuracy,
        "eval_loss": scores.loss,
        "n_eval": len(task.eval),
        "n_train": len(task.train),
        "n_dev": len(task.dev),
        "truncated_prompts": task.truncated,
        "majority_accuracy": scores.gold.bincount().max().item() / len(task.eval),
        "best_epoch": counters.best_epoch or None,
        "best_dev_accuracy": counters.best_accuracy if counters.best_epoch else None,
        "epochs_trained": counters.epoch,
        "steps": counters.step,
        "trainable_params": trainable,
        "train_seconds": counters.train_seconds,
        "reuse_seconds": counters.reuse_seconds,
        "reuse": reuse,
        "merge_error": merge_error,
        "dev_seconds": counters.dev_seconds,
        "eval_seconds": eval_seconds,
        "wall_seconds": time.perf_counter() - started,
        "train_tflop": counters.train_flop / 1e12,
        "train_examples": counters.examples,
        "peak_memory_mb": peak_mb(device),
        "resumes": counters.resumes,
        "micro_batch_tokens": counters.micro_batch_tokens,
        "processes": ranks.world,
        "dtype": str(base.model.dtype).removeprefix("torch."),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(device),
    }


def _probe(task: Task) -> list[AnsweredPrompt]:
    """A few dev prompts, to see what an approximation changes."""
    return [AnsweredPrompt(e.prompt, task.choices[0][:1]) for e in task.dev[:8]]


def _evaluate(
    stage: StageSpec, model: AdaptedModel, task: Task, progress: Progress, ranks: Ranks
) -> Scores:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress("eval", done, len(ranks.share(task.eval)))

    return score(
        model,
        task.eval,
        task.choices,
        batch_size=stage.evaluation.batch_size,
        mode=stage.evaluation.mode,
        advance=advance,
        ranks=ranks,
    )


def _write_predictions(path: Path, task: Task, scores: Scores) -> None:
    """Columns: id, gold, prediction (null where generated text is no choice), logprob_LABEL."""
    labels = [*task.labels, None]  # index -1 is 'none of them'
    table = pd.DataFrame(
        {
            "id": [e.id for e in task.eval],
            "gold": [labels[i] for i in scores.gold.tolist()],
            "prediction": [labels[i] for i in scores.predictions.tolist()],
        }
    )
    for column, label in enumerate(task.labels):
        table[f"logprob_{label}"] = scores.log_probabilities[:, column].numpy()
    partial = path.with_suffix(f".{os.getpid()}")
    table.to_parquet(partial, index=False)
    partial.replace(path)


def _write_edits(path: Path, stage: StageSpec, model: AdaptedModel, task: Task) -> None:
    """Columns as :func:`~heft_pipeline.models.edits.edit_sizes` gives; dev examples are read."""
    answer = task.choices[0][:1]  # an edit of the prompt does not see the answer
    sequences = [AnsweredPrompt(e.prompt, answer) for e in task.dev[:_EDIT_EXAMPLES]]
    sizes = edit_sizes(model, sequences, stage.evaluation.batch_size)
    if sizes is not None:
        sizes.to_csv(path, index=False)


def machine(device: torch.device) -> dict[str, Any]:
    """What a result was made on.

    Args:
        device: Where it was computed.

    Returns:
        Host, device name, threads, package versions, and this code's own commit.
    """
    from importlib.metadata import version

    return {
        "host": platform.node(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "heft_pipeline": version("heft-pipeline"),
        "commit": commit(),
        **{name: version(name) for name in _VERSIONS},
    }


@functools.lru_cache(maxsize=1)
def commit() -> str | None:
    """The git commit of this code, with ``+changes`` where files differ from it.

    Returns:
        None where the package is not in a git checkout.
    """
    package = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(package), *arguments], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy may lie in another project's checkout, where it is not tracked.
    if not git("ls-files", Path(__file__).name):
        return None
    changes = git("status", "--porcelain", "--untracked-files=no", "--", str(package))
    head = git("rev-parse", "HEAD")
    return f"{head}+changes" if head and changes else head


@functools.lru_cache(maxsize=8)
def cached_task(data: DataSpec, model: ModelSpec, seed: int, cache: Path | None = None) -> Task:
    """The tokenised task of the stage before, where it is the same.

    Args:
        data: The task.
        model: The model whose tokenizer is used.
        seed: Decides the dev split.
        cache: The folder of tokenised tasks; None for none.

    Returns:
        What :func:`~heft_pipeline.data.prompts.load_task` gives.
    """
    return tokenized_task(data, model, seed, load_tokenizer, cache)


@functools.lru_cache(maxsize=1)
def cached_base(model: ModelSpec, device: torch.device) -> Base:
    """The base model of the stage before, where it is the same; stages leave it as it was.

    Args:
        model: The model.
        device: Where it is.

    Returns:
        What :func:`~heft_pipeline.models.base.load_base` gives.
    """
    return load_base(model, device)
